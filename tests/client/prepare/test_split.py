"""The split by patient: the published draw, and a true 7:1:2 that nothing but the patients decides."""

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from client.prepare.split import split_patients
from tests.client.prepare.imaging_world import rules_of

PUBLISHED, CORRECTED = rules_of("published").split, rules_of("corrected").split


@pytest.mark.parametrize(("num_patients", "num_gold"), [(34, 3), (50, 0), (101, 15), (977, 40)])
def test_the_published_draw_is_that_of_train_test_split(num_patients, num_gold):
    patients = list(range(1000, 1000 + num_patients))
    gold, rest = patients[::2][:num_gold], [p for p in patients if p not in patients[::2][:num_gold]]
    share = (num_patients * 0.2 - num_gold) / num_patients
    train_val, test = train_test_split(rest, test_size=share, random_state=0)
    train, val = train_test_split(train_val, test_size=1 / 8, random_state=0)
    split = split_patients(patients, [], gold, PUBLISHED)
    for name, members in (("train", train), ("val", val), ("test", [*test, *gold])):
        assert set(split.index[split == name]) == set(members)


@pytest.mark.parametrize("num_patients", [1, 2, 3, 5, 9, 10, 34, 250, 1003])
@pytest.mark.parametrize("gold_share", [0, 0.1])
def test_the_corrected_split_is_7_to_1_to_2_with_gold_in_test(num_patients, gold_share):
    patients = list(range(num_patients))
    gold = patients[: int(gold_share * num_patients)]
    split = split_patients(patients, [], gold, CORRECTED)
    counts = split.value_counts().reindex(["train", "val", "test"], fill_value=0)
    assert np.abs(counts.to_numpy() - num_patients * np.array([0.7, 0.1, 0.2])).max() <= 1
    assert (split[gold] == "test").all()


def test_the_published_test_split_is_too_small():
    patients, gold = range(1000), range(100)
    published, corrected = (split_patients(patients, [], gold, rules) for rules in (PUBLISHED, CORRECTED))
    assert (published == "test").sum() == 190, "a tenth of 900 patients beside the 100 gold ones"
    assert (corrected == "test").sum() == 200


@pytest.mark.parametrize("rules", [PUBLISHED, CORRECTED])
def test_the_order_of_patients_changes_nothing_and_the_seed_does(rules):
    patients = list(range(40))
    split = split_patients(patients, [90, 91], [3], rules)
    assert split.equals(split_patients(patients[::-1], [91, 90], [3], rules))
    assert len(split) == 42
    other = type(rules)(shares_of=rules.shares_of, seed=1)
    assert not split.equals(split_patients(patients, [90, 91], [3], other))


@pytest.mark.parametrize("rules", [PUBLISHED, CORRECTED])
def test_patients_without_images_do_not_change_the_split_of_the_others(rules):
    patients = list(range(40))
    alone = split_patients(patients, patients, [3], rules)
    together = split_patients(patients, range(1000), [3, 500], rules)
    assert together[patients].equals(alone)
    assert together[500] == "test"
    assert 650 < (together == "train").sum() < 750


@pytest.mark.parametrize("rules", [PUBLISHED, CORRECTED])
def test_gold_patients_beyond_the_test_share_are_all_tested_on(rules):
    split = split_patients(range(20), [], range(10), rules)
    assert (split[:10] == "test").all()
    assert set(split[10:]) == {"train", "val"}
