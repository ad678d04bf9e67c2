"""`dipro-fed compare` as a person runs it."""

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
