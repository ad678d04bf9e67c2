"""How good predictions are: the published metrics of each task, their calibration, and intervals over patients.

A metric that the samples leave undefined (no label, one class only) has no value and says why; it is never 0.
Definitions follow the published evaluation (models/Base_Predictor.py of github.com/Chenliu-svg/DiPro), so that
numbers can be put beside the published ones:

mortality            auroc; auprc = average precision
length_of_stay       kappa = Cohen's, without weights; accuracy; precision, recall, f1, auroc, auprc as for a disease
                     below, over the four classes; precision_micro, recall_micro, f1_micro = over all decisions at
                     once, which for one class a stay are all three the accuracy
disease_progression  precision, recall, f1 = macro means over the three classes; auroc = mean of the three
                     one-versus-rest areas; auprc = mean of the three areas under straight lines between the points
                     of the precision-recall curve (the trapezoid, not the average precision). Each of a disease
                     (`f1/atelectasis`) and its mean over the diseases (`f1`). Labels 3, not mentioned, take no part.

Where a class has no sample, the means over classes run over the others: its recall and areas do not exist.

Calibration, of every task and of every disease, was not published; lower is better:

brier   mean of (p - y)^2 for death (Brier 1950, over one of the two classes: 0 to 1); for several classes the mean of
        the sum over the classes of (p_c - [y = c])^2 (0 to 2)
ece     expected calibration error (Naeini et al. 2015; Guo et al. 2017) in ten bins of equal width, the usual ones, and
        the same for every resample and model: the risk of death against the share that died; for several classes
        the probability of the likeliest class against how often it was right. It is never below 0, so chance makes it
        too high: a model that tells the truth scores about 0.08 on 55 samples, 0.02 on 1,000 (docs/metrics.md).

Both exist wherever a sample has a label, of one class too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from dipro_model import weighted
from dipro_model.metric_values import metric_values
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, TASK_CLASSES, Task

HEADLINE: dict[Task, tuple[str, ...]] = {
    Task.DISEASE_PROGRESSION: ("f1", "precision", "recall", "auroc", "auprc"),
    Task.MORTALITY: ("auroc", "auprc"),
    Task.LENGTH_OF_STAY: ("kappa", "accuracy"),
}
"""The metrics that were published for each task: what a reader looks at first."""

CALIBRATION: tuple[str, ...] = ("brier", "ece")
"""Whether probabilities mean what they say; of every task."""

EQUAL_TO_ACCURACY: tuple[str, ...] = ("f1_micro", "precision_micro", "recall_micro")
"""Of one class a sample: the wrong ones are the false positives and the false negatives of all classes together."""

METRICS: dict[Task, tuple[str, ...]] = {
    Task.DISEASE_PROGRESSION: (*HEADLINE[Task.DISEASE_PROGRESSION], *CALIBRATION),
    Task.MORTALITY: (*HEADLINE[Task.MORTALITY], *CALIBRATION),
    Task.LENGTH_OF_STAY: (
        *HEADLINE[Task.LENGTH_OF_STAY],
        *("f1", "precision", "recall", "auroc", "auprc"),
        *EQUAL_TO_ACCURACY,
        *CALIBRATION,
    ),
}
"""The metrics of each task, the ones over all diseases for progression."""

LOWER_IS_BETTER: frozenset[str] = frozenset(CALIBRATION)
"""Of these a lower value is the better one; of every other metric a higher one is. A disease's follow their mean."""

MONITOR: dict[Task, str] = {
    Task.DISEASE_PROGRESSION: "f1",
    Task.MORTALITY: "auprc",
    Task.LENGTH_OF_STAY: "accuracy",
}
"""The validation metric by which a model is chosen; of all of them more is better (none is in LOWER_IS_BETTER)."""

