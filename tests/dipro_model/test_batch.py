"""Padding: every real value comes back out of a batch, and masks say which those are."""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dipro_model import Batch, Stay, collate
from dipro_model.vocabulary import Task

sizes = st.lists(st.tuples(st.integers(2, 5), st.integers(0, 9)), min_size=1, max_size=5)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(sizes=sizes, task=st.sampled_from(list(Task)))
def test_a_batch_gives_every_stay_back(make_stay: Callable[..., Stay], sizes, task) -> None:
    stays = [
        make_stay(frames=frames, steps=steps, seed=seed, task=task, pixels=4)
        for seed, (frames, steps) in enumerate(sizes)
    ]
    batch = collate(stays)
    assert len(batch) == len(stays)
    for i, stay in enumerate(stays):
        frames, steps, pairs = batch.frame_mask[i], batch.ehr_mask[i], batch.pair_mask[i]
        assert frames.tolist() == [j < len(stay.regions) for j in range(len(frames))]
        assert steps.tolist() == [j < len(stay.ehr) for j in range(len(steps))]
        assert pairs.tolist() == [j < len(stay.regions) - 1 for j in range(len(pairs))]
        expected = {
            "regions": batch.regions[i, frames],
            "ehr": batch.ehr[i, steps],
            "ehr_hours": batch.ehr_hours[i, steps],
            "intervals": batch.intervals[i, pairs],
            "demographics": batch.demographics[i],
            "label": batch.label[i],
            "region_progression": batch.region_progression[i, pairs],
        }
        assert set(expected) == {field.name for field in fields(stay)}
        for name, found in expected.items():
            torch.testing.assert_close(found, getattr(stay, name), rtol=0, atol=0, msg=name)


def test_a_batch_without_any_hour_has_one_masked_step(make_stay: Callable[..., Stay]) -> None:
    batch = collate([make_stay(steps=0), make_stay(steps=0, seed=1)])
    assert batch.ehr.shape == (2, 1, 38)
    assert not batch.ehr_mask.any()


def test_bytes_stay_bytes_and_move_together(make_stay: Callable[..., Stay]) -> None:
    batch = collate([replace(make_stay(), label=None)])
    moved = batch.to("meta", non_blocking=True)
    assert moved.label is None
    assert moved.regions.dtype == torch.uint8
    assert {getattr(moved, field.name).device.type for field in fields(moved) if field.name != "label"} == {"meta"}
    assert batch.regions.device.type == "cpu"


def test_partly_labelled_stays_are_refused(make_stay: Callable[..., Stay]) -> None:
    stays = [make_stay(), replace(make_stay(), label=None)]
    with pytest.raises(ValueError, match="label: expected it for all 2 stays of a batch or for none, got 1"):
        collate(stays)


def test_crops_of_two_sizes_are_refused(make_stay: Callable[..., Stay]) -> None:
    with pytest.raises(ValueError, match="expected crops of one shape and type"):
        collate([make_stay(pixels=8), make_stay(pixels=16)])
    with pytest.raises(ValueError, match="expected one stay or more"):
        collate([])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("regions", lambda x: x[:1], "two frames or more"),
        ("regions", lambda x: x[:, :9], r"regions: expected shape \[3, 10, 1, 16, 16\], got \[3, 9, 1, 16, 16\]"),
        ("regions", lambda x: x.expand(-1, -1, 2, -1, -1), "expected 1 or 3 channels"),
        ("regions", lambda x: x.int(), "expected uint8 or floating crops, or floating features, got torch.int32"),
        ("ehr", lambda x: x[:, :37], r"ehr: expected shape \[6, 38\], got \[6, 37\]"),
        ("ehr_hours", lambda x: x[:5], "ehr_hours: expected shape"),
        ("intervals", lambda x: x[:1], r"intervals: expected shape \[2, 2\]"),
        ("demographics", lambda x: x[:16], "demographics: expected shape"),
        ("label", lambda x: x.expand(3), "label: expected shape"),
        ("region_progression", lambda x: x[..., :6], "region_progression: expected shape"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_wrong_shapes_of_a_stay_are_named(make_stay: Callable[..., Stay], name, change, message) -> None:
    stay = make_stay()
    with pytest.raises(ValueError, match=message):
        replace(stay, **{name: change(getattr(stay, name))})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("frame_mask", lambda x: x[:, :2], r"frame_mask: expected bool \[2, 3\]"),
        ("ehr_mask", lambda x: x[:, :2], r"ehr_mask: expected bool \[2, 6\]"),
        ("regions", lambda x: x[:, :1], "two frames or more"),
        ("ehr", lambda x: x[:, :0], "one step or more"),
        ("intervals", lambda x: x[:1], "intervals: expected shape"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_wrong_shapes_of_a_batch_are_named(make_stay: Callable[..., Stay], name, change, message) -> None:
    batch = collate([make_stay(), make_stay(seed=1)])
    assert isinstance(batch, Batch)
    with pytest.raises(ValueError, match=message):
        replace(batch, **{name: change(getattr(batch, name))})
