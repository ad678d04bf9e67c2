"""`dipro-fed inspect` as a user runs it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dipro_fed.main import app
from tests.make_cohort import write_cohort


@pytest.fixture
def sites(tmp_path: Path) -> list[str]:
    return [
        str(write_cohort(tmp_path / name, num_patients=4, seed=seed)) for seed, name in enumerate(("north", "south"))
    ]


def run(*arguments: str):
    return CliRunner().invoke(app, ["inspect", *arguments], env={"COLUMNS": "120"})


def test_every_site_is_told_and_drawn(sites, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*sites, "--stays", "1")
    assert result.exit_code == 0, result.output
    for word in ("site north", "site south", "Counts by split", "enlarged cardiac silhouette", "Heart Rate"):
        assert word in result.output
    assert (tmp_path / "north-stays.png").is_file()
    assert (tmp_path / "south-stays.png").is_file()


def test_no_picture_where_none_is_wanted(sites, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(sites[0], "--stays", "0").exit_code == 0
    assert not list(tmp_path.glob("*.png"))


def test_one_picture_for_several_cohorts_is_refused(sites):
    result = run(*sites, "--picture", "all.png")
    assert result.exit_code == 2
    assert "one picture cannot show several cohorts" in result.output


def test_a_folder_that_is_no_cohort_is_named(tmp_path):
    result = run(str(tmp_path))
    assert result.exit_code == 1
    assert "expected a prepared cohort" in str(result.exception)
