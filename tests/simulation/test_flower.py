"""Federated training through `flwr run` itself: SuperLink, Ray, one process a site."""

import contextlib
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import torch
from flwr.cli.build import build_fab_from_disk

from client.predictions import read_predictions
from client.records import SiteSpec
from deployment.flower_app import project_folder
from dipro_model.metrics import score
from dipro_model.vocabulary import Task
from federation.messages import MessageError
from federation.run_folder import POOLED, read_history, read_run
from server.app import LARGEST_ERROR
from simulation.flower import simulate
from simulation.in_process import simulate_in_process
from tests.make_cohort import write_cohort
from tests.small_run import last_weights, small_settings


@pytest.mark.slow
def test_flower_gives_what_one_process_gives(tmp_path: Path) -> None:
    cohorts = [
        write_cohort(tmp_path / name, num_patients=16, seed=seed, first_subject=first)
        for name, seed, first in (("north", 1, 100), ("south", 2, 500))
    ]
    settings = small_settings("federation.rounds=2")
    specs = [SiteSpec(name=cohort.name, cohort=cohort) for cohort in cohorts]
    seen = []
    record = simulate(specs, settings, tmp_path / "flower", on_round=seen.extend)
    assert (record.status, record.sites) == ("finished", ("north", "south"))
    assert {line.step for line in seen} == {1, 2}
    seen_here = []
    with _one_thread():
        simulate_in_process(specs, settings, tmp_path / "here", on_round=seen_here.extend)
    expected = last_weights(tmp_path / "here")
    for name, tensor in last_weights(tmp_path / "flower").items():
        assert float((tensor - expected[name]).abs().max()) <= 1e-6, name
    _check_same_history(tmp_path / "flower", tmp_path / "here")
    assert [(line.step, line.site, line.split) for line in seen] == [
        (line.step, line.site, line.split) for line in seen_here
    ]
    _check_pooled(tmp_path / "flower", settings.federation.rounds)
    _check_nothing_is_left(tmp_path)


def _check_same_history(flower: Path, here: Path) -> None:
    for one, other in zip(read_history(flower), read_history(here), strict=True):
        assert (one.step, one.site, one.split, one.num_samples) == (
            other.step,
            other.site,
            other.split,
            other.num_samples,
        )
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.metrics.keys() == other.metrics.keys()
        for name, value in one.metrics.items():
            assert value == (None if other.metrics[name] is None else pytest.approx(other.metrics[name], rel=1e-5))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As the simulated sites have: with other numbers of threads sums round otherwise, and training amplifies that."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_nothing_is_left(folder: Path) -> None:
    """Flower's own subprocesses get a moment to follow the SuperLink that was ended."""
    for _ in range(60):
        left = [line for line in _command_lines() if str(folder) in line]
        if not left:
            return
        time.sleep(0.5)
    pytest.fail(f"processes of the run are still there: {left}")


def _command_lines() -> list[str]:
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            lines.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return lines


def _check_pooled(run: Path, rounds: int) -> None:
    """The pooled validation metric of the chosen round is that of the union of the sites' predictions."""
    history, record = read_history(run), read_run(run)
    pooled = {line.step: line for line in history if line.site == POOLED and line.split == "val"}
    assert set(pooled) == set(range(1, rounds + 1))
    union = read_predictions(run, Task.MORTALITY, ["north", "south"])
    validation = union.select(union.split == "val")
    metrics = score(Task.MORTALITY, validation.labels.astype(int), validation.probabilities)
    step = record.best_step or rounds
    # Scores of an untrained model lie close together in bins, so that areas of eight samples may not be known.
    for name, value in pooled[step].metrics.items():
        assert value is None or value == pytest.approx(metrics[name].value, abs=LARGEST_ERROR)
    assert pooled[step].metrics["brier"] == pytest.approx(metrics["brier"].value)
    assert pooled[step].num_samples == len(validation)
    sites = [line for line in history if line.site != POOLED and line.split == "train" and line.step == step]
    expected = sum((line.loss or 0.0) * line.num_samples for line in sites) / sum(line.num_samples for line in sites)
    (train,) = [line for line in history if line.site == POOLED and line.split == "train" and line.step == step]
    assert train.loss == pytest.approx(expected)


@pytest.mark.slow
def test_a_failing_site_ends_the_run_with_its_own_words(tmp_path: Path) -> None:
    north = write_cohort(tmp_path / "north", num_patients=16)
    south = write_cohort(tmp_path / "south", num_patients=16, deaths=False)
    specs = [SiteSpec(name=cohort.name, cohort=cohort) for cohort in (north, south)]
    with pytest.raises(MessageError, match="all 8 samples for mortality in the train split carry the same label"):
        simulate(specs, small_settings("federation.rounds=1"), tmp_path / "run")


def test_the_bundle_holds_the_code_that_runs_at_a_site_and_nothing_else() -> None:
    with zipfile.ZipFile(BytesIO(build_fab_from_disk(project_folder()))) as bundle:
        names = [name for name in bundle.namelist() if name not in ("pyproject.toml", ".info/CONTENT")]
    assert {"client/app.py", "server/app.py", "federation/messages.py", "dipro_model/model.py"} <= set(names)
    folders = {"client", "server", "federation", "federation/secure", "dipro_model"}
    assert {name.rpartition("/")[0] for name in names} == folders
    assert all(name.endswith(".py") for name in names)
