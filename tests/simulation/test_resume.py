"""A training that is killed, wherever that happens, ends as the one that nobody interrupted: bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from client.records import SiteSpec
from federation.run_folder import RunError, read_history, read_run
from federation.settings import load_settings
from simulation.train import data_digest, train
from tests.killed_training import run
from tests.make_cohort import write_cohort, write_two_cohorts
from tests.small_run import SMALL

PROJECT = Path(__file__).parents[2]

SETTINGS = (
    *SMALL,
    "seed=3",
    "model.dropout=0.2",
    "training.learning_rate=3e-3",
    "training.batch_size=2",
    "training.epochs=2",
    "training.checkpoint_minutes=0",
)
"""Two epochs of two optimizer steps, with a checkpoint after every step."""


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_two_cohorts(tmp_path_factory.mktemp("cohorts"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cohorts: list[Path]) -> tuple[Path, list[str]]:
    """A run that nobody interrupted, and its writes."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, run(folder, cohorts, SETTINGS)


def _assert_same(folder: Path, whole: Path) -> None:
    """Weights, optimizer, history, metrics and predictions are the same, to the last bit; only the times differ."""
    for name in (
        "checkpoints/last.pt",
        "checkpoints/best.pt",
        "predictions/north.parquet",
        "predictions/south.parquet",
    ):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    timeless = [[replace(line, seconds=0.0) for line in read_history(each)] for each in (folder, whole)]
    assert timeless[0] == timeless[1]
    facts = [json.loads((each / "run.json").read_text()) for each in (folder, whole)]
    for each in facts:
        del each["seconds"], each["code_digest"]  # who works on the code meanwhile may run the test
        each.pop("interruptions", None)
    assert facts[0] == facts[1]
    assert facts[0]["status"] == "finished"
    assert not list(folder.rglob("*.partial"))


def _is_finished(folder: Path) -> bool:
    return (folder / "run.json").is_file() and read_run(folder).status == "finished"


def _place(writes: list[str], what: str, which: int) -> int:
    """The number of a write among all."""
    return [number for number, name in enumerate(writes) if name == what][which]


@pytest.mark.parametrize(
    ("what", "which"),
    [
        ("run.json.partial torn", 0),  # nothing is there yet
        ("last.pt.partial torn", 0),  # the first checkpoint, within the first epoch
        ("history.jsonl torn", 0),  # at the end of the first epoch, its checkpoint not yet written
        ("best.pt.partial torn", 0),  # between the last one and the best one
        ("before last.pt is replaced", 3),  # within the second epoch
        ("before best.pt is replaced", -1),
        ("before south.parquet is replaced", 0),  # while the chosen model is scored
        ("before run.json is replaced", -1),  # all is done but to say so
    ],
)
def test_killed_once(tmp_path: Path, cohorts: list[Path], whole: tuple[Path, list[str]], what: str, which: int) -> None:
    place = _place(whole[1], what, which)
    run(tmp_path / "run", cohorts, SETTINGS, kill_at=place)
    run(tmp_path / "run", cohorts, SETTINGS)
    _assert_same(tmp_path / "run", whole[0])


def test_killed_again_and_again(tmp_path: Path, cohorts: list[Path], whole: tuple[Path, list[str]]) -> None:
    """Each process is killed four writes later than the one before, while it recovers or later."""
    folder, kill_at = tmp_path / "run", 2
    while not _is_finished(folder):
        run(folder, cohorts, SETTINGS, kill_at=kill_at)
        kill_at += 4
    _assert_same(folder, whole[0])
    interruptions = read_run(folder).more["interruptions"]
    assert {each["after_step"] for each in interruptions} >= {0, 1}


def test_the_command_is_killed_by_the_clock(tmp_path: Path, cohorts: list[Path], whole: tuple[Path, list[str]]) -> None:
    """The process that a person starts, killed as soon as a file says that it has come so far."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "dipro_fed", "train", *map(str, cohorts), "--task", "mortality", "--device", "cpu"]
    command += ["--out", str(folder), *(word for each in SETTINGS for word in ("--set", each))]

    def start() -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=PROJECT, env=environment, **pipes)

    def kill_when(reached: Callable[[], bool]) -> str:
        process, deadline = start(), time.monotonic() + 300
        while not reached():
            assert process.poll() is None, "ended before it came so far"
            assert time.monotonic() < deadline, "never came so far"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        return said

    last, history = folder / "checkpoints" / "last.pt", folder / "history.jsonl"
    kill_when(last.exists)
    assert "an unfinished run goes on in epoch 1, after step" in kill_when(history.exists)
    process = start()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "an unfinished run goes on " in said
    _assert_same(folder, whole[0])


def test_other_data_under_the_same_names_are_refused(tmp_path: Path, cohorts: list[Path]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    settings, folder = load_settings(overrides=[*SETTINGS, "training.epochs=1"]), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train([SiteSpec(name="north", cohort=cohorts[0])], settings, folder, on_epoch=interrupt)
    with pytest.raises(RunError, match=r"another run is in this folder: cohort\.north: expected [0-9a-f]{64}, found"):
        train([SiteSpec(name="north", cohort=cohorts[1])], settings, folder)
    both = [SiteSpec(name=cohort.name, cohort=cohort) for cohort in cohorts]
    with pytest.raises(RunError, match=r"name: expected a, found centralized; sites: .*; trained on: "):
        train(both, settings, folder, name="a")
    told: list[str] = []
    train([SiteSpec(name="north", cohort=cohorts[0])], settings, folder, tell=told.append)
    assert told == [f"{folder}: an unfinished run goes on after epoch 1"]
    with pytest.raises(RunError, match="this run is finished; choose another --out"):
        train([SiteSpec(name="north", cohort=cohorts[0])], settings, folder)


def test_the_digest_of_data_knows_what_a_site_has(tmp_path: Path, cohorts: list[Path]) -> None:
    north, south = (SiteSpec(name="north", cohort=cohort) for cohort in cohorts)
    again = write_cohort(tmp_path / "again", num_patients=8, num_images=2, seed=1, first_subject=100)
    assert data_digest(SiteSpec(name="again", cohort=again)) == data_digest(north)
    some = replace(north, subjects=(100, 101))
    assert len({data_digest(spec) for spec in (north, south, some)}) == 3
