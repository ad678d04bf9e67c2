"""Groups from cohorts against pandas and scikit-learn, what is withheld, and the cost that runs recorded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk

from client.cohort import CohortError
from client.predictions import Predictions
from dipro_model.vocabulary import Task
from federation.run_folder import RunError
from simulation.compare import compare
from simulation.comparison.demographics import age_group
from simulation.comparison.fairness import Spread
from simulation.comparison.study import Study, study
from simulation.runs import load_runs
from tests.made_studies import noted
from tests.make_cohort import write_cohort
from tests.run_folders import SITES, make_patients, with_scores, write_fake_run, write_fake_study

NUM_PATIENTS = 32


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two hospitals that number their patients alike; all patients are of the test split."""
    root = tmp_path_factory.mktemp("cohorts")
    options: dict[str, Any] = {"num_patients": NUM_PATIENTS, "num_images": 2, "splits": ("test",) * 3}
    return {site: write_cohort(root / site, seed=number, **options) for number, site in enumerate(SITES)}


def scored(cohorts: dict[str, Path], seed: int = 0) -> Predictions:
    """Scores of the cohorts' stays."""
    generator = np.random.default_rng(seed)
    stays = pd.concat([pd.read_parquet(path / "stays.parquet").assign(site=site) for site, path in cohorts.items()])
    died = stays.mortality_inhospital.to_numpy()
    risk = 1 / (1 + np.exp(-(2.0 * died - 1 + generator.normal(size=len(died)))))
    blank = make_patients(Task.MORTALITY, num_patients=len(died)).select(np.arange(len(died)))
    return replace(
        blank,
        site=stays.site.to_numpy(dtype=object),
        subject_id=stays.subject_id.to_numpy(),
        stay_id=stays.stay_id.to_numpy(),
        sample_id=stays.stay_id.astype(str).to_numpy(dtype=object),
        split=stays.split.to_numpy(dtype=object),
        labels=died.astype(np.int8),
        probabilities=risk[:, None, None].astype(np.float32),
    )


def concluded(folder: Path, scores: Predictions, **options: Any) -> Study:
    run = write_fake_run(folder, scores, kind="federated")
    return study(compare(load_runs([run]), num_resamples=40), **options)


def spread_of(found: Study, metric: str, attribute: str) -> Spread:
    (own,) = [each for each in found.fairness.spreads if (each.metric, each.attribute) == (metric, attribute)]
    return own


def test_groups_are_those_of_the_cohorts_and_small_ones_are_withheld(cohorts: dict[str, Path], tmp_path: Path) -> None:
    found = concluded(tmp_path / "run", scored(cohorts), cohorts=list(cohorts.values()), minimum_group=12)
    predictions = scored(cohorts)
    frames = [
        pd.read_parquet(path / "stays.parquet").merge(pd.read_parquet(path / "groups.parquet"), on="stay_id")
        for path in cohorts.values()
    ]
    table = pd.concat(frames).assign(risk=predictions.probabilities[:, 0, 0].astype(float))
    table["age group"] = pd.cut(
        table.age, [0, 50, 65, 80, 999], right=False, labels=["under 50", "50 to 64", "65 to 79", "80 and over"]
    ).astype(str)
    for attribute, column in (("sex", "sex"), ("race group", "race_group"), ("age", "age group")):
        own = spread_of(found, "auroc", attribute)
        sizes = table.groupby(column).size()
        groups = {group.name: group.num_patients for group in found.fairness.groups if group.attribute == attribute}
        assert groups == {name: size if size >= 12 else None for name, size in sizes.items()}
        expected = {
            name: sk.roc_auc_score(rows.mortality_inhospital, rows.risk)
            for name, rows in table.groupby(column)
            if len(rows) >= 12
        }
        assert {name: each.value for name, each in own.by_group.items()} == pytest.approx(expected, abs=1e-12)
        if len(expected) > 1:
            assert own.worst == min(expected, key=lambda name: expected[name])
            assert own.spread.value == pytest.approx(max(expected.values()) - min(expected.values()), abs=1e-12)
    ages = [group.num_patients for group in found.fairness.groups if group.attribute == "age"]
    assert None in ages  # or nothing was withheld here
    brier = spread_of(found, "brier", "sex")
    assert brier.worst == max(brier.by_group, key=lambda name: brier.by_group[name].value or 0)


