"""The schemes against what their formulas promise, without any cohort."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.gaps import Gaps
from dipro_model.vocabulary import SPLITS
from simulation.partition.names import group_names
from simulation.partition.patients import NO_SAMPLE
from simulation.partition.schemes import (
    LABORATORY,
    Scheme,
    SchemeName,
    by_label,
    by_size,
    deal,
    known_variables,
    merge_groups,
    size_shares,
)

CLASSES = (NO_SAMPLE, 0, 1, 2)


def patients_of(rows: list[tuple[str, int]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["split", "class"])
    return frame.set_index(pd.Index(np.arange(len(rows)) + 1000, name="subject_id"))


some_patients = st.lists(st.tuples(st.sampled_from(SPLITS), st.sampled_from(CLASSES)), max_size=80).map(patients_of)
few_sites, seeds = st.integers(1, 7), st.integers(0, 1000)


@settings(deadline=None, derandomize=True)
@given(number=st.integers(0, 60), weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8))
def test_no_site_is_dealt_more_than_one_patient_above_its_share_at_any_time(number: int, weights: list[float]) -> None:
    shares = np.array(weights) / sum(weights)
    sites = deal(number, shares)
    for first in range(1, number + 1):
        given_so_far = np.array([sum(site == one for site in sites[:first]) for one in range(len(shares))])
        assert (given_so_far < shares * first + 1).all()


@settings(deadline=None, derandomize=True)
@given(patients=some_patients, num_sites=few_sites, seed=seeds)
def test_size_skew_places_everybody_and_gives_each_split_in_the_same_shares(
    patients: pd.DataFrame, num_sites: int, seed: int
) -> None:
    shares = size_shares(Scheme(name=SchemeName.POWER_LAW, exponent=1.0), num_sites, np.random.default_rng(seed))
    place = by_size(patients, shares, np.random.default_rng(seed))
    assert ((place >= 0) & (place < num_sites)).all()
    for split in SPLITS:
        inside = (patients.split == split).to_numpy()
        counts = np.bincount(place[inside], minlength=num_sites)
        assert (np.abs(counts - shares * inside.sum()) <= 1.5).all()


def test_shares_of_a_power_law_are_its_formula_and_of_a_log_normal_have_its_spread() -> None:
    rng = np.random.default_rng(0)
    found = size_shares(Scheme(name=SchemeName.POWER_LAW, exponent=2.0), 3, rng)
    assert found == pytest.approx(np.array([1, 1 / 4, 1 / 9]) / (1 + 1 / 4 + 1 / 9))
    log_normal = Scheme(name=SchemeName.LOG_NORMAL, sigma=0.7)
    drawn = [size_shares(log_normal, 50, rng) for _ in range(100)]
    assert all(shares.sum() == pytest.approx(1) for shares in drawn)
    assert all((np.diff(shares) <= 0).all() for shares in drawn)
    assert np.mean([np.log(shares).std(ddof=1) for shares in drawn]) == pytest.approx(0.7, rel=0.03)


@settings(deadline=None, derandomize=True)
@given(patients=some_patients, num_sites=few_sites, seed=seeds, alpha=st.sampled_from([0.1, 0.5, 5.0]))
def test_label_skew_places_everybody_in_the_same_proportions_in_every_split(
    patients: pd.DataFrame, num_sites: int, seed: int, alpha: float
) -> None:
    place = by_label(patients, alpha, num_sites, np.random.default_rng(seed))
    assert ((place >= 0) & (place < num_sites)).all()
    # The same generator gives the class proportions first, one class after the other.
    rng = np.random.default_rng(seed)
    for value in sorted(set(patients["class"]) - {NO_SAMPLE}):
        share = rng.dirichlet([alpha] * num_sites)
        for split in SPLITS:
            inside = ((patients.split == split) & (patients["class"] == value)).to_numpy()
            counts = np.bincount(place[inside], minlength=num_sites)
            assert (np.abs(counts - share * inside.sum()) <= 2).all()


def test_shares_of_a_class_vary_as_a_dirichlet_distribution_does() -> None:
    alpha, num_sites = 0.3, 4
    patients = patients_of([("train", value) for value in (0, 1) for _ in range(200)])
    shares = []
    for seed in range(400):
        place = by_label(patients, alpha, num_sites, np.random.default_rng(seed))
        shares.append([np.bincount(place[:200], minlength=num_sites), np.bincount(place[200:], minlength=num_sites)])
    share = np.array(shares) / 200  # [seed, class, site]
    mean = 1 / num_sites
    assert share.mean(axis=0) == pytest.approx(mean, abs=0.05)
    assert share.var(axis=0).mean() == pytest.approx(mean * (1 - mean) / (num_sites * alpha + 1), rel=0.1)
    # The classes are drawn independently.
    assert abs(np.corrcoef(share[:, 0, 0], share[:, 1, 0])[0, 1]) < 0.15


def test_a_large_alpha_is_nearly_iid() -> None:
    patients = patients_of([(split, value) for split in SPLITS for value in (0, 0, 0, 1) for _ in range(100)])
    place = by_label(patients, 1e6, 4, np.random.default_rng(1))
    for _, part in patients.assign(place=place).groupby(["split", "class"]):
        counts = np.bincount(part.place, minlength=4)
        assert counts.max() - counts.min() <= 2


@settings(deadline=None, derandomize=True)
@given(sizes=st.dictionaries(st.sampled_from("ABCDEFGH"), st.integers(0, 50), min_size=1), left=st.integers(1, 8))
def test_merged_groups_hold_each_group_once_and_no_site_is_smaller_than_it_need_be(sizes: dict, left: int) -> None:
    if left > len(sizes):
        with pytest.raises(ValueError, match=f"use --sites {len(sizes)} or fewer"):
            merge_groups(sizes, left)
        return
    sites = merge_groups(sizes, left)
    assert len(sites) == left
    assert sorted(name for site in sites for name in site) == sorted(sizes)
    total = [sum(sizes[name] for name in site) for site in sites]
    assert total == sorted(total, reverse=True)
    if any(len(site) > 1 for site in sites):
        # The last two to be merged were the smallest at the time, so no two parts of a site exceed another site.
        for site, size in zip(sites, total, strict=True):
            if len(site) > 1:
                halves = min(
                    max(sum(sizes[name] for name in half), size - sum(sizes[name] for name in half))
                    for number in range(1, len(site))
                    for half in combinations(site, number)
                )
                assert all(halves <= other for other in total)


def test_small_groups_are_merged_as_documented() -> None:
    sizes = {"MICU": 50, "SICU": 30, "CVICU": 8, "TSICU": 5, "CCU": 20}
    assert merge_groups(sizes, None) == [("MICU",), ("SICU",), ("CCU",), ("CVICU",), ("TSICU",)]
    assert merge_groups(sizes, 4) == [("MICU",), ("SICU",), ("CCU",), ("CVICU", "TSICU")]
    assert merge_groups(sizes, 3) == [("MICU",), ("CCU", "CVICU", "TSICU"), ("SICU",)]


def test_sites_are_named_after_their_groups_in_letters_that_a_file_may_have() -> None:
    long = "Neuro Surgical and Very Long Intermediate Unit Number"
    sites = [
        ("BLACK/AFRICAN AMERICAN",),
        ("Medical Intensive Care Unit (MICU)",),
        (f"{long} 1", f"{long} 2"),
        (f"{long} 3", f"{long} 4"),
        ("?",),
        ("pooled",),
        ("2008 - 2010", "unknown"),
    ]
    assert group_names(sites) == [
        "BLACK AFRICAN AMERICAN",
        "Medical Intensive Care Unit MICU",
        "2 small groups",
        "2 small groups 2",
        "group",
        "pooled 2",
        "2008 - 2010 and unknown",
    ]


def test_parameters_that_make_no_sense_are_refused_by_option() -> None:
    for change, words in (
        ({"num_sites": 0}, "--sites: expected one site or more, found 0"),
        ({"alpha": 0.0}, "--alpha: expected a number above 0"),
        ({"alpha": float("nan")}, "--alpha: expected a number above 0"),
        ({"sigma": -1.0}, "--sigma: expected a number from 0 to 10"),
        ({"exponent": 11.0}, "--exponent: expected a number from 0 to 10"),
        ({"min_patients": 0}, "--min-patients: expected one patient or more"),
    ):
        with pytest.raises(ValueError, match=words):
            Scheme(**change)
    assert known_variables([" PH", "albumin"]) == ("Albumin", "pH")
    with pytest.raises(ValueError, match="found acid; choose among"):
        known_variables(["acid"])
    assert Gaps(variables=LABORATORY).variables == known_variables(list(LABORATORY))
