"""The preparation reads a synthetic hospital as it reads any other, and finds what the generator knows."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from client.cohort import Cohort
from client.gaps import Gaps, uncharted_values
from client.prepare.pipeline import prepare
from dipro_model.vocabulary import DISEASES, EHR_VARIABLES, NOT_MENTIONED, PROGRESSIONS, REGIONS
from simulation.synthesize.generate import IMAGE_TRUTH, synthesize
from simulation.synthesize.oracles import TRUTH

PATIENTS = 40


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("raw") / "out"
    return [row.folder for row in synthesize(out, hospitals=2, patients=PATIENTS, seed=3, image_pixels=96)]


@pytest.fixture(scope="module")
def cohorts(hospitals: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Cohort]:
    out = tmp_path_factory.mktemp("cohorts")
    parts = ("mimiciv", "mimic-cxr-jpg", "chest-imagenome")
    return [prepare(*(raw / part for part in parts), out / raw.name, workers=1) for raw in hospitals]


def truth_of(raw: Path) -> dict[int, dict]:
    return {row["stay_id"]: row for row in pq.read_table(raw / TRUTH).to_pylist()}


def test_the_great_majority_of_patients_becomes_samples(cohorts) -> None:
    for cohort in cohorts:
        assert len(cohort.samples_mortality) >= 0.8 * PATIENTS
        assert cohort.report["rejections"]


def test_outcomes_are_those_of_the_truth(hospitals, cohorts) -> None:
    for raw, cohort in zip(hospitals, cohorts, strict=True):
        truth = truth_of(raw)
        for stay in cohort.stays.itertuples():
            row = truth[stay.stay_id]
            assert stay.mortality_inhospital == row["died"]
            assert stay.los_days == pytest.approx(row["los_days"], abs=1e-4)
            assert stay.age == pytest.approx(row["age"], abs=1.01)


def test_kept_images_are_those_that_the_generator_expects(hospitals, cohorts) -> None:
    for raw, cohort in zip(hospitals, cohorts, strict=True):
        rows = {row["dicom_id"]: row for row in pq.read_table(raw / IMAGE_TRUTH).to_pylist()}
        stays = set(cohort.images.stay_id)
        kept = {name for name, row in rows.items() if row["kept"] and row["stay_id"] in stays}
        assert set(cohort.images.dicom_id) == kept
        expected = [rows[name]["hours"] for name in cohort.images.dicom_id]
        assert np.allclose(cohort.images.hours, expected, atol=1.0 / 3600.0)  # times are kept to the second


def test_region_labels_follow_the_severities(hospitals, cohorts) -> None:
    agreeing = total = 0
    found = {disease: set() for disease in DISEASES}
    for raw, cohort in zip(hospitals, cohorts, strict=True):
        rows = {row["dicom_id"]: row for row in pq.read_table(raw / IMAGE_TRUTH).to_pylist()}
        for pair in cohort.pairs.itertuples():
            grid = np.reshape(pair.region_progression, (len(REGIONS), len(DISEASES)))
            for region, disease in np.argwhere(grid != NOT_MENTIONED):
                found[DISEASES[disease]].add(int(grid[region, disease]))
                side = REGIONS[region].split()[0].replace("cardiac", "middle")
                name = f"{DISEASES[disease]} {side}"
                if DISEASES[disease] != "lung opacity":
                    change = rows[pair.second_dicom_id][name] - rows[pair.first_dicom_id][name]
                    word = "no change" if abs(change) <= 0.06 else "worsened" if change > 0.0 else "improved"
                    agreeing += PROGRESSIONS[grid[region, disease]] == word
                    total += 1
    assert total > 1000
    assert agreeing / total > 0.95
    assert all(words == {0, 1, 2} for words in found.values())


def test_natural_splits_have_groups_to_split_by(cohorts) -> None:
    for cohort in cohorts:
        groups = cohort.groups.merge(cohort.stays[["stay_id", "age"]], on="stay_id")
        assert len(groups) == len(cohort.stays)
        assert set(groups.insurance) == {"Medicare", "Medicaid", "Other"}
        for column, most in (("first_careunit", 4), ("anchor_year_group", 4), ("race_group", 6), ("sex", 2)):
            assert 2 <= groups[column].nunique() <= most, column
        assert "unknown" not in groups.to_numpy()
        by_age = groups.groupby(groups.age >= 65).insurance.agg(lambda words: (words == "Medicare").mean())
        assert by_age[True] > by_age[False]
    assert "groups" not in cohorts[0].report["rejections"]


def test_a_variable_that_a_site_lacks_looks_like_one_that_nobody_charted(cohorts) -> None:
    university, _ = cohorts
    hourly = university.ehr_hourly
    (filled,) = uncharted_values(university, Gaps(variables=("Troponin-T",))).values()
    charted = hourly["Troponin-T_mask"].groupby(hourly.stay_id).transform("any")
    assert 0 < charted.mean() < 1
    assert set(hourly.loc[~charted, "Troponin-T"]) == {filled} != {0.0}


def test_missing_items_and_other_units(cohorts) -> None:
    university, regional = cohorts
    never = {name for name in EHR_VARIABLES if not regional.ehr_hourly[f"{name}_mask"].any()}
    assert never == {"Troponin-T", "Albumin", "Positive end-expiratory pressure"}
    assert all(university.ehr_hourly[f"{name}_mask"].any() for name in EHR_VARIABLES)
    # Celsius and Fahrenheit, fractions and per cent, pounds and kilograms come out in one unit.
    for name, tolerance in (("Temperature", 0.3), ("Fraction inspired oxygen", 0.06), ("Weight", 8.0)):
        first, second = (cohort.statistics["ehr"][name]["mean"] for cohort in (university, regional))
        assert first == pytest.approx(second, abs=tolerance), name
