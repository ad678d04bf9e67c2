"""On real records: the published profile equals the published preparation cell by cell; what `corrected` changes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from client.cohort import Cohort
from client.prepare.pipeline import prepare
from dipro_model.vocabulary import DEMOGRAPHICS, EHR_VARIABLES


def prepared(demo_linked: Path, out: Path, profile: str) -> Cohort:
    parts = ("mimiciv", "mimic-cxr-jpg", "chest-imagenome")
    return prepare(*(demo_linked / part for part in parts), out, profile=profile, workers=1)


@pytest.fixture(scope="module")
def published(demo_linked: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return prepared(demo_linked, tmp_path_factory.mktemp("published") / "cohort", "published")


@pytest.fixture(scope="module")
def corrected(demo_linked: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return prepared(demo_linked, tmp_path_factory.mktemp("corrected") / "cohort", "corrected")


@pytest.fixture(scope="module")
def expected(demo_linked: Path) -> Path:
    """Results of the published preparation for the stays with an even identifier."""
    return demo_linked / "expected"


def visible(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["stay_id"] % 2 == 0].sort_values("stay_id")


def test_stays_equal_the_published_ones(published: Cohort, expected: Path):
    found = visible(published.stays).reset_index(drop=True)
    wanted = pd.read_csv(expected / "all_stays.csv", parse_dates=["intime", "outtime"])
    wanted = wanted.sort_values("stay_id").reset_index(drop=True)
    for column in ("stay_id", "subject_id", "hadm_id", "age", "mortality_inhospital"):
        assert found[column].tolist() == wanted[column].tolist(), column
    for column in ("intime", "outtime"):
        assert (found[column] == wanted[column]).all()
    assert np.allclose(found["los_days"], wanted["los"], rtol=0, atol=1e-9)


def test_hourly_values_and_masks_equal_the_published_ones(published: Cohort, expected: Path):
    keys = ["stay_id", "hour"]
    found = published.ehr_hourly.set_index(keys)
    wanted = pd.read_parquet(expected / "ehr_hourly.parquet").set_index(keys).sort_index()
    found = found[found.index.get_level_values("stay_id") % 2 == 0]
    assert found.index.equals(wanted.index)
    for name in EHR_VARIABLES:
        assert np.allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5), name
        assert (found[f"{name}_mask"] == wanted[f"{name}_mask"].astype(bool)).all(), name


def test_statistics_equal_the_published_ones(published: Cohort, expected: Path):
    wanted = pd.read_csv(expected / "mean_std.csv").set_index("variables")
    for name, found in published.statistics["ehr"].items():
        assert found["num_values"] == wanted.loc[name, "total_count"], name
        assert found["mean"] == pytest.approx(wanted.loc[name, "mean"], rel=1e-9), name
        assert found["sd"] == pytest.approx(wanted.loc[name, "std"], rel=1e-9), name


def test_demographics_equal_the_published_ones(published: Cohort, expected: Path):
    found = visible(published.demographics).set_index("stay_id")
    wanted = pd.read_csv(expected / "demographic_processed.csv").set_index("stay_id").sort_index()
    for name in DEMOGRAPHICS:
        # The published tables have no column for a category that no stay has.
        column = wanted[name] if name in wanted else pd.Series(0, index=wanted.index)
        assert np.allclose(found[name], column, rtol=1e-6, atol=1e-6), name


def test_the_reference_check_agrees_in_every_cell(published: Cohort, shared_folder: Path, expected: Path):
    script = shared_folder / "tools" / "cohort_check.py"
    finished = subprocess.run(
        [sys.executable, script, published.path, expected], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout
    assert "all agree" in finished.stdout


def test_eye_opening_none_is_corrected_in_exactly_the_hours_listed(
    published: Cohort, corrected: Cohort, expected: Path
):
    name = "Glascow coma scale eye opening"
    frames = []
    for cohort in (published, corrected):
        statistic = cohort.statistics["ehr"][name]
        frame = visible(cohort.ehr_hourly).set_index(["stay_id", "hour"])[[name, f"{name}_mask"]]
        frames.append(frame.assign(**{name: (frame[name] * statistic["sd"] + statistic["mean"]).round(3)}))
    both = frames[0].join(frames[1], suffixes=("", " corrected"), how="inner")
    differ = (both[name] != both[f"{name} corrected"]) | (both[f"{name}_mask"] != both[f"{name}_mask corrected"])
    listed = pd.read_csv(expected / "gcs_eye_none.csv").set_index(["stay_id", "hour"])
    listed = listed[listed.index.get_level_values("stay_id").isin(corrected.stays["stay_id"])].sort_index()
    assert both[differ].sort_index().index.equals(listed.index)
    assert np.allclose(both.loc[listed.index, f"{name} corrected"], listed["corrected_value"], atol=1e-3)
    assert (both.loc[listed.index, f"{name}_mask corrected"] == listed["corrected_mask"].astype(bool)).all()


def test_ages_are_corrected_in_exactly_the_stays_listed(published: Cohort, corrected: Cohort, expected: Path):
    known = pd.read_csv(expected / "known_differences.csv")
    known = known[(known["file"] == "all_stays.csv") & (known["column"] == "age")].astype({"stay_id": int})
    both = visible(published.stays).merge(visible(corrected.stays), on="stay_id", suffixes=("", "_corrected"))
    differ = both[both["age"] != both["age_corrected"]].set_index("stay_id")["age_corrected"]
    assert differ.astype(int).to_dict() == known.set_index("stay_id")["corrected"].astype(int).to_dict()
