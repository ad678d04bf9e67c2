"""Differences between arms under the same draws of patients, and the verdict on non-inferiority against a margin."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from client.predictions import Predictions
from dipro_model.metrics import LOWER_IS_BETTER
from dipro_model.vocabulary import TASK_CLASSES, Task
from federation.run_folder import POOLED
from simulation.compare import Comparison, at_site
from simulation.comparison.arms import Arm, Draws, common_seeds, over_seeds, why_undefined
from simulation.comparison.draws import Drawn, Estimate, estimate, minus, studied_metrics

DEFAULT_MARGINS: Mapping[str, float] = {"auroc": 0.01, "auprc": 0.02}
"""How much worse than the reference still counts as non-inferior, by metric."""

MIN_CLASS_PATIENTS = 10
"""Patients of every class that a verdict needs: with fewer, resamples hardly vary and intervals are too short."""

NON_INFERIOR, INFERIOR, NOT_SHOWN = "non-inferior", "inferior", "not shown"
GAIN, LOSS = "gain", "loss"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of one arm minus that of another, on the same samples."""

    metric: str
    arm: str
    reference: str
    site: str
    """A site's name, or `pooled`."""
    seeds: tuple[int, ...]
    """Seeds that both have, paired; empty where the means over different seeds are subtracted."""
    estimate: Estimate
    by_seed: Mapping[int, float | None]
    """The difference of each paired seed."""
    margin: float | None
    """None for a metric without one."""
    verdict: str | None
    """non-inferior, inferior, or not shown; gain, loss or not shown where the question is whether joining pays. None
    where there is no margin, or where `verdict_reason` says why."""
    verdict_reason: str | None


def checked_margins(task: Task, given: Mapping[str, float]) -> dict[str, float]:
    """The default margins of the task's metrics, and those given. Raises ValueError for one that makes no sense."""
    metrics = studied_metrics(task)
    unknown = [name for name in given if name not in metrics]
    if unknown:
        raise ValueError(
            f"--margin: {task} has no metric {', '.join(unknown)} to compare by; it has {', '.join(metrics)}"
        )
    wrong = [name for name, margin in given.items() if not (math.isfinite(margin) and margin > 0)]
    if wrong:
        raise ValueError(f"--margin {wrong[0]}: expected a number above 0, found {given[wrong[0]]}")
    margins = {**DEFAULT_MARGINS, **given}
    return {name: margins[name] for name in metrics if name in margins}


def differences(
    comparison: Comparison, draws: Draws, arms: Sequence[Arm], reference: Arm, margins: Mapping[str, float]
) -> list[Difference]:
    """Every other arm minus the reference, by metric and column.

    The verdict is one-sided at (1 + level) / 2, that is 97.5 % for intervals of 95 %: `non-inferior` where the whole
    interval is better than the margin, `inferior` where the whole interval is worse, else `not shown`.
    """
    found = []
    for site in (column.site for column in comparison.columns):
        too_few = too_few_patients(comparison, site)
        for metric in studied_metrics(comparison.task):
            for arm in (each for each in arms if each is not reference):
                own = subtract(comparison, draws, arm, reference, metric, site)
                margin = margins.get(metric)
                verdict, reason = _verdict(own, margin, too_few)
                found.append(replace(own, margin=margin, verdict=verdict, verdict_reason=reason))
    return found


def gains_of_joining(comparison: Comparison, draws: Draws, arms: Sequence[Arm]) -> list[Difference]:
    """Every federated or personal arm minus each site's own local arm, on that site's patients, by metric.

    Pooled: minus the row in which every site's patients are scored by the site's own local model. `gain` where the
    whole interval is on the better side of 0, `loss` where it is on the worse, else `not shown`.
    """
    alone = {POOLED: [arm for arm in arms if arm.kind == "alone"]}
    sites = [column.site for column in comparison.columns]
    alone |= {site: [arm for arm in arms if arm.kind == "local" and arm.trained_on == (site,)] for site in sites[1:]}
    found = []
    for site in sites:
        too_few = too_few_patients(comparison, site)
        for metric in studied_metrics(comparison.task):
            for arm in (each for each in arms if each.kind in ("federated", "personal")):
                for own in alone[site] if len(alone[site]) == 1 else []:
                    difference = subtract(comparison, draws, arm, own, metric, site)
                    verdict, reason = _gain(difference, too_few)
                    found.append(replace(difference, verdict=verdict, verdict_reason=reason))
    return found


