"""How alike the directions of a round's updates are: which site pulls elsewhere."""

from functools import lru_cache

import numpy as np

from federation.selection import Entries

_WIDTH = 4093
"""Numbers of a sketch. A prime, so that no layer's rows fall onto the same ones."""
_MOST = 1 << 20
"""Entries that are looked at; of a larger model this many, evenly spread."""
_DIGITS = 3


class Similarity:
    """Cosines between updates, told from a sketch of 16 kB a site: no update need be kept, nor come again.

    A sketch adds entries of random sign (Charikar et al. 2002, "Finding frequent items in data streams"): products of
    sketches are those of the updates on average. An update with itself or its negative is exact; between others a
    cosine is off by about 0.02, and by more where few entries of a large model hold most of its length.
    """

    def __init__(self, reference: np.ndarray, entries: Entries) -> None:
        """float32 [number], what the updates begin from, and which of its entries count."""
        self._reference = reference
        stride = max(1, -(-entries.size // _MOST)) | 1  # odd: rows are mostly even in length
        self._parts = [slice(start + -start % stride, end, stride) for start, end in entries.runs]
        size = sum(reference[part].size for part in self._parts)
        self._values = np.zeros(-(-size // _WIDTH) * _WIDTH)
        self._signs = _signs(self._values.size)
        self._sketches: dict[str, np.ndarray] = {}
        self._num_samples: dict[str, int] = {}

    def add(self, site: str, weights: np.ndarray, num_samples: int) -> None:
        """float32 [number]: the weights that a site came to with so many samples."""
        begin = 0
        for part in self._parts:
            ours = self._reference[part]
            np.subtract(weights[part], ours, out=self._values[begin : begin + ours.size], dtype=np.float64)
            begin += ours.size
        np.multiply(self._values, self._signs, out=self._values)
        self._sketches[site] = self._values.reshape(-1, _WIDTH).sum(axis=0)
        self._num_samples[site] = num_samples

    def matrix(self) -> tuple[list[str], list[list[float]]]:
        """Sites, and of each the cosines with those before it; 0 with an update that changed nothing."""
        names = sorted(self._sketches)
        return names, [
            [_cosine(self._sketches[site], self._sketches[other]) for other in names[:place]]
            for place, site in enumerate(names)
        ]

    def with_others(self) -> dict[str, float]:
        """Each site's cosine with the mean of all others, weighted by samples; nothing where there is one site."""
        weighted = {site: self._num_samples[site] * sketch for site, sketch in sorted(self._sketches.items())}
        together = np.sum(list(weighted.values()), axis=0)
        return {site: _cosine(each, together - each) for site, each in weighted.items() if len(weighted) > 1}


@lru_cache(maxsize=1)
def _signs(size: int) -> np.ndarray:
    """Fixed: what is compared must have met the same signs, and nothing depends on which these are."""
    return np.random.default_rng(0).choice([-1.0, 1.0], size)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return round(float(one @ other) / length, _DIGITS) if length else 0.0
