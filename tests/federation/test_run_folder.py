"""Run folders: what is written is read back, and every damage is named."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from dipro_model.vocabulary import Task
from federation.run_folder import (
    HISTORY,
    RUN,
    Measurement,
    RunError,
    RunRecord,
    append_history,
    read_history,
    read_run,
    write_run,
)

RECORD = RunRecord(
    kind="federated",
    name="federated, two sites",
    task=Task.MORTALITY,
    seed=23,
    step_unit="round",
    sites=("north", "south"),
    trained_on=("north", "south"),
    settings={"train": {"epochs": 2, "rate": 1e-5}, "profile": None},
    status="running",
    best_step=None,
    monitor="auprc",
    seconds=12,
    more={"num_parameters": 5},
)
ROW = Measurement(
    step=1,
    site="pooled",
    split="val",
    loss=0.25,
    parts={"task": 0.2},
    metrics={"auroc": None, "auprc": 0.5},
    num_samples=9,
    seconds=1.5,
)


def damage(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_record_is_read_back_and_replaced(tmp_path: Path) -> None:
    write_run(tmp_path / "run", RECORD)
    assert read_run(tmp_path / "run") == RECORD
    finished = replace(RECORD, status="finished", best_step=4)
    write_run(tmp_path / "run", finished)
    assert read_run(tmp_path / "run") == finished
    assert [each.name for each in (tmp_path / "run").iterdir()] == [RUN]


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_run(tmp_path, RECORD)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_run(tmp_path, replace(RECORD, seconds=float("nan")))
    with pytest.raises(RunError, match="repeats name"):
        write_run(tmp_path, replace(RECORD, more={"name": "another"}))
    assert read_run(tmp_path) == RECORD


def test_history_grows_and_is_read_in_order(tmp_path: Path) -> None:
    append_history(tmp_path, [ROW])
    append_history(tmp_path, [replace(ROW, step=2, loss=None), replace(ROW, step=2, site="north")])
    assert read_history(tmp_path) == [ROW, replace(ROW, step=2, loss=None), replace(ROW, step=2, site="north")]
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_history(tmp_path, [ROW, replace(ROW, loss=float("inf"))])
    assert len(read_history(tmp_path)) == 3


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"schema_version": 1', '"schema_version": 7', "expected schema version 1, found 7"),
        ('"seed": 23', '"seed": "23"', "`seed`: expected a whole number, found str"),
        ('"seed": 23', '"seed": true', "`seed`: expected a whole number, found bool"),
        ('"best_step": null', '"best_step": 1.5', "expected a whole number or null, found float"),
        ('"seed": 23,', "", "expected `seed`, found none"),
        ('"task": "mortality"', '"task": "sepsis"', "`task`: expected one of disease_progression, mortality"),
        ('"kind": "federated"', '"kind": "swarm"', "`kind`: expected one of centralized, local, federated"),
        ('"status": "running"', '"status": "done"', "`status`: expected one of running, finished, failed"),
        ('"settings": {', '"settings": [], "was": {', "`settings`: expected an object, found list"),
        ('"seconds": 12', '"seconds": 12}', "expected JSON, found text that does not parse"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    write_run(tmp_path, RECORD)
    damage(tmp_path / RUN, old, new)
    with pytest.raises(RunError, match=re.escape(words)) as caught:
        read_run(tmp_path)
    assert str(tmp_path / RUN) in str(caught.value)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"found no run\.json"):
        read_run(tmp_path)
    with pytest.raises(RunError, match=r"history\.jsonl"):
        read_history(tmp_path)


@pytest.mark.parametrize(
    ("sites", "trained_on", "words"),
    [
        ((), (), "`sites`"),
        (("a", "a"), ("a",), "`sites`"),
        (("pooled",), ("pooled",), "none empty or 'pooled'"),
        (("a",), ("b",), "`trained_on`"),
        (("a",), (), "`trained_on`"),
    ],
)
def test_sites_that_cannot_be(sites: tuple[str, ...], trained_on: tuple[str, ...], words: str) -> None:
    with pytest.raises(RunError, match=words):
        replace(RECORD, sites=sites, trained_on=trained_on)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"loss": 0.25', '"loss": "low"', "line 2: `loss`: expected a number or null, found str"),
        ('"split": "val"', '"split": "dev"', "line 2: `split`: expected one of train, val, test, found 'dev'"),
        ('"loss": 0.25', '"loss": NaN', "line 2: `loss`"),
        ('{"task": 0.2}', '{"task": null}', "`parts`: expected an object of names to a number"),
        ('"seconds": 1.5}', '"seconds": 1.', "line 2: expected JSON"),
    ],
)
def test_a_damaged_line_of_history_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    append_history(tmp_path, [replace(ROW, step=1)])
    good = (tmp_path / HISTORY).read_text()
    assert old in good
    (tmp_path / HISTORY).write_text(good + good.replace(old, new))
    with pytest.raises(RunError, match=re.escape(words)):
        read_history(tmp_path)


def test_who_watches_a_run_does_not_see_a_line_that_is_being_written(tmp_path: Path) -> None:
    append_history(tmp_path, [replace(ROW, step=1), replace(ROW, step=2)])
    whole = (tmp_path / HISTORY).read_bytes()
    for end in range(len(whole) // 2 + 1, len(whole)):
        (tmp_path / HISTORY).write_bytes(whole[:end])
        assert [line.step for line in read_history(tmp_path, is_growing=True)] == [1]
    (tmp_path / HISTORY).write_bytes(whole[:-9])
    with pytest.raises(RunError, match="line 2: expected JSON"):
        read_history(tmp_path)


def test_the_files_are_plain_json(tmp_path: Path) -> None:
    write_run(tmp_path, RECORD)
    append_history(tmp_path, [ROW])
    facts = json.loads((tmp_path / RUN).read_text())
    assert facts["schema_version"] == 1
    assert facts["task"] == "mortality"
    assert facts["num_parameters"] == 5
    line = json.loads((tmp_path / HISTORY).read_text())
    assert line["metrics"] == {"auroc": None, "auprc": 0.5}
