"""Shamir's secret sharing: as many shares as the threshold give a secret back, fewer say nothing about it.

The secret is the value at zero of a random polynomial of degree threshold - 1 over the integers modulo the prime
2^521 - 1, share number i its value at i (Shamir 1979, "How to share a secret").
"""

import secrets
from collections.abc import Mapping

from federation.secure.errors import SecureError

PRIME = 2**521 - 1
"""A Mersenne prime, well above every secret."""
SECRET_BYTES, SHARE_BYTES = 32, 66


def split(secret: bytes, num_shares: int, threshold: int) -> list[bytes]:
    """Shares 1 to `num_shares` of a secret of 32 bytes, each of 66 bytes."""
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= num_shares:
        raise ValueError(
            f"expected {SECRET_BYTES} bytes and a threshold from 1 to {num_shares}, found {len(secret)} and {threshold}"
        )
    coefficients = [int.from_bytes(secret), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value(coefficients, place).to_bytes(SHARE_BYTES) for place in range(1, num_shares + 1)]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret of shares by their numbers, from the `threshold` of the lowest numbers.

    A share that is not what was given away leads to another secret, or to SecureError: whoever asks must know the
    secret again by something else. Raises SecureError for too few shares and for what cannot be one.
    """
    if len(shares) < threshold:
        raise SecureError(f"expected {threshold} shares or more, {len(shares)} came")
    places = sorted(shares)[:threshold]
    total = sum(_number(shares[place]) * _at_zero(place, places) for place in places) % PRIME
    if total >= 1 << 8 * SECRET_BYTES:
        raise SecureError("expected shares of one secret, found some that do not belong together")
    return total.to_bytes(SECRET_BYTES)


def _value(coefficients: list[int], place: int) -> int:
    value = 0
    for each in reversed(coefficients):
        value = (value * place + each) % PRIME
    return value


def _at_zero(place: int, places: list[int]) -> int:
    """Lagrange's polynomial of a place, at zero."""
    above = below = 1
    for other in places:
        if other != place:
            above, below = above * other % PRIME, below * (other - place) % PRIME
    return above * pow(below, -1, PRIME) % PRIME


def _number(share: bytes) -> int:
    number = int.from_bytes(share)
    if len(share) != SHARE_BYTES or number >= PRIME:
        raise SecureError(f"expected a share of {SHARE_BYTES} bytes below 2^521 - 1, found {len(share)} other bytes")
    return number
