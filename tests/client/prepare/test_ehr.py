"""Hourly EHR: rules that both profiles share, and bad input."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from client.prepare.events import REASONS
from client.prepare.profile import load_profile
from client.prepare.rejections import PrepareError
from dipro_model.vocabulary import EHR_VARIABLES
from tests.client.prepare.tables_world import (
    ACID,
    ARTERIAL_SYSTOLIC,
    CREATININE,
    CUFF_DIASTOLIC,
    CUFF_SYSTOLIC,
    FIO2,
    GLUCOSE,
    HEART_RATE,
    SATURATION,
    SERUM_GLUCOSE,
    URINE,
    Hospital,
)

PROFILES = ("corrected", "published")


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    hospital = Hospital(tmp_path)
    hospital.stay()
    return hospital


@pytest.mark.parametrize("profile", PROFILES)
def test_an_hour_holds_the_last_value_of_its_sixty_minutes_and_is_carried_forward(hospital: Hospital, profile: str):
    for hour, value in ((0, 70), (0.99, 71), (1, 72), (4.5, 73), (4.2, 99)):
        hospital.chart(hour, HEART_RATE, value)
    prepared = hospital.prepare(profile)
    assert prepared.column("Heart Rate") == [71, 72, 72, 72, 73]
    assert prepared.mask("Heart Rate") == [True, True, False, False, True]


@pytest.mark.parametrize("profile", PROFILES)
def test_only_the_hour_before_admission_seeds_the_forward_fill(hospital: Hospital, profile: str):
    hospital.chart(-1, HEART_RATE, 61)
    hospital.chart(-1.01, CREATININE, 3)
    hospital.chart(1.5, HEART_RATE, 90)
    prepared = hospital.prepare(profile)
    assert prepared.column("Heart Rate") == [61, 90]
    assert prepared.mask("Heart Rate") == [False, True]
    # Too early for the hours, but a measurement of the stay: it counts in the statistics.
    assert prepared.column("Creatinine") == [1, 1]
    assert prepared.statistics["Creatinine"].num_values == 1


@pytest.mark.parametrize("profile", PROFILES)
def test_before_any_value_stands_the_fill_value(hospital: Hospital, profile: str):
    hospital.chart(2, HEART_RATE, 90)
    prepared = hospital.prepare(profile)
    for variable in load_profile(profile).variables:
        assert prepared.column(variable.name)[:2] == [round(variable.fill, 3)] * 2
        assert prepared.mask(variable.name)[:2] == [False, False]


@pytest.mark.parametrize("profile", PROFILES)
def test_pressures_may_be_charted_together(hospital: Hospital, profile: str):
    hospital.chart(0, CUFF_SYSTOLIC, "120/80")
    hospital.chart(0, CUFF_DIASTOLIC, "120/80")
    prepared = hospital.prepare(profile)
    assert prepared.column("Systolic blood pressure") == [120]
    assert prepared.column("Diastolic blood pressure") == [80]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_saturation_written_as_a_fraction_becomes_per_cent(hospital: Hospital, profile: str):
    hospital.chart(0, SATURATION, "0.93")
    hospital.chart(1, SATURATION, "94")
    assert hospital.prepare(profile).column("Oxygen saturation") == [93, 94]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("text", ["ERROR", "nan", "inf", "1.2.3", "12O", "--"])
def test_text_where_a_number_belongs_is_counted_and_left_out(hospital: Hospital, profile: str, text: str):
    hospital.chart(0, HEART_RATE, 80)
    hospital.chart(1, HEART_RATE, text)
    hospital.chart(1, ACID, text)
    prepared = hospital.prepare(profile)
    assert prepared.column("Heart Rate") == [80]
    # The published reader takes the word nan for an empty field.
    reason = "value empty" if (profile, text) == ("published", "nan") else "value is no number or known score"
    assert prepared.rejections.count(reason) == 2


@pytest.mark.parametrize("profile", PROFILES)
def test_a_qualified_number_is_no_plain_number(hospital: Hospital, profile: str):
    hospital.chart(0, GLUCOSE, ">500")
    hospital.chart(0, HEART_RATE, 80)
    prepared = hospital.prepare(profile)
    assert prepared.mask("Glucose") == [False]
    assert prepared.rejections.count("value is no number or known score") == 1


def test_rows_without_a_usable_time_stay_or_item_are_counted(hospital: Hospital):
    hospital.chart(0, HEART_RATE, 80)
    hospital.chart(1, HEART_RATE, 81, stay_id="one")
    hospital.chart(1, HEART_RATE, 82)
    hospital.rows["icu/chartevents"][-1]["charttime"] = "yesterday"
    hospital.chart(1, HEART_RATE, 83)
    hospital.rows["icu/chartevents"][-1]["itemid"] = "pulse"
    hospital.chart(1, HEART_RATE, "")
    prepared = hospital.prepare()
    assert prepared.column("Heart Rate") == [80]
    counted = {reason: entry["count"] for reason, entry in prepared.rejections.to_report()["events"].items()}
    assert counted == dict.fromkeys(REASONS[:4], 1)


@pytest.mark.parametrize("profile", PROFILES)
def test_an_absurd_time_makes_no_hours(hospital: Hospital, profile: str):
    hospital.chart(2, HEART_RATE, 80)
    hospital.chart(24 * 365 * 50, HEART_RATE, 81)
    hospital.chart(-24 * 365 * 50, CREATININE, 2)
    prepared = hospital.prepare(profile)
    assert len(prepared.hours) == 3
    assert prepared.rejections.count("charted long after the end of the stay") == 1


def test_other_items_and_stays_outside_the_cohort_leave_no_trace(hospital: Hospital):
    hospital.chart(0, HEART_RATE, 80)
    hospital.chart(1, HEART_RATE, 90, stay_id=77)
    hospital.chart(1, 999_999, "anything")
    prepared = hospital.prepare()
    assert prepared.column("Heart Rate") == [80]
    assert prepared.rejections.to_report() == {}


@pytest.mark.parametrize("profile", PROFILES)
def test_duplicated_rows_change_nothing(hospital: Hospital, profile: str):
    for hour in range(4):
        hospital.chart(hour + 0.5, HEART_RATE, 80 + hour)
        hospital.chart(hour + 0.5, URINE, 100 + hour)
    once = hospital.prepare(profile)
    for rows in hospital.rows.values():
        rows.extend(rows.copy())
    twice = hospital.prepare(profile)
    pd.testing.assert_frame_equal(once.hours, twice.hours)
    assert once.statistics == twice.statistics
    assert twice.rejections.count("row of icustays repeated") == 1


@pytest.mark.parametrize("profile", PROFILES)
def test_the_order_of_rows_changes_nothing(hospital: Hospital, profile: str):
    for hour, value in ((0.1, 9), (0.1, 10), (0.7, 75), (2, 82), (2, 81)):
        hospital.chart(hour, HEART_RATE, value)
    forward = hospital.prepare(profile)
    hospital.rows["icu/chartevents"].reverse()
    backward = hospital.prepare(profile)
    pd.testing.assert_frame_equal(forward.hours, backward.hours)
    assert forward.statistics == backward.statistics


def test_a_stay_without_a_value_has_no_hours_and_is_counted(hospital: Hospital):
    hospital.stay(2)
    hospital.chart(0, HEART_RATE, 80)
    prepared = hospital.prepare()
    assert set(prepared.hours.index.get_level_values("stay_id")) == {1}
    assert prepared.rejections.count("stay without any charted value, so without hours") == 1


def test_a_variable_without_spread_or_values_is_only_centred(hospital: Hospital):
    hospital.chart(0, HEART_RATE, 80)
    statistics = hospital.prepare().statistics
    assert (statistics["Heart Rate"].mean, statistics["Heart Rate"].sd) == (80, 1)
    assert (statistics["Sodium"].mean, statistics["Sodium"].sd, statistics["Sodium"].num_values) == (142, 1, 0)


def test_plain_and_gzipped_tables_give_the_same(tmp_path: Path):
    prepared = []
    for name in ("plain", "gzipped"):
        hospital = Hospital(tmp_path / name)
        hospital.folder.mkdir()
        hospital.stay()
        hospital.chart(3, HEART_RATE, 80)
        hospital.chart(1, FIO2, 40)
        prepared.append(hospital.prepare(gzipped=name == "gzipped"))
    pd.testing.assert_frame_equal(prepared[0].hours, prepared[1].hours)


def test_a_missing_table_or_column_is_named(hospital: Hospital):
    raw = hospital.write()
    path = raw / "icu" / "outputevents.csv"
    path.write_text(path.read_text().replace("charttime", "time"))
    hospital.write = lambda *, gzipped: raw  # type: ignore[method-assign]
    with pytest.raises(PrepareError, match=r"outputevents\.csv: .*missing charttime"):
        hospital.prepare()
    path.unlink()
    with pytest.raises(PrepareError, match=r"icu/outputevents\.csv or icu/outputevents\.csv\.gz"):
        hospital.prepare()


def test_strict_stops_at_the_first_bad_value(hospital: Hospital):
    hospital.chart(0, HEART_RATE, "fast")
    with pytest.raises(PrepareError, match=r"no number or known score.*itemid 220045 of stay_id 1") as error:
        hospital.prepare(strict=True)
    assert "fast" not in str(error.value)


_ITEMS = {
    "Heart Rate": (HEART_RATE,),
    "Systolic blood pressure": (CUFF_SYSTOLIC, ARTERIAL_SYSTOLIC),
    "Glucose": (GLUCOSE, SERUM_GLUCOSE),
    "Urine output": (URINE,),
}
_USED = [item for items in _ITEMS.values() for item in items]
# Few distinct minutes and values, so that hours and instants are often shared.
_EVENT = st.tuples(
    st.sampled_from([1, 2]),
    st.sampled_from(_USED),
    st.integers(-90, 400).map(lambda m: m // 10 * 10),
    st.integers(1, 120),
)


def slow_hours(events: list[tuple[int, int, int, int]], profile: str) -> dict[tuple[int, int, str], tuple[float, bool]]:
    """{(stay, hour, variable): (value, measured)} by looking at every event for every hour."""
    published, fills = profile == "published", {v.name: v.fill for v in load_profile(profile).variables}
    items = {name: known[:1] if published else known for name, known in _ITEMS.items()}
    hourly = {}
    for stay in (1, 2):
        mine = [event for event in events if event[0] == stay and any(event[1] in known for known in items.values())]
        last = max((minute // 60 for _, _, minute, _ in mine), default=-1)
        for name, known in items.items():
            carried = fills[name]
            for hour in range(-1, last + 1):
                inside = [event for event in mine if event[1] in known and event[2] // 60 == hour]
                value = None
                if inside and name == "Urine output" and not published:
                    instants = {minute for _, _, minute, _ in inside}
                    value = sum(max(v for _, _, minute, v in inside if minute == instant) for instant in instants)
                elif inside:
                    item = min((event[1] for event in inside), key=known.index)
                    minute = max(event[2] for event in inside if event[1] == item)
                    settled = [event[3] for event in inside if event[1:3] == (item, minute)]
                    # The published preparation compares as text what it does not clean.
                    as_text = published and name in ("Heart Rate", "Urine output")
                    value = max(settled, key=str) if as_text else max(settled)
                if value is not None and not (name == "Urine output" and not published):
                    carried = value
                if hour >= 0:
                    hourly[stay, hour, name] = (carried if value is None else value, value is not None)
    return hourly


@pytest.mark.parametrize("profile", PROFILES)
@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate, Phase.shrink])
@given(events=st.lists(_EVENT, min_size=1, max_size=60))
def test_hours_equal_those_of_a_slow_loop(
    tmp_path_factory: pytest.TempPathFactory, profile: str, events: list[tuple[int, int, int, int]]
):
    hospital = Hospital(tmp_path_factory.mktemp("hospital"))
    hospital.stay(1)
    hospital.stay(2)
    for stay, item, minute, value in events:
        hospital.chart(minute / 60, item, value, stay_id=stay)
    hours = hospital.prepare(profile).hours
    expected = slow_hours(events, profile)
    assert set(hours.index) == {(stay, hour) for stay, hour, _ in expected}
    for (stay, hour, name), (value, measured) in expected.items():
        assert hours.loc[(stay, hour), name] == pytest.approx(value, rel=1e-4, abs=1e-4), (stay, hour, name)
        assert hours.loc[(stay, hour), f"{name}_mask"] == measured, (stay, hour, name)
    assert hours[[f"{name}_mask" for name in EHR_VARIABLES if name not in _ITEMS]].sum().sum() == 0
