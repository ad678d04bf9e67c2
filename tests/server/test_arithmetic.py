"""SCAFFOLD's control variate against a slow loop, and pooled statistics against the samples themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from federation.selection import model_entries
from federation.weights import flatten_weights, unflatten_weights
from server.arithmetic import (
    ControlChange,
    Moments,
    StrategyArithmeticError,
    pooled_moments,
    recalibrated,
    scaffold_control_step,
    site_moments,
)


def test_scaffolds_control_is_that_of_a_slow_loop() -> None:
    random, num_sites = np.random.default_rng(1), 5
    control = random.normal(size=9).astype(np.float32)
    present, drifts = [0, 2, 3], random.normal(size=(num_sites, 9)).astype(np.float32)
    changes = [ControlChange(share=1 / num_sites, change=drifts[site]) for site in present]
    controlled = scaffold_control_step(control, changes)
    for entry in range(9):  # Algorithm 1, line 17
        mean_drift = sum(float(drifts[site][entry]) for site in present) / len(present)
        expected = float(control[entry]) + len(present) / num_sites * mean_drift
        assert controlled[entry] == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert controlled.dtype == np.float32


@pytest.mark.parametrize(
    ("shares", "size", "words"),
    [
        ([], 3, "expected one change or more"),
        ([0.0], 3, r"share above 0 and at most 1, found shares \[0.0\]"),
        ([0.7, 0.7], 3, "expected shares that sum to at most 1, found 1.4"),
        ([0.5], 1, r"expected arrays \[3\], found \[1\]"),
    ],
)
def test_changes_without_sense_are_refused(shares: list, size: int, words: str) -> None:
    changes = [ControlChange(share=share, change=np.ones(size)) for share in shares]
    with pytest.raises(StrategyArithmeticError, match=words):
        scaffold_control_step(np.zeros(3), changes)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 999))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_pooled_moments_are_those_of_all_samples_in_one_place(sizes: list, seed: int) -> None:
    random = np.random.default_rng(seed)
    samples = [random.normal(loc=random.normal(scale=5), scale=random.random() + 0.1, size=(n, 3)) for n in sizes]
    sites = [Moments(count=len(each), mean=each.mean(axis=0), variance=each.var(axis=0)) for each in samples]
    pooled = sites[0]
    for site in sites[1:]:
        pooled = pooled_moments(pooled, site)
    union = np.concatenate(samples)
    np.testing.assert_allclose(pooled.mean, union.mean(axis=0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(pooled.variance, union.var(axis=0), rtol=1e-9, atol=1e-12)
    shares = np.array(sizes)[:, None] / sum(sizes)  # the formula as it is usually written
    means, variances = np.array([site.mean for site in sites]), np.array([site.variance for site in sites])
    textbook = (shares * (variances + means**2)).sum(axis=0) - (shares * means).sum(axis=0) ** 2
    np.testing.assert_allclose(pooled.variance, textbook, rtol=1e-8, atol=1e-10)
    averaged = (shares * variances).sum(axis=0)
    between = (shares * (means - pooled.mean) ** 2).sum(axis=0)
    np.testing.assert_allclose(pooled.variance - averaged, between, rtol=1e-6, atol=1e-9)
    assert (pooled.variance >= averaged * (1 - 1e-12)).all()


def test_where_means_agree_pooling_is_the_weighted_mean_of_variances() -> None:
    first = Moments(count=30, mean=np.array([2.0]), variance=np.array([1.0]))
    second = Moments(count=10, mean=np.array([2.0]), variance=np.array([3.0]))
    assert pooled_moments(first, second).variance[0] == pytest.approx((30 * 1 + 10 * 3) / 40)
    apart = Moments(count=10, mean=np.array([6.0]), variance=np.array([3.0]))
    assert pooled_moments(first, apart).variance[0] == pytest.approx(1.5 + 0.75 * 0.25 * 16)


def test_a_large_mean_does_not_swallow_a_small_variance() -> None:
    sites = [Moments(count=1, mean=np.array([1e8]), variance=np.array([1e-3])) for _ in range(2)]
    assert pooled_moments(*sites).variance[0] == pytest.approx(1e-3)
    textbook = (1e-3 + 1e16) - 1e16
    assert textbook != pytest.approx(1e-3)


def test_recalibration_gives_the_statistics_of_the_union_to_a_model() -> None:
    random = np.random.default_rng(2)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=1.0))
    entries, start = model_entries(model), flatten_weights(model)
    batches = [torch.tensor(random.normal(loc=loc, size=(400, 4)), dtype=torch.float32) for loc in (-2, 3)]
    sites = []
    for batch in batches:  # with a momentum of 1 the running statistics are those of the batch
        unflatten_weights(model, start)
        model(batch)
        sites.append(flatten_weights(model))
    unflatten_weights(model, start)
    model(torch.cat(batches))
    union = flatten_weights(model)
    mean = np.mean(sites, axis=0)
    pooled = pooled_moments(*(site_moments(site, entries, 400) for site in sites))
    got = recalibrated(mean, pooled, entries)
    np.testing.assert_allclose(got, union, rtol=3e-3, atol=1e-5)  # running variances divide by n - 1
    assert (entries.variances.take(mean) < 0.9 * entries.variances.take(union)).any()  # averaging falls short
    others = ~entries.statistics.mask()
    assert got[others].tobytes() == mean[others].tobytes()


def test_moments_that_do_not_fit_are_refused() -> None:
    good = Moments(count=2, mean=np.zeros(3), variance=np.ones(3))
    with pytest.raises(StrategyArithmeticError, match=r"expected moments of \[3\] channels, found means \[1\]"):
        pooled_moments(good, Moments(count=2, mean=np.zeros(1), variance=np.ones(3)))
    for count in (0, -1, float("nan")):
        with pytest.raises(StrategyArithmeticError, match="expected counts above zero, found 2 and"):
            pooled_moments(good, Moments(count=count, mean=np.zeros(3), variance=np.ones(3)))
