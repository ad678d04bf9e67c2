"""How much a site trains in a round: passes over its samples, optimizer steps, or seconds."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from client.dataset import SampleSet
from client.received_norms import received_norms
from client.training import Position, samples_in_turn, train_epoch
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
    norm_gradients: np.ndarray | None = None
    """With `training.batch_norm=received`: of all sites' batch norms, float32 [number]; afterwards of this work's."""

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

        def before() -> None:
            if norms is not None:
                norms.note_gradients()
            before_step()

        training = self.settings.training
        share = 1 / training.accumulated_batches
        with (
            received_norms(model, self.norm_gradients, batch_share=share)
            if training.batch_norm == "received"
            else nullcontext()
        ) as norms:
            for each in self._passes(samples):
                losses = train_epoch(
                    model,
                    samples,
                    optimizer,
                    self.settings,
                    weights,
                    epoch=each.epoch,
                    num_epochs=each.num_epochs,
                    repeat=each.repeat,
                    order=each.order,
                    before_step=before,
                    after_step=count,
                    is_over=is_over,
                )
                if is_over():
                    break
        if norms is not None:
            self.norm_gradients = norms.gradients
        return losses

    def _passes(self, samples: SampleSet) -> Iterator["_Pass"]:
        """All that may be needed; the rate of steps or seconds moves from round to round."""
        federation, first = self.settings.federation, self.server_round - 1
        if federation.local_work == "epochs":
            local = federation.local_epochs
            for number in range(local):
                yield _Pass(epoch=first * local + number, num_epochs=federation.rounds * local)
            return
        training = self.settings.training
        a_step = training.samples_per_batch(self.settings.task) * training.accumulated_batches
        if federation.local_work == "steps" and a_step < len(samples):
            count = federation.local_steps * a_step
            order = samples_in_turn(samples, self.settings, first * count, count)
            yield _Pass(epoch=first, num_epochs=federation.rounds, order=order)
            return
        for repeat in itertools.count():
            yield _Pass(epoch=first, num_epochs=federation.rounds, repeat=repeat)


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """What `train_epoch` is called with."""

    epoch: int
    num_epochs: int
    repeat: int = 0
    order: Sequence[int] | None = None


def of_common_batch(settings: RunSettings, num_samples: int, total_samples: int) -> RunSettings:
    """The settings with this site's part of a batch of all sites, at the rate of the whole batch.

    Its share is that of its `num_samples` in the `total_samples` of all sites; at least one sample, at most all of the
    batch. Settings without `federation.common_batch` stay as they are.
    """
    if not settings.federation.common_batch:
        return settings
    whole = settings.training.samples_per_batch(settings.task)
    part = min(whole, max(1, round(whole * num_samples / max(total_samples, 1))))
    own = {"batch_size": part, "learning_rate": settings.training.start_rate(settings.task)}
    return settings.model_copy(update={"training": settings.training.model_copy(update=own)})
