"""How the image network is computed: number format, memory and compilation; never what is computed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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


def pooled_features(
    resnet: ResNet, images: Float[Tensor, "crop 3 high wide"], execution: Execution
) -> Float[Tensor, "crop feature"]:
    """One vector an image, in the images' own type (He et al., arXiv 1512.03385, without the classifier)."""
    half = execution.precision == "bf16"
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        saves = execution.checkpoint_activations and torch.is_grad_enabled()
        features = _in_stages(resnet, images) if saves else resnet(images)
    return features.to(images.dtype)


def _in_stages(resnet: ResNet, images: Float[Tensor, "crop 3 high wide"]) -> Float[Tensor, "crop feature"]:
    """The network's forward pass in five pieces, of which autograd keeps the inputs only."""
    stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act, resnet.maxpool)
    values = images
    for stage in (stem, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        values = checkpoint(
            stage,
            values,
            use_reentrant=False,
            # Nothing in the network draws random numbers.
            preserve_rng_state=False,
            context_fn=lambda stage=stage: (nullcontext(), _second_pass(stage)),
        )
    return resnet.avgpool(values).flatten(1)


def _second_pass(stage: nn.Module) -> AbstractContextManager[None]:
    """Batch norm whose running statistics stand still: the first pass has moved them already."""
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d) and module.training]

    @contextmanager
    def standing_still() -> Iterator[None]:
        before = [(norm, norm.momentum, int(norm.num_batches_tracked or 0)) for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, momentum, count in before:
                norm.momentum = momentum
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.fill_(count)

    return standing_still()
