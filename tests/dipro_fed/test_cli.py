"""The command line as a person meets it: one paragraph where something is wrong, and nothing left behind."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dipro_fed.settings import settings_page
from tests.make_cohort import write_cohort

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohorts") / "north", num_patients=16)


def _dipro_fed(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dipro_fed", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=300, check=False)


def test_help_names_every_subcommand() -> None:
    shown = _dipro_fed("--help").stdout
    for name in ("synthesize", "prepare", "inspect", "train", "simulate", "compare", "settings", "demo"):
        assert name in shown
    for name in ("evaluate", "predict", "pictures", "stay"):
        assert name in shown


def test_the_page_of_settings_is_current() -> None:
    assert (PROJECT / "docs" / "settings.md").read_text() == settings_page()


def test_every_row_of_the_settings_stands_on_one_line() -> None:
    tables = settings_page().partition("\n## ")[2].split("| name | values | default | meaning |\n")[1:]
    for table in tables:
        rows = table.partition("\n\n")[0].splitlines()
        assert all(row.startswith("|") and row.endswith("|") for row in rows), table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "death"), "task: input should be"),
        (("--task", "mortality", "--set", "training.epoch=3"), "training.epoch: unknown setting"),
        (("--task", "mortality", "--set", "training.epochs=many"), "training.epochs: .*found 'many'"),
        (("--task", "mortality", "--config", "absent.yaml"), "absent.yaml: no such settings file"),
        (("--task", "mortality", "--only", "south"), "--only south: expected one of the sites north"),
        (("--task", "mortality", "--sites", "9"), "none of its stays|no patient with a sample"),
        (("--task", "mortality", "--device", "abacus"), "--device abacus"),
        (("--task", "mortality", "--set", "model.backbone_weights=absent.pth"), "absent.pth"),
    ],
)
def test_a_mistake_is_one_paragraph(cohort: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    small = ("--set", "model.backbone_depth=10", "--set", "model.crop_pixels=16", "--set", "model.width=16")
    result = _dipro_fed("train", cohort, "--out", tmp_path / "run", *small, *words)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "run").exists()


def test_what_is_no_cohort_or_no_number_is_refused(tmp_path: Path) -> None:
    result = _dipro_fed("train", tmp_path, "--task", "mortality", "--out", tmp_path / "run")
    assert result.returncode == 1
    assert "expected a prepared cohort, found no manifest.json" in result.stderr
    assert _dipro_fed("train", tmp_path, "--task", "mortality", "--out", tmp_path, "--epochs", "many").returncode == 2
    assert _dipro_fed("trian").returncode == 2


def test_a_run_never_overwrites(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    for command in ("train", "simulate"):
        result = _dipro_fed(command, cohort, "--task", "mortality", "--out", tmp_path)
        assert result.returncode == 1
        assert "expected a new or an empty folder, found files in it" in result.stderr
    result = _dipro_fed("demo", "--out", tmp_path)
    assert "or one of an earlier demo" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_traceback_is_shown_when_asked(tmp_path: Path) -> None:
    result = _dipro_fed("--traceback", "train", tmp_path, "--task", "mortality", "--out", tmp_path / "run")
    assert "Traceback" in result.stderr
