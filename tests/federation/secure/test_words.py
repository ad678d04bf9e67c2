"""Masks: what a masked update looks like to whoever lacks the key, and that the same key takes the mask away."""

import secrets

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from federation.secure.errors import SecureError
from federation.secure.words import Words

_SURE = 1e-6
"""A test of true randomness fails once in a million times."""


def _words(num_wide: int = 1000, num_narrow: int = 400_000) -> Words:
    """What an update looks like before: small numbers of either sign, many zeros."""
    words, numbers = Words(num_wide, num_narrow), np.random.default_rng(5)
    words.narrow[:] = np.rint(numbers.normal(0, 1000, num_narrow)).astype(np.int32).view(np.uint32)
    words.narrow[::3] = 0
    return words


def test_the_mask_is_the_stream_of_aes_in_counter_mode() -> None:
    """Made at once by the cipher itself, over rows that end within a block."""
    seed, words = secrets.token_bytes(32), Words(3, 300_001)
    words.add_mask(seed)
    encryptor = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
    assert words.content.tobytes() == encryptor.update(bytes(words.content.size))


@given(num_wide=st.integers(0, 5), num_narrow=st.integers(0, 600_000), seed=st.binary(min_size=32, max_size=32))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_what_was_added_can_be_taken_away(num_wide: int, num_narrow: int, seed: bytes) -> None:
    words, before = Words(num_wide, num_narrow), np.random.default_rng(num_narrow)
    words.content[:] = before.integers(0, 256, words.content.size, np.uint8)
    kept = words.content.copy()
    words.add_mask(seed)
    words.add_mask(seed, subtract=True)
    np.testing.assert_array_equal(words.content, kept)


def test_a_masked_update_is_like_random_bytes() -> None:
    """Bytes by value and bits by place are equally frequent, neighbours and the update itself are not correlated."""
    plain = _words()
    masked = Words(1000, 400_000, plain.content.copy())
    masked.add_mask(secrets.token_bytes(32))
    for row in (masked.content, *(masked.narrow.view(np.uint8)[place::4] for place in range(4))):
        assert stats.chisquare(np.bincount(row, minlength=256)).pvalue > _SURE
    bits = np.unpackbits(masked.content).reshape(-1, 8)
    for place in range(8):
        ones = int(bits[:, place].sum())
        assert stats.binomtest(ones, len(bits)).pvalue > _SURE
    signed = masked.narrow.view(np.int32).astype(np.float64)
    assert stats.kstest(signed / 2**32 + 0.5, "uniform").pvalue > _SURE
    bound = stats.norm.isf(_SURE) / np.sqrt(len(signed))
    assert abs(np.corrcoef(signed[1:], signed[:-1])[0, 1]) < bound
    assert abs(np.corrcoef(signed, plain.narrow.view(np.int32))[0, 1]) < bound
    # The same tests do find an update that is not masked.
    assert stats.chisquare(np.bincount(plain.content, minlength=256)).pvalue < _SURE


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(SecureError, match=r"expected a masked update as uint8 \[16\], found uint8 \[15\]"):
        Words(1, 2, np.zeros(15, np.uint8))
    with pytest.raises(SecureError, match=r"found float32 \[16\]"):
        Words(1, 2, np.zeros(16, np.float32))
