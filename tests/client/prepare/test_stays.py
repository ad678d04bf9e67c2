"""Stays and demographics: the filters, missing and absurd records."""

from pathlib import Path

import numpy as np
import pytest

from client.cohort import TABLES
from client.prepare.rejections import PrepareError
from tests.client.prepare.tables_world import HEART_RATE, HEIGHT_CM, Hospital

PROFILES = ("corrected", "published")


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    hospital = Hospital(tmp_path)
    hospital.stay(1)
    hospital.chart(0, HEART_RATE, 80)
    return hospital


@pytest.mark.parametrize("profile", PROFILES)
def test_a_stay_has_its_length_times_and_outcome(hospital: Hospital, profile: str):
    hospital.stay(2, days=7.25, deathtime="2150-03-11 12:00:00")
    stays = hospital.prepare(profile).stays.set_index("stay_id")
    assert stays["los_days"].to_dict() == {1: 2.5, 2: 7.25}
    assert stays["mortality_inhospital"].to_dict() == {1: 0, 2: 1}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"outtime": "2150-03-01 00:00:00"}, "stay ends before it starts"),
        ({"intime": "last night"}, "intime or outtime is no time"),
        ({"outtime": ""}, "intime or outtime is no time"),
        ({"anchor_age": "old"}, "age unknown or not in 0 to 150 years"),
        ({"anchor_age": "400"}, "age unknown or not in 0 to 150 years"),
        ({"anchor_age": "17"}, "younger than 18 years"),
        ({"last_careunit": "SICU"}, "care unit changed during the stay"),
        ({"hadm_id": "two"}, "identifier of icustays is no whole number"),
    ],
)
def test_a_stay_that_cannot_be_kept_is_counted(hospital: Hospital, profile: str, changes: dict, reason: str):
    hospital.stay(2, **changes)
    prepared = hospital.prepare(profile)
    assert prepared.stays["stay_id"].tolist() == [1]
    assert prepared.rejections.count(reason) == 1


@pytest.mark.parametrize("table", ["hosp/patients", "hosp/admissions"])
def test_a_stay_without_its_patient_or_admission_is_counted(hospital: Hospital, table: str):
    hospital.stay(2)
    hospital.rows[table].pop()
    prepared = hospital.prepare()
    assert prepared.stays["stay_id"].tolist() == [1]
    assert prepared.rejections.count(f"stay without a row in {table.removeprefix('hosp/')}") == 1


def test_a_transfer_is_a_rule_and_no_fault_but_a_reversed_stay_is(hospital: Hospital):
    hospital.stay(2, last_careunit="SICU")
    hospital.prepare(strict=True)
    hospital.stay(3, outtime="2150-03-01 00:00:00")
    with pytest.raises(PrepareError, match=r"stay ends before it starts.*stay_id 3"):
        hospital.prepare(strict=True)


@pytest.mark.parametrize("profile", PROFILES)
def test_demographics_have_the_17_columns_whatever_the_data(hospital: Hospital, profile: str):
    row = hospital.prepare(profile).demographics
    assert ["stay_id", *row.columns] == TABLES["demographics"].names
    chosen = {name for name in row.columns if row.loc[1, name] == 1}
    assert chosen == {"gender_F", "race_group_WHITE", "language_ENGLISH", "marital_status_MARRIED"}
    assert row[["age", "height", "weight"]].loc[1].tolist() == [0, 0, 0]


def test_a_category_without_column_or_group_is_counted(hospital: Hospital):
    hospital.stay(2, language="KLINGON", race="MARTIAN")
    prepared = hospital.prepare()
    assert prepared.demographics.loc[2, ["language_?", "language_ENGLISH"]].tolist() == [0, 0]
    assert prepared.demographics.loc[2, "race_group_WHITE"] == 1
    assert prepared.rejections.count("language has no column for the category") == 1
    assert prepared.rejections.count("race belongs to no group of the profile") == 1


def test_interquartile_outliers_stay_out_of_mean_and_deviation(tmp_path: Path):
    hospital = Hospital(tmp_path)
    heights = [160, 165, 170, 175, 180, 61]
    for stay_id, height in enumerate(heights, start=1):
        hospital.stay(stay_id)
        hospital.chart(0, HEIGHT_CM, height, stay_id=stay_id)
    scale = hospital.prepare().demographic_statistics
    assert scale.mean["height"] == 170
    assert scale.sd["height"] == pytest.approx(np.std(heights[:-1], ddof=1))
