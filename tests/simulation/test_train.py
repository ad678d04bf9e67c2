"""Centralized and local training leave the folder that comparisons read."""

from pathlib import Path

import pytest

from client.dataset import DataError
from client.predictions import read_predictions
from client.records import SiteSpec
from dipro_model.vocabulary import Task
from federation.run_folder import read_history, read_run
from simulation.train import train
from tests.make_cohort import write_cohort
from tests.small_run import small_settings


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> list[SiteSpec]:
    folder = tmp_path_factory.mktemp("cohorts")
    return [
        SiteSpec(name=name, cohort=write_cohort(folder / name, num_patients=16, seed=seed, first_subject=first))
        for name, seed, first in (("north", 1, 100), ("south", 2, 500))
    ]


def test_a_centralized_run_is_complete(tmp_path: Path, specs: list[SiteSpec]) -> None:
    told = []
    record = train(
        specs, small_settings("training.epochs=3"), tmp_path / "run", on_epoch=lambda epoch, *_: told.append(epoch)
    )
    assert told == [1, 2, 3]
    assert record == read_run(tmp_path / "run")
    assert (record.kind, record.trained_on, record.status) == ("centralized", ("north", "south"), "finished")
    validations = {line.step: line.metrics["auprc"] for line in read_history(tmp_path / "run") if line.split == "val"}
    assert record.best_step == max(validations, key=lambda step: (validations[step], -step))
    predictions = read_predictions(tmp_path / "run", Task.MORTALITY, ["north", "south"])
    assert len(predictions) == 32
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["best.pt", "last.pt"]


def test_a_local_run_learns_from_one_site_and_scores_all(tmp_path: Path, specs: list[SiteSpec]) -> None:
    record = train(specs, small_settings("training.epochs=1"), tmp_path / "run", only="south")
    assert (record.kind, record.name, record.trained_on, record.sites) == (
        "local",
        "south alone",
        ("south",),
        ("north", "south"),
    )
    assert {line.site for line in read_history(tmp_path / "run")} == {"south"}
    assert len(read_predictions(tmp_path / "run", Task.MORTALITY, ["north"])) == 16
    with pytest.raises(ValueError, match="--only west: expected one of the sites north, south"):
        train(specs, small_settings(), tmp_path / "west", only="west")
    assert not (tmp_path / "west").exists()


def test_training_stops_when_the_monitor_no_longer_gains(tmp_path: Path, specs: list[SiteSpec]) -> None:
    # A rate too small to change anything: the first epoch stays the best.
    settings = small_settings("training.epochs=9", "training.patience=2", "training.learning_rate=1e-12")
    record = train(specs, settings, tmp_path / "run")
    steps = {line.step for line in read_history(tmp_path / "run")}
    assert record.best_step is not None
    assert max(steps) == record.best_step + 2 < 9


def test_where_the_monitor_is_undefined_the_last_model_is_kept(tmp_path: Path) -> None:
    # Six patients in turns of four: in training both outcomes happen, validation is one survivor.
    cohort = write_cohort(tmp_path / "north", num_patients=6)
    record = train([SiteSpec(name="north", cohort=cohort)], small_settings("training.epochs=2"), tmp_path / "run")
    assert record.best_step is None
    assert record.more["chosen"] == "last.pt"
    validation = record.more["results"]["north"]["val"]
    assert (validation["auroc"], validation["auprc"]) == (None, None)


def test_a_run_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "north", num_patients=8, deaths=False)
    with pytest.raises(DataError, match="carry the same label"):
        train([SiteSpec(name="north", cohort=cohort)], small_settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_says_so(tmp_path: Path, specs: list[SiteSpec]) -> None:
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(specs, small_settings("training.epochs=2"), tmp_path / "run", on_epoch=interrupt)
    record = read_run(tmp_path / "run")
    assert (record.status, record.more["error"]) == ("failed", "KeyboardInterrupt: ")
