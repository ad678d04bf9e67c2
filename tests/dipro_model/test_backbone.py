"""The image network: torchvision's names by rule, its arithmetic, files with its weights, freezing."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dipro_model import BackboneConfig, load_torchvision_weights
from dipro_model.backbone import Backbone, shapes_of

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def backbone(depth: int = 10, *, freeze: bool = False) -> Backbone:
    torch.manual_seed(0)
    return Backbone(BackboneConfig(depth=depth, freeze=freeze), width=8, dropout=0.0)


def norm_names(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{leaf}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def torchvision_names(depth: int, first: int = 64) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of torchvision's resnet<depth> without its classifier, with `first` channels in place of 64."""
    bottleneck, before = depth == 50, first
    yield "conv1.weight", (first, 3, 7, 7)
    yield from norm_names("bn1", first)
    for stage, num_blocks in enumerate(BLOCKS[depth], start=1):
        inner = first * 2 ** (stage - 1)
        after = 4 * inner if bottleneck else inner
        for block in range(num_blocks):
            name = f"layer{stage}.{block}"
            kernels = [(before, 1), (inner, 3), (inner, 1)] if bottleneck else [(before, 3), (inner, 3)]
            for i, (channels, size) in enumerate(kernels, start=1):
                out = after if i == len(kernels) else inner
                yield f"{name}.conv{i}.weight", (out, channels, size, size)
                yield from norm_names(f"{name}.bn{i}", out)
            if block == 0 and (stage > 1 or before != after):
                yield f"{name}.downsample.0.weight", (after, before, 1, 1)
                yield from norm_names(f"{name}.downsample.1", after)
            before = after


@pytest.mark.parametrize("depth", BLOCKS)
def test_names_and_shapes_are_torchvisions(depth: int) -> None:
    with torch.device("meta"):
        network = Backbone(BackboneConfig(depth=depth), width=8, dropout=0.0)
    assert shapes_of(network.resnet) == dict(torchvision_names(depth))


@pytest.mark.parametrize(("depth", "channels"), [(10, 8), (50, 6)])
def test_fewer_channels_make_every_stage_narrower(depth: int, channels: int) -> None:
    config = BackboneConfig(depth=depth, channels=channels)
    network = Backbone(config, width=8, dropout=0.0).eval()
    assert shapes_of(network.resnet) == dict(torchvision_names(depth, channels))
    with torch.no_grad():
        found = network.features(torch.zeros(2, 3, 1, 32, 32, dtype=torch.uint8))
    assert found.shape == (2, 3, config.num_features)


def slow_resnet(weights: dict[str, Tensor], depth: int, images: Tensor) -> Tensor:
    """He et al., arXiv 1512.03385, with the stride of a bottleneck on its 3x3 convolution, as torchvision has it."""

    def norm(name: str, x: Tensor) -> Tensor:
        leaves = [weights[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *leaves)

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    x = functional.max_pool2d(norm("bn1", conv("conv1", images, 2)).relu(), 3, stride=2, padding=1)
    for stage, num_blocks in enumerate(BLOCKS[depth], start=1):
        for block in range(num_blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            shortcut = x
            if f"{name}.downsample.0.weight" in weights:
                shortcut = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
            strides = (1, stride, 1) if depth == 50 else (stride, 1)
            for i, step in enumerate(strides, start=1):
                x = norm(f"{name}.bn{i}", conv(f"{name}.conv{i}", x, step))
                x = x.relu() if i < len(strides) else x
            x = (x + shortcut).relu()
    return x.mean(dim=(2, 3))


@pytest.mark.parametrize("pixels", [33, 64])
@pytest.mark.parametrize("depth", BLOCKS)
def test_features_equal_a_network_written_out(depth: int, pixels: int) -> None:
    network = backbone(depth).double().eval()
    for name, buffer in network.resnet.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.normal_(std=0.1)
    images = torch.rand(2, 3, pixels, pixels, dtype=torch.float64)
    with torch.no_grad():
        found = network.resnet(images)
        torch.testing.assert_close(found, slow_resnet(network.resnet.state_dict(), depth, images))
    assert found.shape == (2, 2048 if depth == 50 else 512)


def test_bytes_gray_crops_and_floats_are_the_same_pictures() -> None:
    network = backbone().eval()
    gray = torch.randint(0, 256, (2, 10, 1, 24, 24), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(gray.float().div(255).repeat(1, 1, 3, 1, 1))
        for crops in (gray, gray.repeat(1, 1, 3, 1, 1), gray.float() / 255):
            torch.testing.assert_close(network(crops), expected, rtol=0, atol=1e-6)
    assert expected.shape == (2, 10, 8)


def weights_file(path: Path, weights: dict[str, Tensor]) -> Path:
    """A file as torchvision writes it: with the classifier."""
    features = weights["layer4.0.conv2.weight"].shape[0]
    torch.save({**weights, "fc.weight": torch.zeros(1000, features), "fc.bias": torch.zeros(1000)}, path)
    return path


def drawn_weights(depth: int = 10) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(shape, generator=draw) if shape else torch.tensor(5)
        for name, shape in torchvision_names(depth)
    }


def test_weights_come_from_a_local_file(tmp_path: Path) -> None:
    network, weights = backbone(), drawn_weights()
    before = {name: value.clone() for name, value in network.adapter.state_dict().items()}
    load_torchvision_weights(network, weights_file(tmp_path / "resnet.pth", weights))
    for name, value in network.resnet.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0, msg=name)
    for name, value in network.adapter.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)


