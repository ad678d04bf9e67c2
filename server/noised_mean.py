"""The mean of the sites' clipped updates with noise: what a round of site-level privacy lets through.

The Gaussian mechanism over whole sites (McMahan et al. 2018, arXiv 1710.06963). Its unit is all that a site sends in a
round: were it nothing instead, the sum would move by at most the clip.
"""

import math
from collections.abc import Iterator

import numpy as np

from federation.secure_noise import gaussian
from federation.selection import Entries
from server.aggregator import SiteUpdate

_AT_ONCE = 1 << 20
"""Entries that are in memory in double precision beside the sum."""


class NoisedMean:
    """Updates of one round, each shortened to the clip, added up in double precision, noised once.

    What is not in `released` (running statistics, frozen modules) stays the reference's, whatever a site sent of it.
    """

    def __init__(self, reference: np.ndarray, released: Entries, clip: float) -> None:
        """float32 [number], what the updates begin from; an update is longer than `clip` over all of `released`."""
        self._reference, self._released, self._clip = reference, released, clip
        self._sum = np.zeros(released.size)
        self._sites, self._unclipped = 0, 0

    def add(self, update: SiteUpdate, weight: float) -> None:
        """Take an update in; `weight` is at most 1, so that nothing longer than the clip goes into the sum."""
        assert 0 < weight <= 1, f"a weight of {weight} breaks the bound"
        length = self._length(update.weights)
        # An update of length 0 is divided by nothing.
        factor = weight if length <= self._clip else weight * self._clip / length
        for total, part in self._parts():
            self._sum[total] += factor * self._difference(update.weights, part)
        self._sites, self._unclipped = self._sites + 1, self._unclipped + (length <= self._clip)

    def noised(self, noise_multiplier: float, total_weight: float) -> SiteUpdate:
        """The sum with noise of `noise_multiplier` times the clip, over `total_weight`, as the update of one site.

        `total_weight` is that of the sites that were asked, not of those that came: who is missing sent nothing.
        """
        weights = self._reference.copy()
        for total, part in self._parts():
            noised = self._sum[total] + gaussian(self._sum[total].size, noise_multiplier * self._clip)
            # Rounded to float32 as a sum, which `gaussian` asks for.
            weights[part] = (self._reference[part] + noised / total_weight).astype(np.float32)
        return SiteUpdate(site="all sites", num_samples=1, loss=0.0, weights=weights)

    def noised_share(self, noise: float, num_sites: int) -> float:
        """The share of `num_sites` whose update was not shortened, with noise, between 0 and 1.

        A site adds half to the count or takes half away (Andrew et al. 2021, arXiv 1905.03871): `noise` is the standard
        deviation over that half.
        """
        count = self._unclipped - self._sites / 2 + float(gaussian(1, noise / 2)[0])
        return min(1.0, max(0.0, 0.5 + count / num_sites))

    def _length(self, weights: np.ndarray) -> float:
        """Euclidean, of all released entries together."""
        differences = (self._difference(weights, part) for _, part in self._parts())
        return math.sqrt(sum(float(each @ each) for each in differences))

    def _difference(self, weights: np.ndarray, part: slice) -> np.ndarray:
        """In double precision, in which neither a difference of float32 overflows nor its square."""
        return np.subtract(weights[part], self._reference[part], dtype=np.float64)

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Where some of the released entries lie in the sum, and where in the flat weights."""
        begin = 0
        for start, end in self._released.runs:
            for first in range(start, end, _AT_ONCE):
                part = slice(first, min(first + _AT_ONCE, end))
                yield slice(begin, begin + part.stop - part.start), part
                begin += part.stop - part.start