def subtract(comparison: Comparison, draws: Draws, arm: Arm, reference: Arm, metric: str, site: str) -> Difference:
    """Paired by patient and by seed: within a draw the mean over the seeds of the arms' differences."""
    own, others = common_seeds(arm, reference)
    paired = [seed for seed in own if seed is not None] if own == others else []
    drawn = minus(over_seeds(draws, arm, metric, site, own), over_seeds(draws, reference, metric, site, others))
    one_by_one = {
        seed: minus(draws[metric, arm.models[seed], site], draws[metric, reference.models[seed], site]).value
        for seed in paired
    }
    reasons = [why_undefined(comparison, each, metric, site) for each in (arm, reference)]
    return Difference(
        metric=metric,
        arm=arm.label,
        reference=reference.label,
        site=site,
        seeds=tuple(paired),
        estimate=_without_false_certainty(comparison, arm, reference, site, drawn, next(filter(None, reasons), None)),
        by_seed={seed: None if np.isnan(value) else value for seed, value in one_by_one.items()},
        margin=None,
        verdict=None,
        verdict_reason=None,
    )


def _without_false_certainty(
    comparison: Comparison, arm: Arm, reference: Arm, site: str, drawn: Drawn, reason: str | None
) -> Estimate:
    """The estimate; no interval where different scores give one difference in every draw, as two perfect AUROCs do."""
    found = estimate(drawn, level=comparison.level, reason=reason)
    if found.low is None or found.low != found.high or _same_scores(comparison, arm, reference, site):
        return found
    words = "the models differ, but every resample gives the same difference: too few patients for an interval"
    return Estimate(value=found.value, low=None, high=None, num_undefined=found.num_undefined, reason=words)


def _same_scores(comparison: Comparison, arm: Arm, reference: Arm, site: str) -> bool:
    """Whether all models of both arms say the same of a column's samples."""
    labels = [*arm.models.values(), *reference.models.values()]
    first, *others = [at_site(comparison.predictions[label], site).probabilities for label in labels]
    return all(np.array_equal(first, other) for other in others)


def too_few_patients(comparison: Comparison, site: str) -> str | None:
    """Why a column's patients allow no verdict; None where they do."""
    own = at_site(next(iter(comparison.predictions.values())), site)
    for name, count in class_patients(own).items():
        if count < MIN_CLASS_PATIENTS:
            return f"a verdict needs {MIN_CLASS_PATIENTS} patients of every class, found {count} of “{name}”"
    return None


def class_patients(predictions: Predictions) -> dict[str, int]:
    """How many patients have a sample of each class; for progression of any disease."""
    labels = predictions.labels if predictions.labels.ndim == 2 else predictions.labels[:, None]
    return {
        name: len(np.unique(predictions.patients[(labels == value).any(axis=1)]))
        for value, name in enumerate(TASK_CLASSES[predictions.task])
    }


def _better_side(difference: Difference) -> tuple[float, float] | None:
    """The interval turned so that more is better; None where there is none."""
    low, high = difference.estimate.low, difference.estimate.high
    if low is None or high is None:
        return None
    return (-high, -low) if difference.metric in LOWER_IS_BETTER else (low, high)


def _verdict(difference: Difference, margin: float | None, too_few: str | None) -> tuple[str | None, str | None]:
    """Verdict and why there is none."""
    if margin is None:
        return None, None
    interval = _better_side(difference)
    if interval is None or too_few:
        return None, difference.estimate.reason or too_few
    if interval[0] > -margin:
        return NON_INFERIOR, None
    return (INFERIOR if interval[1] < -margin else NOT_SHOWN), None


def _gain(difference: Difference, too_few: str | None) -> tuple[str | None, str | None]:
    interval = _better_side(difference)
    if interval is None or too_few:
        return None, difference.estimate.reason or too_few
    if interval[0] > 0:
        return GAIN, None
    return (LOSS if interval[1] < 0 else NOT_SHOWN), None
