"""Which numbers a site's update is when it is masked, and what their sum says: fixed point, added without error.

With p a site's share of all training samples a parameter's change d becomes the whole number round(p d / unit), with
unit = largest change / 2^30, modulo 2^32. Running statistics of batch norm, what goes beside the model and the number
of samples are few or large: they travel in steps of 2^-36 modulo 2^64. The mean over the sites that are left is their
sum divided by the sum of their p; of N sites it is off by at most N unit / (2 sum p) and the rounding of float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from federation.secure.errors import SecureError
from federation.secure.words import Words
from federation.selection import Entries, ModelEntries

_NARROW, _WIDE, _LARGEST_WIDE = 2.0**30, 2.0**36, 2.0**26
"""Steps of the largest change; steps of one; the largest number beside the parameters. Both leave a bit of room: a sum
beyond what the sites may send shows that a mask was not taken away, or that a site did not keep to its range."""
_AT_ONCE = 1 << 18
"""Entries that are rounded together in double precision."""


@dataclass(frozen=True, kw_only=True)
class Summed:
    """What the sum of some sites' updates says."""

    change: np.ndarray
    """float32 [number]: the weighted mean of weights minus reference, zero where nothing is trained."""
    moments: tuple[np.ndarray, np.ndarray] | None
    """float64 [channel]: mean less the reference's, and variance, of batch norm over all samples; None where the run
    does not pool them."""
    control: np.ndarray
    """float64 [number]: sum of p times what the sites changed beside the model."""


@dataclass(frozen=True, kw_only=True)
class UpdateForm:
    """The same at the server and at every site of a run."""

    entries: ModelEntries
    control_size: int
    """Numbers that travel beside the model (`Instruction.control`)."""
    pools_moments: bool
    """Whether batch norm's statistics of all samples are wanted (`strategy.recalibrate`)."""
    largest_change: float
    """Of a parameter."""

    @property
    def parameters(self) -> Entries:
        return self.entries.trained.without(self.entries.statistics)

    @property
    def statistics(self) -> Entries:
        return self.entries.trained.both(self.entries.statistics)

    @property
    def unit(self) -> float:
        """The step of a parameter's change."""
        return self.largest_change / _NARROW

    def blank(self, content: np.ndarray | None = None) -> Words:
        """Numbers of this form: zeros, or those in `content`, uint8 [byte]. Raises SecureError."""
        pooled = 2 * self.entries.means.size if self.pools_moments else 0
        return Words(1 + self.statistics.size + pooled + self.control_size, self.parameters.size, content)

    def write(
        self, weights: np.ndarray, reference: np.ndarray, control: np.ndarray, *, num_samples: int, share: float
    ) -> Words:
        """A site's update with its share of all samples. Raises SecureError for what no sum could take."""
        words = self.blank()
        words.wide[0] = num_samples
        beside = np.concatenate(list(self._beside(weights, reference, control)))
        if not (np.abs(beside) <= _LARGEST_WIDE).all():
            raise SecureError(
                f"expected running statistics and what goes beside the model within ±{_LARGEST_WIDE:g}, found "
                "numbers beyond, or none; has the training diverged? Lower training.learning_rate"
            )
        words.wide[1:] = np.rint(beside * (share * _WIDE)).astype(np.int64).view(np.uint64)
        for target, part in _runs(words.narrow, self.parameters):
            change = np.subtract(weights[part], reference[part], dtype=np.float64)
            if not (np.abs(change) <= self.largest_change).all():
                raise SecureError(
                    f"expected changes of parameters within ±{self.largest_change:g}, found larger ones, or none that "
                    "are numbers; has the training diverged? Lower training.learning_rate, or raise "
                    "secure_aggregation.largest_change"
                )
            change *= share / self.unit
            target[:] = np.rint(change, out=change).astype(np.int32).view(np.uint32)
        return words

    def read(self, total: Words, *, num_sites: int, num_samples: int, share: float) -> Summed:
        """The mean of `num_sites` sites with so many samples in all, a share of all samples of the run.

        Raises SecureError where this is not the sum of such updates: masks are left over, or a site broke the rules.
        """
        if int(total.wide[0]) != num_samples:
            raise SecureError(
                f"expected the sum of updates with {num_samples} samples, found another count: the masks do not cancel"
            )
        beside = total.wide[1:].view(np.int64)
        self._require(beside, _LARGEST_WIDE * _WIDE * share + num_sites)
        change, beside = np.zeros(self.entries.trained.total, np.float32), beside / (share * _WIDE)
        for source, part in _runs(total.narrow.view(np.int32), self.parameters):
            self._require(source, _NARROW * share + num_sites)
            change[part] = source * (self.unit / share)
        sizes = [self.statistics.size, *([self.entries.means.size] * 2 if self.pools_moments else [])]
        statistics, *pooled, control = np.split(beside, np.cumsum(sizes))
        self.statistics.put(change, statistics.astype(np.float32))
        moments = (pooled[0], pooled[1] - np.square(pooled[0])) if pooled else None
        return Summed(change=change, moments=moments, control=control * share)

    def _beside(self, weights: np.ndarray, reference: np.ndarray, control: np.ndarray) -> Iterator[np.ndarray]:
        """What travels in 64 bits, double precision.

        Means and second moments are about the reference's means, so that variance = second moment - mean^2 does not
        cancel where means are far from zero.
        """
        yield self.statistics.take(weights).astype(np.float64) - self.statistics.take(reference)
        if self.pools_moments:
            means = self.entries.means.take(weights).astype(np.float64) - self.entries.means.take(reference)
            yield means
            yield self.entries.variances.take(weights) + np.square(means)
        if control.shape != (self.control_size,):
            raise SecureError(f"expected {self.control_size} numbers beside the model, found {list(control.shape)}")
        yield control.astype(np.float64)

    @staticmethod
    def _require(numbers: np.ndarray, largest: float) -> None:
        if not (np.abs(numbers.astype(np.float64)) <= largest).all():
            raise SecureError(
                "expected a sum of updates within their range, found numbers beyond: the masks do not cancel, or a "
                "site sent what it must not"
            )


def _runs(row: np.ndarray, entries: Entries) -> Iterator[tuple[np.ndarray, slice]]:
    """Parts of a row of numbers, each with the entries of the flat array that it stands for."""
    begin = 0
    for start, end in entries.runs:
        for first in range(start, end, _AT_ONCE):
            last = min(first + _AT_ONCE, end)
            yield row[begin : begin + last - first], slice(first, last)
            begin += last - first
