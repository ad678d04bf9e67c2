"""One grid of score bins for all sites, and how a site merges its bins until no cell holds too few patients."""

from functools import cache
from itertools import pairwise

import numpy as np

from dipro_model.weighted import NUM_BINS, bin_of

DEFAULT_BINS = 4_000
"""Bins of equal width in the log-odds: 0.008 each."""
LARGEST_LOG_ODDS = 16.0
"""Beyond these log-odds, probabilities of 1e-7 and 1 - 1e-7, float32 has nothing left to tell apart near 1."""

_SIGNIFICANT_DIGITS = 12
"""The exponential's last digit differs between processors; the grid must not."""


@cache
def grid(bins: int) -> np.ndarray:
    """float64 [edge], rising: the inner edges of `bins` bins of equal width in the log-odds, and all tenths.

    Bin b holds the scores in (edge b - 1, edge b]; 0 is in the first, as in the bins of the calibration error, whose
    edges are the tenths. There are up to nine bins more than asked for. Equal widths in the log-odds are fine where
    probabilities of rare events lie, near 0, and near 1. Raises ValueError for a number of bins that makes no sense.
    """
    if not 10 <= bins <= 100_000:
        raise ValueError(f"expected 10 to 100,000 score bins, found {bins}; the default is {DEFAULT_BINS}")
    odds = np.linspace(-LARGEST_LOG_ODDS, LARGEST_LOG_ODDS, bins - 1)
    edges = [float(f"{edge:.{_SIGNIFICANT_DIGITS}g}") for edge in 1 / (1 + np.exp(-odds))]
    edges = np.unique(np.concatenate([edges, tenth_edges()]))
    edges.setflags(write=False)
    return edges


def tenth_edges() -> np.ndarray:
    """float64 [9]: the inner edges of the bins of the calibration error."""
    return np.arange(1, NUM_BINS) / NUM_BINS


def grid_bin(edges: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """int64 [sample]: the bin of each score."""
    return np.searchsorted(edges, scores)


def tenth_of_bins(edges: np.ndarray) -> np.ndarray:
    """int64 [bin]: which of the ten bins of the calibration error each bin of the grid lies in."""
    return bin_of(np.append(edges, 1.0))


def cells(edges: np.ndarray, bins: np.ndarray, patients: np.ndarray, minimum: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last bin of the cell that each sample is disclosed in: int64 [sample], twice.

    Every cell that holds a sample holds samples of at least `minimum` patients; the caller sees to it that there are
    as many. Tenths are merged first, and bins only within them, so that cells keep to the tenths where they can.
    Between two cells the cut lies at the roundest edge that separates them, not at a patient's own score.
    """
    if minimum == 1:
        return bins, bins
    tenths = tenth_of_bins(edges)
    first_of_tenth = np.searchsorted(tenths, np.arange(NUM_BINS))
    blocks = [0, *(int(first_of_tenth[cut]) for cut in _cuts(tenths[bins], patients, minimum)), len(tenths)]
    starts = blocks[:-1]
    for first, end in pairwise(blocks):
        inside = (bins >= first) & (bins < end)
        starts = starts + _cuts(bins[inside], patients[inside], minimum)
    starts = np.array([*sorted(starts), len(tenths)])
    cell = np.searchsorted(starts, bins, side="right") - 1
    return starts[cell], starts[cell + 1] - 1


def run_of_values(count: int, total: int, minimum: int) -> tuple[int, int]:
    """First and last of the run of values that `count` of `total` is disclosed as: `minimum` values or more.

    The values 0 to `total` fall into runs of `minimum` values from 0 on, what is left over into the last one. Nothing
    of nothing is disclosed as 0.
    """
    if minimum == 1 or total == 0:
        return count, count
    num_runs = max(1, (total + 1) // minimum)
    run = min(count // minimum, num_runs - 1)
    return run * minimum, total if run == num_runs - 1 else (run + 1) * minimum - 1


def _cuts(units: np.ndarray, patients: np.ndarray, minimum: int) -> list[int]:
    """Where to cut the line of units, each cut the first unit of the next run, so that runs have enough patients."""
    if not len(units):
        return []
    order = np.argsort(units, kind="stable")
    units, patients = units[order], patients[order]
    cuts: list[int] = []
    seen: set[int] = set()
    previous = int(units[0])
    for members in np.split(np.arange(len(units)), np.flatnonzero(np.diff(units)) + 1):
        unit = int(units[members[0]])
        if len(seen) >= minimum:
            cuts.append(_roundest(previous, unit))
            seen = set()
        seen.update(patients[members].tolist())
        previous = unit
    return cuts[:-1] if len(seen) < minimum else cuts


def _roundest(below: int, above: int) -> int:
    """The number in (below, above] that the highest power of two divides."""
    shift = (below ^ above).bit_length() - 1
    return above >> shift << shift
