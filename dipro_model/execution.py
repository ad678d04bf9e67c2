"""How the image network is computed: number format, memory and compilation; never what is computed."""

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
