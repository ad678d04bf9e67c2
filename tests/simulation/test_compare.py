"""The comparison against numbers recomputed from the files by other means, and every reason to refuse runs."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk

from client.predictions import PredictionsError, predictions_path
from dipro_model.metrics import METRICS, metric_names
from dipro_model.vocabulary import DISEASES, Task
from federation.run_folder import RunError
from simulation.compare import ALONE, compare
from simulation.report_words import lead
from simulation.runs import load_runs
from tests.run_folders import SITES, make_patients, with_scores, write_fake_run, write_fake_study


def read_files(run: Path, sites: tuple[str, ...] = SITES) -> pd.DataFrame:
    """The test rows of a run's files, read without the project's code."""
    files = [pd.read_parquet(run / "predictions" / f"{site}.parquet") for site in sites]
    return pd.concat(files).query("split == 'test'")


def recompute(task: Task, rows: pd.DataFrame) -> dict[str, float]:
    """The task's metrics by scikit-learn."""
    labels, scores = np.stack(rows.label.tolist()), np.stack(rows.probability.tolist()).astype(np.float64)
    if task is Task.MORTALITY:
        return {
            "auroc": sk.roc_auc_score(labels[:, 0], scores[:, 0]),
            "auprc": sk.average_precision_score(labels[:, 0], scores[:, 0]),
            "brier": sk.brier_score_loss(labels[:, 0], scores[:, 0]),
        }
    if task is Task.LENGTH_OF_STAY:
        called = scores.argmax(axis=1)
        return {
            "kappa": sk.cohen_kappa_score(labels[:, 0], called),
            "accuracy": sk.accuracy_score(labels[:, 0], called),
            "f1": sk.f1_score(labels[:, 0], called, average="macro"),
            "f1_micro": sk.f1_score(labels[:, 0], called, average="micro"),
            "auroc": sk.roc_auc_score(labels[:, 0], scores / scores.sum(axis=1, keepdims=True), multi_class="ovr"),
        }
    f1 = {}
    for k, disease in enumerate(DISEASES):
        known = labels[:, k] != 3
        f1[f"f1/{disease}"] = sk.f1_score(
            labels[known, k], scores[known, 3 * k : 3 * k + 3].argmax(axis=1), average="macro"
        )
    return {"f1": float(np.mean(list(f1.values()))), **f1}


@pytest.mark.parametrize("task", list(Task))
def test_every_cell_equals_a_recomputation(tmp_path: Path, task: Task) -> None:
    folders = write_fake_study(tmp_path, task)
    comparison = compare(load_runs(folders), num_resamples=20)
    labels = ["centralized", "federated", "north alone", "south alone"]
    assert [model.label for model in comparison.models] == [*labels, ALONE]
    for label, folder in zip(labels, folders, strict=True):
        rows = read_files(folder)
        for site, own in {"pooled": rows, **dict(list(rows.groupby("site")))}.items():
            for metric, expected in recompute(task, own).items():
                assert comparison.cells[metric, label, site].result.value == pytest.approx(expected, abs=1e-12)
    union = pd.concat([read_files(folders[2], ("north",)), read_files(folders[3], ("south",))])
    for metric, expected in recompute(task, union).items():
        assert comparison.cells[metric, ALONE, "pooled"].result.value == pytest.approx(expected, abs=1e-12)
    num_cells = len(metric_names(task)) * 5 * 3
    assert len(comparison.cells) == num_cells


def test_columns_count_patients_samples_and_classes(tmp_path: Path) -> None:
    folders = write_fake_study(tmp_path, Task.MORTALITY)
    comparison = compare(load_runs(folders), num_resamples=5)
    rows = read_files(folders[0])
    assert [column.site for column in comparison.columns] == ["pooled", *SITES]
    # The sites number their patients alike: pooled, patient 1001 of the north is not patient 1001 of the south.
    assert comparison.columns[0].num_patients == rows.groupby(["site", "subject_id"]).ngroups
    assert comparison.columns[0].num_patients > rows.subject_id.nunique()
    assert comparison.columns[0].num_samples == len(rows)
    died = int(rows.label.map(lambda label: label[0]).sum())
    assert comparison.columns[0].class_counts == {"survived": len(rows) - died, "died": died}


