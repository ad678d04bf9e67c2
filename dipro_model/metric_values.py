"""Which arithmetic the name of a metric stands for, task by task; dipro_model/metrics.py defines the names."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from dipro_model import weighted
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, Task

_Function = Callable[..., weighted.Values]

_DEATH: Mapping[str, _Function] = {
    "auroc": weighted.auroc,
    "auprc": weighted.average_precision,
    "ece": weighted.expected_calibration_error,
}
"""Of who died and the risk."""

_CLASS_AREAS: Mapping[str, _Function] = {"auroc": weighted.auroc, "auprc": weighted.trapezoid_precision_recall}
"""Of one class against the others; the metric is the mean over the classes."""

_DECISIONS: Mapping[str, _Function] = {
    "kappa": weighted.kappa,
    "accuracy": weighted.accuracy,
    "precision": weighted.macro_precision,
    "recall": weighted.macro_recall,
    "f1": weighted.macro_f1,
    # One class a sample: a wrong one is a false positive of one class and a false negative of another.
    **dict.fromkeys(("precision_micro", "recall_micro", "f1_micro"), weighted.accuracy),
}
"""Of the confusion matrix."""


def metric_values(
    task: Task, labels: np.ndarray, probabilities: np.ndarray, weights: weighted.Weights, names: Sequence[str]
) -> dict[str, weighted.Values]:
    """The named metrics, and for a mean over diseases those of every disease, [resample] each, NaN if undefined.

    labels and probabilities as `score` takes them, already checked; weights [resample, sample].
    """
    labels, probabilities = labels.astype(np.int64), probabilities.astype(np.float64)
    if task is not Task.DISEASE_PROGRESSION:
        function = _of_death if task is Task.MORTALITY else _of_classes
        return {name: function(name, labels, probabilities[:, 0], weights) for name in dict.fromkeys(names)}
    values: dict[str, weighted.Values] = {}
    for name in dict.fromkeys(names):
        family, _, disease = name.partition("/")
        for k, each in enumerate(DISEASES):
            if disease in ("", each) and f"{family}/{each}" not in values:
                known = labels[:, k] != NOT_MENTIONED
                values[f"{family}/{each}"] = _of_classes(
                    family, labels[known, k], probabilities[known, k], weights[:, known]
                )
        if not disease:
            values[family] = weighted.mean_of_defined(np.stack([values[f"{family}/{each}"] for each in DISEASES]))
    return values


def _of_death(
    name: str, labels: np.ndarray, probabilities: Float[np.ndarray, "sample 1"], weights: weighted.Weights
) -> weighted.Values:
    """One metric of the risk of death."""
    died, risk = labels == 1, probabilities[:, 0]
    if name == "brier":
        return weighted.mean((risk - died) ** 2, weights)
    return _of_scores(_DEATH[name], died, risk, weights)


def _of_classes(
    family: str, labels: np.ndarray, probabilities: Float[np.ndarray, "sample class"], weights: weighted.Weights
) -> weighted.Values:
    """One metric of one output with several classes."""
    num_classes, predicted = probabilities.shape[1], probabilities.argmax(axis=1)
    if family == "brier":
        return weighted.mean(((probabilities - np.eye(num_classes)[labels]) ** 2).sum(axis=1), weights)
    if family == "ece":
        return weighted.expected_calibration_error(predicted == labels, probabilities.max(axis=1), weights)
    if family in _CLASS_AREAS:
        per_class = [
            _of_scores(_CLASS_AREAS[family], labels == c, probabilities[:, c], weights) for c in range(num_classes)
        ]
        return weighted.mean_of_defined(np.stack(per_class))
    return _DECISIONS[family](weighted.confusion(labels, predicted, num_classes, weights))


def _of_scores(
    function: _Function, positive: np.ndarray, scores: np.ndarray, weights: weighted.Weights
) -> weighted.Values:
    if not len(positive):
        return np.full(len(weights), np.nan)
    return function(positive, scores, weights)
