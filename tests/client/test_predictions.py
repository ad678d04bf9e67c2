"""Predictions files: what is written is read back exactly, and every damage is named."""

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from client.predictions import Predictions, PredictionsError, predictions_path, read_predictions, write_predictions
from dipro_model.metrics import output_shape
from dipro_model.vocabulary import REGIONS, Task


def draw(task: Task, site: str, num_samples: int = 12, seed: int = 0) -> Predictions:
    generator = np.random.default_rng(seed)
    num_outputs, num_classes = output_shape(task)
    shape = (num_samples, 7) if task is Task.DISEASE_PROGRESSION else (num_samples,)
    return Predictions(
        task=task,
        site=np.array([site] * num_samples, dtype=object),
        subject_id=generator.integers(10**7, 2 * 10**7, num_samples),
        stay_id=generator.integers(3 * 10**7, 4 * 10**7, num_samples),
        sample_id=np.array([f"s{i}" for i in range(num_samples)], dtype=object),
        split=generator.choice(np.array(["train", "val", "test"], dtype=object), num_samples),
        labels=generator.integers(0, 2 if task is Task.MORTALITY else 4, shape).astype(np.int8),
        probabilities=generator.random((num_samples, num_outputs, num_classes), dtype=np.float32),
        attention=generator.random((num_samples, num_outputs, len(REGIONS)), dtype=np.float32),
    )


def assert_same(one: Predictions, other: Predictions) -> None:
    assert one.task is other.task
    for field in fields(Predictions):
        if field.name != "task":
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
            assert getattr(one, field.name).dtype == getattr(other, field.name).dtype


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("num_samples", [0, 12])
def test_what_is_written_is_read_back(tmp_path: Path, task: Task, num_samples: int) -> None:
    north, south = draw(task, "north", num_samples), draw(task, "south/../wing", seed=1)
    write_predictions(tmp_path, "north", north)
    path = write_predictions(tmp_path, "south/../wing", south)
    assert path.parent == tmp_path / "predictions"
    assert_same(read_predictions(tmp_path, task, ["north"]), north)
    both = read_predictions(tmp_path, task, ["south/../wing", "north"])
    assert_same(both.select(both.site == "south/../wing"), south)
    assert_same(both, south.join([north]))
    assert not list(tmp_path.rglob("*.partial"))


def test_another_task_is_refused(tmp_path: Path) -> None:
    write_predictions(tmp_path, "north", draw(Task.MORTALITY, "north"))
    with pytest.raises(PredictionsError, match="is it the run of another task"):
        read_predictions(tmp_path, Task.LENGTH_OF_STAY, ["north"])
    with pytest.raises(ValueError, match="of one task"):
        draw(Task.MORTALITY, "north").join([draw(Task.LENGTH_OF_STAY, "south")])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match="found no such file"):
        read_predictions(tmp_path, Task.MORTALITY, ["north"])
    path = write_predictions(tmp_path, "north", draw(Task.MORTALITY, "north"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PredictionsError, match=re.escape(str(path))):
        read_predictions(tmp_path, Task.MORTALITY, ["north"])


def test_columns_that_differ_are_named(tmp_path: Path) -> None:
    path = write_predictions(tmp_path, "north", draw(Task.MORTALITY, "north"))
    pq.write_table(pq.read_table(path).drop_columns(["stay_id"]), path)
    with pytest.raises(PredictionsError, match="stay_id"):
        read_predictions(tmp_path, Task.MORTALITY, ["north"])


@pytest.mark.parametrize("gap", ["subject_id", "label", "attention"])
def test_a_gap_is_named(tmp_path: Path, gap: str) -> None:
    path = write_predictions(tmp_path, "north", draw(Task.MORTALITY, "north"))
    table = pq.read_table(path)
    values = table[gap].to_pylist()
    values[3] = [None] if gap != "subject_id" else None
    column = pa.array(values, type=table.schema.field(gap).type)
    pq.write_table(table.set_column(table.schema.get_field_index(gap), gap, column), path)
    with pytest.raises(PredictionsError, match=gap):
        read_predictions(tmp_path, Task.MORTALITY, ["north"])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("site", "south", "samples of site 'north' only"),
        ("sample_id", "s2", "expected every sample once, found 1 more"),
        ("split", "dev", "train, val, test, found ['dev']"),
        ("labels", 2, "labels in 0..1"),
        ("labels", -1, "labels in 0..1"),
        ("probabilities", np.nan, "has the training diverged"),
        ("probabilities", 1.5, "expected probabilities in [0, 1]"),
        ("attention", np.nan, "expected attention in [0, 1]"),
    ],
)
def test_what_cannot_be_is_not_written(tmp_path: Path, field: str, value: object, words: str) -> None:
    good = draw(Task.MORTALITY, "north")
    column = getattr(good, field).copy()
    column[0] = value
    with pytest.raises(PredictionsError, match=re.escape(words)):
        write_predictions(tmp_path, "north", replace(good, **{field: column}))
    assert not predictions_path(tmp_path, "north").exists()