_BLOCK_CELLS = 4_000_000
"""Weights held at a time, resamples x samples: 32 MB."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of one set of samples."""

    value: float | None
    """None where the samples leave it undefined."""
    reason: str | None
    """Why there is no value; beside a value, what it leaves out, such as diseases without a value of their own."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A bootstrap interval of one metric, over patients."""

    low: float | None
    high: float | None
    """None, both, where too few resamples define the metric."""
    num_resamples: int
    num_undefined: int
    """Resamples that left the metric undefined; the interval is that of the others."""
    reason: str | None
    """Why there is no interval."""


def metric_names(task: Task) -> tuple[str, ...]:
    """Every key that `score` returns for a task, the means over diseases first."""
    if task is not Task.DISEASE_PROGRESSION:
        return METRICS[task]
    return METRICS[task] + tuple(f"{name}/{disease}" for name in METRICS[task] for disease in DISEASES)


def output_shape(task: Task) -> tuple[int, int]:
    """Number of outputs and of probabilities of each: mortality has one, the probability of death."""
    if task is Task.MORTALITY:
        return 1, 1
    return (len(DISEASES) if task is Task.DISEASE_PROGRESSION else 1), len(TASK_CLASSES[task])


def score(
    task: Task,
    labels: np.ndarray,
    probabilities: Float[np.ndarray, "sample output class"],
) -> dict[str, Metric]:
    """Every metric of a task: the keys of `metric_names(task)`.

    labels: [sample] in the order of TASK_CLASSES, or [sample, 7] with 3 for not mentioned (progression).
    probabilities: [sample, 1, 1] of death; [sample, 1, 4]; [sample, 7, 3]. The predicted class is the likeliest one.

    Raises ValueError for shapes, labels or probabilities that cannot be.
    """
    check_scores(task, labels, probabilities)
    names = metric_names(task)
    values = metric_values(task, labels, probabilities, np.ones((1, len(labels))), names)
    return {name: _metric(task, name, values, labels) for name in names}


