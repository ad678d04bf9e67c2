"""What a round lets through: updates at most the clip long, summed, with noise of the stated size, nothing else."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from federation.selection import Entries, model_entries
from federation.weights import flatten_weights
from server import noised_mean
from server.aggregator import SiteUpdate
from server.noised_mean import NoisedMean

SIZE = 50_000
EVERYTHING = Entries(total=SIZE, runs=((0, SIZE),))
SILENT = 1e-12
"""A noise multiplier that no test here could tell from none."""


def _update(weights: np.ndarray, site: str = "north") -> SiteUpdate:
    return SiteUpdate(site=site, num_samples=7, loss=1.0, weights=weights)


def _random(seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=SIZE) * scale).astype(np.float32)


def _mean(updates: list[np.ndarray], clip: float, released: Entries = EVERYTHING) -> np.ndarray:
    """float64 [SIZE]: by how much the mean moves the reference, which is zero."""
    mean = NoisedMean(np.zeros(SIZE, np.float32), released, clip)
    for each in updates:
        mean.add(_update(each), 1.0)
    return mean.noised(SILENT, 1.0).weights.astype(np.float64)


@pytest.mark.parametrize("at_once", [1000, 1 << 20])
def test_the_sum_is_that_of_a_slow_loop(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(noised_mean, "_AT_ONCE", at_once)
    reference, clip, weights = _random(0), 3.0, (1.0, 0.25, 1.0)
    # One is shortened, one is not, one changes nothing at all.
    changes = [_random(1, 0.5), _random(2, 0.001), np.zeros(SIZE, np.float32)]
    mean = NoisedMean(reference, EVERYTHING, clip)
    expected = np.zeros(SIZE)
    for change, weight in zip(changes, weights, strict=True):
        sent = reference + change
        mean.add(_update(sent), weight)
        moved = sent.astype(np.float64) - reference
        length = math.fsum(value * value for value in moved.tolist()) ** 0.5
        expected += weight * moved * (clip / length if length > clip else 1.0)
    found = mean.noised(SILENT, 2.25).weights
    np.testing.assert_allclose(found, reference + expected / 2.25, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1.0, 1e30, 5e37])
def test_a_site_moves_the_sum_by_at_most_the_clip(scale: float) -> None:
    clip, others = 2.0, [_random(1), _random(2, 0.001)]
    moved = _mean([*others, _random(3, scale)], clip) - _mean(others, clip)
    # Of float32 the last bit is rounded.
    assert np.linalg.norm(moved) <= clip * (1 + 1e-5)
    if scale >= 1:
        assert np.linalg.norm(moved) == pytest.approx(clip, rel=1e-5)


def test_every_tensor_counts_for_the_length_one_without_dimensions_too() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.layer = nn.Linear(2, 2)

    model = Small()
    reference, entries = flatten_weights(model).copy(), model_entries(model).trained
    assert entries.size == 7
    with torch.no_grad():
        model.scale += 300
        model.layer.bias += 400
    mean = NoisedMean(reference, entries, 5.0)
    mean.add(_update(flatten_weights(model).copy()), 1.0)
    moved = mean.noised(SILENT, 1.0).weights - reference
    # A right triangle of 300 and of 400 twice, shortened to 5.
    expected = 5 / math.hypot(300, 400, 400)
    assert np.sort(np.abs(moved))[-3:] == pytest.approx([300 * expected, 400 * expected, 400 * expected], rel=1e-4)


@pytest.mark.parametrize(("noise", "clip", "sites"), [(1.0, 1.0, 1.0), (4.0, 0.5, 5.0), (0.3, 20.0, 50.0)])
def test_the_noise_has_the_stated_variance_and_is_normal(noise: float, clip: float, sites: float) -> None:
    mean = NoisedMean(np.zeros(SIZE, np.float32), EVERYTHING, clip)
    mean.add(_update(np.zeros(SIZE, np.float32)), 1.0)
    found = mean.noised(noise, sites).weights.astype(np.float64) / (noise * clip / sites)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], SIZE) / SIZE
    assert low < np.mean(np.square(found)) < high
    assert stats.kstest(found, "norm").pvalue > 1e-6


def test_what_is_not_released_stays_bit_for_bit_whatever_a_site_sends() -> None:
    released = Entries(total=SIZE, runs=((10, 20), (30, 31)))
    reference = _random(0)
    mean = NoisedMean(reference, released, 1.0)
    mean.add(_update(_random(1, 1e6)), 1.0)
    found = mean.noised(1.0, 1.0).weights
    changed = np.flatnonzero(found != reference)
    assert changed.tolist() == [*range(10, 20), 30]


def test_entries_elsewhere_do_not_lengthen_an_update() -> None:
    released = Entries(total=SIZE, runs=((0, 10),))
    sent = np.full(SIZE, 1e6, np.float32)
    sent[:10] = 0.1
    np.testing.assert_allclose(_mean([sent], 1.0, released)[:10], 0.1, atol=1e-6)


def test_the_share_that_was_not_shortened_is_noised_as_stated() -> None:
    mean = NoisedMean(np.zeros(SIZE, np.float32), EVERYTHING, 1.0)
    for length in (0.0, 0.5, 0.99, 1.5, 7.0):
        mean.add(_update(np.eye(1, SIZE, 3, np.float32)[0] * np.float32(length)), 1.0)
    assert mean.noised_share(SILENT, 5) == pytest.approx(3 / 5)
    # A site that was asked and sent nothing takes no part in the count.
    assert mean.noised_share(SILENT, 50) == pytest.approx(0.5 + (3 - 2.5) / 50)
    shares = np.array([mean.noised_share(0.4, 5) for _ in range(4000)])
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], 4000) / 4000
    assert low < np.mean(np.square((shares - 3 / 5) / (0.4 / 2 / 5))) < high
    assert all(0 <= mean.noised_share(100.0, 5) <= 1 for _ in range(100))
