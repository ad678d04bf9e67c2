"""How sure a curve is: bands over resampled patients, and intervals of shares."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from dipro_model import weighted
from dipro_model.metrics import resamples

GRID = np.linspace(0.0, 1.0, 101)
"""Where on the x axis a band is known."""

NUM_RESAMPLES, SEED = 1000, 0
"""Those of `dipro-fed compare`, so that a curve's interval is the one in its table."""

_Z_95 = 1.959964
_ENDS = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True, eq=False)
class OneClass:
    """One class of one output against the others: what a curve is drawn from."""

    positive: Bool[np.ndarray, " sample"]
    scores: Float[np.ndarray, " sample"]
    patients: Int[np.ndarray, " sample"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """95 % of the resampled patients' curves lie, point by point, between these.

    All NaN for a single patient, and where more than half of the resamples lack one of the two classes.
    """

    low: Float[np.ndarray, " grid"]
    high: Float[np.ndarray, " grid"]
    area: tuple[float, float]
    """The interval of the area under the curve."""


def roc_band(own: OneClass) -> Band:
    """Around the ROC curve: the share of the class that is found, at each share of the others that is called too."""
    curves, areas = [], []
    for weights in resamples(own.patients, num_resamples=NUM_RESAMPLES, seed=SEED):
        found, called = _found_and_called(own, weights)
        for y, x in zip(found, called, strict=True):
            # Where x repeats, interp takes the last and highest y.
            curves.append(np.interp(GRID, np.append(0.0, x), np.append(0.0, y)))
        areas.append(weighted.auroc(own.positive, own.scores, weights))
    return _band(own, np.array(curves), np.concatenate(areas))


def precision_recall_band(own: OneClass, *, trapezoid: bool) -> Band:
    """Around the precision-recall curve: the precision at the strictest threshold that reaches each recall.

    `trapezoid` takes the area under straight lines, as `auprc` of several classes does, instead of the steps'.
    """
    area = weighted.trapezoid_precision_recall if trapezoid else weighted.average_precision
    curves, areas = [], []
    for weights in resamples(own.patients, num_resamples=NUM_RESAMPLES, seed=SEED):
        found, called = _found_and_called(own, weights)
        positives = (weights * own.positive).sum(axis=1, keepdims=True)
        negatives = weights.sum(axis=1, keepdims=True) - positives
        right, wrong = found * positives, called * negatives
        precision = np.divide(right, right + wrong, out=np.ones_like(right), where=right + wrong > 0)
        for recall, y in zip(found, precision, strict=True):
            reached = np.searchsorted(recall, GRID - 1e-12)
            curves.append(np.append(y, np.nan)[np.minimum(reached, len(y))])
        areas.append(area(own.positive, own.scores, weights))
    return _band(own, np.array(curves), np.concatenate(areas))


def wilson(share: Float[np.ndarray, " bin"], count: Num[np.ndarray, " bin"]) -> Float[np.ndarray, "2 bin"]:
    """95 % score intervals of shares of `count` independent samples (Wilson, JASA 1927): low and high.

    They keep a width where a share is 0 or 1, which resampling does not.
    """
    spread = _Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z_95 / (1 + spread) * np.sqrt(share * (1 - share) / count + spread / (4 * count))
    return np.stack([np.clip(middle - half, 0.0, share), np.clip(middle + half, share, 1.0)])


def _found_and_called(
    own: OneClass, weights: weighted.Weights
) -> tuple[Float[np.ndarray, "resample threshold"], Float[np.ndarray, "resample threshold"]]:
    """Share of the class, and of the others, at or above each threshold; NaN in a resample that lacks one of them."""
    shares = []
    for counts in weighted.by_threshold(own.positive, own.scores, weights):
        total = counts.sum(axis=1, keepdims=True)
        shares.append(np.divide(counts.cumsum(axis=1), total, out=np.full(counts.shape, np.nan), where=total > 0))
    return shares[0], shares[1]


def _band(own: OneClass, curves: Float[np.ndarray, "resample grid"], areas: Float[np.ndarray, " resample"]) -> Band:
    defined = ~np.isnan(areas)
    if 2 * defined.sum() < len(areas) or len(np.unique(own.patients)) < 2:
        nothing = np.full(len(GRID), np.nan)
        return Band(low=nothing, high=nothing, area=(np.nan, np.nan))
    low, high = np.quantile(curves[defined], _ENDS, axis=0)
    ends = np.quantile(areas[defined], _ENDS)
    return Band(low=low, high=high, area=(float(ends[0]), float(ends[1])))
