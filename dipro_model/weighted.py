"""Scores of weighted samples, for many weightings at once: the arithmetic under the metrics and their bootstrap.

A bootstrap resample is a weighting: a sample drawn twice weighs 2. Every function here takes weights
[resample, sample] and returns one value a resample, so that the scores are sorted once and not once a resample;
the plain metric is the same function under one weighting of ones. Where a resample leaves a value undefined, it is
NaN. scikit-learn computes the same numbers one weighting at a time (the tests compare).
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Num

Weights = Float[np.ndarray, "resample sample"]
Values = Float[np.ndarray, " resample"]

NUM_BINS = 10
"""Bins of the calibration error."""


def auroc(positive: Bool[np.ndarray, " sample"], score: Float[np.ndarray, " sample"], weights: Weights) -> Values:
    """Area under the ROC curve: P(score of a positive > score of a negative), a tie counting one half."""
    positives, negatives = by_threshold(positive, score, weights)
    positives_above = np.cumsum(positives, axis=1) - positives
    concordant = (negatives * (positives_above + positives / 2)).sum(axis=1)
    return _ratio(concordant, positives.sum(axis=1) * negatives.sum(axis=1))


def average_precision(
    positive: Bool[np.ndarray, " sample"], score: Float[np.ndarray, " sample"], weights: Weights
) -> Values:
    """Sum over the thresholds of the gain in recall times the precision there: no interpolation."""
    gain, precision = _precision_by_recall(positive, score, weights)
    return (gain * precision[:, 1:]).sum(axis=1)


def trapezoid_precision_recall(
    positive: Bool[np.ndarray, " sample"], score: Float[np.ndarray, " sample"], weights: Weights
) -> Values:
    """Area under straight lines between the points of the precision-recall curve, which starts at (0, 1).

    Larger than the average precision when few scores are distinct; the published multi-class numbers use it.
    """
    gain, precision = _precision_by_recall(positive, score, weights)
    return (gain * (precision[:, 1:] + precision[:, :-1]) / 2).sum(axis=1)


def confusion(
    labels: Int[np.ndarray, " sample"], predicted: Int[np.ndarray, " sample"], num_classes: int, weights: Weights
) -> Float[np.ndarray, "resample label prediction"]:
    """Weight of the samples of each label and predicted class."""
    cells = np.eye(num_classes * num_classes)[labels * num_classes + predicted]
    return (weights @ cells).reshape(len(weights), num_classes, num_classes)


def accuracy(matrix: Float[np.ndarray, "resample label prediction"]) -> Values:
    """Share of the samples whose predicted class is their label."""
    return _ratio(np.trace(matrix, axis1=1, axis2=2), matrix.sum(axis=(1, 2)))


def kappa(matrix: Float[np.ndarray, "resample label prediction"]) -> Values:
    """Cohen's kappa without weights: (agreement - agreement by chance) / (1 - agreement by chance)."""
    total = matrix.sum(axis=(1, 2))
    observed = accuracy(matrix)
    by_chance = _ratio((matrix.sum(axis=2) * matrix.sum(axis=1)).sum(axis=1), total * total)
    return _where_several(matrix, _ratio(observed - by_chance, 1 - by_chance))


def macro_precision(matrix: Float[np.ndarray, "resample label prediction"]) -> Values:
    """Mean precision of the classes that have samples; 0 for one that is never predicted, as published."""
    return _macro(matrix, _true(matrix), matrix.sum(axis=1))


def macro_recall(matrix: Float[np.ndarray, "resample label prediction"]) -> Values:
    """Mean recall of the classes that have samples."""
    return _macro(matrix, _true(matrix), matrix.sum(axis=2))


def macro_f1(matrix: Float[np.ndarray, "resample label prediction"]) -> Values:
    """Mean F1 of the classes that have samples: 2 TP / (2 TP + FP + FN)."""
    return _macro(matrix, 2 * _true(matrix), matrix.sum(axis=1) + matrix.sum(axis=2))


