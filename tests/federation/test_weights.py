"""Flat weights and the digests that guard them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dipro_model import DiPro, load_torchvision_weights
from federation import initial
from federation.code_digest import code_digest
from federation.initial import initial_model
from federation.seeds import derive_seed
from federation.weights import (
    WeightsError,
    all_finite,
    blank_model,
    flatten_weights,
    layout_digest,
    unflatten_weights,
)
from tests.small_run import small_settings


@pytest.fixture(scope="module")
def model() -> DiPro:
    return initial_model(small_settings())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 4999, 9999])
def test_one_number_that_is_not_finite_is_found(dtype: type, value: float, place: int) -> None:
    numbers = np.linspace(-1e30, 1e30, 10_000).astype(dtype)
    numbers.setflags(write=False)
    assert all_finite(numbers)
    assert all_finite(numbers[:0])
    changed = numbers.copy()
    changed[place] = value
    changed.setflags(write=False)
    assert not all_finite(changed)
    assert not all_finite(changed[place % 3 :: 3])


def test_flat_weights_hold_every_floating_tensor_and_come_back(model: DiPro) -> None:
    flat = flatten_weights(model)
    floating = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    assert flat.dtype == np.float32
    assert flat.size == sum(tensor.numel() for tensor in floating.values())
    assert any("running_mean" in name for name in floating)
    other = initial_model(small_settings("seed=29"))
    assert not np.array_equal(flatten_weights(other), flat)
    unflatten_weights(other, flat)
    np.testing.assert_array_equal(flatten_weights(other), flat)
    for name, tensor in other.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, floating[name])


def test_a_blank_model_is_the_same_once_it_is_filled(model: DiPro) -> None:
    blank = blank_model(lambda: DiPro(model.config))
    with torch.no_grad():
        for tensor in blank.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
    unflatten_weights(blank, flatten_weights(model))
    expected = model.state_dict()
    assert list(blank.state_dict()) == list(expected)
    for name, tensor in blank.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert layout_digest(blank) == layout_digest(model)
    torch.manual_seed(3)
    later = DiPro(model.config)  # networks made afterwards are initialised as ever
    torch.manual_seed(3)
    for ours, theirs in zip(later.parameters(), DiPro(model.config).parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_channels_last_changes_nothing(model: DiPro) -> None:
    flat = flatten_weights(model)
    placed = initial_model(small_settings("seed=29")).to(memory_format=torch.channels_last)
    unflatten_weights(placed, flat)
    np.testing.assert_array_equal(flatten_weights(placed), flat)


def test_foreign_weights_are_refused(model: DiPro) -> None:
    flat = flatten_weights(model)
    with pytest.raises(WeightsError, match=rf"expected weights as float32 \[{flat.size}\]"):
        unflatten_weights(model, flat[:-1])
    with pytest.raises(WeightsError, match="float64"):
        unflatten_weights(model, flat.astype(np.float64))
    broken = flat.copy()
    broken[3] = np.nan
    with pytest.raises(WeightsError, match="found 1 that are not"):
        unflatten_weights(model, broken)


def test_layouts_differ_where_the_networks_do(model: DiPro) -> None:
    assert layout_digest(model) == layout_digest(initial_model(small_settings("seed=29")))
    assert layout_digest(model) != layout_digest(initial_model(small_settings("model.width=24")))
    assert len(code_digest()) == 64


def test_a_run_can_start_from_torchvision_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(initial.logger, "warning", lambda words, *_: warnings.append(words))
    source = initial_model(small_settings("seed=5"))
    assert "random weights" in warnings.pop()
    path = tmp_path / "resnet10.pth"
    torch.save(source.backbone.resnet.state_dict(), path)
    started = initial_model(small_settings(f"model.backbone_weights={path}"))
    assert not warnings
    for name, value in started.backbone.resnet.state_dict().items():
        assert torch.equal(value, source.backbone.resnet.state_dict()[name])
    with pytest.raises(ValueError, match="resnet10"):
        load_torchvision_weights(initial_model(small_settings("model.backbone_depth=18")).backbone, path)


def test_seeds_are_apart_and_stay() -> None:
    assert derive_seed(23, "order", 1, "north") == derive_seed(23, "order", 1, "north")
    seeds = {
        derive_seed(*parts) for parts in [(23, "order", 1), (23, "order", 11), (23, "order", 1, 1), (2, "3order", 1)]
    }
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
