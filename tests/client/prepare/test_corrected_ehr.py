"""Every fault of the published preparation of stays, EHR and demographics, and what the corrected profile does."""

from pathlib import Path

import numpy as np
import pytest

from tests.client.prepare.tables_world import (
    ADMITTED,
    ARTERIAL_SYSTOLIC,
    CELSIUS,
    CREATININE,
    CUFF_SYSTOLIC,
    EYES,
    FAHRENHEIT,
    FIO2,
    GLUCOSE,
    HEART_RATE,
    HEIGHT_CM,
    HEIGHT_INCH,
    INR,
    OTHER_ARTERIAL_SYSTOLIC,
    PEEP_SET,
    PROTHROMBIN,
    SERUM_GLUCOSE,
    TOTAL_PEEP,
    URINE,
    WEIGHT_DAILY,
    WEIGHT_KG,
    WEIGHT_LB,
    WEIGHT_LOSS,
    Hospital,
    Prepared,
)


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    hospital = Hospital(tmp_path)
    hospital.stay()
    return hospital


def both(hospital: Hospital, **options) -> tuple[Prepared, Prepared]:
    """The same tables prepared as published and as corrected."""
    return hospital.prepare("published", **options), hospital.prepare("corrected", **options)


def test_eye_opening_none_scores_one_and_is_not_missing(hospital: Hospital):
    for hour, label in ((0, "Spontaneously"), (1, "None"), (2, "To Speech")):
        hospital.chart(hour, EYES, label)
    published, corrected = both(hospital)
    assert published.column("Glascow coma scale eye opening") == [4, 4, 3]
    assert published.mask("Glascow coma scale eye opening") == [True, False, True]
    assert corrected.column("Glascow coma scale eye opening") == [4, 1, 3]
    assert corrected.mask("Glascow coma scale eye opening") == [True, True, True]


def test_prothrombin_time_is_read_in_seconds_and_not_from_inr(hospital: Hospital):
    hospital.chart(0, INR, 1.4)
    hospital.chart(0, PROTHROMBIN, 15.2)
    published, corrected = both(hospital)
    assert published.column("Prothrombin time") == [1.4]
    assert corrected.column("Prothrombin time") == [15.2]


def test_a_fraction_of_oxygen_is_divided_by_100_only_above_1(hospital: Hospital):
    for hour, value in enumerate((50, 0.5, 100, 1)):
        hospital.chart(hour, FIO2, value)
    published, corrected = both(hospital)
    assert published.column("Fraction inspired oxygen") == [0.5, 0.2, 1, 0.2]
    assert corrected.column("Fraction inspired oxygen") == [0.5, 0.5, 1, 1]


def test_temperature_is_converted_by_the_unit_of_its_item_or_row(hospital: Hospital):
    hospital.chart(0, FAHRENHEIT, 98.6)
    hospital.chart(1, CELSIUS, 38)
    hospital.chart(2, FAHRENHEIT, 36.5, unit="°C")
    hospital.chart(3, FAHRENHEIT, 102.2, unit="")
    published, corrected = both(hospital)
    assert published.column("Temperature") == [37, 37, 36.5, 39]
    assert corrected.column("Temperature") == [37, 38, 36.5, 39]


def test_laboratory_values_in_other_units_are_converted_and_unknown_units_rejected(hospital: Hospital):
    hospital.chart(0, CREATININE, 88.42, unit="umol/L")
    hospital.chart(1, CREATININE, 2, unit="MG/DL")
    hospital.chart(2, CREATININE, 3, unit="furlong")
    hospital.chart(2, GLUCOSE, 10, unit="mmol/L")
    published, corrected = both(hospital)
    assert published.column("Creatinine") == [66, 2, 3]
    assert published.column("Glucose")[2] == 10
    assert corrected.column("Creatinine") == [1, 2, 2]
    assert corrected.column("Glucose")[2] == pytest.approx(180.156, abs=1e-3)
    assert corrected.rejections.count("unit not known for the variable") == 1


