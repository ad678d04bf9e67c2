"""Samples of mortality and length of stay: two images in 48 hours, and the classes of length."""

import pandas as pd
import pytest

from client.prepare.rejections import Rejections
from client.prepare.samples import build_samples, length_of_stay_classes
from tests.client.prepare.imaging_world import rules_of, stays_table

PUBLISHED, CORRECTED = rules_of("published").samples, rules_of("corrected").samples


@pytest.mark.parametrize(
    ("days", "published", "corrected"),
    [(1.9, -1, -1), (2.0, 0, 0), (2.999, 0, 0), (3.0, 1, 1), (4.0, 2, 2), (6.0, 3, 3), (10.99, 3, 3), (11.0, -1, 3)],
)
def test_classes_of_length_of_stay(days, published, corrected):
    lengths = pd.Series([days])
    assert length_of_stay_classes(lengths, PUBLISHED).tolist() == [published]
    assert length_of_stay_classes(lengths, CORRECTED).tolist() == [corrected]


@pytest.mark.parametrize(("rules", "labels"), [(PUBLISHED, {1: 0}), (CORRECTED, {1: 0, 4: 3})])
def test_stays_with_two_images_before_48_hours_are_samples(rules, labels):
    stays = stays_table({4: 12.0, 1: 2.5, 2: 2.5, 3: 2.5}).assign(
        mortality_inhospital=[1, 0, 0, 0], split=["test", "train", "val", "train"]
    )
    images = pd.DataFrame({"stay_id": [1, 1, 2, 2, 4, 4, 4], "hours": [1.0, 47.99, 1.0, 48.0, 2.0, 20.0, 90.0]})
    rejections = Rejections()
    mortality, length = build_samples(stays, images, rules, rejections)
    assert mortality.to_numpy().tolist() == [[1, 0, "train"], [4, 1, "test"]]
    assert dict(zip(length["stay_id"], length["label"], strict=True)) == labels
    assert rejections.count("stay with fewer than 2 images in 48 h") == 1, "stay 2; stay 3 has no image at all"
    assert rejections.count("stay longer or shorter than every class") == 2 - len(labels)


def test_what_a_sample_sees():
    assert vars(PUBLISHED.windows) == {
        "stay_hours": 49,
        "stay_image_hours": 48.0,
        "pair_hours_before": 1.0,
        "pair_hours_after": 1.0,
    }
    assert CORRECTED.windows.stay_hours == 48, "nothing after 48 hours"
    assert CORRECTED.windows.pair_hours_after == 0.0, "nothing after the second image's hour + 1"
