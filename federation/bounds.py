"""The least and the largest value that a metric can have, given only in which cells of a grid the scores lie.

`Placed` counts, bin by bin, where the cells of positives and negatives begin and where they end. Sorted from the
highest, the k-th positive's bin lies between the k-th highest beginning and the k-th highest end, whichever sample of
whichever site it is; everything here follows from that, so counts of sites can simply be added. docs/pooled_metrics.md
derives each bound. They hold up to the rounding of float64 (1e-12).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dipro_model.weighted import NUM_BINS
from federation.score_cells import tenth_edges, tenth_of_bins


class Bounds(NamedTuple):
    """The value on the union lies between these."""

    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """Numbers of positives and negatives by the bin in which their cell begins, and by the one in which it ends."""

    positive_low: np.ndarray
    positive_high: np.ndarray
    negative_low: np.ndarray
    negative_high: np.ndarray

    @property
    def num_positive(self) -> int:
        return int(self.positive_low.sum())

    @property
    def num_negative(self) -> int:
        return int(self.negative_low.sum())

    @property
    def both(self) -> bool:
        """Whether there are samples of both kinds, without which no area exists."""
        return self.num_positive > 0 and self.num_negative > 0


def auroc(placed: Placed) -> Bounds:
    """Worst: every positive at its cell's beginning, every negative at its end, ties lost. Best: the reverse."""
    pairs = placed.num_positive * placed.num_negative
    worst = placed.positive_low @ (np.cumsum(placed.negative_high) - placed.negative_high)
    best = placed.positive_high @ np.cumsum(placed.negative_low)
    return Bounds(float(worst / pairs), float(best / pairs))


def average_precision(placed: Placed) -> Bounds:
    """Worst: positives one by one, below all negatives they may be below. Best: above them, tied where that helps.

    Ties count at their end, so a tie of positives can score above any order of the same positives.
    """
    rank, low, high = _ranked(placed)
    worst = rank / (rank + _from_top(placed.negative_high)[low])
    true, false = _from_top(placed.positive_high), _above(placed.negative_low)
    best = _extreme(np.maximum, _precision(true, false), low, high)
    return Bounds(float(worst.mean()), float(best.mean()))


def trapezoid_precision_recall(placed: Placed) -> Bounds:
    """Bounds of the area under straight lines: half of each positive's precision after its step, half before it.

    Precision is concave in the true positives, so breaking ties of positives can only raise the area.
    """
    rank, low, high = _ranked(placed)
    after = rank / (rank + _from_top(placed.negative_high)[low])
    surely_above = _precision(_above(placed.positive_low), _from_top(placed.negative_high))
    before = _extreme(np.minimum, surely_above, low, high)
    false = _above(placed.negative_low)[high]
    best = _precision(rank - 1, false) + _precision(rank, false)
    return Bounds(float((before + after).mean() / 2), float(best.mean() / 2))


def calibration_error(placed: Placed, gaps: np.ndarray, edges: np.ndarray) -> Bounds:
    """Bounds of the expected calibration error.

    gaps: float64 [tenth], sums of prediction - what happened, each cell's in the tenth where it begins. Where no cell
    lies across a tenth's edge the error is exact. Tenths that cells tie together have a known sum, at least its
    magnitude; at most, each of them has the largest gap that its samples allow.
    """
    tenths = tenth_of_bins(edges)
    low, high = _gap_bounds(placed, edges, tenths)
    open_cut = _crossed(placed.positive_low, placed.positive_high, tenths)
    open_cut |= _crossed(placed.negative_low, placed.negative_high, tenths)
    least = most = 0.0
    for block in np.split(np.arange(NUM_BINS), np.flatnonzero(~open_cut) + 1):
        known = abs(gaps[block].sum())
        if len(block) == 1:
            least, most = least + known, most + known
            continue
        outside_zero = np.maximum(0, np.maximum(low[block], -high[block])).sum()
        least += max(known, outside_zero)
        most += np.maximum(np.abs(low[block]), np.abs(high[block])).sum()
    total = placed.num_positive + placed.num_negative
    return Bounds(least / total, min(1.0, most / total))


def decisions(family: str, labels: np.ndarray, missed: Sequence[np.ndarray], false: Sequence[np.ndarray]) -> Bounds:
    """Bounds of a metric of the confusion matrix, which rows, false negatives and false positives suffice for.

    labels: samples of each class. missed: least and most samples of each class that were called another; false: least
    and most that were wrongly called this class. Every metric falls as either rises; for kappa, see `_kappa`.
    """
    if family == "kappa":
        return _kappa(labels, missed, false)
    worst, best = (_decision(family, labels, missed[k], false[k]) for k in (1, 0))
    return Bounds(worst, best)


