"""Gaussian noise that nobody can foresee or compute again: normals made of a cipher's stream.

What hides a patient or a site must be as hard to guess as a key. Generators made for statistics (PCG64, MT19937) can be
continued by whoever saw some of their output, whatever they were seeded with.
"""

import math
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

_PAIRS_AT_ONCE = 1 << 12
"""Pairs of numbers that are made together; more fit no cache."""
_NUM_BYTES = 16
"""Random bytes of a pair: 8 of its length, 8 of its angle."""


def gaussian(size: int, std: float) -> np.ndarray:
    """float64 [size]: independent normal numbers of mean 0 and this standard deviation, other ones at every call.

    Box and Muller's (1958) pairs of 64 random bits each, which are the stream of AES-256 in counter mode under a key
    from the operating system that is used once and forgotten. 31 million take about a second.

    Whoever adds them must do so in double precision and round the sum, to float32 or a coarser grid: which of the
    closest floats can be such a number says something of what it was added to (Mironov 2012), and rounding merges
    about 2^29 of them. Nothing lies beyond 9.42 standard deviations, where a normal number lies with chance 5e-21.

    Raises ValueError where this would be no noise.
    """
    if not (std > 0 and math.isfinite(std)):
        raise ValueError(f"expected noise with a finite standard deviation above zero, found {std}")
    # The key is new, so that the counter may begin anywhere: no two calls share a stream, nor do forked processes.
    stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    noise = np.empty(size + size % 2)
    for start in range(0, len(noise), 2 * _PAIRS_AT_ONCE):
        part = noise[start : start + 2 * _PAIRS_AT_ONCE]
        part[0::2], part[1::2] = _pairs(stream, len(part) // 2)
        part *= std
    return noise[:size]


def _pairs(stream: CipherContext, count: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 [count] twice: standard normal numbers."""
    bits = np.frombuffer(stream.update(bytes(_NUM_BYTES * count)), np.uint64)
    # Above zero, so that the logarithm is finite.
    radius = np.sqrt(-2 * np.log((bits[:count].astype(np.float64) + 1) * 2.0**-64))
    angle = bits[count:].astype(np.float64) * (2 * math.pi * 2.0**-64)
    return radius * np.cos(angle), radius * np.sin(angle)
