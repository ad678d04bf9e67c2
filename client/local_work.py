"""How much a site trains in a round: passes over its samples, optimizer steps, or seconds."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from client.dataset import SampleSet
from client.received_norms import received_norms
from client.training import Position, train_epoch
from dipro_model import ClassWeights, DiPro
from federation.settings import RunSettings


@dataclass(kw_only=True)
class LocalWork:
    """The work of one site in one round."""

    settings: RunSettings
    server_round: int
    """From 1."""
    num_steps: int = 0
    """Optimizer steps made so far."""
    sum_of_rates: float = 0.0
    """Learning rates of these steps, summed."""

    def run(
        self,
        model: DiPro,
        samples: SampleSet,
        optimizer: torch.optim.Optimizer,
        weights: ClassWeights,
        *,
        before_step: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Train until the round's work is done; the mean losses of the last pass.

        Raises TrainingError as `train_epoch` does.
        """
        deadline = time.monotonic() + self.settings.federation.local_seconds
        losses: dict[str, float] = {}

        def count(position: Position) -> None:
            self.num_steps += 1
            self.sum_of_rates += optimizer.param_groups[0]["lr"]

        def is_over() -> bool:
            federation = self.settings.federation
            if federation.local_work == "steps":
                return self.num_steps >= federation.local_steps
            return federation.local_work == "seconds" and time.monotonic() >= deadline

        received = received_norms(model) if self.settings.training.batch_norm == "received" else nullcontext()
        with received:
            for epoch, repeat, num_epochs in self._passes():
                losses = train_epoch(
                    model,
                    samples,
                    optimizer,
                    self.settings,
                    weights,
                    epoch=epoch,
                    num_epochs=num_epochs,
                    repeat=repeat,
                    before_step=before_step,
                    after_step=count,
                    is_over=is_over,
                )
                if is_over():
                    break
        return losses

    def _passes(self) -> Iterator[tuple[int, int, int]]:
        """Epoch, repeat and number of epochs of each pass; the rate of steps or seconds moves from round to round."""
        federation, first = self.settings.federation, self.server_round - 1
        if federation.local_work == "epochs":
            local = federation.local_epochs
            for number in range(local):
                yield first * local + number, 0, federation.rounds * local
            return
        for repeat in itertools.count():
            yield first, repeat, federation.rounds
