"""`dipro-fed train` with several seeds, stopped and started again."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dipro_fed.main import app
from federation.run_folder import read_run
from tests.make_cohort import write_cohort
from tests.small_run import SMALL


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohorts") / "north", num_patients=8, num_images=2)


def _train(cohort: Path, out: Path, *words: object) -> Result:
    settings = [word for each in SMALL for word in ("--set", each)]
    command = [
        "train",
        cohort,
        "--task",
        "mortality",
        "--epochs",
        1,
        "--device",
        "cpu",
        "--out",
        out,
        *settings,
        *words,
    ]
    return CliRunner().invoke(app, [str(word) for word in command])


def test_several_seeds_are_runs_of_their_own_and_a_table(tmp_path: Path, cohort: Path) -> None:
    out = tmp_path / "runs"
    first = _train(cohort, out / "seed_7", "--seed", 7)
    assert first.exit_code == 0, first.output
    finished = (out / "seed_7" / "run.json").read_bytes()
    unfinished = out / "seed_5"
    _train(cohort, unfinished, "--seed", 5)
    facts = json.loads((unfinished / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps(facts | {"status": "running"}))  # as if killed while scoring

    result = _train(cohort, out, "--seeds", "5, 7,9")
    assert result.exit_code == 0, result.output
    assert f"{unfinished}: an unfinished run goes on after epoch 1" in result.output
    assert f"{out / 'seed_7'}: finished before, kept as it is" in result.output
    assert (out / "seed_7" / "run.json").read_bytes() == finished
    assert [read_run(out / f"seed_{seed}").seed for seed in (5, 7, 9)] == [5, 7, 9]
    assert read_run(unfinished).more["results"] == facts["results"]
    summary = json.loads((out / "seeds.json").read_text())
    (auroc,) = (metric for metric in summary["metrics"] if metric["name"] == "auroc")
    assert sorted(auroc["by_seed"]) == ["5", "7", "9"]
    assert "mortality, test split, 3 seeds" in result.output

    other = _train(cohort, out, "--seeds", "5,7", "--set", "training.patience=3")
    assert other.exit_code == 1
    assert "settings.training.patience: expected 3, found 10" in str(other.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", "23,29", "--seed", "23"), "--seed and --seeds: expected one of the two"),
        (("--seeds", "23,x"), "--seeds 23,x: expected different whole numbers such as 23,29,66"),
        (("--seeds", "23,29,23"), "--seeds 23,29,23: expected different whole numbers"),
        (("--seeds", ""), "expected different whole numbers"),
    ],
)
def test_seeds_that_make_no_sense_are_refused(tmp_path: Path, cohort: Path, words: tuple, message: str) -> None:
    result = _train(cohort, tmp_path / "runs", *words)
    assert result.exit_code == 1
    assert message in str(result.exception)
    assert not (tmp_path / "runs").exists()


def test_seeds_do_not_mix_with_a_single_run(tmp_path: Path, cohort: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    result = _train(cohort, tmp_path, "--seeds", "23,29")
    assert "expected a folder for runs, found a run" in str(result.exception)
