"""Metrics of every model under the same draws of patients, so that models can be subtracted draw by draw."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from client.predictions import Predictions
from dipro_model.metric_values import metric_values
from dipro_model.metrics import EQUAL_TO_ACCURACY, METRICS, resamples
from dipro_model.vocabulary import Task

_BLOCK = 250
"""Resamples at a time: what a metric sorts and sums then stays in the processor's cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """One number of one set of samples, and the same number of every resample of their patients."""

    value: float
    """NaN where undefined."""
    resampled: Float[np.ndarray, " resample"]
    """NaN where a resample leaves it undefined; empty where there are fewer than two patients to draw from."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its bootstrap interval."""

    value: float | None
    low: float | None
    high: float | None
    """None, both, where there is no interval."""
    num_undefined: int
    """Resamples that left the number undefined; the interval is that of the others."""
    reason: str | None
    """Why there is no value or no interval."""


def studied_metrics(task: Task) -> tuple[str, ...]:
    """The metrics that models are subtracted by, the published ones first.

    Without those that equal the accuracy, and without the calibration error: chance makes it too high, the more the
    better a model is calibrated, so that a difference of two errors has no plain reading.
    """
    return tuple(name for name in METRICS[task] if name not in (*EQUAL_TO_ACCURACY, "ece"))


def draw(
    scored: Mapping[str, Predictions], metrics: Sequence[str], *, num_resamples: int, seed: int
) -> dict[tuple[str, str], Drawn]:
    """By model and metric, on all samples, under the draws that `bootstrap` makes of the same patients and seed.

    scored: by model, the same samples in the same order, which `compare` provides.
    """
    whole = {"": np.ones(len(next(iter(scored.values()))), dtype=bool)}
    parts = draw_parts(scored, whole, metrics, num_resamples=num_resamples, seed=seed)
    return {(model, metric): drawn for (model, metric, _), drawn in parts.items()}


def draw_parts(
    scored: Mapping[str, Predictions],
    parts: Mapping[str, Bool[np.ndarray, " sample"]],
    metrics: Sequence[str],
    *,
    num_resamples: int,
    seed: int,
) -> dict[tuple[str, str, str], Drawn]:
    """By model, metric and part of the samples; patients are drawn from all samples, for all parts and models at once.

    How many patients of a part are drawn varies from draw to draw; given their number, they are drawn at random from
    the part. So one draw has one set of patients in every part, and parts can be compared draw by draw.
    """
    first = next(iter(scored.values()))
    ones = np.ones((1, len(first)))
    plain = {key: values[0] for key, values in _values(scored, parts, metrics, ones)}
    blocks: dict[tuple[str, str, str], list[np.ndarray]] = {key: [] for key in plain}
    if len(np.unique(first.patients)) >= 2:
        for weights in resamples(first.patients, num_resamples=num_resamples, seed=seed):
            for key, values in _values(scored, parts, metrics, weights):
                blocks[key].append(values)
    return {
        key: Drawn(value=float(plain[key]), resampled=np.concatenate(own) if own else np.empty(0))
        for key, own in blocks.items()
    }


def _values(
    scored: Mapping[str, Predictions],
    parts: Mapping[str, np.ndarray],
    metrics: Sequence[str],
    weights: Float[np.ndarray, "resample sample"],
) -> Iterator[tuple[tuple[str, str, str], Float[np.ndarray, " resample"]]]:
    for part, rows in parts.items():
        own = weights[:, rows]
        for model, predictions in scored.items():
            arguments = (predictions.task, predictions.labels[rows], predictions.probabilities[rows])
            blocks = [
                metric_values(*arguments, own[start : start + _BLOCK], metrics) for start in range(0, len(own), _BLOCK)
            ]
            yield from (
                ((model, metric, part), np.concatenate([each[metric] for each in blocks])) for metric in metrics
            )


def mean_of(drawn: Sequence[Drawn]) -> Drawn:
    """The mean, draw by draw: undefined where one of them is."""
    return Drawn(
        value=float(np.mean([each.value for each in drawn])),
        resampled=np.mean([each.resampled for each in drawn], axis=0),
    )


def minus(one: Drawn, other: Drawn) -> Drawn:
    """The difference, draw by draw: undefined where one of them is."""
    return Drawn(value=one.value - other.value, resampled=one.resampled - other.resampled)


def estimate(drawn: Drawn, *, level: float, reason: str | None = None, mirrored: bool = False) -> Estimate:
    """Value and percentile interval; `reason` says why there is no value where there is none.

    A number that more than half of the resamples leave undefined has no interval. `mirrored`: the basic interval
    (Davison and Hinkley 1997, 5.2) of a number that cannot be negative and that chance makes too large; cut at 0 and
    never without the value.
    """
    defined = drawn.resampled[~np.isnan(drawn.resampled)]
    num_undefined = len(drawn.resampled) - len(defined)
    if np.isnan(drawn.value):
        words = reason or "the samples leave it undefined"
        return Estimate(value=None, low=None, high=None, num_undefined=num_undefined, reason=words)
    why = None
    if not len(drawn.resampled):
        why = "an interval needs at least two patients"
    elif 2 * num_undefined > len(drawn.resampled):
        why = f"{num_undefined} of {len(drawn.resampled)} resamples leave it undefined"
    if why is not None:
        return Estimate(value=drawn.value, low=None, high=None, num_undefined=num_undefined, reason=why)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    if mirrored:
        low, high = max(0.0, 2 * drawn.value - high), 2 * drawn.value - low
        low, high = min(low, drawn.value), max(high, drawn.value)
    return Estimate(value=drawn.value, low=float(low), high=float(high), num_undefined=num_undefined, reason=None)
