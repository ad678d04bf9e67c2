"""The reduced sweep: killed in the middle, gone on with, changed; and its table against other arithmetic."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

from dipro_fed.main import app
from dipro_model.metrics import resamples
from federation.run_folder import read_run
from simulation.sweep.cells import make_cells
from simulation.sweep.folder import SweepFolder
from simulation.sweep.plan import load_sweep
from simulation.sweep.results import collect_results
from tests.make_cohort import write_cohort

REDUCED = Path(__file__).parents[2] / "configs" / "sweeps" / "reduced.yaml"
CELLS = 7


def words(out: Path, cohort: Path, plan: Path = REDUCED) -> list[str]:
    return ["sweep", str(plan), "--cohorts", f"whole={cohort}", "--out", str(out), "--workers", "2"]


def invoke(arguments: list[str]) -> Result:
    return CliRunner().invoke(app, arguments)


def states(out: Path) -> dict[str, str]:
    root = out / "cells"
    return {
        path.relative_to(root).with_suffix("").as_posix(): json.loads(path.read_text())["status"]
        for path in root.rglob("*.json")
    }


def finished(out: Path) -> dict[str, bytes]:
    """What run.json says of the finished runs."""
    return {
        name: (out / "runs" / name / "run.json").read_bytes()
        for name, is_at in states(out).items()
        if is_at == "finished"
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohorts") / "north", num_patients=24, num_images=2)


@pytest.fixture(scope="module")
def swept(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep that was killed once and then ended well."""
    out = tmp_path_factory.mktemp("sweeps") / "out"
    command = [sys.executable, "-m", "dipro_fed", *words(out, cohort)]
    environment = os.environ | {"PYTHONPATH": str(REDUCED.parents[2])}
    silent = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, process_group=0, **silent)
    try:
        deadline = time.monotonic() + 120
        while "finished" not in (found := states(out)).values() or "running" not in found.values():
            assert process.poll() is None, "the sweep ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGSTOP)  # it must not end before it is killed
        beside = invoke(words(out, cohort))
        assert beside.exit_code != 0
        assert "another process is training into this folder" in str(beside.exception)
    finally:
        process.send_signal(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)  # its workers see that it is gone
        process.wait()
    kept = finished(out)
    assert 0 < len(kept) < CELLS
    result = invoke(words(out, cohort))
    assert result.exit_code == 0, result.output
    assert f"{len(kept)} of {CELLS} runs: finished before, kept as they are" in result.output
    assert f"{CELLS} of {CELLS} runs finished" in result.output
    after = finished(out)
    assert len(after) == CELLS
    assert after | kept == after
    return out


def rows(out: Path) -> dict[tuple[str, str, str], dict]:
    table = json.loads((out / "table.json").read_text())
    return {(row["model"], row["attack"], row["site"]): row for row in table["rows"]}


def predicted(run: Path) -> pd.DataFrame:
    """Death and risk of every test sample, by sample."""
    frame = pd.concat([pd.read_parquet(path) for path in sorted((run / "predictions").glob("*.parquet"))])
    frame = frame[frame.split == "test"].set_index("sample_id").sort_index()
    return pd.DataFrame({"died": frame.label.str[0].astype(int), "risk": frame.probability.str[0]})


def auroc(frame: pd.DataFrame) -> float:
    """The share of pairs of a dead and a survivor in which the dead has the higher risk."""
    pairs = list(product(frame.risk[frame.died == 1], frame.risk[frame.died == 0]))
    return float(np.mean([1.0 if dead > alive else 0.5 if dead == alive else 0.0 for dead, alive in pairs]))


