"""`dipro-fed evaluate`, `predict`, `pictures` and `stay` as a user runs them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.pictures import attention, bands
from client.pictures import stay as stay_picture
from client.predictions import read_predictions
from client.records import SiteSpec
from client.stay_scores import StayScores
from dipro_fed.main import app
from dipro_model.metrics import score
from dipro_model.vocabulary import Task
from simulation.train import train
from tests.make_cohort import write_cohort
from tests.small_run import small_settings


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "NUM_RESAMPLES", 5)
    monkeypatch.setattr(attention, "NUM_RESAMPLES", 5)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohorts") / "north", num_patients=16)


@pytest.fixture(scope="module")
def run(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train([SiteSpec(name="north", cohort=cohort)], small_settings("training.epochs=1"), folder)
    return folder


def dipro_fed(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def test_evaluate_prints_and_writes_metrics_predictions_and_pictures(run: Path, cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = dipro_fed("evaluate", run, cohort, "--out", out, "--name", "mine", "--resamples", 20)
    assert result.exit_code == 0, result.output
    for words in ("AUROC", "AUPRC", "mine", "4 patients, 4 stays", "treat it like their records"):
        assert words in result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "history.jsonl",
        "metrics.json",
        "pictures",
        "predictions",
        "run.json",
    ]
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["attention.png", "scores.png"]
    own = read_predictions(out, Task.MORTALITY, ["north"])
    cells = json.loads((out / "metrics.json").read_text())["cells"]
    (auroc,) = [cell for cell in cells if (cell["metric"], cell["site"]) == ("auroc", "pooled")]
    assert auroc["value"] == score(Task.MORTALITY, own.labels, own.probabilities)["auroc"].value
    assert auroc["num_resamples"] == 20
    again = dipro_fed("compare", run, out, "--out", tmp_path / "report", "--resamples", 5)
    assert again.exit_code == 0, again.output


def test_predict_writes_every_sample_of_all_splits_or_one(run: Path, cohort: Path, tmp_path: Path) -> None:
    result = dipro_fed("predict", run / "checkpoints" / "best.pt", cohort, "--out", tmp_path / "all.csv")
    assert result.exit_code == 0, result.output
    assert "16 stays of 16 patients" in result.output
    table = pd.read_csv(tmp_path / "all.csv")
    assert table["split"].value_counts().to_dict() == {"train": 8, "val": 4, "test": 4}
    assert dipro_fed("predict", run, cohort, "--out", tmp_path / "val.parquet", "--split", "val").exit_code == 0
    val = pd.read_parquet(tmp_path / "val.parquet").set_index("stay_id")
    expected = table[table.split == "val"].set_index("stay_id").probability_died
    assert val.probability_died.to_dict() == pytest.approx(expected.to_dict(), abs=1e-6)


def test_pictures_and_stay_name_what_they_wrote(run: Path, cohort: Path, tmp_path: Path) -> None:
    result = dipro_fed("pictures", run, "--out", tmp_path / "pictures")
    assert result.exit_code == 0, result.output
    for name in ("centralized-training.png", "centralized-scores.png", "attention.png"):
        assert f"Wrote {tmp_path / 'pictures' / name}" in result.output
        assert (tmp_path / "pictures" / name).is_file()
    result = dipro_fed("stay", run, cohort, "--out", tmp_path / "stay.png")
    assert result.exit_code == 0, result.output
    assert "It shows a patient: treat it like their records." in result.output
    assert (tmp_path / "stay.png").stat().st_size > 10_000
    result = dipro_fed("stay", run, cohort, "--stay", 1000, "--out", tmp_path / "chosen.png")
    assert "stay 1000" in result.output


def test_a_stay_is_scored_on_the_values_that_the_model_learned_from(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the agreement of all hospitals, as `predict` does, and not the hospital's own z-scores."""
    other = write_cohort(tmp_path / "south", num_patients=16, seed=4, first_subject=900, ehr_mean=20.0)
    specs = [SiteSpec(name=each.name, cohort=each) for each in (cohort, other)]
    train(specs, small_settings("training.epochs=1"), tmp_path / "run")
    drawn: list[StayScores] = []
    monkeypatch.setattr(stay_picture, "draw_stay", lambda cohort, scores, out: drawn.append(scores))
    result = dipro_fed("stay", tmp_path / "run", other, "--stay", 9030, "--out", tmp_path / "stay.png")
    assert result.exit_code == 0, result.output
    scored = read_predictions(tmp_path / "run", Task.MORTALITY, ["south"])
    (expected,) = scored.probabilities[scored.sample_id == "9030"]
    np.testing.assert_allclose(drawn[0].words[-1].probabilities, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "RUN", "COHORT", "--out", "OUT", "--task", "death"), "--task: expected one of"),
        (("evaluate", "RUN", "COHORT", "--out", "OUT", "--split", "dev"), "--split: expected one of train, val, test"),
        (("evaluate", "RUN", "COHORT", "--out", "OUT", "--task", "length_of_stay"), "found one for mortality"),
        (("evaluate", "COHORT", "COHORT", "--out", "OUT"), "found no run.json in it"),
        (("evaluate", "RUN", "COHORT", "--out", "RUN"), "expected a new or an empty folder"),
        (("predict", "RUN", "COHORT", "--out", "OUT.xlsx"), "expected a file that ends in .parquet or .csv"),
        (("predict", "RUN", "RUN", "--out", "OUT.csv"), "expected a prepared cohort"),
        (("stay", "RUN", "COHORT", "--stay", "5", "--out", "OUT.png"), "has no stay 5"),
        (("pictures", "COHORT", "--out", "OUT"), "found no run.json in it"),
    ],
)
def test_a_mistake_is_told_and_leaves_nothing(
    run: Path, cohort: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    places = {"RUN": run, "COHORT": cohort, "OUT": tmp_path / "out"}
    files = {"OUT.xlsx": tmp_path / "out.xlsx", "OUT.csv": tmp_path / "out.csv", "OUT.png": tmp_path / "out.png"}
    result = dipro_fed(*(({**places, **files}).get(word, word) for word in words))
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
    assert not list(tmp_path.iterdir())
