"""Batch norm of channels-last images on a CPU, against the same in double precision."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dipro_model import BackboneConfig
from dipro_model.backbone import Backbone
from dipro_model.batch_norm import ExactBatchNorm2d, channel_statistics


def _images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.3
    return values.to(dtype).to(memory_format=torch.channels_last)


def _pass(norm: nn.Module, images: Tensor, weights: Tensor) -> list[Tensor]:
    """Output and gradients of a weighted sum of it."""
    images = images.detach().clone().requires_grad_()
    output = norm(images)
    gradients = torch.autograd.grad((output * weights.to(output.dtype)).sum(), [images, *norm.parameters()])
    return [output.detach(), *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_many_positions_are_exact(dtype: torch.dtype) -> None:
    images = _images(40, 16, 160, 160, dtype=dtype)
    mean, variance = channel_statistics(images)
    exact = images.double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), exact.var((0, 2, 3), correction=0), rtol=1e-6, atol=0)


def test_output_gradients_and_running_statistics_are_torchs_in_double_precision() -> None:
    ours, torchs = ExactBatchNorm2d(6), nn.BatchNorm2d(6).double()
    nn.init.uniform_(ours.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
    nn.init.uniform_(ours.bias, generator=torch.Generator().manual_seed(2))
    torchs.load_state_dict(ours.state_dict())
    images, weights = _images(8, 6, 9, 7), torch.randn(8, 6, 9, 7, generator=torch.Generator().manual_seed(3))
    for _ in range(3):
        found, expected = _pass(ours, images, weights), _pass(torchs, images.double().contiguous(), weights)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5)
    state = torchs.state_dict()
    assert ours.state_dict().keys() == state.keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value.double(), state[name].double(), rtol=1e-6, atol=1e-6)


def test_otherwise_it_is_torchs_own() -> None:
    ours, torchs = ExactBatchNorm2d(6), nn.BatchNorm2d(6)
    contiguous = _images(8, 6, 9, 7).contiguous()
    assert torch.equal(ours(contiguous), torchs(contiguous))
    channels_last = _images(8, 6, 9, 7)
    assert torch.equal(ours.eval()(channels_last), torchs.eval()(channels_last))


def test_compiled_the_statistics_are_a_few_operations_and_stay_exact() -> None:
    """Part by part, a compiler would be given a thousand operations for a layer, and not come to its end."""
    sizes: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    images = _images(10, 16, 160, 160)
    # Without the tests' check of shapes, which torch's compiler does not read.
    bare = inspect.unwrap(channel_statistics)
    mean, variance = torch.compile(bare, backend=backend)(images)
    assert len(sizes) == 1
    assert sizes[0] < 20
    torch.testing.assert_close(mean.double(), images.double().mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), images.double().var((0, 2, 3), correction=0), rtol=1e-6, atol=0)


def test_one_value_a_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="expected more than one value a channel"):
        ExactBatchNorm2d(3)(_images(1, 3, 1, 1))


def test_the_backbone_has_it_everywhere() -> None:
    backbone = Backbone(BackboneConfig(depth=18, crop_pixels=32), width=8, dropout=0.0)
    norms = [module for module in backbone.resnet.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert all(type(norm) is ExactBatchNorm2d for norm in norms)


def test_memory_order_of_the_network_changes_rounding_only() -> None:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(depth=10, crop_pixels=64), width=8, dropout=0.0).train()
    crops = _images(60, 1, 64, 64).reshape(6, 10, 1, 64, 64)
    first = backbone(crops)
    torch.testing.assert_close(backbone.to(memory_format=torch.channels_last)(crops), first, rtol=1e-3, atol=1e-4)  # pyright: ignore[reportCallIssue]