def test_hourly_height_in_inches_and_weight_in_pounds_are_converted(hospital: Hospital):
    hospital.chart(0, HEIGHT_INCH, 70)
    hospital.chart(0, WEIGHT_LB, 220.4623)
    hospital.chart(0, HEART_RATE, 80)
    published, corrected = both(hospital)
    assert published.mask("Height") == published.mask("Weight") == [False]
    assert corrected.column("Height") == [177.8]
    assert corrected.column("Weight") == [100]


def test_values_of_one_instant_are_compared_as_numbers(hospital: Hospital):
    for value in (9, 10, 8.5):
        hospital.chart(0.5, HEART_RATE, value)
    published, corrected = both(hospital)
    assert published.column("Heart Rate") == [9]
    assert corrected.column("Heart Rate") == [10]
    assert corrected.statistics["Heart Rate"].num_values == 1


def test_values_beyond_the_bounds_are_rejected_not_clipped_into_the_statistics(hospital: Hospital):
    for hour, value in enumerate((80, 90, 4000, -5)):
        hospital.chart(hour, HEART_RATE, value)
    published, corrected = both(hospital)
    assert published.column("Heart Rate") == [80, 90, 390, 0]
    assert published.statistics["Heart Rate"].mean == 140
    assert published.rejections.count("value outside the variable's bounds, clipped") == 2
    # Rejected values make no hour either: the stay's last usable value was charted in hour 1.
    assert corrected.column("Heart Rate") == [80, 90]
    assert corrected.statistics["Heart Rate"].mean == 85
    assert corrected.rejections.count("value outside the variable's bounds") == 2


def test_urine_is_summed_per_hour_and_not_carried(hospital: Hospital):
    for hour, volume in ((0.1, 100), (0.6, 50), (2.5, 30)):
        hospital.chart(hour, URINE, volume)
    published, corrected = both(hospital)
    assert published.column("Urine output") == [50, 50, 30]
    assert corrected.column("Urine output") == [150, 80, 30]
    assert corrected.mask("Urine output") == [True, False, True]
    # What is scaled is the sum of an hour, so that its statistics are those of sums.
    assert corrected.statistics["Urine output"].mean == 90
    assert published.statistics["Urine output"].mean == 60


@pytest.mark.parametrize(
    ("variable", "items"),
    [
        ("Systolic blood pressure", (CUFF_SYSTOLIC, ARTERIAL_SYSTOLIC, OTHER_ARTERIAL_SYSTOLIC)),
        ("Glucose", (GLUCOSE, SERUM_GLUCOSE)),
        ("Positive end-expiratory pressure", (TOTAL_PEEP, PEEP_SET)),
    ],
)
def test_equivalent_items_count_in_their_stated_order(hospital: Hospital, variable: str, items: tuple[int, ...]):
    # Hour 0: all items, the preferred one first in time. Later hours: one item fewer each.
    for hour in range(len(items)):
        for place, item in enumerate(items[hour:]):
            hospital.chart(hour + 0.1 * place, item, 10 + hour + place)
    published, corrected = both(hospital)
    assert corrected.column(variable) == [10 + hour for hour in range(len(items))]
    assert corrected.mask(variable) == [True] * len(items)
    assert published.mask(variable) == [True][: len(published.hours)]


def test_age_is_that_of_the_admission_year(tmp_path: Path):
    hospital = Hospital(tmp_path)
    hospital.stay(1, anchor_year="2147")
    hospital.stay(2, anchor_age="17", anchor_year="2149")
    hospital.stay(3, anchor_age="17", anchor_year="2150")
    published, corrected = both(hospital)
    assert published.stays.set_index("stay_id")["age"].to_dict() == {1: 60}
    assert corrected.stays.set_index("stay_id")["age"].to_dict() == {1: 63, 2: 18}


def test_one_stay_per_admission_counts_stays_with_a_transfer(tmp_path: Path):
    hospital = Hospital(tmp_path)
    hospital.stay(1)
    hospital.stay(2, subject=1, hadm_id="1", last_careunit="SICU")
    hospital.stay(3)
    published, corrected = both(hospital)
    assert published.stays["stay_id"].tolist() == [1, 3]
    assert corrected.stays["stay_id"].tolist() == [3]
    assert corrected.rejections.count("several ICU stays in one admission") == 1


