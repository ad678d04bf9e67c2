"""What a site may disclose of its scores on one split, as additive counts; their sum over sites, and plain arrays."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dipro_model.metrics import output_shape
from dipro_model.vocabulary import Task
from dipro_model.weighted import NUM_BINS
from federation.bounds import Placed
from federation.score_cells import grid

_SIDES = ("positive_low", "positive_high", "negative_low", "negative_high")
_WHOLE, _REAL = ("header", "places", "counts", "small"), ("sums",)


class PooledError(ValueError):
    """Counts that cannot be, or that do not belong together; says how."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreCounts:
    """What a site discloses of its scores on one split; the sum over several sites has the same form.

    The outputs are the diseases for progression, else there is one. The curves of an output are its classes, each
    against the others, and last, where there are several classes, the predicted class: its probability, positive
    where it was right. For death in hospital the only curve is that of death.
    """

    task: Task
    bins: int
    """Bins of the common grid, as `score_cells.grid` takes them."""
    num_sites: int
    histograms: np.ndarray
    """int64 [output, curve, side, bin]: numbers of positives by the bin in which their cell begins, by the one in which
    it ends, and the same of negatives."""
    gaps: np.ndarray
    """float64 [output, tenth]: sums of prediction - what happened on the last curve, for the calibration error; those
    of a cell lie in the tenth of the unit interval where it begins."""
    squares: np.ndarray
    """float64 [output]: sums of squared errors, for the Brier score."""
    decisions: np.ndarray
    """int64 [output, class, 4]: least and most samples of the class that were called another, least and most of others
    that were called this one; no class where there is no decision (death in hospital)."""
    withheld: np.ndarray
    """int64 [output, 2]: sites that withhold the whole output because a class has fewer patients than the minimum (but
    some), and sites that withhold its last curve only because the right or the wrong decisions have."""

    @property
    def edges(self) -> np.ndarray:
        """Inner edges of the bins."""
        return grid(self.bins)

    def placed(self, output: int, curve: int) -> Placed:
        """One curve's counts; curve -1 is the one of the calibration error."""
        return Placed(**dict(zip(_SIDES, self.histograms[output, curve], strict=True)))

    def labels(self, output: int) -> np.ndarray:
        """int64 [class]: samples of each class, survivals and deaths for death in hospital."""
        num_classes = output_shape(self.task)[1]
        positives, _, negatives, _ = self.histograms[output].sum(axis=-1).T
        return np.array([negatives[0], positives[0]]) if num_classes == 1 else positives[:num_classes]

    def arrays(self) -> dict[str, np.ndarray]:
        """Five plain arrays that say the same, histograms without their empty bins; `from_arrays` reads them."""
        places = np.flatnonzero(self.histograms)
        return {
            "header": np.array([list(Task).index(self.task), self.bins, self.num_sites], np.int64),
            "places": places.astype(np.int64),
            "counts": self.histograms.reshape(-1)[places],
            "small": np.concatenate([self.decisions.reshape(-1), self.withheld.reshape(-1)]),
            "sums": np.concatenate([self.gaps.reshape(-1), self.squares]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "ScoreCounts":
        """Read what `arrays` wrote. Raises PooledError for arrays that no site can have written."""
        found = _empty_from_header(arrays)
        _fill_histograms(found.histograms, arrays["places"], arrays["counts"])
        _fill("small", [found.decisions, found.withheld], arrays)
        _fill("sums", [found.gaps, found.squares], arrays)
        _check_totals(found)
        return found


def empty_counts(task: Task, bins: int, *, num_sites: int = 1) -> ScoreCounts:
    """Counts of no sample, to be filled in."""
    num_outputs, num_classes = output_shape(task)
    several = int(num_classes > 1)
    return ScoreCounts(
        task=task,
        bins=bins,
        num_sites=num_sites,
        histograms=np.zeros((num_outputs, num_classes + several, len(_SIDES), len(grid(bins)) + 1), np.int64),
        gaps=np.zeros((num_outputs, NUM_BINS)),
        squares=np.zeros(num_outputs),
        decisions=np.zeros((num_outputs, num_classes * several, 4), np.int64),
        withheld=np.zeros((num_outputs, 2), np.int64),
    )


def combine(counts: Iterable[ScoreCounts]) -> ScoreCounts:
    """The counts of all sites together, in whatever order they come; of the histograms only their sum is kept.

    Raises PooledError where there is none, or where tasks or grids differ.
    """
    kinds: dict[tuple[Task, int], ScoreCounts] = {}
    gaps, squares, num_sites = [], [], 0
    for each in counts:
        kind = (each.task, each.bins)
        total = kinds[kind] = kinds.get(kind) or empty_counts(*kind)
        if len(kinds) > 1:
            break
        for name in ("histograms", "decisions", "withheld"):
            getattr(total, name)[...] += getattr(each, name)
        gaps.append(each.gaps)
        squares.append(each.squares)
        num_sites += each.num_sites
    if len(kinds) != 1:
        found = "; ".join(f"{task} in {bins} bins" for task, bins in kinds) or "none"
        raise PooledError(f"expected score counts of one task in one grid, found {found}; give all sites one setting")
    (total,) = kinds.values()
    return replace(total, num_sites=num_sites, gaps=_sorted_sum(gaps), squares=_sorted_sum(squares))


def _sorted_sum(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Added from the least number up, so that the order of the sites does not change the last bit."""
    return np.sort(np.stack(arrays), axis=0).sum(axis=0)


def _empty_from_header(arrays: Mapping[str, np.ndarray]) -> ScoreCounts:
    kinds = dict.fromkeys(_WHOLE, "i") | dict.fromkeys(_REAL, "f")
    wrong = [name for name, kind in kinds.items() if name not in arrays or arrays[name].dtype.kind != kind]
    if wrong or set(arrays) != set(kinds) or any(each.ndim != 1 for each in arrays.values()):
        raise PooledError(
            f"score counts: expected flat arrays of whole numbers {', '.join(_WHOLE)} and of reals {', '.join(_REAL)}, "
            f"found {', '.join(sorted(arrays)) or 'none'}; missing or of another kind: {', '.join(wrong) or 'none'}"
        )
    if arrays["header"].shape != (3,):
        raise PooledError(f"score counts, `header`: expected 3 numbers, found {len(arrays['header'])}")
    number, bins, num_sites = arrays["header"].tolist()
    if not 0 <= number < len(Task) or num_sites < 1:
        raise PooledError(f"score counts: expected a task of 0..{len(Task) - 1}, a site; found {number}, {num_sites}")
    return empty_counts(list(Task)[number], bins, num_sites=num_sites)


def _fill_histograms(histograms: np.ndarray, places: np.ndarray, counts: np.ndarray) -> None:
    if places.shape != counts.shape or (np.diff(places, prepend=-1) <= 0).any() or (counts <= 0).any():
        raise PooledError("score counts: expected rising places, and a count of 1 or more for each")
    if len(places) and places[-1] >= histograms.size:
        raise PooledError(f"score counts: expected places below {histograms.size}, found {places[-1]}")
    histograms.reshape(-1)[places] = counts


def _fill(name: str, parts: Sequence[np.ndarray], arrays: Mapping[str, np.ndarray]) -> None:
    values = arrays[name]
    if values.shape != (sum(part.size for part in parts),) or not np.isfinite(values).all():
        expected = sum(part.size for part in parts)
        raise PooledError(f"score counts, `{name}`: expected {expected} finite numbers, found {values.size} or others")
    for part in parts:
        part.reshape(-1)[:] = values[: part.size]
        values = values[part.size :]


def _check_totals(found: ScoreCounts) -> None:
    """Each curve of an output counts the same samples, and cells end where they begin or above."""
    for output in range(len(found.withheld)):
        labels = found.labels(output)
        sides = found.histograms[output].sum(axis=-1)
        totals = sides[:, 0] + sides[:, 2]
        last_withheld = found.withheld[output, 1] > 0
        same = totals[: len(totals) - 1 if last_withheld else None] == labels.sum()
        ends = found.histograms[output].cumsum(axis=-1)
        in_order = (ends[:, [0, 2]] >= ends[:, [1, 3]]).all() and (sides[:, [0, 2]] == sides[:, [1, 3]]).all()
        if not (same.all() and totals[-1] <= labels.sum() and in_order):
            raise PooledError(f"score counts, output {output}: the histograms do not count the same samples")
        if len(found.decisions[output]) and not _decisions_fit(found.decisions[output], labels):
            raise PooledError(f"score counts, output {output}: decisions do not fit the samples of each class")
    if (found.withheld < 0).any() or (found.withheld.sum(axis=1) > found.num_sites).any():
        raise PooledError(f"score counts: expected up to {found.num_sites} sites that withhold an output, found others")


def _decisions_fit(decisions: np.ndarray, labels: np.ndarray) -> bool:
    missed_low, missed_high, false_low, false_high = decisions.T
    missed = (missed_low >= 0) & (missed_low <= missed_high) & (missed_high <= labels)
    return bool((missed & (false_low >= 0) & (false_low <= false_high) & (false_high <= labels.sum() - labels)).all())
