"""Dropout, on a CPU from a quarter of the random numbers that torch draws for it.

torch draws a number of its own for each element, which on a CPU is an eighth of the epoch of a narrow network on cached
features (docs/benchmarks.md). Sixteen random bits decide as well: one draw of 64 bits serves four elements.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dipro_model.execution import is_faster_on_cpu

_LEVELS = 2**16


def dropout(values: Float[Tensor, "*any"], probability: float, *, training: bool = True) -> Float[Tensor, "*any"]:
    """As torch.nn.functional.dropout; within `faster_on_cpu` from numbers drawn more cheaply.

    There a value is zeroed with `probability` to the nearest 2^-16, and kept values are divided by the share that this
    leaves exactly, so that the mean over draws is that of the values.
    """
    if not (training and 0 < probability < 1 and takes_less(values)):
        return functional.dropout(values, probability, training)
    dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    words = torch.empty((values.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    levels = words.view(torch.int16)[: values.numel()].view(values.shape)  # from -2^15 to 2^15 - 1, equally often
    kept = (levels >= dropped - _LEVELS // 2).to(values.dtype)
    return values * kept.mul_(_LEVELS / (_LEVELS - dropped))


def takes_less(values: Tensor) -> bool:
    """Whether `dropout` of these values has the cheaper way."""
    return is_faster_on_cpu() and values.device.type == "cpu"


class Dropout(nn.Dropout):
    """torch.nn.Dropout, drawn by `dropout`."""

    def forward(self, input: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return dropout(input, self.p, training=self.training)
