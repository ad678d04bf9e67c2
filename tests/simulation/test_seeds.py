"""Several seeds against pandas and scikit-learn, the published numbers against their source, and reasons to refuse."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
from rich.console import Console

from dipro_model.metrics import METRICS, metric_names
from dipro_model.vocabulary import NOT_MENTIONED, Task
from federation.run_folder import RunError, read_run, write_run
from simulation.published import PUBLISHED, SEEDS
from simulation.seeds import CSV_COLUMNS, SeedSummary, print_seed_summary, summarise_seeds, write_seed_summary
from tests.run_folders import SITES, make_patients, with_scores, write_fake_run

TASKS = list(Task)


def write_seeds(folder: Path, task: Task, seeds: tuple[int, ...] = SEEDS, **fields: object) -> list[Path]:
    """A run a seed on the same patients, the same settings but for the seed; `fields` replace some of the patients'."""
    patients = replace(make_patients(task), **fields)
    return [
        write_fake_run(
            folder / f"seed_{seed}",
            with_scores(patients, 0.8, seed),
            kind="centralized",
            seed=seed,
            settings={"seed": seed, "training": {"epochs": 4}, "parts": {"ehr": True, "sequence": True}},
        )
        for seed in seeds
    ]


def change_record(folder: Path, **fields: object) -> None:
    write_run(folder, replace(read_run(folder), **fields))


