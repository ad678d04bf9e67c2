"""A site's own model beside the common one: made from it in every round, or once at the end, and kept at the site.

docs/strategies.md has the formulas. Of the run's best round so far and of the last one the site keeps its model, so
that the scores of the run's end are those of the chosen round.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from client.corrections import GradientCorrection, with_own
from client.dataset import SampleSet
from client.local_work import LocalWork
from client.site_state import SiteState
from client.training import make_optimizer
from dipro_model import ClassWeights, DiPro
from federation.messages import Instruction
from federation.selection import model_entries
from federation.settings import RunSettings
from federation.weights import flatten_weights, unflatten_weights

_PERSONAL = "personal"


@dataclass(frozen=True, kw_only=True)
class Personal:
    """The personal model of one site under one method."""

    settings: RunSettings
    state: SiteState

    @property
    def method(self) -> str:
        return self.settings.personal.method

    def start(self, model: DiPro, received: np.ndarray, server_round: int) -> np.ndarray:
        """float32 [number]: what the site's work for the common model begins with; with FedBN it has own batch norm."""
        own = self._last(server_round - 1) if self.method == "fedbn" else None
        return received if own is None else with_own(received, own, model_entries(model).batch_norm)

    def keep(
        self,
        model: DiPro,
        instruction: Instruction,
        received: np.ndarray,
        samples: SampleSet,
        weights: ClassWeights,
    ) -> None:
        """After the round's work, which has left its result in the model: make and keep what is the site's own.

        `received` is the common model that the round began with. Ditto trains its model in `model`'s place.
        """
        if self.method == "fedbn":
            self._keep(instruction, model_entries(model).batch_norm.take(flatten_weights(model)))
        if self.method == "ditto":
            own = self._last(instruction.server_round - 1)
            unflatten_weights(model, received if own is None else own)
            anchor = model_entries(model).parameters.take(received)
            pull = GradientCorrection(model, anchor=anchor, strength=self.settings.personal.strength).apply
            rounds = self.settings.federation.rounds
            self._train(model, samples, weights, server_round=instruction.server_round, rounds=rounds, before_step=pull)
            self._keep(instruction, flatten_weights(model))

    def scored(
        self, model: DiPro, instruction: Instruction, received: np.ndarray, samples: SampleSet, weights: ClassWeights
    ) -> np.ndarray:
        """float32 [number]: the weights that the site scores: its own where it has some, else the common ones."""
        if self.method == "finetune" and instruction.final:
            unflatten_weights(model, received)
            self._train(model, samples, weights, server_round=1, rounds=1)
            return flatten_weights(model)
        own = self._last(instruction.server_round)
        if own is None:
            return received
        return with_own(received, own, model_entries(model).batch_norm) if self.method == "fedbn" else own

    def _train(
        self,
        model: DiPro,
        samples: SampleSet,
        weights: ClassWeights,
        *,
        server_round: int,
        rounds: int,
        before_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Passes over the site's samples; the rate moves from its start in round 1 to its end after the last."""
        own, training = self.settings.personal, self.settings.training
        passes = {"local_work": "epochs", "local_epochs": own.epochs, "rounds": rounds}
        rate = {"learning_rate": training.start_rate(self.settings.task) * own.rate_factor}
        settings = self.settings.model_copy(
            update={
                "federation": self.settings.federation.model_copy(update=passes),
                "training": training.model_copy(update=rate),
            }
        )
        work = LocalWork(settings=settings, server_round=server_round)
        work.run(model, samples, make_optimizer(model, settings), weights, before_step=before_step)

    def _keep(self, instruction: Instruction, values: np.ndarray) -> None:
        name = f"{_PERSONAL}-{instruction.server_round}"
        self.state.keep(name, values)
        # Of a best round without this site's work the model of its last work before counts; the model that this
        # round began with is needed where a server that crashed asks for the round again.
        numbers = self.state.numbers(_PERSONAL)
        wanted = (
            [number for number in numbers if number <= limit][-1:]
            for limit in (instruction.best_round, instruction.server_round - 1)
        )
        self.state.drop(_PERSONAL, but={name, *(f"{_PERSONAL}-{number}" for last in wanted for number in last)})

    def _last(self, at_most: int) -> np.ndarray | None:
        """The kept model of the last round up to `at_most`."""
        if self.method not in ("fedbn", "ditto"):
            return None
        found = [number for number in self.state.numbers(_PERSONAL) if number <= at_most]
        return self.state.find(f"{_PERSONAL}-{found[-1]}") if found else None