def _decision(family: str, labels: np.ndarray, missed: np.ndarray, false: np.ndarray) -> float:
    right, present = labels - missed, labels > 0
    below = {
        "precision": right + false,
        "recall": labels,
        "f1": (right + false + labels) / 2,
    }
    if family not in below:  # accuracy and its other names
        return float(right.sum() / labels.sum())
    per_class = np.divide(right, below[family], out=np.zeros(len(labels)), where=below[family] > 0)
    return float(per_class[present].mean())


def _kappa(labels: np.ndarray, missed: Sequence[np.ndarray], false: Sequence[np.ndarray]) -> Bounds:
    """Kappa rises with the agreement and falls with the agreement by chance; each is bounded by itself."""
    total = labels.sum()
    agreement = [(labels - each).sum() / total for each in (missed[1], missed[0])]
    called = [np.maximum(0, labels - missed[1] + false[0]), np.minimum(total, labels - missed[0] + false[1])]
    chance = [float((labels * each).sum() / total**2) for each in called]
    lower = (agreement[0] - chance[1]) / (1 - chance[1]) if chance[1] < 1 else -1.0
    upper = (agreement[1] - chance[0]) / (1 - chance[0])
    return Bounds(max(-1.0, float(lower)), min(1.0, float(upper)))


def _ranked(placed: Placed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rank 1, 2, ... of each positive, and between which bins the positive of that rank lies."""
    bins = np.arange(len(placed.positive_low))
    low = np.repeat(bins, placed.positive_low)[::-1]
    high = np.repeat(bins, placed.positive_high)[::-1]
    return np.arange(1, len(low) + 1), low, high


def _from_top(counts: np.ndarray) -> np.ndarray:
    """Number in each bin and all higher ones."""
    return np.cumsum(counts[::-1])[::-1]


def _above(counts: np.ndarray) -> np.ndarray:
    """Number in all bins higher than each."""
    return _from_top(counts) - counts


def _precision(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Share of true ones; 1 of nothing, where the precision-recall curve starts."""
    return np.divide(true, true + false, out=np.ones(len(true)), where=true + false > 0)


def _extreme(function: np.ufunc, values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The largest (np.maximum) or least (np.minimum) value in the bins low..high, one for each such pair."""
    pairs, place = np.unique(np.stack([low, high], axis=1), axis=0, return_inverse=True)
    found = np.array([function.reduce(values[first : last + 1]) for first, last in pairs.tolist()])
    return found[place.reshape(-1)]


def _crossed(low: np.ndarray, high: np.ndarray, tenths: np.ndarray) -> np.ndarray:
    """bool [cut between tenths]: whether a cell lies across it, that is, begins below and ends above."""
    begun = np.bincount(tenths, low, NUM_BINS).cumsum()
    ended = np.bincount(tenths, high, NUM_BINS).cumsum()
    return (begun != ended)[:-1]


def _gap_bounds(placed: Placed, edges: np.ndarray, tenths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest sum of prediction - what happened, for each tenth: float64 [tenth], twice."""
    lower_edge, upper_edge = np.append(0.0, edges), np.append(edges, 1.0)
    floor, ceiling = np.append(0.0, tenth_edges()), np.append(tenth_edges(), 1.0)
    bins = np.arange(len(tenths))
    sums = []
    for happened, begin, end in (
        (1.0, placed.positive_low, placed.positive_high),
        (0.0, placed.negative_low, placed.negative_high),
    ):
        first, last = np.repeat(bins, begin), np.repeat(bins, end)
        least = np.maximum(lower_edge[first][:, None], floor) - happened
        most = np.minimum(upper_edge[last][:, None], ceiling) - happened
        tenth = np.arange(NUM_BINS)
        possible = (tenths[first][:, None] <= tenth) & (tenth <= tenths[last][:, None])
        certain = (tenths[first] == tenths[last])[:, None] & possible
        # A sample that need not lie in the tenth may add nothing to it.
        sums.append(
            (
                np.where(certain, least, np.where(possible, np.minimum(least, 0), 0)).sum(axis=0),
                np.where(certain, most, np.where(possible, np.maximum(most, 0), 0)).sum(axis=0),
            )
        )
    return sums[0][0] + sums[1][0], sums[0][1] + sums[1][1]