def without(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name != "layer2.0.conv1.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, "missing layer2.0.conv1.weight"),
        (lambda weights: {**weights, "layer5.bias": torch.zeros(3)}, "unexpected layer5.bias"),
        (
            lambda weights: {**weights, "conv1.weight": torch.zeros(64, 1, 7, 7)},
            r"conv1.weight: expected shape \[64, 3, 7, 7\], got \[64, 1, 7, 7\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(
    tmp_path: Path, change: Callable[..., dict[str, Tensor]], message: str
) -> None:
    network = backbone()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=rf"resnet.pth: .*{message}"):
        load_torchvision_weights(network, weights_file(tmp_path / "resnet.pth", change(drawn_weights())))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_weights_of_another_depth_are_refused_in_a_few_lines(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set the backbone's depth") as refusal:
        load_torchvision_weights(backbone(10), weights_file(tmp_path / "resnet.pth", drawn_weights(34)))
    assert len(str(refusal.value)) < 2000


class Attack:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    victim, network = tmp_path / "touched", backbone()
    (tmp_path / "text").write_text("not weights")
    (tmp_path / "empty").touch()
    (tmp_path / "attack").write_bytes(pickle.dumps(Attack(victim), protocol=2))
    torch.save({"conv1.weight": Attack(victim)}, tmp_path / "attack.pth")
    torch.save([torch.zeros(2)], tmp_path / "list")
    torch.save({"epoch": 3}, tmp_path / "numbers")
    for name in ("text", "empty", "attack", "attack.pth", "list", "numbers"):
        with pytest.raises(ValueError, match=f"{name}: expected a state dict"):
            load_torchvision_weights(network, tmp_path / name)
    assert not victim.exists()
    with pytest.raises(ValueError, match="absent: expected a file"):
        load_torchvision_weights(network, tmp_path / "absent")


def test_a_frozen_network_keeps_weights_and_statistics() -> None:
    network = backbone(freeze=True).train()
    before = {name: value.clone() for name, value in network.resnet.state_dict().items()}
    assert not any(parameter.requires_grad for parameter in network.resnet.parameters())
    assert all(parameter.requires_grad for parameter in network.adapter.parameters())
    network(torch.rand(2, 10, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is None for parameter in network.resnet.parameters())
    for name, value in network.resnet.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    norms = [module for module in network.resnet.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert network.adapter.training


def test_an_unfrozen_network_trains_and_follows_its_batches() -> None:
    network = backbone().train()
    network(torch.rand(2, 10, 3, 32, 32)).sum().backward()
    assert network.resnet.conv1.weight.grad is not None
    assert network.resnet.bn1.num_batches_tracked.item() == 1
