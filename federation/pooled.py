"""Metrics of all sites' patients as one set, from counts that each site may disclose: no score of a patient travels.

A site sums up a split with `summarise`, the server adds with `combine`, and `pooled_metrics` gives every metric of
dipro_model.metrics with the least and the largest value that it can have on the union. With cells of one patient the
bounds are as close as the bins are fine; larger cells protect patients and widen them. docs/pooled_metrics.md says
what leaves a site, and derives the bounds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dipro_model.metrics import CALIBRATION, EQUAL_TO_ACCURACY, METRICS, check_scores, metric_names
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, Task
from federation import bounds
from federation.bounds import Bounds
from federation.score_cells import DEFAULT_BINS, cells, grid_bin, run_of_values, tenth_of_bins
from federation.score_counts import PooledError, ScoreCounts, combine, empty_counts

__all__ = ["MINIMUM_CELL", "PooledError", "PooledMetric", "ScoreCounts", "combine", "pooled_metrics", "summarise"]

MINIMUM_CELL = 10
"""Patients that each disclosed number tells of at least, unless a site says otherwise."""


@dataclass(frozen=True, kw_only=True)
class PooledMetric:
    """One metric of the samples of all sites that disclose theirs."""

    value: float | None
    """The middle of the bounds, so that the error is at most half their distance; None where undefined."""
    lower: float | None
    upper: float | None
    """The metric of these samples as one set lies between the bounds, up to rounding (1e-12)."""
    reason: str | None
    """Why there is no value; beside a value, what it leaves out: undefined diseases, sites that withhold their part."""

    @property
    def error(self) -> float | None:
        """How far the value may be from the one on the union."""
        return None if self.lower is None or self.upper is None else (self.upper - self.lower) / 2


def summarise(
    task: Task,
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    patients: np.ndarray | None = None,
    bins: int = DEFAULT_BINS,
    minimum_cell: int = MINIMUM_CELL,
) -> ScoreCounts:
    """What a site discloses of the scores of one split; labels and probabilities as `dipro_model.metrics.score` takes.

    patients: [sample], who each sample belongs to; None takes every sample for a patient. Every cell that is not empty
    holds samples of at least `minimum_cell` patients. An output with a class of fewer patients, but some, is withheld
    whole, since the others would give the class away. A minimum of 1 protects nobody and is for simulation.

    Raises ValueError for what `score` refuses, NaN among it, and for settings that make no sense.
    """
    check_scores(task, labels, probabilities)
    patients = np.arange(len(labels)) if patients is None else np.asarray(patients)
    if patients.shape != labels.shape[:1] or minimum_cell < 1:
        raise PooledError(
            f"expected one patient a sample, {len(labels)}, and a minimum cell of 1 patient or more, "
            f"found {list(patients.shape)} and {minimum_cell}"
        )
    found = empty_counts(task, bins)
    patients = np.unique(patients, return_inverse=True)[1].reshape(-1)
    progression = task is Task.DISEASE_PROGRESSION
    for output in range(len(found.withheld)):
        own = (labels[:, output] if progression else labels).astype(np.int64)
        known = own != NOT_MENTIONED if progression else np.ones(len(own), bool)
        scores = probabilities[known, output].astype(np.float64)
        _count_output(found, output, own[known], scores, patients[known], minimum_cell)
    return found


def pooled_metrics(counts: ScoreCounts) -> dict[str, PooledMetric]:
    """Every metric of the counts' task, keys and definitions those of `dipro_model.metrics.score`."""
    task = counts.task
    if task is not Task.DISEASE_PROGRESSION:
        return {name: _metric(counts, name, 0) for name in metric_names(task)}
    single = {
        f"{family}/{disease}": _metric(counts, family, output)
        for family in METRICS[task]
        for output, disease in enumerate(DISEASES)
    }
    means = {family: _mean_over_diseases(counts, family, single) for family in METRICS[task]}
    return {name: (means | single)[name] for name in metric_names(task)}


def _count_output(
    found: ScoreCounts, output: int, labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, minimum: int
) -> None:
    """Fill in one output, or note that it is withheld. scores: float64 [sample, class]."""
    num_classes = max(2, scores.shape[1])
    if any(_too_few(patients[labels == value], minimum) for value in range(num_classes)):
        found.withheld[output, 0] = 1
        return
    for curve, (positive, score) in enumerate(_curves(labels, scores)):
        last = curve == found.histograms.shape[1] - 1
        if last and any(_too_few(patients[chosen], minimum) for chosen in (positive, ~positive)):
            found.withheld[output, 1] = 1
            continue
        for side, (chosen, happened) in {0: (positive, 1.0), 2: (~positive, 0.0)}.items():
            placed = grid_bin(found.edges, score[chosen])
            low, high = cells(found.edges, placed, patients[chosen], minimum)
            size = found.histograms.shape[-1]
            found.histograms[output, curve, side] = np.bincount(low, minlength=size)
            found.histograms[output, curve, side + 1] = np.bincount(high, minlength=size)
            if last:
                np.add.at(found.gaps[output], tenth_of_bins(found.edges)[low], score[chosen] - happened)
    found.squares[output] = _squared_errors(labels, scores)
    predicted = scores.argmax(axis=1)
    for value in range(found.decisions.shape[1]):
        own, called = labels == value, predicted == value
        missed = run_of_values(int((own & ~called).sum()), int(own.sum()), minimum)
        false = run_of_values(int((called & ~own).sum()), int((~own).sum()), minimum)
        found.decisions[output, value] = (*missed, *false)


