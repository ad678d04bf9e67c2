"""A model's state as one flat float32 array, and back.

Flower's cost is per array, not per byte: 440 arrays of a state dict take seven times as long as one array of the
same size. What travels is every floating tensor of the state dict, batch-norm statistics included, in the state
dict's order; counters (`num_batches_tracked`) stay where they are.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from federation.memory import tensor_memory

Model = TypeVar("Model", bound=nn.Module)


class WeightsError(ValueError):
    """Weights that do not belong to this model; says how they differ."""


def flatten_weights(model: nn.Module) -> np.ndarray:
    """float32 [number]: all floating tensors of the state dict one behind the other."""
    tensors = list(_floating(model).values())
    flat, start = tensor_memory.empty([sum(tensor.numel() for tensor in tensors)], torch.float32), 0
    for tensor in tensors:
        # One copy, by all threads, whatever the memory order, type and device of the tensor.
        flat[start : start + tensor.numel()].view(tensor.shape).copy_(tensor.detach())
        start += tensor.numel()
    return flat.numpy()


class _Uninitialised(TorchFunctionMode):
    """Leaves memory as it is where torch would draw or set the first values of a network."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        # Getters of tensors' attributes have no module.
        if getattr(func, "__module__", None) == nn.init.__name__ or func in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


_DRAWS = (Tensor.normal_, Tensor.uniform_)


def blank_model(make: Callable[[], Model]) -> Model:
    """The model that `make` makes, to be filled by `unflatten_weights` before anything else: its values mean nothing.

    Drawing the 31 million weights of a network takes longer than filling it.
    """
    with _Uninitialised():
        return make()


def check_weights(model: nn.Module, flat: np.ndarray) -> None:
    """Raises WeightsError where an array is not one-dimensional float32 of the model's size, or not finite."""
    _check(flat, sum(tensor.numel() for tensor in _floating(model).values()))


def all_finite(flat: np.ndarray) -> bool:
    """Whether an array of floats has neither NaN nor infinity, in one pass that leaves nothing behind."""
    if not flat.size:
        return True
    # The least and the largest of numbers among which one is NaN are NaN. (A received array is read-only, see `_fill`.)
    least, largest = torch.aminmax(torch.from_dlpack(flat))
    return math.isfinite(least) and math.isfinite(largest)


def _check(flat: np.ndarray, total: int) -> None:
    if flat.dtype != np.float32 or flat.shape != (total,):
        raise WeightsError(f"expected weights as float32 [{total}], found {flat.dtype} {list(flat.shape)}")
    if not all_finite(flat):
        raise WeightsError(
            f"expected finite weights, found {int((~np.isfinite(flat)).sum())} that are not; "
            "has the training diverged? Lower training.learning_rate"
        )


def unflatten_weights(model: nn.Module, flat: np.ndarray, *, keep_frozen: bool = False) -> None:
    """Write a flat array into the model, in place. Raises WeightsError where it does not belong to the model.

    `keep_frozen` leaves alone what is not trained: a mean over sites of equal weights differs from them in the last
    bit, and features that were computed with them would no longer fit.
    """
    tensors = _floating(model)
    _check(flat, sum(tensor.numel() for tensor in tensors.values()))
    kept = _frozen(model) if keep_frozen else frozenset()
    start = 0
    for name, tensor in tensors.items():
        if name not in kept:
            _fill(tensor.detach(), flat[start : start + tensor.numel()].reshape(tensor.shape))
        start += tensor.numel()


def _fill(tensor: Tensor, values: np.ndarray) -> None:
    # A received array is a read-only buffer, for which the other ways to make a tensor of an array are too strict.
    tensor.copy_(torch.from_dlpack(values))


def layout_digest(model: nn.Module) -> str:
    """SHA-256 of names and shapes in order: equal where two flat arrays mean the same."""
    text = "\n".join(f"{name} {list(tensor.shape)}" for name, tensor in _floating(model).items())
    return hashlib.sha256(text.encode()).hexdigest()


def _frozen(model: nn.Module) -> frozenset[str]:
    """Names of all tensors of modules that have parameters, none of them trained; their statistics rest as well."""
    names: set[str] = set()
    for prefix, module in model.named_modules():
        trained = [each.requires_grad for each in module.parameters()]
        if trained and not any(trained):
            names.update(f"{prefix}.{name}" for name in module.state_dict())
    return frozenset(names)


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
