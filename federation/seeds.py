"""Randomness derived by name, so that a result does not depend on what ran before it or beside it."""

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose, from the run's seed and the purpose's names (epoch, site, ...)."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
