"""What the entries of a flat array are, against the model's own names and what writing them changes."""

import numpy as np
import pytest
import torch
from torch import nn

from dipro_model import DiPro
from federation.initial import initial_model
from federation.selection import Entries, SelectionError, model_entries, trainable_mask
from federation.weights import flatten_weights, unflatten_weights
from tests.small_run import small_settings


@pytest.fixture(scope="module")
def model() -> DiPro:
    return initial_model(small_settings())


@pytest.fixture(scope="module")
def frozen() -> DiPro:
    return initial_model(small_settings("model.freeze_backbone=true"))


def _marked(model: nn.Module, wanted) -> np.ndarray:
    """bool [number], one tensor after the other."""
    marks = []
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            marks.append(np.full(tensor.numel(), wanted(name)))
    return np.concatenate(marks)


def test_trained_entries_are_those_that_a_site_writes(model: DiPro, frozen: DiPro) -> None:
    assert trainable_mask(model).all()
    before = flatten_weights(frozen)
    unflatten_weights(frozen, before + np.float32(1), keep_frozen=True)
    after = flatten_weights(frozen)
    unflatten_weights(frozen, before)
    mask = trainable_mask(frozen)
    np.testing.assert_array_equal(mask, before != after)
    assert 0 < mask.sum() < mask.size


def test_batch_norms_are_found_by_their_modules(model: DiPro) -> None:
    entries = model_entries(model)
    for name in ("running_mean", "running_var"):
        expected = _marked(model, lambda key, name=name: key.endswith(name))
        found = entries.means if name == "running_mean" else entries.variances
        np.testing.assert_array_equal(found.mask(), expected)
    parents = {key.rpartition(".")[0] for key in model.state_dict() if key.endswith("running_mean")}
    np.testing.assert_array_equal(
        entries.batch_norm.mask(), _marked(model, lambda key: key.rpartition(".")[0] in parents)
    )
    assert entries.statistics.size == 2 * entries.means.size == entries.batch_norm.size // 2
    gradients = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    np.testing.assert_array_equal(entries.parameters.mask(), _marked(model, lambda key: key in gradients))
    assert not entries.parameters.both(entries.statistics).runs


def test_means_and_variances_belong_together() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for norm, value in ((model[0], 1.0), (model[2], 2.0)):
            norm.running_mean.fill_(value)
            norm.running_var.fill_(10 * value)
    flat, entries = flatten_weights(model), model_entries(model)
    np.testing.assert_array_equal(entries.means.take(flat), [1, 1, 1, 2, 2])
    np.testing.assert_array_equal(entries.variances.take(flat), [10, 10, 10, 20, 20])


def test_a_model_that_is_itself_a_batch_norm() -> None:
    entries = model_entries(nn.BatchNorm1d(3))
    assert (entries.batch_norm.size, entries.means.runs, entries.variances.runs) == (12, ((6, 9),), ((9, 12),))


def test_entries_are_taken_and_put_as_a_mask_says() -> None:
    random = np.random.default_rng(3)
    first, second = random.random((2, 50)) < 0.5
    one, two = Entries.of(first), Entries.of(second)
    np.testing.assert_array_equal(one.mask(), first)
    np.testing.assert_array_equal(one.both(two).mask(), first & second)
    np.testing.assert_array_equal(one.either(two).mask(), first | second)
    np.testing.assert_array_equal(one.without(two).mask(), first & ~second)
    flat = random.normal(size=50)
    np.testing.assert_array_equal(one.take(flat), flat[first])
    written, expected = flat.copy(), flat.copy()
    one.put(written, np.arange(one.size))
    expected[first] = np.arange(first.sum())
    np.testing.assert_array_equal(written, expected)
    assert Entries.of(np.zeros(4, bool)).take(flat[:4]).shape == (0,)


def test_entries_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SelectionError, match=r"expected increasing runs that do not touch below 5"):
        Entries(total=5, runs=((0, 2), (2, 3)))
    with pytest.raises(SelectionError, match="below 5"):
        Entries(total=5, runs=((3, 6),))
    entries = Entries(total=5, runs=((1, 3),))
    with pytest.raises(SelectionError, match=r"expected an array \[5\], found \[4\]"):
        entries.take(np.zeros(4))
    with pytest.raises(SelectionError, match=r"expected an array \[2\], found \[3\]"):
        entries.put(np.zeros(5), np.zeros(3))