def test_a_spread_has_the_draws_of_all_groups_at_once(cohorts: dict[str, Path], tmp_path: Path) -> None:
    found = concluded(tmp_path / "run", scored(cohorts))
    own, rows = spread_of(found, "auroc", "site"), scored(cohorts)
    risk, draws = rows.probabilities[:, 0, 0].astype(float), []
    for counts in np.random.default_rng(0).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=40):
        # One stay a patient here: rows are patients, in the order of site and subject.
        drawn = {site: np.repeat(np.flatnonzero(rows.site == site), counts[rows.site == site]) for site in SITES}
        values = [sk.roc_auc_score(rows.labels[each], risk[each]) for each in drawn.values()]
        draws.append(max(values) - min(values))
    low, high = np.quantile(draws, [0.025, 0.975])
    value = own.spread.value or 0.0
    assert own.spread.low == pytest.approx(min(max(0, 2 * value - high), value), abs=1e-12)
    assert own.spread.high == pytest.approx(max(2 * value - low, value), abs=1e-12)


def test_a_federated_run_says_itself_which_cohorts_its_sites_have(cohorts: dict[str, Path], tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", scored(cohorts), kind="federated")
    comparison = compare(load_runs([run]), num_resamples=5)
    missing = study(comparison)
    assert {group.attribute for group in missing.fairness.groups} == {"site"}
    assert "--cohort PATH" in missing.notes[-1]
    places = [{"name": site, "cohort": str(path)} for site, path in cohorts.items()]
    (run / "sites.json").write_text(json.dumps(places))
    attributes = {group.attribute for group in study(comparison).fairness.groups}
    assert attributes == {"site", "sex", "age", "race group"}
    places[0]["cohort"] = str(tmp_path / "moved")
    (run / "sites.json").write_text(json.dumps(places))
    assert "moved" in study(comparison).notes[-1]


def test_cohorts_are_found_for_sites_of_other_names_and_wrong_ones_refused(
    cohorts: dict[str, Path], tmp_path: Path
) -> None:
    rows = scored(cohorts)
    renamed = replace(rows, site=np.where(rows.site == "north", "site 1", "site 2").astype(object))
    one = renamed.select(renamed.site == "site 1")
    run = write_fake_run(tmp_path / "one", one, kind="federated")
    found = study(compare(load_runs([run]), num_resamples=5), cohorts=[cohorts["north"]])
    assert {group.attribute for group in found.fairness.groups} == {"site", "sex", "age", "race group"}
    both = compare(load_runs([write_fake_run(tmp_path / "two", renamed, kind="federated")]), num_resamples=5)
    with pytest.raises(CohortError, match="found them in north, south"):
        study(both, cohorts=list(cohorts.values()))
    other = write_cohort(tmp_path / "other", num_patients=4, first_subject=900, num_images=2)
    with pytest.raises(CohortError, match="32 of 32 missing"):
        study(both, cohorts=[other])


@pytest.mark.parametrize(
    ("age", "group"), [(18, "under 50"), (50, "50 to 64"), (64.9, "50 to 64"), (80, "80 and over"), (np.nan, "unknown")]
)
def test_ages_fall_into_their_groups(age: float, group: str) -> None:
    assert age_group(age) == group


def test_costs_are_those_recorded_and_missing_bytes_are_not_zero(tmp_path: Path) -> None:
    folders = write_fake_study(tmp_path, Task.MORTALITY)
    silent = study(compare(load_runs(folders), num_resamples=2)).costs[1]
    assert (silent.model, silent.total_bytes, silent.bytes_per_round, silent.num_steps) == ("federated", None, None, 6)
    noted(folders[1], traffic={"to_sites_bytes": 900, "from_sites_bytes": 300, "rounds": 6})
    cost = study(compare(load_runs(folders), num_resamples=2)).costs[1]
    assert (cost.total_bytes, cost.bytes_per_round, cost.seconds) == (1200, 200, 75.0)
    noted(folders[1], traffic={"to_sites_bytes": 900, "from_sites_bytes": "300", "rounds": 6})
    with pytest.raises(RunError, match="`traffic`: expected the whole numbers"):
        study(compare(load_runs(folders), num_resamples=2))


def test_personal_must_be_true_or_false(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", with_scores(make_patients(Task.MORTALITY), 1.0, 1), kind="federated")
    with pytest.raises(RunError, match="`personal`: expected true or false"):
        load_runs([noted(run, personal="yes")])