def test_static_height_and_weight_are_converted_by_unit(hospital: Hospital):
    hospital.stay(2)
    hospital.chart(-1, HEIGHT_INCH, 60)
    hospital.chart(-1, WEIGHT_LB, 200)
    hospital.chart(0, HEIGHT_CM, 180, stay_id=2)
    hospital.chart(0, WEIGHT_KG, 90, stay_id=2)
    published, corrected = both(hospital)
    assert published.demographic_statistics.mean["height"] == pytest.approx((60 + 180) / 2)
    assert corrected.demographic_statistics.mean["height"] == pytest.approx((152.4 + 180) / 2)
    for prepared in (published, corrected):
        assert prepared.demographic_statistics.mean["weight"] == pytest.approx((200 * 0.453592 + 90) / 2, rel=1e-5)


def test_static_height_and_weight_beyond_bounds_are_rejected(hospital: Hospital):
    hospital.stay(2)
    hospital.chart(0, HEIGHT_CM, 1750)
    hospital.chart(0, WEIGHT_KG, 0)
    hospital.chart(5, WEIGHT_DAILY, 70)
    hospital.chart(0, HEIGHT_CM, 170, stay_id=2)
    hospital.chart(0, WEIGHT_KG, 80, stay_id=2)
    published, corrected = both(hospital)
    assert published.demographic_statistics.mean["height"] == 960
    assert published.demographic_statistics.mean["weight"] == 40
    assert corrected.demographic_statistics.mean["height"] == 170
    assert corrected.demographic_statistics.mean["weight"] == 75
    # A stay without a believable height gets the mean.
    assert corrected.demographics.loc[1, "height"] == 0


def test_an_answer_about_weight_loss_is_no_weight(hospital: Hospital):
    hospital.chart(0, WEIGHT_LOSS, 1)
    hospital.chart(1, WEIGHT_KG, 90)
    published, corrected = both(hospital)
    assert published.demographic_statistics.mean["weight"] == 1
    assert corrected.demographic_statistics.mean["weight"] == 90


def test_means_deviations_and_modes_come_from_training_stays_only(tmp_path: Path):
    hospital = Hospital(tmp_path)
    people = (("60", "SINGLE", 80), ("62", "SINGLE", 90), ("90", "WIDOWED", 200), ("92", "WIDOWED", 210))
    for stay_id, (age, status, rate) in enumerate(people, start=1):
        hospital.stay(stay_id, anchor_age=age, marital_status=status)
        hospital.chart(0, HEART_RATE, rate, stay_id=stay_id)
    hospital.stay(5, anchor_age="94", marital_status="WIDOWED")
    hospital.stay(6, anchor_age="60", marital_status="")
    split = ["train", "train", "val", "test", "test", "test"]
    published, corrected = both(hospital, split=split)
    assert published.statistics["Heart Rate"].mean == 145
    assert corrected.statistics["Heart Rate"].mean == 85
    assert corrected.statistics["Heart Rate"].sd == 5
    assert published.demographic_statistics.mean["age"] == pytest.approx(np.mean([60, 62, 90, 92, 94, 60]))
    assert corrected.demographic_statistics.mean["age"] == 61
    assert published.demographics.loc[6, "marital_status_WIDOWED"] == 1
    assert corrected.demographics.loc[6, "marital_status_SINGLE"] == 1


def test_the_day_of_death_counts_from_its_midnight_in_both_profiles(tmp_path: Path):
    hospital = Hospital(tmp_path)
    day = ADMITTED.date()
    hospital.stay(1, dod=f"{day}")
    hospital.stay(2, dod=f"{day.replace(day=day.day + 1)}")
    hospital.stay(3, deathtime=f"{day} 20:00:00")
    hospital.stay(4, dod="2150-12-01")
    for prepared in both(hospital):
        assert prepared.stays["mortality_inhospital"].tolist() == [0, 1, 1, 0]