def test_intervals_hold_their_value_and_models_share_the_draws(tmp_path: Path) -> None:
    patients = make_patients(Task.MORTALITY)
    same = with_scores(patients, 1.0, 1)
    folders = [
        write_fake_run(tmp_path / "a", same, kind="centralized"),
        write_fake_run(tmp_path / "b", same, kind="federated"),
    ]
    cells = compare(load_runs(folders), num_resamples=200).cells
    for metric in METRICS[Task.MORTALITY]:
        for site in ("pooled", *SITES):
            one, other = cells[metric, "centralized", site], cells[metric, "federated", site]
            assert one.interval == other.interval
            assert one.interval.low is not None
            assert one.interval.high is not None
            assert one.result.value is not None
            assert one.interval.low <= one.result.value <= one.interval.high


def test_another_seed_gives_other_intervals_and_the_same_values(tmp_path: Path) -> None:
    runs = load_runs(write_fake_study(tmp_path, Task.MORTALITY))
    first, again, other = (compare(runs, num_resamples=50, seed=seed).cells for seed in (0, 0, 1))
    assert first == again
    assert {key: cell.result for key, cell in first.items()} == {key: cell.result for key, cell in other.items()}
    assert first != other


def test_a_site_with_one_class_is_undefined_there_and_counts_pooled(tmp_path: Path) -> None:
    patients = make_patients(Task.MORTALITY)
    labels = np.where(patients.site == "south", 0, patients.labels).astype(np.int8)
    run = write_fake_run(tmp_path / "run", with_scores(replace(patients, labels=labels), 1.0, 1), kind="federated")
    cells = compare(load_runs([run]), num_resamples=20).cells
    assert cells["auroc", "federated", "south"].result.value is None
    assert "two classes" in str(cells["auroc", "federated", "south"].result.reason)
    assert cells["auroc", "federated", "pooled"].result.value is not None


def test_a_site_without_test_patients_is_undefined_there(tmp_path: Path) -> None:
    patients = make_patients(Task.LENGTH_OF_STAY)
    split = np.where((patients.site == "south") & (patients.split == "test"), "train", patients.split)
    moved = replace(patients, split=split.astype(object))
    run = write_fake_run(tmp_path / "run", with_scores(moved, 1.0, 1), kind="federated")
    comparison = compare(load_runs([run]), num_resamples=20)
    assert comparison.columns[2].num_patients == 0
    assert comparison.cells["accuracy", "federated", "south"].result.reason == "no sample has a label"
    assert comparison.notes == ()


def test_patients_in_two_splits_are_counted_and_said(tmp_path: Path) -> None:
    patients = make_patients(Task.MORTALITY)
    north = patients.subject_id[patients.site == "north"].tolist()
    twice = next(who for who in north if north.count(who) == 2)
    rows = np.flatnonzero((patients.subject_id == twice) & (patients.site == "north"))
    split = patients.split.copy()
    split[rows] = "train"
    split[rows[-1]] = "test"
    run = write_fake_run(tmp_path / "run", with_scores(replace(patients, split=split), 1.0, 1), kind="federated")
    comparison = compare(load_runs([run]), num_resamples=5)
    assert comparison.num_leaked == 1
    assert comparison.notes[0].startswith("Patients with samples in more than one split: 1.")
    assert "whom none of them was trained on" not in lead(comparison)


def test_the_row_of_sites_alone_needs_one_local_run_of_every_site(tmp_path: Path) -> None:
    folders = write_fake_study(tmp_path, Task.MORTALITY)
    incomplete = compare(load_runs(folders[:3]), num_resamples=5)
    assert ALONE not in [model.label for model in incomplete.models]
    assert "no local run of south" in incomplete.notes[0]
    assert compare(load_runs(folders[:2]), num_resamples=5).notes == ()
    twice = write_fake_run(
        tmp_path / "again", with_scores(make_patients(Task.MORTALITY), 0.5, 9), kind="local", trained_on=["north"]
    )
    several = compare(load_runs([*folders, twice]), num_resamples=5)
    assert "several local runs of north" in several.notes[0]