def printed(summary: SeedSummary) -> str:
    console = Console(width=120, file=io.StringIO())
    print_seed_summary(summary, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_mean_and_sd_are_those_of_pandas_over_the_pooled_patients(tmp_path: Path) -> None:
    folders = write_seeds(tmp_path, Task.MORTALITY)
    found = {metric.name: metric for metric in summarise_seeds(folders).metrics}
    rows = []
    for folder in folders:
        union = pd.concat(pd.read_parquet(folder / "predictions" / f"{site}.parquet") for site in SITES)
        test = union[union.split == "test"]
        labels, risk = (np.concatenate(test[name].tolist()).astype(np.float64) for name in ("label", "probability"))
        rows.append(
            {
                "auroc": sk.roc_auc_score(labels, risk),
                "auprc": sk.average_precision_score(labels, risk),
                "brier": sk.brier_score_loss(labels, risk),
            }
        )
    table = pd.DataFrame(rows, index=SEEDS)
    for name in table:
        assert found[name].mean == pytest.approx(table[name].mean(), abs=1e-12)
        assert found[name].sd == pytest.approx(table[name].std(), abs=1e-12)
        assert {seed: metric.value for seed, metric in found[name].by_seed.items()} == pytest.approx(
            table[name].to_dict(), abs=1e-12
        )


@pytest.mark.parametrize("task", TASKS)
def test_every_metric_of_the_task_is_summed_up_and_shown_beside_the_published(tmp_path: Path, task: Task) -> None:
    summary = summarise_seeds(write_seeds(tmp_path, task))
    assert tuple(metric.name for metric in summary.metrics) == metric_names(task)
    assert summary.published == PUBLISHED[task]
    text = printed(summary)
    for metric in summary.metrics:
        if metric.name in METRICS[task]:
            assert f"{metric.mean:.3f} ± {metric.sd:.3f}" in text.replace("−", "-")
    for row in PUBLISHED[task]:
        assert all(f"{mean:.3f} ± {sd:.3f}" in text for mean, sd in row.metrics.values())
    assert all(f"seed {seed}" in text for seed in SEEDS)
    assert "seeds 23, 29 and 66" in text
    assert "all radiographs and hourly records" in text


def test_published_numbers_are_those_of_their_source(shared_folder: Path) -> None:
    source = json.loads((shared_folder / "reference" / "published_results.json").read_text())
    tables = {
        Task.DISEASE_PROGRESSION: [source["disease_progression_cxr_only"]["DiPro"]],
        Task.MORTALITY: [source["mortality"][name] for name in ("DiPro_long", "DiPro_last")],
        Task.LENGTH_OF_STAY: [source["length_of_stay"][name] for name in ("DiPro_long", "DiPro_last")],
    }
    for task, rows in tables.items():
        own = [{name: list(pair) for name, pair in row.metrics.items()} for row in PUBLISHED[task]]
        assert own == rows
        assert [row.reads_sequence for row in PUBLISHED[task]] == [True, False][: len(rows)]


@pytest.mark.parametrize("task", TASKS)
def test_published_metrics_are_ours(task: Task) -> None:
    assert all(set(row.metrics) <= set(METRICS[task]) for row in PUBLISHED[task])


def test_files_hold_every_number(tmp_path: Path) -> None:
    summary = summarise_seeds(write_seeds(tmp_path, Task.LENGTH_OF_STAY))
    write_seed_summary(summary, tmp_path)
    write_seed_summary(summary, tmp_path)
    rows = pd.read_csv(tmp_path / "seeds.csv")
    assert tuple(rows) == CSV_COLUMNS
    own = rows[rows.source == "these runs"].set_index("metric")
    facts = json.loads((tmp_path / "seeds.json").read_text())
    by_name = {metric["name"]: metric for metric in facts["metrics"]}
    for metric in summary.metrics:
        assert own.loc[metric.name, "mean"] == pytest.approx(metric.mean, abs=1e-15)
        assert json.loads(own.loc[metric.name, "values"]).keys() == {"23", "29", "66"}
        assert by_name[metric.name]["sd"] == metric.sd
        assert by_name[metric.name]["by_seed"]["29"]["value"] == metric.by_seed[29].value
    published = rows[rows.source == "DiPro, last radiograph"].set_index("metric")
    assert published.loc["kappa", ["mean", "sd", "num_seeds"]].tolist() == [0.226, 0.019, 3]
    assert set(published.index) == {"kappa", "accuracy"}
    assert facts["folders"] == {str(seed): str(tmp_path / f"seed_{seed}") for seed in SEEDS}
    assert "seed" not in facts["settings"]
    assert sorted(each.name for each in tmp_path.iterdir() if each.is_file()) == ["seeds.csv", "seeds.json"]


def test_another_split_has_no_published_numbers(tmp_path: Path) -> None:
    folders = write_seeds(tmp_path, Task.MORTALITY)
    summary = summarise_seeds(folders, split="val")
    assert summary.published == ()
    assert "DiPro" not in printed(summary)
    val = pd.concat(pd.read_parquet(folders[0] / "predictions" / f"{site}.parquet") for site in SITES)
    assert summary.num_samples == (val.split == "val").sum()
    with pytest.raises(ValueError, match="found 'dev'"):
        summarise_seeds(folders, split="dev")


def test_one_seed_has_a_mean_and_no_sd(tmp_path: Path) -> None:
    summary = summarise_seeds(write_seeds(tmp_path, Task.MORTALITY, (23,)))
    for metric in summary.metrics:
        assert metric.mean == metric.by_seed[23].value
        assert metric.sd is None
        assert metric.reason == "a standard deviation needs at least two seeds"
    assert "±" not in printed(replace(summary, published=())).splitlines()[5]
    write_seed_summary(summary, tmp_path)


def test_many_seeds_have_no_column_each(tmp_path: Path) -> None:
    text = printed(summarise_seeds(write_seeds(tmp_path, Task.MORTALITY, tuple(range(6)))))
    assert "6 seeds" in text
    assert "seed 3" not in text


def test_an_undefined_metric_is_said_and_is_never_zero(tmp_path: Path) -> None:
    labels = make_patients(Task.MORTALITY).labels * 0
    summary = summarise_seeds(write_seeds(tmp_path, Task.MORTALITY, labels=labels))
    found = {metric.name: metric for metric in summary.metrics}
    assert (found["auroc"].mean, found["auroc"].sd) == (None, None)
    assert found["auroc"].reason == "needs labels of at least two classes, found one class only"
    assert found["brier"].mean is not None
    text = printed(summary)
    assert "auroc, auprc: needs labels of at least two classes" in text
    assert "0.000" not in text.split("published")[0]
    write_seed_summary(summary, tmp_path)
    rows = pd.read_csv(tmp_path / "seeds.csv").query("source == 'these runs'").set_index("metric")
    assert np.isnan(rows.loc["auroc", "mean"])
    assert "two classes" in rows.loc["auroc", "reason"]


def test_a_mean_over_diseases_says_which_are_missing(tmp_path: Path) -> None:
    labels = make_patients(Task.DISEASE_PROGRESSION).labels.copy()
    labels[:, 6] = NOT_MENTIONED
    summary = summarise_seeds(write_seeds(tmp_path, Task.DISEASE_PROGRESSION, labels=labels))
    found = {metric.name: metric for metric in summary.metrics}
    assert found["f1"].reason == "mean without pneumonia: undefined there"
    assert found["f1/pneumonia"].mean is None


def test_a_seed_that_comes_twice_is_refused(tmp_path: Path) -> None:
    folders = write_seeds(tmp_path, Task.MORTALITY)
    change_record(folders[2], seed=23)
    with pytest.raises(RunError, match="found seed 23 several times") as caught:
        summarise_seeds(folders)
    assert str(folders[0]) in str(caught.value)
    assert str(folders[2]) in str(caught.value)
    assert str(folders[1]) not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"settings": {"seed": 66, "training": {"epochs": 5}, "parts": {"ehr": True}}}, r"training\.epochs \(4 in "),
        ({"settings": {"seed": 66, "training": {"epochs": 4}, "parts": {"ehr": False}}}, r"parts\.ehr \(true in "),
        ({"kind": "federated"}, r'kind \("centralized" in '),
        ({"trained_on": ("north",)}, r'trained_on \(\["north", "south"\] in '),
        ({"task": Task.LENGTH_OF_STAY}, "mortality and length_of_stay"),
        ({"status": "running"}, "status 'running'"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_refused(tmp_path: Path, fields: dict, words: str) -> None:
    folders = write_seeds(tmp_path, Task.MORTALITY)
    change_record(folders[2], **fields)
    with pytest.raises(RunError, match=words) as caught:
        summarise_seeds(folders)
    assert str(folders[2]) in str(caught.value)


def test_runs_on_other_sites_or_patients_are_refused(tmp_path: Path) -> None:
    folders = write_seeds(tmp_path, Task.MORTALITY)
    patients = with_scores(make_patients(Task.MORTALITY, sites=("north", "west")), 0.8, 1)
    other = write_fake_run(tmp_path / "other", patients, kind="centralized", seed=1)
    with pytest.raises(RunError, match="the sites are north, south and north, west"):
        summarise_seeds([*folders, other])


def test_code_that_changed_between_the_seeds_is_said(tmp_path: Path) -> None:
    folders = write_seeds(tmp_path, Task.MORTALITY)
    assert not any("version of the code" in note for note in summarise_seeds(folders).notes)
    change_record(folders[1], more={"code_digest": "other"})
    assert "The runs were not made by the same version of the code." in summarise_seeds(folders).notes
