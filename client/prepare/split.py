"""Which patients train, validate and test: a seeded split by patient, patients with gold labels in the test split."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd


@dataclass(frozen=True, kw_only=True)
class SplitRules:
    """How patients are split."""

    val_share: float = 0.1
    """Share of all patients in the validation split."""
    test_share: float = 0.2
    """Share of all patients in the test split, patients with gold labels among them."""
    seed: int = 0
    """Seed of the draw."""
    shares_of: Literal["patients", "remainder"] = "patients"
    """Of what the drawn numbers are shares. With "remainder", the share still missing in the test split beside gold
    patients is taken of the patients without gold labels, which makes it too small."""


def split_patients(
    with_images: Collection[int], others: Collection[int], gold: Collection[int], rules: SplitRules
) -> pd.Series:
    """ "train", "val" or "test" for every patient, indexed by subject_id, whatever the order they come in.

    Patients with images are split among themselves, because only they give samples; the `others`, who only enter
    statistics, likewise. Where gold patients alone are more than the test share, no other patient is drawn for it.
    """
    groups = [sorted(set(with_images)), sorted(set(others) - set(with_images))]
    split = {subject: name for group in groups for subject, name in _split_group(group, set(gold), rules).items()}
    return pd.Series(split, name="split", dtype="str").rename_axis("subject_id").sort_index()


def _split_group(subjects: Sequence[int], gold: Collection[int], rules: SplitRules) -> dict[int, str]:
    fixed = [subject for subject in subjects if subject in gold]
    rest = [subject for subject in subjects if subject not in gold]
    draw = _draw_of_remainder if rules.shares_of == "remainder" else _draw_of_patients
    val, test = draw(rest, len(subjects), rules)
    named = dict.fromkeys(rest, "train") | dict.fromkeys(val, "val") | dict.fromkeys([*test, *fixed], "test")
    return named


def _draw_of_patients(rest: Sequence[int], num_subjects: int, rules: SplitRules) -> tuple[list[int], list[int]]:
    num_gold = num_subjects - len(rest)
    num_test = max(0, math.floor(num_subjects * rules.test_share + 0.5) - num_gold)
    num_val = min(len(rest) - num_test, math.floor(num_subjects * rules.val_share + 0.5))
    order = [rest[i] for i in np.random.default_rng(rules.seed).permutation(len(rest))]
    return order[num_test : num_test + num_val], order[:num_test]


def _draw_of_remainder(rest: Sequence[int], num_subjects: int, rules: SplitRules) -> tuple[list[int], list[int]]:
    """Two draws, each of a share rounded up and from a newly seeded shuffle, like scikit-learn's train_test_split."""
    num_gold = num_subjects - len(rest)
    missing_share = (num_subjects * rules.test_share - num_gold) / max(num_subjects, 1)
    train_val, test = _draw(rest, max(0.0, missing_share), rules.seed)
    _, val = _draw(train_val, rules.val_share / (1 - rules.test_share), rules.seed)
    return val, test


def _draw(subjects: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    num_drawn = math.ceil(share * len(subjects))
    # The legacy generator, whose sequences NumPy keeps for good: published splits were drawn with it.
    order = np.random.RandomState(seed).permutation(len(subjects))
    shuffled = [subjects[i] for i in order]
    return shuffled[num_drawn:], shuffled[:num_drawn]
