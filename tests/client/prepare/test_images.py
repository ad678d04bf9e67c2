"""Which radiographs are kept: views, times, stays, gaps, and how the two profiles differ."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.prepare.images import find_radiographs, place_in_stays, select_images, study_times, usual_length
from client.prepare.rejections import PrepareError, Rejections
from tests.client.prepare.imaging_world import ADMITTED, metadata, metadata_row, rules_of, stays_table

PUBLISHED, CORRECTED = rules_of("published").images, rules_of("corrected").images


def placed_at(hours, *, stay: int = 1) -> pd.DataFrame:
    taken = ADMITTED + pd.to_timedelta(np.asarray(hours, float), unit="h")
    return pd.DataFrame(
        {"dicom_id": [f"d{i}" for i in range(len(hours))], "stay_id": stay, "subject_id": 1, "taken": taken}
    )


def kept(hours, rules, rejections=None) -> list[float]:
    stays = stays_table({1: 50.0})
    images = select_images(placed_at(hours), stays, rules, rejections or Rejections())
    return [hours[int(name[1:])] for name in images["dicom_id"]]


@pytest.mark.parametrize(
    ("date", "time", "expected"),
    [
        ("21500304", "93519.056", "2150-03-04 09:35:19"),
        ("21500304", "42.5", "2150-03-04 00:00:42"),  # just after midnight: leading zeros are lost
        ("21500304", "0", "2150-03-04 00:00:00"),
        ("21500304", "235959.999", "2150-03-04 23:59:59"),
        ("21500304", "240000", None),
        ("21500304", "126100", None),
        ("21500304", "-1", None),
        ("21500304", "noon", None),
        ("21500304", None, None),
        ("21501304", "1200", None),
        (None, "1200", None),
        ("21500304", "1e300", None),
        ("21500304", "inf", None),
    ],
)
def test_study_times(date, time, expected):
    found = study_times(pd.Series([date], dtype=object), pd.Series([time], dtype=object))
    if expected is None:
        assert found.isna().all()
    else:
        assert found.tolist() == [pd.Timestamp(expected)]


def test_only_the_latest_ap_of_a_study_is_found():
    rows = [
        metadata_row("early", 1, study=7),
        metadata_row("late", 2, study=7),
        metadata_row("side", 3, study=7, view="PA"),
        metadata_row("blank", 4, study=8, view=None),
        metadata_row("spaces", 4, study=9, view="  "),
    ]
    rejections = Rejections(strict=True)  # none of this is a fault
    assert find_radiographs(metadata(rows), CORRECTED, rejections)["dicom_id"].tolist() == ["late"]
    assert rejections.count("view position blank") == 2
    assert rejections.count("view position not AP") == 1
    assert rejections.count("not the latest view of its study") == 1


def test_faulty_metadata_rows_are_counted_by_reason_and_stop_a_strict_run():
    good, nameless, timeless = metadata_row("good", 1), list(metadata_row("x", 2)), list(metadata_row("y", 3))
    nameless[1], timeless[5] = "ten", "noon"
    fraction, endless = list(metadata_row("u", 2)), list(metadata_row("v", 2))
    fraction[2], endless[1] = "12.5", "inf"
    table = metadata([good, good, *map(tuple, (nameless, timeless, fraction, endless))])
    rejections = Rejections()
    assert find_radiographs(table, CORRECTED, rejections)["dicom_id"].tolist() == ["good"]
    assert rejections.count("metadata row repeated") == 1
    assert rejections.count("image without a usable dicom_id, subject_id or study_id") == 3
    assert rejections.count("study date or time unreadable") == 1
    with pytest.raises(PrepareError, match="strict mode stops"):
        find_radiographs(table, CORRECTED, Rejections(strict=True))


def test_a_table_without_rows_gives_no_images():
    assert find_radiographs(metadata([]), CORRECTED, Rejections(strict=True)).empty


def test_images_lie_in_long_enough_stays_whose_ends_belong_to_them():
    stays = stays_table({1: 2.5, 2: 2.0})
    rows = [metadata_row(f"h{hour}", hour) for hour in (-0.5, 0, 30, 60, 60.5)] + [metadata_row("short", 5, subject=2)]
    rejections = Rejections()
    images = place_in_stays(find_radiographs(metadata(rows), CORRECTED, rejections), stays, CORRECTED, rejections)
    assert images["dicom_id"].tolist() == ["h0", "h30", "h60"]
    assert images["hours"].tolist() == [0, 30, 60]
    assert rejections.count("outside every eligible stay") == 3
    assert rejections.count("stay not over 48 h") == 1


def test_usual_length_is_the_interquartile_rule_over_stays_of_more_than_48_hours():
    lengths = [1.0, 2.0, 2.1, 3.0, 3.3, 4.0, 5.5, 20.0]
    first, third = np.percentile([length for length in lengths if length > 2], [25, 75])
    found = usual_length(stays_table(dict(enumerate(lengths))), CORRECTED)
    assert found == pytest.approx((first - 1.5 * (third - first), third + 1.5 * (third - first)))
    stays = stays_table({1: found[1] + 1e-9, 2: found[1]})
    placed = pd.concat([placed_at([0, 20], stay=1), placed_at([0, 20], stay=2)], ignore_index=True)
    rejections = Rejections()
    images = select_images(placed, stays, CORRECTED, rejections, length_limits=found)
    assert set(images["stay_id"]) == {2}, "the limit itself is no outlier"
    assert rejections.count("length of stay is an interquartile outlier") == 1
    assert usual_length(stays_table({1: 1.0}), CORRECTED) == (0, np.inf), "no stay that could tell what is usual"


def test_the_gap_before_an_image_is_measured_to_kept_images():
    hours = [0.0, 5.0, 10.0, 30.0]
    assert kept(hours, PUBLISHED) == [0, 30], "10 lies 5 h after an image that was itself dropped"
    assert kept(hours, CORRECTED) == [0, 10, 30]


def test_the_largest_gap_is_measured_to_kept_images():
    hours = [0.0, 90.0, 95.0, 187.0]
    assert kept(hours, PUBLISHED) == [0, 90, 187], "187 lies 92 h after an image that was dropped"
    rejections = Rejections()
    assert kept(hours, CORRECTED, rejections) == []
    assert rejections.count("stay with 96 h or more between images") == 1


def test_the_number_of_images_is_limited_after_close_ones_are_dropped():
    assert kept([10.0, 15.0], PUBLISHED) == [10], "two images before the 8 h rule, one after it"
    assert kept([10.0, 15.0], CORRECTED) == []
    many = [4.0 * i for i in range(15)]
    assert kept(many, PUBLISHED) == [], "15 images before the 8 h rule"
    assert kept(many, CORRECTED) == many[::2]


@pytest.mark.parametrize("rules", [PUBLISHED, CORRECTED])
def test_limits_are_sharp(rules):
    assert kept([0.0, 8.0], rules) == [0, 8]
    assert len(kept([0.0, 8.0 - 1 / 3600, 40.0], rules)) == 2
    assert kept([0.0, 95.5, 191.0], rules) == [0, 95.5, 191]
    assert kept([0.0, 96.0], rules) == []


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=18, unique=True))
def test_both_profiles_equal_a_slow_loop(hours):
    hours = sorted(float(hour) for hour in hours)
    # Published: number first, then gaps between neighbours, whatever becomes of them.
    gaps = [12.0, *np.diff(hours)]
    survivors = [(hour, gap) for hour, gap in zip(hours, gaps, strict=True) if gap >= 8]
    published = [hour for hour, _ in survivors]
    if not 2 <= len(hours) <= 14 or any(gap >= 96 for _, gap in survivors):
        published = []
    assert kept(hours, PUBLISHED) == published
    # Corrected: each image against the last that is kept.
    corrected: list[float] = []
    for hour in hours:
        if not corrected or hour - corrected[-1] >= 8:
            corrected.append(hour)
    if not 2 <= len(corrected) <= 14 or any(np.diff(corrected) >= 96):
        corrected = []
    assert kept(hours, CORRECTED) == corrected