def mean(values: Float[np.ndarray, " sample"], weights: Weights) -> Values:
    """Weighted mean over the samples."""
    return _ratio(weights @ values, weights.sum(axis=1))


def expected_calibration_error(
    happened: Bool[np.ndarray, " sample"], predicted: Float[np.ndarray, " sample"], weights: Weights
) -> Values:
    """Mean over the samples of their bin's |mean predicted - share that happened| (Guo et al. 2017, equation 3)."""
    in_bin = np.eye(NUM_BINS)[bin_of(predicted)]
    gaps = np.abs(weights @ (in_bin * (predicted - happened)[:, None]))
    return _ratio(gaps.sum(axis=1), weights.sum(axis=1))


def bin_of(predicted: Float[np.ndarray, " sample"]) -> Int[np.ndarray, " sample"]:
    """Which of NUM_BINS bins of equal width, closed on the right; 0 is in the first."""
    return np.searchsorted(np.arange(1, NUM_BINS) / NUM_BINS, predicted)


def mean_of_defined(values: Float[np.ndarray, "part resample"]) -> Values:
    """Mean over the parts that are not NaN; NaN where none is."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0))


def by_threshold(
    positive: Bool[np.ndarray, " sample"], score: Float[np.ndarray, " sample"], weights: Weights
) -> tuple[Float[np.ndarray, "resample threshold"], Float[np.ndarray, "resample threshold"]]:
    """Weight of the positives and negatives at each distinct score, highest score first."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    sorted_weights = weights[:, order]
    positives = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    return positives, np.add.reduceat(sorted_weights, starts, axis=1) - positives


def _precision_by_recall(
    positive: Bool[np.ndarray, " sample"], score: Float[np.ndarray, " sample"], weights: Weights
) -> tuple[Float[np.ndarray, "resample threshold"], Float[np.ndarray, "resample threshold_and_start"]]:
    """Gain in recall at each threshold, and the precision there, after a 1 for the curve's start.

    A threshold above every sample of a resample does not exist for it: there the precision stays 1.
    """
    positives, negatives = by_threshold(positive, score, weights)
    true, false = np.cumsum(positives, axis=1), np.cumsum(negatives, axis=1)
    precision = np.divide(true, true + false, out=np.ones_like(true), where=true + false > 0)
    total = np.broadcast_to(true[:, -1:], true.shape)
    both_classes = (true[:, -1] > 0) & (false[:, -1] > 0)
    gain = np.divide(positives, total, out=np.full_like(true, np.nan), where=both_classes[:, None])
    return gain, np.concatenate([np.ones((len(true), 1)), precision], axis=1)


def _true(matrix: Float[np.ndarray, "resample label prediction"]) -> Float[np.ndarray, "resample class"]:
    return np.diagonal(matrix, axis1=1, axis2=2)


def _macro(
    matrix: Float[np.ndarray, "resample label prediction"],
    numerator: Float[np.ndarray, "resample class"],
    denominator: Float[np.ndarray, "resample class"],
) -> Values:
    """Mean over the classes that have samples; a class without any has no recall, so it takes no part."""
    present = matrix.sum(axis=2) > 0
    per_class = np.divide(numerator, denominator, out=np.zeros(present.shape), where=denominator > 0)
    return _where_several(matrix, _ratio((per_class * present).sum(axis=1), present.sum(axis=1)))


def _where_several(matrix: Float[np.ndarray, "resample label prediction"], values: Values) -> Values:
    """The values of the resamples that hold at least two classes; NaN elsewhere."""
    return np.where((matrix.sum(axis=2) > 0).sum(axis=1) >= 2, values, np.nan)


def _ratio(numerator: Values, denominator: Num[np.ndarray, " resample"]) -> Values:
    """The quotient; NaN where the denominator is not above 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