def _curves(labels: np.ndarray, scores: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Which samples are positive, and their scores: each class against the others, then the predicted class."""
    if scores.shape[1] == 1:
        yield labels == 1, scores[:, 0]
        return
    for value in range(scores.shape[1]):
        yield labels == value, scores[:, value]
    yield scores.argmax(axis=1) == labels, scores.max(axis=1)


def _too_few(patients: np.ndarray, minimum: int) -> bool:
    return 0 < len(np.unique(patients)) < minimum


def _squared_errors(labels: np.ndarray, scores: np.ndarray) -> float:
    num_classes = scores.shape[1]
    truth = (labels == 1)[:, None] if num_classes == 1 else np.eye(num_classes)[labels]
    return float(((scores - truth) ** 2).sum())


def _metric(counts: ScoreCounts, family: str, output: int) -> PooledMetric:
    """One metric of one output."""
    found, withheld = _bounds(counts, family, output), _withheld(counts, family, output)
    if found is None:
        labels = counts.labels(output)
        several = (labels > 0).sum() >= 2 and not withheld
        one_class = "needs labels of at least two classes, found one class only"
        reason = one_class if labels.sum() and not several and family != "ece" else "no sample has a label"
        return PooledMetric(value=None, lower=None, upper=None, reason=f"{reason}; {withheld}" if withheld else reason)
    middle = found.lower + (found.upper - found.lower) / 2
    return PooledMetric(value=middle, lower=found.lower, upper=found.upper, reason=withheld)


def _bounds(counts: ScoreCounts, family: str, output: int) -> Bounds | None:
    """None where the samples leave the metric undefined."""
    labels = counts.labels(output)
    if not labels.sum():
        return None
    if family == "brier":
        mean = float(counts.squares[output] / labels.sum())
        return Bounds(mean, mean)
    if family == "ece":
        placed = counts.placed(output, -1)
        known = placed.num_positive + placed.num_negative
        return bounds.calibration_error(placed, counts.gaps[output], counts.edges) if known else None
    if family in ("auroc", "auprc"):
        return _mean_area(counts, family, output)
    if family not in ("accuracy", *EQUAL_TO_ACCURACY) and (labels > 0).sum() < 2:
        return None
    missed_low, missed_high, false_low, false_high = counts.decisions[output].T
    return bounds.decisions(family, labels, (missed_low, missed_high), (false_low, false_high))


def _mean_area(counts: ScoreCounts, family: str, output: int) -> Bounds | None:
    """The area of death, or the mean over the classes that have samples."""
    area = bounds.auroc
    if family == "auprc":
        area = bounds.average_precision if counts.task is Task.MORTALITY else bounds.trapezoid_precision_recall
    num_curves = counts.histograms.shape[1]
    curves = [counts.placed(output, curve) for curve in range(max(1, num_curves - 1))]
    areas = [area(placed) for placed in curves if placed.both]
    return Bounds(*np.mean(areas, axis=0).tolist()) if areas else None


def _withheld(counts: ScoreCounts, family: str, output: int) -> str | None:
    whole, last = counts.withheld[output].tolist()
    what = "a class with fewer patients than their minimum cell"
    if family == "ece" and last:
        what = "a class, or right or wrong decisions, of fewer patients than their minimum cell"
    num_sites = whole + (last if family == "ece" else 0)
    return f"without {num_sites} of {counts.num_sites} sites, which withhold it for {what}" if num_sites else None


def _mean_over_diseases(counts: ScoreCounts, family: str, single: dict[str, PooledMetric]) -> PooledMetric:
    of_disease = {disease: single[f"{family}/{disease}"] for disease in DISEASES}
    found = [
        (each.lower, each.upper) for each in of_disease.values() if each.lower is not None and each.upper is not None
    ]
    missing = [disease for disease, each in of_disease.items() if each.value is None]
    partial = [disease for disease, each in of_disease.items() if each.value is not None and each.reason]
    if not found:
        needed = "a label" if family in CALIBRATION else "labels of at least two classes"
        withheld = "; sites withhold some" if counts.withheld.any() else ""
        return PooledMetric(value=None, lower=None, upper=None, reason=f"no disease has {needed}{withheld}")
    lower, upper = np.mean(found, axis=0).tolist()
    notes = [f"mean without {', '.join(missing)}: undefined there"] if missing else []
    notes += [f"without the sites that withhold {', '.join(partial)}"] if partial else []
    return PooledMetric(value=lower + (upper - lower) / 2, lower=lower, upper=upper, reason="; ".join(notes) or None)
