"""The residual network, which is MONAI's: made as the configuration says, and run as its execution says.

Importing MONAI takes longer than importing torch. Whoever makes no network need not wait: nothing imports this file
before one is made.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Float
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dipro_model.batch_norm import make_batch_norms_exact
from dipro_model.config import BackboneConfig
from dipro_model.execution import Execution

_STAGES: dict[int, tuple[str, list[int]]] = {
    10: ("basic", [1, 1, 1, 1]),
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
}
"""Kind of block and number of blocks in each of the four stages (He et al., arXiv 1512.03385), by depth."""


def make_resnet(config: BackboneConfig) -> ResNet:
    """A network without classifier whose parameters and buffers have torchvision's names, at random weights."""
    block, layers = _STAGES[config.depth]
    resnet = ResNet(
        block,
        layers,
        [config.channels * times for times in (1, 2, 4, 8)],
        spatial_dims=2,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
    )
    make_batch_norms_exact(resnet)
    return resnet


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
