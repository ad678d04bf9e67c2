"""A site's work in a round by DP-SGD: Poisson samples of patients, their shortened gradients, noise, one step each."""

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from client.dataset import SampleSet
from client.patient_gradients import clipped_sum
from client.training import TrainingError, begin_epoch, learning_rate
from dipro_model import ClassWeights, DiPro
from federation.secure_noise import gaussian
from federation.seeds import derive_seed
from federation.settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class PrivateWork:
    """The work of one site in one round, whose result hides any one of its training patients.

    A step's gradient is (sum over sampled patients of shortened gradients + noise) / expected number of patients; noise
    is normal with standard deviation noise multiplier x clip in every entry, from the system's cryptographic source
    (Abadi et al. 2016, "Deep learning with differential privacy"). An empty sample makes a step of noise alone. The
    optimizer sees nothing but these gradients, so what it makes of them spends nothing more. Sampling and noise do not
    follow from the run's seed: private work is never the same twice.
    """

    settings: RunSettings
    server_round: int
    """From 1."""

    def run(
        self,
        model: DiPro,
        samples: SampleSet,
        optimizer: torch.optim.Optimizer,
        weights: ClassWeights,
        *,
        spend: Callable[[int], None],
        before_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the round's steps, whose number `spend` is told before the first of them; it raises where it forbids it.

        `before_step` may change a step's gradients by what follows from the model alone.
        """
        privacy, federation = self.settings.patient_privacy, self.settings.federation
        count, noise = privacy.steps_a_round(federation), privacy.noise(federation)
        patients = patients_of(samples)
        spend(count)
        begin_epoch(model, self.settings, self._dropout_seed(samples))
        _require_no_batch_statistics(model)
        rate = learning_rate(self.settings, self.server_round - 1, federation.rounds)
        for group in optimizer.param_groups:
            group["lr"] = group["rate_factor"] * rate
        trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        at_once = privacy.patients_at_once if privacy.gradients == "vmap" else None
        for _ in range(count):
            chosen = poisson_sample(len(patients), privacy.sampling_rate)
            batch = [[samples[index] for index in patients[number]] for number in chosen]
            total = clipped_sum(model, batch, weights, clip=privacy.clip, patients_at_once=at_once)
            std, expected = noise * privacy.clip, privacy.sampling_rate * len(patients)
            for name, parameter in trained.items():
                parameter.grad = _noised(total[name], std) / expected
            before_step()
            optimizer.step()

    def _dropout_seed(self, samples: SampleSet) -> int:
        return derive_seed(self.settings.seed, "dropout", self.server_round - 1, *samples.sites)


def _require_no_batch_statistics(model: nn.Module) -> None:
    """Raises TrainingError where a layer would normalise with what other patients have."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise TrainingError(
                f"{name}: expected batch norm in evaluation mode with statistics of its own for a private run, found "
                "one that takes those of a batch, in which patients mix; set training.batch_norm=frozen"
            )


def _noised(total: Tensor, std: float) -> Tensor:
    """The sum and noise, added in double precision and rounded once, as `gaussian` asks for."""
    noise = torch.from_numpy(gaussian(total.numel(), std)).to(total.device)
    return (total.double() + noise.reshape(total.shape)).to(total.dtype)


def patients_of(samples: SampleSet) -> list[list[int]]:
    """The numbers of each patient's samples."""
    found: dict[tuple[str, int], list[int]] = {}
    for number, patient in enumerate(samples.patients):
        found.setdefault(patient, []).append(number)
    return list(found.values())


def poisson_sample(size: int, rate: float) -> Sequence[int]:
    """Each of `size` numbers with chance `rate`, by the system's cryptographic source: who is in a sample is secret.

    The chance is rounded down to a multiple of 2^-53, so that nobody is in more samples than are accounted for.
    """
    if rate >= 1:
        return range(size)
    drawn = np.frombuffer(secrets.token_bytes(8 * size), np.uint64) >> np.uint64(11)
    return np.flatnonzero(drawn < np.uint64(math.floor(rate * 2**53))).tolist()
