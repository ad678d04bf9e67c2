"""Local optimisation and scoring: what centralized training and a site's work in a round have in common.

Functions here take a model and samples and return losses or probabilities. They write nothing; randomness comes from
the run's seed, the epoch and the names of the sites trained on, so that a resumed or federated epoch equals the same
epoch of an uninterrupted centralized run.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from client.dataset import SampleSet
from dipro_model import Batch, ClassWeights, DiPro, class_weights_from_counts, collate, objective
from dipro_model.execution import faster_on_cpu
from dipro_model.vocabulary import Task
from federation.memory import keep_freed_memory, tensor_memory
from federation.seeds import derive_seed
from federation.settings import RunSettings

logger = logging.getLogger(__name__)

_LEAST_BF16_PIXELS = 17
"""At 16 pixels the last stage's convolution of stride 2 sees a single pixel, for which torch 2.13 leaves the bfloat16
gradient of its weights uninitialised on a CPU."""


class TrainingError(ValueError):
    """Training that cannot go on; says at which epoch and step, and what to change."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model says about each sample of a set, beside the labels; rows in the order of the samples."""

    labels: np.ndarray
    """int64 [sample], or [sample, disease] for progression."""
    probabilities: np.ndarray
    """float32 [sample, output, class]; mortality has the single probability of death."""
    attention: np.ndarray
    """float32 [sample, output, region]: the weight that each output gives to each region, mean over the real pairs."""
    losses: Mapping[str, float]
    """Mean over samples of the objective (`total`) and of its parts, in evaluation mode."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where training stands in an epoch, between two optimizer steps: with weights and optimizer all that goes on."""

    num_steps: int
    """Optimizer steps done."""
    num_samples: int
    """Samples learned from."""
    sums: Mapping[str, float]
    """Sums over these samples of the objective (`total`) and of its parts."""
    random_state: Tensor
    """State of torch's generator, which dropout draws from, on the CPU."""
    device_random_state: Tensor | None
    """State of the GPU's generator; None where training runs on the CPU."""


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


def make_optimizer(model: DiPro, settings: RunSettings) -> torch.optim.Optimizer:
    """A fresh optimizer over the parameters that are trained; static fusion may learn at a rate of its own."""
    training = settings.training
    apart = set(model.static_fusion.parameters())
    groups = [
        {
            "params": [each for each in model.parameters() if each.requires_grad and (each in apart) is is_static],
            "rate_factor": factor,
        }
        for is_static, factor in ((False, 1.0), (True, training.static_fusion_rate))
    ]
    rate, decay = training.start_rate(settings.task), training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)


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
    repeat: int = 0,
    order: Sequence[int] | None = None,
    start: Position | None = None,
    before_step: Callable[[], None] = lambda: None,
    after_step: Callable[[Position], None] = lambda position: None,
    is_over: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """One pass over the samples; a step's gradient is the mean over the samples of its accumulated batches.

    `before_step` may change the gradients of a step whose loss is finite. After each step `is_over` may end the pass;
    `repeat` counts earlier passes at the rate of the same epoch, which have an order and random numbers of their own.
    `order` names the samples to go through, by number, in place of all of them in an order of the epoch's own.

    From a position `start` of the same epoch, which `after_step` was told once, the pass goes on as if it had never
    stopped: bit for bit on a CPU with the same number of threads, given the weights and the optimizer of that moment.

    Returns the mean over the samples learned from of the objective (`total`) and of its parts. Raises TrainingError
    before the optimizer step where the loss is not finite, naming stay and term, or where memory does not suffice.
    """
    device = device_of(model)
    begin_epoch(model, settings, _epoch_seed(settings, "dropout", epoch, repeat, samples))
    for group in optimizer.param_groups:
        group["lr"] = group["rate_factor"] * learning_rate(settings, epoch, num_epochs)
    if order is None:
        order = _shuffled(len(samples), _epoch_seed(settings, "order", epoch, repeat, samples))
    sums, first, seen = _Sums(), 0, 0
    if start is not None:
        _restore_random_states(start, device)
        sums, first, seen = _Sums(start.sums), start.num_steps, start.num_samples
    loader = _loader(samples, settings, order[seen:], device)
    for step, batches in enumerate(_groups(loader, settings.training.accumulated_batches), start=first):
        where = f"epoch {epoch + 1}, step {step + 1}"
        group_size = sum(len(batch) for batch in batches)
        optimizer.zero_grad(set_to_none=True)
        with _memory_explained(where, batches, settings):
            terms = [_backward(model, batch.to(device, non_blocking=True), weights, group_size) for batch in batches]
        if not sums.add(terms, [len(batch) for batch in batches]):
            why = _broken_loss(model, samples, order[seen : seen + group_size], terms, weights)
            raise TrainingError(
                f"{where}: {why}; nothing was learned from this step. Lower training.learning_rate, or look for absurd "
                "values with `dipro-fed inspect`"
            )
        before_step()
        with _memory_explained(where, batches, settings):  # AdamW's state comes with its first step
            optimizer.step()
        seen += group_size
        after_step(_position(step + 1, seen, sums, device))
        if is_over():
            break
    return sums.means(seen)