def bootstrap(
    task: Task,
    labels: np.ndarray,
    probabilities: Float[np.ndarray, "sample output class"],
    patients: np.ndarray,
    *,
    metrics: Sequence[str],
    num_resamples: int = 1000,
    seed: int,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Intervals of the named metrics, drawing patients with replacement.

    Percentile intervals (Efron and Tibshirani 1993, 13.3), but of the `ece`: chance makes it too high, and once more
    so in every resample, so that percentiles may leave out the value itself. Its interval is the basic one (Davison
    and Hinkley 1997, 5.2), the percentiles mirrored at the value, which takes the excess away; cut at 0, and never
    without the value.

    patients: [sample], who each sample belongs to; all samples of a patient are drawn together, since they are not
    independent of each other. The same patients, seed and number of resamples give the same draws, whatever the
    model, so that models can be compared draw by draw.
    Limit: percentile intervals are somewhat too short for few patients or few positives. A metric that more than
    half of the resamples leave undefined has no interval.

    Raises ValueError for what `score` refuses, an unknown metric, or settings that make no sense.
    """
    check_scores(task, labels, probabilities)
    _check_bootstrap(task, labels, patients, metrics, num_resamples, level)
    num_patients = len(np.unique(patients))
    if num_patients < 2:
        reason = f"an interval needs at least two patients, found {num_patients}"
        undefined = Interval(low=None, high=None, num_resamples=0, num_undefined=0, reason=reason)
        return dict.fromkeys(metrics, undefined)
    blocks = [
        metric_values(task, labels, probabilities, weights, metrics)
        for weights in resamples(patients, num_resamples=num_resamples, seed=seed)
    ]
    values = {name: np.concatenate([block[name] for block in blocks]) for name in metrics}
    plain = metric_values(task, labels, probabilities, np.ones((1, len(labels))), metrics)
    return {
        name: _mirrored(_interval(values[name], level), plain[name][0])
        if name.partition("/")[0] == "ece"
        else _interval(values[name], level)
        for name in metrics
    }


def resamples(patients: np.ndarray, *, num_resamples: int, seed: int) -> Iterator[weighted.Weights]:
    """How often each sample was drawn, patients drawn with replacement, in blocks of resamples that bound the memory.

    The draws behind every interval of these patients: the same ones in the same order, whoever asks.
    """
    identities, patient = np.unique(patients, return_inverse=True)
    generator = np.random.default_rng(seed)
    chances = np.full(len(identities), 1 / len(identities))
    block = max(1, _BLOCK_CELLS // len(patients))
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        yield generator.multinomial(len(identities), chances, size=size)[:, patient].astype(np.float64)


def _interval(values: weighted.Values, level: float) -> Interval:
    defined = values[~np.isnan(values)]
    num_undefined = len(values) - len(defined)
    if 2 * num_undefined > len(values):
        reason = f"{num_undefined} of {len(values)} resamples leave the metric undefined"
        return Interval(low=None, high=None, num_resamples=len(values), num_undefined=num_undefined, reason=reason)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        low=float(low), high=float(high), num_resamples=len(values), num_undefined=num_undefined, reason=None
    )


def _mirrored(interval: Interval, value: float) -> Interval:
    """The percentile interval turned over around the value of the metric, which has no negative values."""
    if interval.low is None or interval.high is None:
        return interval
    low, high = max(0.0, 2 * value - interval.high), 2 * value - interval.low
    return replace(interval, low=float(min(low, value)), high=float(max(high, value)))


def _metric(task: Task, name: str, values: dict[str, weighted.Values], labels: np.ndarray) -> Metric:
    value = None if np.isnan(values[name][0]) else float(values[name][0])
    if task is Task.DISEASE_PROGRESSION and "/" not in name:
        missing = [disease for disease in DISEASES if np.isnan(values[f"{name}/{disease}"][0])]
        if value is None:
            needed = "a label" if name in CALIBRATION else "labels of at least two classes"
            return Metric(value=None, reason=f"no disease has {needed}")
        return Metric(value=value, reason=f"mean without {', '.join(missing)}: undefined there" if missing else None)
    if value is not None:
        return Metric(value=value, reason=None)
    own = labels[:, DISEASES.index(name.partition("/")[2])] if "/" in name else labels
    if not (own != NOT_MENTIONED).any() if "/" in name else not len(own):
        return Metric(value=None, reason="no sample has a label")
    return Metric(value=None, reason="needs labels of at least two classes, found one class only")


def check_scores(task: Task, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Raise ValueError for shapes, labels or probabilities that cannot be; `score` says which can."""
    num_outputs, num_classes = output_shape(task)
    expected = (len(probabilities), len(DISEASES)) if task is Task.DISEASE_PROGRESSION else (len(probabilities),)
    if probabilities.shape[1:] != (num_outputs, num_classes) or labels.shape != expected:
        raise ValueError(
            f"{task}: expected probabilities [sample, {num_outputs}, {num_classes}] and labels "
            f"[{', '.join(['sample', *map(str, expected[1:])])}], "
            f"found {list(probabilities.shape)} and {list(labels.shape)}"
        )
    highest = NOT_MENTIONED if task is Task.DISEASE_PROGRESSION else len(TASK_CLASSES[task]) - 1
    if not np.issubdtype(labels.dtype, np.integer) or ((labels < 0) | (labels > highest)).any():
        raise ValueError(f"{task}: expected whole-number labels in 0..{highest}, found others; check the labels")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError(
            f"{task}: expected probabilities in [0, 1], found others (NaN is one of them); "
            "the model has diverged, or its logits were not turned into probabilities"
        )


def _check_bootstrap(
    task: Task, labels: np.ndarray, patients: np.ndarray, metrics: Sequence[str], num_resamples: int, level: float
) -> None:
    if patients.shape != labels.shape[:1]:
        raise ValueError(f"expected one patient a sample, {len(labels)}, found {list(patients.shape)}")
    unknown = sorted(set(metrics) - set(metric_names(task)))
    if unknown:
        raise ValueError(f"{task} has no metric {', '.join(unknown)}; it has {', '.join(metric_names(task))}")
    if num_resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"expected at least one resample and a level between 0 and 1, found {num_resamples} and {level}"
        )
