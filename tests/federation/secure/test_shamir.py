"""Shares against the definition: a polynomial through points, found by solving for its coefficients."""

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.secure.errors import SecureError
from federation.secure.shamir import PRIME, combine, split


@given(secret=st.binary(min_size=32, max_size=32), num_shares=st.integers(1, 8), data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_shares_of_the_threshold_give_the_secret(secret: bytes, num_shares: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, num_shares))
    shares = dict(enumerate(split(secret, num_shares, threshold), start=1))
    chosen = data.draw(st.sets(st.sampled_from(sorted(shares)), min_size=threshold))
    assert combine({place: shares[place] for place in chosen}, threshold) == secret
    few = {place: shares[place] for place in sorted(chosen)[: threshold - 1]}
    with pytest.raises(SecureError, match=f"expected {threshold} shares or more, {threshold - 1} came"):
        combine(few, threshold)


def test_fewer_shares_fit_every_secret() -> None:
    """Two shares of three: for any secret there is one polynomial through it and them, so they say nothing."""
    shares = dict(enumerate(split(bytes(32), 5, 3), start=1))
    for one, other in combinations(shares, 2):
        first, second = (int.from_bytes(shares[place]) for place in (one, other))
        for secret in (0, 1, 2**256 - 1):
            # a, b of secret + a x + b x^2 by Cramer's rule.
            ways = one * other * (other - one) % PRIME
            b = ((second - secret) * one - (first - secret) * other) * pow(ways, -1, PRIME) % PRIME
            a = ((first - secret) * pow(one, -1, PRIME) - b * one) % PRIME
            assert (secret + a * one + b * one * one) % PRIME == first
            assert (secret + a * other + b * other * other) % PRIME == second


def test_the_secret_is_the_value_at_zero() -> None:
    """By Lagrange's formula in exact fractions, over small numbers that no modulus touches."""
    points = {1: 6, 2: 11, 3: 18}  # 3 + 2 x + x^2
    at_zero = sum(
        value * _product(Fraction(-other, place - other) for other in points if other != place)
        for place, value in points.items()
    )
    assert at_zero == 3
    shares = {place: value.to_bytes(66) for place, value in points.items()}
    assert combine(shares, 3) == (3).to_bytes(32)


def _product(factors) -> Fraction:
    product = Fraction(1)
    for each in factors:
        product *= each
    return product


def test_the_modulus_is_prime() -> None:
    """Lucas and Lehmer: 2^p - 1 is prime for an odd prime p exactly if s of p - 2 steps s = s^2 - 2 from 4 is zero."""
    s = 4
    for _ in range(521 - 2):
        s = (s * s - 2) % PRIME
    assert PRIME == 2**521 - 1
    assert s == 0


def test_shares_that_cannot_be_are_refused() -> None:
    shares = dict(enumerate(split(b"s" * 32, 3, 2), start=1))
    with pytest.raises(SecureError, match="expected a share of 66 bytes"):
        combine({1: shares[1][:-1], 2: shares[2]}, 2)
    with pytest.raises(SecureError, match="expected a share of 66 bytes"):
        combine({1: b"\xff" * 66, 2: shares[2]}, 2)
    with pytest.raises(SecureError, match="do not belong together"):
        combine({1: shares[2], 2: shares[1]}, 2)
    with pytest.raises(ValueError, match="expected 32 bytes and a threshold from 1 to 3"):
        split(b"short", 3, 2)
