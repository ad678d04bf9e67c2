"""Noise is normal, of the stated variance, new at every call, and made of bits that cannot be foreseen."""

import math
import os

import numpy as np
import pytest
from scipy import stats

from federation import secure_noise
from federation.secure_noise import gaussian

SIZE = 400_000


@pytest.mark.parametrize("std", [1.0, 1e-7, 250.0])
def test_it_is_normal_with_the_stated_variance(std: float) -> None:
    noise = gaussian(SIZE, std)
    # A right sampler fails each of these once in a million runs.
    assert stats.kstest(noise / std, "norm").pvalue > 1e-6
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], SIZE) / SIZE
    assert low < np.mean(np.square(noise / std)) < high
    assert abs(noise.mean()) < 5 * std / math.sqrt(SIZE)


def test_the_tails_are_normal() -> None:
    far = np.abs(gaussian(SIZE, 1.0))
    for bound in (2.0, 3.0, 4.0):
        expected = SIZE * 2 * stats.norm.sf(bound)
        assert abs((far > bound).sum() - expected) < 5 * math.sqrt(expected) + 1, bound


def test_the_numbers_of_a_pair_and_neighbouring_pairs_are_independent() -> None:
    noise = gaussian(SIZE, 1.0)
    for lag in (1, 2, 1 << 12, 1 << 13):  # the other of a pair, the next pair, half of and a whole part
        first, second = noise[:-lag], noise[lag:]
        for values in ((first, second), (np.square(first), np.square(second))):
            assert abs(np.corrcoef(*values)[0, 1]) < 5 / math.sqrt(SIZE - lag), lag


@pytest.mark.parametrize("size", [0, 1, 2, 3, (1 << 13) - 1, 1 << 13, (1 << 13) + 1])
def test_any_number_of_them(size: int) -> None:
    noise = gaussian(size, 1.0)
    assert noise.shape == (size,)
    assert noise.dtype == np.float64
    assert len(np.unique(noise)) == size


def test_no_seed_repeats_it_and_every_call_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    np.random.seed(1)  # noqa: NPY002
    first = gaussian(100, 1.0)
    np.random.seed(1)  # noqa: NPY002
    assert not np.isin(gaussian(100, 1.0), first).any()
    keys: list[bytes] = []
    monkeypatch.setattr(os, "urandom", lambda count: keys.append(bytes([len(keys)]) * count) or keys[-1])
    gaussian(5, 1.0)
    gaussian(5, 1.0)
    assert keys == [bytes(32), bytes([1]) * 32]


def test_the_pair_is_box_and_mullers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the formula in plain Python, bit pattern by bit pattern, the extreme ones too."""
    words = [0, 2**64 - 1, 2**63, 12345678901234567890, 1]
    angles = [0, 2**62, 2**63, 2**64 - 1, 9876543210987654321]

    class Stream:
        def update(self, data: bytes) -> bytes:
            assert len(data) == 80
            return np.array(words + angles, np.uint64).tobytes()

    found = secure_noise._pairs(Stream(), 5)  # pyright: ignore[reportArgumentType]
    for place, (word, turn) in enumerate(zip(words, angles, strict=True)):
        radius = math.sqrt(-2 * math.log((word + 1) / 2**64))
        expected = (radius * math.cos(2 * math.pi * turn / 2**64), radius * math.sin(2 * math.pi * turn / 2**64))
        assert (found[0][place], found[1][place]) == pytest.approx(expected, abs=1e-12)
    assert max(abs(found[0])) == pytest.approx(math.sqrt(128 * math.log(2)))


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_noise_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="above zero, found"):
        gaussian(3, std)
