"""`dipro-fed compare` as a person runs it."""

import json
from pathlib import Path

from typer.testing import CliRunner

from dipro_fed.main import app
from dipro_model.vocabulary import Task
from simulation.report_folder import FILES
from tests.run_folders import write_fake_study


def test_compare_prints_the_table_and_writes_the_report(tmp_path: Path) -> None:
    folders = write_fake_study(tmp_path / "runs", Task.MORTALITY)
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["compare", *map(str, folders), "--out", str(out), "--resamples", "20"], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    for words in ("AUROC", "AUPRC", "centralized", "federated", "north alone", "each site alone", "pooled"):
        assert words in result.output
    assert "Difference to centralized" in result.output
    assert f"Report: {out / 'report.html'}" in result.output
    assert {each.name for each in out.iterdir()} == set(FILES)


def test_an_unknown_split_or_a_used_folder_fails_before_any_work(tmp_path: Path) -> None:
    runs = ["compare", str(tmp_path / "missing"), "--out"]
    result = CliRunner().invoke(app, [*runs, str(tmp_path / "out"), "--split", "dev"])
    assert isinstance(result.exception, ValueError)
    assert "--split: expected one of train, val, test, found 'dev'" in str(result.exception)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    result = CliRunner().invoke(app, [*runs, str(tmp_path / "used")])
    assert "found notes.txt" in str(result.exception)
    result = CliRunner().invoke(app, [*runs, str(tmp_path / "out")])
    assert "found no run.json" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_reference_margins_and_cohorts_are_options(tmp_path: Path) -> None:
    folders = write_fake_study(tmp_path / "runs", Task.MORTALITY)[:2]
    common = ["compare", *map(str, folders), "--out", str(tmp_path / "out"), "--resamples", "20"]
    asked = ["--reference", "federated", "--margin", "auroc=0.5", "--margin", "brier=0.5"]
    result = CliRunner().invoke(app, [*common, *asked], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert facts["reference"] == "federated"
    assert facts["margins"] == {"auroc": 0.5, "auprc": 0.02, "brier": 0.5}
    pooled = [row for row in facts["differences"] if row["site"] == "pooled" and row["metric"] in ("auroc", "brier")]
    assert [row["verdict"] for row in pooled] == ["non-inferior", "non-inferior"]
    for option, value, words in (
        ("--margin", "auroc", "expected a metric and a number, as in --margin auroc=0.01, found 'auroc'"),
        ("--margin", "kappa=0.1", "mortality has no metric kappa"),
        ("--reference", "nobody", "found 'nobody'"),
        ("--cohort", str(tmp_path), "expected a prepared cohort"),
    ):
        result = CliRunner().invoke(app, [*common, option, value])
        assert words in str(result.exception)
