"""How the network is computed: number format, memory, compilation, faster forms on a CPU; not what is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16"]
"""Number format of the image network's convolutions."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the residual network runs. The rest of DiPro is 1 % of the work and always runs in the weights' own type."""

    precision: Precision = "fp32"
    """bf16 multiplies in bfloat16 (autocast) and keeps weights and batch statistics as they are; to about 1e-2."""

    checkpoint_activations: bool = False
    """Keep only what lies between the four stages and compute the rest again on the way back: less memory, the same
    gradients, about a third more time."""

    compile: bool = False
    """Let torch.compile fuse the network: the first steps take minutes, the others less."""

    def __post_init__(self) -> None:
        if self.compile and self.checkpoint_activations:
            raise ValueError(
                "compile and checkpoint_activations: expected one of the two, got both; "
                "a compiled network plans its memory itself, so leave out checkpoint_activations"
            )


_faster_on_cpu = ContextVar("faster_on_cpu", default=False)


@contextmanager
def faster_on_cpu() -> Iterator[None]:
    """Let linear maps and dropout on a CPU take forms that are faster there.

    For passes of whole batches whose gradients are taken once: the forms know neither torch.func.vmap nor a second
    derivative. Products are equal up to rounding; dropout draws other numbers, as often zero.
    """
    token = _faster_on_cpu.set(True)
    try:
        yield
    finally:
        _faster_on_cpu.reset(token)


def is_faster_on_cpu() -> bool:
    """Whether this runs within `faster_on_cpu`."""
    return _faster_on_cpu.get()
