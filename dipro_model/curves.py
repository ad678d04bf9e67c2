"""The curves behind the metrics, as plain points: ROC, precision-recall and reliability of every output and class.

Each function takes what `score` takes and returns `curves[output][class]`. The outputs are the diseases for
progression, else the task's own name; the classes are those of TASK_CLASSES, each against the others, and for death
in hospital `died` alone. A curve that the samples leave undefined has no points and says why.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from dipro_model import weighted
from dipro_model.metrics import check_scores
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, TASK_CLASSES, Task

PREDICTED_CLASS = "predicted class"
"""The key of the top-label reliability curve, beside the names of the classes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """One class against the others: the points from the strictest threshold to the loosest."""

    x: Float[np.ndarray, " point"]
    y: Float[np.ndarray, " point"]
    num_positive: int
    """Samples of the class."""
    num_samples: int
    reason: str | None
    """Why there are no points; None where there are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Predicted against observed, one point a bin that holds samples, from the lowest bin to the highest."""

    predicted: Float[np.ndarray, " bin"]
    """Mean predicted probability of the bin's samples."""
    observed: Float[np.ndarray, " bin"]
    """Share of the bin's samples for which the prediction came true."""
    count: Int[np.ndarray, " bin"]
    """Samples in the bin."""
    reason: str | None
    """Why there is no bin; None where there is one."""


def roc_curve(
    task: Task, labels: np.ndarray, probabilities: Float[np.ndarray, "sample output class"]
) -> dict[str, dict[str, Curve]]:
    """x: share of the other samples called positive, y: share of the class's samples, from (0, 0) to (1, 1).

    The area under straight lines between the points is the `auroc` of the class. Raises ValueError as `score` does.
    """
    return {
        output: {name: _roc(name, positive, scores) for name, positive, scores in _classes(task, own, given)}
        for output, own, given in _outputs(task, labels, probabilities)
    }


def precision_recall_curve(
    task: Task, labels: np.ndarray, probabilities: Float[np.ndarray, "sample output class"]
) -> dict[str, dict[str, Curve]]:
    """x: recall, y: precision, from (0, 1), where nothing is called positive, to recall 1.

    The area under straight lines is the `auprc` of a class of the tasks with several; that of death in hospital is
    the area under steps (y of the right end). Raises ValueError as `score` does.
    """
    return {
        output: {
            name: _precision_recall(name, positive, scores) for name, positive, scores in _classes(task, own, given)
        }
        for output, own, given in _outputs(task, labels, probabilities)
    }


def reliability_curve(
    task: Task, labels: np.ndarray, probabilities: Float[np.ndarray, "sample output class"]
) -> dict[str, dict[str, Reliability]]:
    """Bins of ten equal widths, those of the `ece`: (0.1, 0.2] and so on, 0 in the first.

    The first curve of an output is the one whose gaps the `ece` sums up: that of `died`, or, where there are several
    classes, PREDICTED_CLASS: the probability of the likeliest class against how often it was right; the classes
    follow, each against the others. Raises ValueError as `score` does.
    """
    curves = {}
    for output, own, given in _outputs(task, labels, probabilities):
        curves[output] = {name: _reliability(positive, scores) for name, positive, scores in _classes(task, own, given)}
        if task is not Task.MORTALITY:
            top_label = _reliability(given.argmax(axis=1) == own, given.max(axis=1))
            curves[output] = {PREDICTED_CLASS: top_label, **curves[output]}
    return curves


def _outputs(
    task: Task, labels: np.ndarray, probabilities: np.ndarray
) -> Iterator[tuple[str, Int[np.ndarray, " sample"], Float[np.ndarray, "sample class"]]]:
    """Name, labels and probabilities of every output, over the samples that have its label."""
    check_scores(task, labels, probabilities)
    labels, probabilities = labels.astype(np.int64), probabilities.astype(np.float64)
    if task is not Task.DISEASE_PROGRESSION:
        yield task.value, labels, probabilities[:, 0]
        return
    for k, disease in enumerate(DISEASES):
        known = labels[:, k] != NOT_MENTIONED
        yield disease, labels[known, k], probabilities[known, k]


def _classes(
    task: Task, labels: Int[np.ndarray, " sample"], probabilities: Float[np.ndarray, "sample class"]
) -> Iterator[tuple[str, Bool[np.ndarray, " sample"], Float[np.ndarray, " sample"]]]:
    """Name of every class, which samples are of it, and its probability."""
    if task is Task.MORTALITY:
        yield TASK_CLASSES[task][1], labels == 1, probabilities[:, 0]
        return
    for c, name in enumerate(TASK_CLASSES[task]):
        yield name, labels == c, probabilities[:, c]


def _roc(name: str, positive: Bool[np.ndarray, " sample"], scores: Float[np.ndarray, " sample"]) -> Curve:
    reason = _why_undefined(name, positive)
    if reason:
        return _without_points(positive, reason)
    true, false = _counts(positive, scores)
    return _curve(positive, x=false / false[-1], y=true / true[-1])


def _precision_recall(name: str, positive: Bool[np.ndarray, " sample"], scores: Float[np.ndarray, " sample"]) -> Curve:
    reason = _why_undefined(name, positive)
    if reason:
        return _without_points(positive, reason)
    true, false = _counts(positive, scores)
    precision = np.concatenate([[1.0], true[1:] / (true[1:] + false[1:])])
    return _curve(positive, x=true / true[-1], y=precision)


def _counts(
    positive: Bool[np.ndarray, " sample"], scores: Float[np.ndarray, " sample"]
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """True and false positives above no threshold, then above each distinct score from the highest."""
    steps = weighted.by_threshold(positive, scores, np.ones((1, len(positive))))
    true, false = (np.concatenate([[0.0], np.cumsum(step[0])]) for step in steps)
    return true, false


def _reliability(happened: Bool[np.ndarray, " sample"], predicted: Float[np.ndarray, " sample"]) -> Reliability:
    bins = weighted.bin_of(predicted)
    count = np.bincount(bins, minlength=weighted.NUM_BINS)
    filled = count > 0
    sums = (np.bincount(bins, each, weighted.NUM_BINS)[filled] for each in (predicted, happened.astype(np.float64)))
    mean_predicted, observed = (each / count[filled] for each in sums)
    return Reliability(
        predicted=mean_predicted,
        observed=observed,
        count=count[filled],
        reason=None if len(happened) else "no sample has a label",
    )


def _why_undefined(name: str, positive: Bool[np.ndarray, " sample"]) -> str | None:
    if not len(positive):
        return "no sample has a label"
    if not positive.any():
        return f"no sample is of the class “{name}”"
    return f"every sample is of the class “{name}”" if positive.all() else None


def _curve(positive: Bool[np.ndarray, " sample"], *, x: np.ndarray, y: np.ndarray) -> Curve:
    return Curve(x=x, y=y, num_positive=int(positive.sum()), num_samples=len(positive), reason=None)


def _without_points(positive: Bool[np.ndarray, " sample"], reason: str) -> Curve:
    none = np.empty(0)
    return Curve(x=none, y=none, num_positive=int(positive.sum()), num_samples=len(positive), reason=reason)
