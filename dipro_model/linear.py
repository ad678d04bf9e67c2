"""Linear maps, in single precision computed by whichever of torch's two libraries is the faster on this processor.

On a CPU torch multiplies float32 matrices with MKL, which leaves AVX-512 aside on processors that are not Intel's.
oneDNN, which torch has for its convolutions, does not: twice as fast there (docs/benchmarks.md). Where it is not
faster, or not asked for, everything here is torch.nn.functional.linear.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dipro_model.execution import is_faster_on_cpu

_LEAST_PRODUCTS = 2**20
"""Multiplications from which on a call of oneDNN through Python is worth its time."""

_PROCESSORS = Path("/proc/cpuinfo")


@cache
def onednn_is_faster() -> bool:
    """Whether this processor has AVX-512 and is not Intel's, and torch has both libraries."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and not _is_intel()
    )


def linear(
    values: Float[Tensor, "*any from"], weight: Float[Tensor, "to from"], bias: Float[Tensor, "to"] | None
) -> Float[Tensor, "*any to"]:
    """As torch.nn.functional.linear; by oneDNN within `faster_on_cpu`, where that is worth it."""
    products = values.numel() * len(weight)
    asked_for = is_faster_on_cpu() and onednn_is_faster()
    suits = asked_for and values.dtype == weight.dtype == torch.float32 and values.device.type == "cpu"
    if not suits or products < _LEAST_PRODUCTS or torch.is_autocast_enabled("cpu"):
        return functional.linear(values, weight, bias)
    # Of rows that do not lie one behind the other oneDNN takes its slowest way.
    flat: Any = _ByOneDnn.apply(values.flatten(0, -2).contiguous(), weight.contiguous(), bias)
    return flat.unflatten(0, values.shape[:-1])


class Linear(nn.Linear):
    """torch.nn.Linear, computed by `linear`."""

    def forward(self, input: Float[Tensor, "*any from"]) -> Float[Tensor, "*any to"]:
        return linear(input, self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class LinearMap:
    """Weight and bias of a linear map, as a value: a layer's own, a part of them, or several maps made one."""

    weight: Float[Tensor, "to from"]
    bias: Float[Tensor, " to"]

    @classmethod
    def of(cls, layer: nn.Linear) -> "LinearMap":
        """That of a layer with a bias."""
        return cls(layer.weight, layer.bias)

    def __call__(self, values: Float[Tensor, "*any from"]) -> Float[Tensor, "*any to"]:
        return linear(values, self.weight, self.bias)

    def outputs(self, parts: int) -> tuple["LinearMap", ...]:
        """The map to each of so many equal parts of what comes out."""
        weights, biases = self.weight.chunk(parts), self.bias.chunk(parts)
        return tuple(LinearMap(*each) for each in zip(weights, biases, strict=True))

    def behind(self, first: "LinearMap") -> "LinearMap":
        """`first` and then this, as one map: less work where there are more rows than columns."""
        # weight @ first.weight, written as a map of rows so that it is computed as those are.
        weight = linear(first.weight.T, self.weight, None).T
        return LinearMap(weight, functional.linear(first.bias, self.weight, self.bias))

    @classmethod
    def beside(cls, maps: Sequence["LinearMap"]) -> "LinearMap":
        """All maps of the same values at once."""
        return cls(torch.cat([each.weight for each in maps]), torch.cat([each.bias for each in maps]))


class _ByOneDnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        return _product(values, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        needs_values, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.T) if needs_values else None,
            _product(gradient.T, values.T) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )


def _product(rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """`rows` @ `columns`.T + `bias` by oneDNN: the operation that torch.compile calls for a linear layer on a CPU."""
    return torch.ops.mkldnn._linear_pointwise(rows, columns, bias, "none", [], "")


def _is_intel() -> bool:
    described = _PROCESSORS.read_text() if _PROCESSORS.is_file() else platform.processor()
    return "GenuineIntel" in described