def samples_in_turn(samples: SampleSet, settings: RunSettings, first: int, count: int) -> list[int]:
    """Numbers of `count` samples from place `first` on of endless passes over all, each in an order of its own."""
    size = len(samples)
    passes = range(first // size, (first + count - 1) // size + 1)
    order = [each for number in passes for each in _shuffled(size, _epoch_seed(settings, "order", number, 0, samples))]
    return order[first % size :][:count]


@torch.no_grad()
def predict(model: DiPro, samples: SampleSet, settings: RunSettings, weights: ClassWeights) -> Scores:
    """Probabilities, attention and losses of the model in evaluation mode, in the order of the samples.

    Raises TrainingError where the loss is not finite, naming stay and term, or where memory does not suffice.
    """
    device, sums, seen = device_of(model), _Sums(), 0
    model.eval()
    probabilities: list[Tensor] = []
    attention: list[Tensor] = []
    for batch in _loader(samples, settings, None, device):
        size = len(batch)
        with _memory_explained("scoring", [batch], settings):
            batch = batch.to(device, non_blocking=True)
            with faster_on_cpu():
                output = model(batch)
            total, parts = objective(output, batch, model.config, weights)
        terms = [{"total": total, **parts}]
        if not sums.add(terms, [size]):
            why = _broken_loss(model, samples, range(seen, seen + size), terms, weights)
            raise TrainingError(
                f"scoring the {samples.split} split: {why}. Look for absurd values with `dipro-fed inspect`; where it "
                "is so of every stay, the model has diverged: train again with a lower training.learning_rate"
            )
        seen += size
        probabilities.append(_probabilities(output.logits, settings.task).float().cpu())
        num_pairs = output.pair_mask.sum(dim=1).clamp(min=1)
        attention.append((output.region_attention.sum(dim=2) / num_pairs[:, None, None]).float().cpu())
    return Scores(
        labels=samples.labels,
        probabilities=torch.cat(probabilities).numpy(),
        attention=torch.cat(attention).numpy(),
        losses=sums.means(len(samples)),
    )


def _has_bf16() -> bool:
    """Whether oneDNN has convolutions in bfloat16 for this processor; without them torch takes a far slower way."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@cache
def _warn_of_bf16() -> None:
    """Once a process: a simulation places a network for each site."""
    logger.warning(
        "training.precision=bf16: this processor has no instructions for it, and the image network takes several times "
        "as long as with training.precision=fp32"
    )


def place(model: DiPro, device: torch.device, settings: RunSettings) -> DiPro:
    """The model on a device, its image network computed as the settings say, in the memory order fastest there.

    On a CPU the process keeps from then on what it frees, unless the settings ask for little memory, and bfloat16 is
    warned of where the processor lacks it. Raises TrainingError for crops so small that torch's bfloat16 convolutions
    on a CPU give wrong gradients.
    """
    pixels = settings.model.crop_pixels
    half_on_cpu = device.type == "cpu" and settings.training.precision == "bf16"
    if half_on_cpu and pixels < _LEAST_BF16_PIXELS:
        raise TrainingError(
            f"model.crop_pixels: expected {_LEAST_BF16_PIXELS} or more for training.precision=bf16 on a CPU, found "
            f"{pixels}; use larger crops, or training.precision=fp32"
        )
    if half_on_cpu and not _has_bf16():
        _warn_of_bf16()
    model.backbone.execute(settings.training.execution())
    saves = settings.training.checkpoint_activations and not settings.model.freeze_backbone
    if device.type == "cpu" and not saves:
        keep_freed_memory()
    if not all(_lies(each, device) for each in model.parameters()):
        # Documented, but torch's annotations lack this form.
        model = model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


def _lies(parameter: Tensor, device: torch.device) -> bool:
    in_order = parameter.ndim != 4 or parameter.is_contiguous(memory_format=torch.channels_last)
    return parameter.device == device and in_order


def begin_epoch(model: DiPro, settings: RunSettings, seed: int) -> None:
    """Set mode and random state: dropout draws the same numbers wherever this epoch runs."""
    torch.manual_seed(seed)
    model.train()
    if settings.training.batch_norm != "train":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _epoch_seed(settings: RunSettings, purpose: str, epoch: int, repeat: int, samples: SampleSet) -> int:
    repeated = (f"repeat {repeat}",) if repeat else ()
    return derive_seed(settings.seed, purpose, epoch, *repeated, *samples.sites)


def _position(num_steps: int, num_samples: int, sums: "_Sums", device: torch.device) -> Position:
    return Position(
        num_steps=num_steps,
        num_samples=num_samples,
        sums=dict(sums.values),
        random_state=torch.get_rng_state(),
        device_random_state=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    )


def _restore_random_states(position: Position, device: torch.device) -> None:
    torch.set_rng_state(position.random_state)
    if device.type == "cuda" and position.device_random_state is not None:
        torch.cuda.set_rng_state(position.device_random_state, device)


def _shuffled(size: int, seed: int) -> list[int]:
    """The order of one epoch, from its own seed."""
    return np.random.default_rng(seed).permutation(size).tolist()


def _loader(
    samples: SampleSet, settings: RunSettings, order: Sequence[int] | None, device: torch.device
) -> DataLoader[Batch]:
    samples.load()
    loader = DataLoader(
        samples,
        batch_size=settings.training.samples_per_batch(settings.task),
        sampler=order,
        collate_fn=partial(collate, empty=tensor_memory.empty),
        num_workers=settings.training.loader_workers,
        pin_memory=device.type == "cuda",
        # A generator of its own: the loader otherwise draws a number from the global state that dropout uses.
        generator=torch.Generator().manual_seed(0),
    )
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


def _backward(model: DiPro, batch: Batch, weights: ClassWeights, group_size: int) -> dict[str, Tensor]:
    """Add the batch's part to the gradient of its group; the objective and its terms come back, still on the device."""
    with faster_on_cpu():
        output = model(batch)
    total, parts = objective(output, batch, model.config, weights)
    (total * (len(batch) / group_size)).backward()
    return {name: value.detach() for name, value in {"total": total, **parts}.items()}


class _Sums:
    """Sums over samples of the objective and its terms, fetched from the device once a step."""

    def __init__(self, values: Mapping[str, float] | None = None) -> None:
        self.values: dict[str, float] = dict(values or {})

    def add(self, terms: Sequence[Mapping[str, Tensor]], sizes: Sequence[int]) -> bool:
        """Add batches of these sizes; false, and nothing added, where an objective is not finite."""
        rows = torch.stack([torch.stack(list(each.values())) for each in terms]).tolist()
        names = list(terms[0])
        if not all(math.isfinite(row[names.index("total")]) for row in rows):
            return False
        for row, size in zip(rows, sizes, strict=True):
            for name, value in zip(names, row, strict=True):
                self.values[name] = self.values.get(name, 0.0) + value * size
        return True

    def means(self, num_samples: int) -> dict[str, float]:
        return {name: value / num_samples for name, value in self.values.items()}


@contextmanager
def _memory_explained(where: str, batches: Sequence[Batch], settings: RunSettings) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # torch.OutOfMemoryError is a RuntimeError; the CPU's allocator raises the plain one.
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        frames = max(batch.frame_mask.shape[1] for batch in batches)
        raise TrainingError(
            f"{where}: memory does not suffice for a batch of {max(map(len, batches))} samples with up to {frames} "
            f"radiographs at {settings.model.crop_pixels} pixels; lower training.batch_size (raise "
            "training.accumulated_batches to match), set training.checkpoint_activations=true or "
            "training.precision=bf16, or lower model.crop_pixels"
        ) from error


@torch.no_grad()
def _broken_loss(
    model: DiPro,
    samples: SampleSet,
    indices: Sequence[int],
    terms: Sequence[Mapping[str, Tensor]],
    weights: ClassWeights,
) -> str:
    """Which terms of which stays are not finite, in words: each stay is scored by itself, in evaluation mode."""
    model.eval()
    names = dict.fromkeys(name for each in terms for name, value in each.items() if not torch.isfinite(value))
    guilty = []
    for index in indices:
        batch = collate([samples[index]]).to(device_of(model))
        total, parts = objective(model(batch), batch, model.config, weights)
        own = [name for name, value in parts.items() if not torch.isfinite(value)]
        if own or not torch.isfinite(total):
            guilty.append(f"{samples.name(index)} ({', '.join(own) or 'total'})")
    stays = "; ".join(guilty) or f"none of the {len(indices)} stays alone, so their batch statistics or the weights"
    broken = ", ".join(name for name in names if name != "total") or "total"
    return f"the loss is not finite ({broken}), because of {stays}"


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
