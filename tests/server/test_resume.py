"""A federated run that is killed, wherever that happens, ends as the one that nobody interrupted: bit for bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.records import SiteSpec
from federation.audit import AUDIT, verify
from federation.checkpoint import read_checkpoint
from federation.run_folder import Measurement, RunError, read_history, read_run
from simulation.in_process import simulate_in_process
from tests.killed_training import federated, run
from tests.make_cohort import write_cohort, write_two_cohorts
from tests.small_run import SMALL, federate, small_settings

SETTINGS = (*SMALL, "seed=3", "training.batch_size=2", "federation.rounds=3", "model.dropout=0.2")
KINDS = {
    "control variates": ("strategy.name=scaffold", "training.optimizer=sgd"),
    "moments, residuals and personal models": (
        "strategy.name=fedadam",
        "communication.codec=topk",
        "personal.method=ditto",
    ),
    "momentum, one visit a round": (
        "strategy.name=fedavgm",
        "communication.codec=int8",
        "personal.method=fedbn",
        "federation.visits=one",
    ),
}


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_two_cohorts(tmp_path_factory.mktemp("cohorts"))


def _assert_same(folder: Path, whole: Path) -> None:
    """Weights, what server and sites remember, history and metrics are the same, to the last bit."""
    for name in ("last.pt", "best.pt"):
        found, expected = (read_checkpoint(each / "checkpoints" / name) for each in (folder, whole))
        torch.testing.assert_close(found.state_dict, expected.state_dict, rtol=0, atol=0)
        if expected.progress is not None and found.progress is not None:
            states = [each.training["server"] for each in (found.progress, expected.progress)]
            torch.testing.assert_close(*states, rtol=0, atol=0)
    timeless = [[replace(line, seconds=0.0) for line in read_history(each)] for each in (folder, whole)]
    assert timeless[0] == timeless[1]
    facts = [json.loads((each / "run.json").read_text()) for each in (folder, whole)]
    for each in facts:
        for name in ("seconds", "code_digest", "traffic"):  # a site that joins again, or is sent a whole model, costs
            del each[name]
        each.pop("interruptions", None)
    assert facts[0] == facts[1]
    assert facts[0]["status"] == "finished"
    for site in ("north", "south"):
        kept, expected = (
            {path.name: path.read_bytes() for path in (each / site / "state").glob("*/*.npy")}
            for each in (folder, whole)
        )
        assert kept == expected
    assert verify(folder / AUDIT).num_entries > 10


@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_and_again(tmp_path: Path, cohorts: list[Path], kind: str) -> None:
    """Each process is killed some writes later than the one before: of the server's, and of the sites' own files."""
    settings, folder, kill_at, killed = (*SETTINGS, *KINDS[kind]), tmp_path / "run", 5, set()
    run(tmp_path / "whole", cohorts, settings, work=federated)
    while not ((folder / "run.json").is_file() and read_run(folder).status == "finished"):
        writes = run(folder, cohorts, settings, kill_at=kill_at, work=federated)
        killed.add(writes[-1])
        kill_at += 31
    _assert_same(folder, tmp_path / "whole")
    assert len(killed) > 3, f"the kills hit {killed} alone"
    assert {each["after_step"] for each in read_run(folder).more["interruptions"]} >= {0, 1}


class Stopped(BaseException):
    """Ends a run from outside."""


def _interrupt(folder: Path, cohorts: list[Path], *overrides: str) -> None:
    """A run that ends when its first round is over."""

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        federate(folder, cohorts, small_settings(*SETTINGS, *overrides), after_round=stop)


def test_another_run_does_not_go_on(tmp_path: Path, cohorts: list[Path]) -> None:
    _interrupt(tmp_path, cohorts)
    with pytest.raises(RunError, match=r"training.batch_size: expected 3, found 2"):
        federate(tmp_path, cohorts, small_settings(*SETTINGS, "training.batch_size=3"))
    others = [
        *cohorts[:1],
        write_cohort(tmp_path / "other" / "south", num_patients=12, num_images=2, seed=5, first_subject=900),
    ]
    with pytest.raises(RunError, match="other sites or other data than it began with: agreement: expected"):
        federate(tmp_path, others, small_settings(*SETTINGS))
    assert read_run(tmp_path).status == "failed"
    federate(tmp_path, cohorts, small_settings(*SETTINGS))
    assert read_run(tmp_path).status == "finished"
    with pytest.raises(RunError, match="is finished; choose another folder"):
        federate(tmp_path, cohorts, small_settings(*SETTINGS))


def test_other_code_does_not_go_on(tmp_path: Path, cohorts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupt(tmp_path, cohorts)
    monkeypatch.setattr("server.app.code_digest", lambda: "f" * 64)
    with pytest.raises(RunError, match=r"the run began with other code \(.*, this is ffffffffffff\)"):
        federate(tmp_path, cohorts, small_settings(*SETTINGS))


def test_a_simulation_goes_on(tmp_path: Path, cohorts: list[Path]) -> None:
    specs, settings = [SiteSpec(name=each.name, cohort=each) for each in cohorts], small_settings(*SETTINGS)

    def stop(lines: list[Measurement]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        simulate_in_process(specs, settings, tmp_path, on_round=stop)
    assert simulate_in_process(specs, settings, tmp_path).status == "finished"
    assert [each["after_step"] for each in read_run(tmp_path).more["interruptions"]] == [1]


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, cohorts: list[Path]) -> None:
    _interrupt(tmp_path, cohorts)
    path = tmp_path / "checkpoints" / "last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.pt"):
        federate(tmp_path, cohorts, small_settings(*SETTINGS))
