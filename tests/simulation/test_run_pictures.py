"""Pictures of run folders: which are drawn, under which names."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.pictures import attention, bands
from dipro_model.vocabulary import Task
from federation.run_folder import RunError, read_run, write_run
from simulation import run_pictures
from simulation.run_pictures import draw_run, draw_runs
from simulation.runs import load_runs
from tests.run_folders import make_patients, with_scores, write_fake_run


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "NUM_RESAMPLES", 5)
    monkeypatch.setattr(attention, "NUM_RESAMPLES", 5)


@pytest.fixture
def patients():
    return with_scores(make_patients(Task.MORTALITY), 1.0, 1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_runs_of_one_name_are_told_apart_by_task_then_seed(patients, tmp_path, monkeypatch) -> None:
    lines, drawn = {}, []
    monkeypatch.setattr(run_pictures, "draw_attention", lambda models, out, title: lines.update(models) or out)
    for name in ("draw_scores", "draw_training"):
        monkeypatch.setattr(run_pictures, name, lambda *given, **_: drawn.append(given[-1].name))
    stays = with_scores(make_patients(Task.LENGTH_OF_STAY), 1.0, 1)
    death = write_fake_run(tmp_path / "death", patients, kind="centralized", name="cent/ral", seed=23)
    stay = write_fake_run(tmp_path / "stay", stays, kind="centralized", name="cent/ral", seed=23)
    draw_runs([death, stay], tmp_path / "two", split="test")
    assert list(lines) == ["cent/ral, death in hospital", "cent/ral, length of stay"]
    assert drawn == [
        f"cent%2Fral-{task}-{kind}.png"
        for task in ("death_in_hospital", "length_of_stay")
        for kind in ("training", "scores")
    ]
    lines.clear()
    again = write_fake_run(tmp_path / "again", patients, kind="centralized", name="cent/ral", seed=29)
    draw_runs([death, again], tmp_path / "seeds", split="test")
    assert list(lines) == [f"cent/ral, death in hospital, seed {seed}" for seed in (23, 29)]


def test_written_files_are_those_that_are_named(patients, tmp_path) -> None:
    run = write_fake_run(tmp_path / "run", patients, kind="federated")
    written = draw_runs([run], tmp_path / "out", split="val")
    assert sorted(path.name for path in written) == names(tmp_path / "out")
    assert names(tmp_path / "out") == ["attention.png", "federated-scores.png", "federated-training.png"]


def test_a_run_whose_scores_stayed_at_its_sites_has_its_training_drawn(patients, tmp_path) -> None:
    run = write_fake_run(tmp_path / "run", patients, kind="federated")
    shutil.rmtree(run / "predictions")
    said: list[str] = []
    written = draw_runs([run], tmp_path / "out", split="test", tell=said.append)
    assert [path.name for path in written] == names(tmp_path / "out") == ["federated-training.png"]
    assert "at the sites" in said[0]


def test_no_attention_is_drawn_of_a_model_without_radiographs(patients, tmp_path) -> None:
    blind = replace(patients, attention=np.zeros_like(patients.attention))
    run = write_fake_run(tmp_path / "run", blind, kind="centralized")
    written = draw_run(load_runs([run])[0], tmp_path / "out", split="test")
    assert [path.name for path in written] == ["scores.png"]


def test_an_evaluated_model_has_no_training_and_one_split(patients, tmp_path) -> None:
    run = write_fake_run(tmp_path / "run", patients.select(patients.split == "test"), kind="centralized")
    (run / "history.jsonl").write_text("")
    write_run(run, replace(read_run(run), kind="evaluated"))
    written = draw_runs([run], tmp_path / "out", split="test")
    assert [path.name for path in written] == ["centralized-scores.png", "attention.png"]
    with pytest.raises(RunError, match="expected scores of the val split, found those of test"):
        draw_runs([run], tmp_path / "out", split="val")
