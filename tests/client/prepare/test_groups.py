"""The groups of a stay: words as the raw tables have them, and `unknown`, counted, where they have none."""

from pathlib import Path

import pytest

from client.cohort import TABLES
from client.prepare.groups import stay_groups
from client.prepare.profile import load_profile
from client.prepare.raw import connect
from client.prepare.rejections import Rejections
from client.prepare.stays import read_stays
from tests.client.prepare.tables_world import HEART_RATE, Hospital

RULES = load_profile("corrected").rules


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    hospital = Hospital(tmp_path)
    hospital.stay(1, first_careunit="CVICU", last_careunit="CVICU", race="ASIAN - KOREAN", gender="M")
    hospital.stay(2, race="", anchor_year_group="", gender="")
    hospital.stay(3, race="MARTIAN", anchor_year_group="2008 - 2010")
    hospital.chart(0, HEART_RATE, 80)
    return hospital


def groups_of(raw: Path, scratch: Path, rejections: Rejections) -> dict[int, tuple]:
    with connect(scratch, threads=1) as connection:
        stays = read_stays(connection, raw, RULES.stays, rejections)
    frame = stay_groups(stays, RULES.demographics.race_groups, rejections)
    assert list(frame.columns) == TABLES["groups"].names
    return {row[0]: row[1:] for row in frame.itertuples(index=False, name=None)}


def test_categories_are_the_words_of_the_tables_and_races_are_grouped(hospital: Hospital, tmp_path: Path) -> None:
    raw = hospital.write()
    table = raw / "hosp" / "admissions.csv"
    header, *rows = table.read_text().splitlines()
    insured = [f"{row},{word}" for row, word in zip(rows, ("Medicare", "", "Medicaid"), strict=True)]
    table.write_text("\n".join([f"{header},insurance", *insured]) + "\n")
    rejections = Rejections(strict=True)  # a category that nobody wrote down is no fault
    assert groups_of(raw, tmp_path, rejections) == {
        1: ("CVICU", "2014 - 2016", "Medicare", "ASIAN", "M"),
        2: ("MICU", "unknown", "unknown", "unknown", "unknown"),
        3: ("MICU", "2008 - 2010", "Medicaid", "unknown", "F"),
    }
    counted = {reason: entry["count"] for reason, entry in rejections.to_report()["groups"].items()}
    assert counted == {
        "anchor_year_group not recorded, so unknown": 1,
        "insurance not recorded, so unknown": 1,
        "race_group not recorded, so unknown": 2,
        "sex not recorded, so unknown": 1,
    }


def test_a_column_that_the_tables_do_not_have_is_unknown_for_all_and_counted(
    hospital: Hospital, tmp_path: Path
) -> None:
    raw = hospital.write()
    patients = raw / "hosp" / "patients.csv"
    patients.write_text(patients.read_text().replace("anchor_year_group", "period"))
    rejections = Rejections()
    found = groups_of(raw, tmp_path, rejections)
    assert {row[1] for row in found.values()} == {row[2] for row in found.values()} == {"unknown"}
    assert rejections.count("anchor_year_group not recorded, so unknown", where="groups") == 3
    assert rejections.count("insurance not recorded, so unknown", where="groups") == 3