def test_the_table_is_what_the_runs_predict(swept: Path) -> None:
    runs, table = swept / "runs", rows(swept)
    central = auroc(predicted(runs / "all of whole/centralized/seed_23"))
    federated = auroc(predicted(runs / "iid/fedavg/seed_23"))
    attacked = auroc(predicted(runs / "iid/fedavg/scaled/seed_23"))
    local = [auroc(predicted(runs / f"iid/local/site {number}/seed_23")) for number in (1, 2, 3)]
    row = table["fedavg", "", ""]
    assert row["metrics"]["test"]["auroc"]["mean"] == pytest.approx(federated)
    assert row["metrics"]["test"]["auroc"]["by_seed"] == {"23": pytest.approx(federated)}
    assert row["share"]["auroc"] == pytest.approx(federated / central)
    assert row["above_local"]["auroc"] == (federated > max(local))
    difference = row["difference"]["auroc"]
    assert difference["value"] == pytest.approx(federated - central)
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert table["fedavg", "scaled", ""]["from_unattacked"]["auroc"]["value"] == pytest.approx(attacked - federated)
    assert [table["local", "", f"site {number}"]["metrics"]["test"]["auroc"]["mean"] for number in (1, 2, 3)] == local
    frame = pd.read_csv(swept / "table.csv")
    found = frame[(frame.model == "fedprox") & (frame.split == "test") & (frame.metric == "auroc")]
    assert found["mean"].tolist() == [table["fedprox", "", ""]["metrics"]["test"]["auroc"]["mean"]]
    page = (swept / "table.md").read_text()
    assert "| fedprox |" in page
    assert "| scaled | fedavg |" in page


def test_differences_are_those_of_the_same_patients_drawn_for_both(swept: Path, cohort: Path) -> None:
    cells = make_cells(load_sweep(REDUCED, cohorts={"whole": [cohort]})).cells
    results = collect_results(cells, SweepFolder(path=swept), num_resamples=60, seed=5)
    (row,) = (row for row in results.rows if (row.model, row.attack) == ("fedavg", "scaled"))
    first, second = (predicted(swept / "runs/iid" / name / "seed_23") for name in ("fedavg/scaled", "fedavg"))
    assert list(first.index) == list(second.index)
    # Each patient of this cohort has one stay, so that patients are samples, numbered alike.
    draws = np.concatenate(list(resamples(np.arange(len(first)), num_resamples=60, seed=5))).astype(int)
    values = [
        auroc(first.loc[first.index.repeat(draw)]) - auroc(second.loc[second.index.repeat(draw)])
        for draw in draws
        if 0 < draw @ first.died.to_numpy() < draw.sum()
    ]
    expected = np.quantile(values, [0.025, 0.975])
    found = row.from_unattacked["auroc"]
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_the_record_says_who_attacked_and_the_guards_refuse_it(swept: Path) -> None:
    attacked = read_run(swept / "runs/iid/fedavg/scaled/seed_23")
    assert attacked.more["attack"] == {"site": "site 2", "kind": "scaled"}
    assert {each["site"] for each in attacked.more["refused"]} == {"site 2"}
    assert "times the round's median norm" in attacked.more["refused"][0]["reason"]
    honest = read_run(swept / "runs/iid/fedavg/seed_23")
    assert "attack" not in honest.more
    assert honest.more["refused"] == []


def test_a_changed_file_makes_only_what_changed_anew_and_a_failure_stops_nothing(
    swept: Path, cohort: Path, tmp_path: Path
) -> None:
    before = finished(swept)
    content = yaml.safe_load(REDUCED.read_text())
    content["models"]["fedprox"]["set"]["strategy.mu"] = 0.5
    content["models"]["broken"] = {"kind": "centralized", "set": {"training.learning_rate": 1e30}}
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(content, sort_keys=False))
    page = tmp_path / "docs" / "recommended.md"

    result = invoke([*words(swept, cohort, changed), "--recommend", str(page)])

    assert result.exit_code == 1
    assert "iid/fedprox/seed_23: made anew, because it was another run (settings.strategy.mu: expected" in result.output
    assert "failed: all of whole/broken/seed_23: TrainingError" in result.output
    assert "the loss is not finite" in result.output
    after = finished(swept)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name]] == ["iid/fedprox/seed_23"]
    assert rows(swept)["broken", "", ""]["num_failed"] == 1
    text = page.read_text()
    assert "| iid | fed" in text
    assert "Chosen by validation patients alone" in text


def test_a_folder_of_something_else_is_refused(tmp_path: Path, cohort: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    result = invoke(words(tmp_path, cohort))
    assert "expected a new or empty folder, or one of a sweep" in str(result.exception)
    assert invoke([*words(tmp_path / "new", cohort)[:2], "--cohorts", "whole", "--out", "x"]).exit_code == 1