def test_another_split_is_scored_on_its_own_patients(tmp_path: Path) -> None:
    folders = write_fake_study(tmp_path, Task.MORTALITY)
    runs = load_runs(folders)
    counts = {split: compare(runs, split=split, num_resamples=2).columns[0].num_samples for split in ("train", "val")}
    rows = pd.concat(pd.read_parquet(predictions_path(folders[0], site)) for site in SITES)
    assert counts == {split: int((rows.split == split).sum()) for split in counts}


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    patients = with_scores(make_patients(Task.MORTALITY), 1.0, 1)
    one = write_fake_run(tmp_path / "a", patients, kind="centralized", settings={"x": {"y": 1, "z": 2}, "v": [1]})
    two = write_fake_run(tmp_path / "b", patients, kind="federated", settings={"x": {"y": 1, "z": "2"}, "w": None})
    assert compare(load_runs([one, two]), num_resamples=2).differing_settings == {
        "x.z": {"centralized": "2", "federated": '"2"'},
        "v": {"centralized": "[1]"},
        "w": {"federated": "null"},
    }


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    patients = with_scores(make_patients(Task.MORTALITY), 1.0, 1)
    folders = [write_fake_run(tmp_path / f"{n}", patients, kind="centralized", seed=min(n, 2)) for n in (1, 2, 3)]
    labels = [run.label for run in load_runs(folders)]
    assert labels == ["centralized, seed 1", f"centralized ({folders[1]})", f"centralized ({folders[2]})"]


def test_order_is_centralized_federated_local_whatever_was_typed(tmp_path: Path) -> None:
    folders = write_fake_study(tmp_path, Task.MORTALITY)
    assert [run.path for run in load_runs(folders[::-1])] == [*folders[:2], folders[3], folders[2]]


def test_an_unfinished_run_is_refused_with_its_status(tmp_path: Path) -> None:
    patients = with_scores(make_patients(Task.MORTALITY), 1.0, 1)
    folder = write_fake_run(tmp_path / "run", patients, kind="centralized", status="running")
    with pytest.raises(RunError, match="status 'running'") as caught:
        load_runs([folder])
    assert str(folder) in str(caught.value)


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    folders = write_fake_study(tmp_path, Task.MORTALITY)
    with pytest.raises(RunError, match=r"found no run\.json"):
        load_runs([folders[0], tmp_path])
    with pytest.raises(RunError, match="several times"):
        load_runs([folders[0], folders[1], folders[0] / ".." / folders[0].name])
    with pytest.raises(RunError, match="found none"):
        load_runs([])
    predictions_path(folders[1], "south").unlink()
    with pytest.raises(PredictionsError, match=re.escape("south.parquet")):
        load_runs(folders)


def test_runs_of_two_tasks_are_refused(tmp_path: Path) -> None:
    one = write_fake_study(tmp_path / "m", Task.MORTALITY)[0]
    two = write_fake_study(tmp_path / "l", Task.LENGTH_OF_STAY)[0]
    with pytest.raises(RunError, match="mortality and length_of_stay") as caught:
        load_runs([one, two])
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("labels", 1, "1 samples have another label"),
        ("split", "val", "1 samples have another split"),
        ("subject_id", 5, "1 samples have another patient"),
        ("sample_id", "new", "1 samples are only in the first; 1 samples are only in the second"),
    ],
)
def test_runs_on_other_samples_are_refused(tmp_path: Path, field: str, value: object, words: str) -> None:
    patients = make_patients(Task.MORTALITY)
    row = int(np.flatnonzero((patients.labels == 0) & (patients.split == "test"))[0])
    column = getattr(patients, field).copy()
    column[row] = value
    changed = replace(patients, **{field: column})
    one = write_fake_run(tmp_path / "a", with_scores(patients, 1.0, 1), kind="centralized")
    two = write_fake_run(tmp_path / "b", with_scores(changed, 1.0, 1), kind="federated")
    with pytest.raises(RunError, match=words) as caught:
        load_runs([one, two])
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)
    assert "same prepared cohorts" in str(caught.value)


def test_runs_on_other_sites_are_refused(tmp_path: Path) -> None:
    patients = with_scores(make_patients(Task.MORTALITY), 1.0, 1)
    one = write_fake_run(tmp_path / "a", patients, kind="centralized")
    two = write_fake_run(tmp_path / "b", patients.select(patients.site == "north"), kind="local")
    with pytest.raises(RunError, match="the sites are north, south and north"):
        load_runs([one, two])
