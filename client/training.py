"""Local optimisation and scoring: what centralized training and a site's work in a round have in common.

Functions here take a model and samples and return losses or probabilities. They write nothing; randomness comes from
the run's seed, the epoch and the names of the sites trained on, so that a resumed or federated epoch equals the same
epoch of an uninterrupted centralized run.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from client.dataset import SampleSet
from dipro_model import Batch, ClassWeights, DiPro, class_weights_from_counts, collate, objective
from dipro_model.vocabulary import Task
from federation.seeds import derive_seed
from federation.settings import RunSettings


class TrainingError(ValueError):
    """Training that cannot go on; says at which epoch and step, and what to change."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model says about each sample of a set, beside the labels; rows in the order of the samples."""

    labels: np.ndarray
    """int64 [sample], or [sample, disease] for progression."""
    probabilities: np.ndarray
    """float32 [sample, output, class]; mortality has the single probability of death."""
    losses: Mapping[str, float]
    """Mean over samples of the objective (`total`) and of its parts, in evaluation mode."""


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU. Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}; use auto, cpu or cuda") from None
    return torch.device(name)


def class_weights(samples: SampleSet, settings: RunSettings) -> ClassWeights:
    """Weights of classes and of deaths from these training samples' labels."""
    return class_weights_from_counts(
        settings.training.class_weights,
        progression=samples.progression_counts().tolist(),
        mortality=np.bincount(samples.labels, minlength=2).tolist() if settings.task is Task.MORTALITY else None,
    )


def make_optimizer(model: nn.Module, settings: RunSettings) -> torch.optim.Optimizer:
    """A fresh optimizer over the parameters that are trained."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate, decay = settings.training.start_rate(settings.task), settings.training.weight_decay
    if settings.training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)


def learning_rate(settings: RunSettings, epoch: int, num_epochs: int) -> float:
    """Rate of an epoch, counted from 0 over the whole run: cosine from the start rate to the final one."""
    start, final = settings.training.start_rate(settings.task), settings.training.final_learning_rate
    if settings.training.schedule == "constant":
        return start
    return final + (start - final) * (1 + math.cos(math.pi * epoch / num_epochs)) / 2


def train_epoch(
    model: DiPro,
    samples: SampleSet,
    optimizer: torch.optim.Optimizer,
    settings: RunSettings,
    weights: ClassWeights,
    *,
    epoch: int,
    num_epochs: int,
) -> dict[str, float]:
    """One pass over the samples; a step's gradient is the mean over the samples of its accumulated batches.

    Returns the mean over samples of the objective (`total`) and of its parts. Raises TrainingError before the
    optimizer step where the loss is not finite.
    """
    device = _device_of(model)
    _begin_epoch(model, settings, epoch, samples)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, epoch, num_epochs)
    loader = _loader(samples, settings, _Shuffled(len(samples), _epoch_seed(settings, "order", epoch, samples)))
    sums: dict[str, float] = {}
    for step, batches in enumerate(_groups(loader, settings.training.accumulated_batches)):
        group_size = sum(len(batch) for batch in batches)
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            batch = batch.to(device)
            total, parts = objective(model(batch), batch, model.config, weights)
            if not torch.isfinite(total):
                broken = [name for name, value in parts.items() if not torch.isfinite(value)] or ["total"]
                raise TrainingError(
                    f"epoch {epoch + 1}, step {step + 1}: the loss is not finite ({', '.join(broken)}); "
                    "lower training.learning_rate, or look for absurd values with `dipro-fed inspect`"
                )
            (total * (len(batch) / group_size)).backward()
            _add(sums, {"total": total, **parts}, len(batch))
        optimizer.step()
    return {name: value / len(samples) for name, value in sums.items()}


@torch.no_grad()
def predict(model: DiPro, samples: SampleSet, settings: RunSettings, weights: ClassWeights) -> Scores:
    """Probabilities and losses of the model in evaluation mode, in the order of the samples."""
    device, sums = _device_of(model), {}
    model.eval()
    probabilities: list[Tensor] = []
    for batch in _loader(samples, settings, None):
        batch = batch.to(device)
        output = model(batch)
        total, parts = objective(output, batch, model.config, weights)
        _add(sums, {"total": total, **parts}, len(batch))
        probabilities.append(_probabilities(output.logits, settings.task).float().cpu())
    return Scores(
        labels=samples.labels,
        probabilities=torch.cat(probabilities).numpy(),
        losses={name: value / len(samples) for name, value in sums.items()},
    )


def place(model: DiPro, device: torch.device) -> DiPro:
    """The model on a device, its convolutions in the memory order that is fastest there."""
    # Documented, but torch's annotations lack this form.
    return model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _begin_epoch(model: DiPro, settings: RunSettings, epoch: int, samples: SampleSet) -> None:
    """Set mode and random state: dropout draws the same numbers wherever this epoch runs."""
    torch.manual_seed(_epoch_seed(settings, "dropout", epoch, samples))
    model.train()
    if settings.training.batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _epoch_seed(settings: RunSettings, purpose: str, epoch: int, samples: SampleSet) -> int:
    return derive_seed(settings.seed, purpose, epoch, *samples.sites)


class _Shuffled(Sampler[int]):
    """The order of one epoch, from its own seed."""

    def __init__(self, size: int, seed: int) -> None:
        self.order = np.random.default_rng(seed).permutation(size).tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


def _loader(samples: SampleSet, settings: RunSettings, sampler: _Shuffled | None) -> DataLoader[Batch]:
    size = settings.training.samples_per_batch(settings.task)
    # A generator of its own: the loader otherwise draws a number from the global state that dropout uses.
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(samples, batch_size=size, sampler=sampler, collate_fn=collate, generator=generator)
    return cast(DataLoader[Batch], loader)  # typed by what it collates from, not to


def _groups(loader: DataLoader[Batch], size: int) -> Iterator[list[Batch]]:
    group: list[Batch] = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _probabilities(logits: Tensor, task: Task) -> Tensor:
    return logits.sigmoid() if task is Task.MORTALITY else logits.softmax(dim=-1)


def _add(sums: dict[str, float], values: Mapping[str, Tensor], count: int) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + float(value.detach()) * count


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
