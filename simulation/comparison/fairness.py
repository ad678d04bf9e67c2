"""How evenly an arm serves its patients: each metric by site, sex, age and race group, the worst group, the spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dipro_model.metrics import LOWER_IS_BETTER
from dipro_model.vocabulary import Task
from simulation.compare import Comparison
from simulation.comparison.arms import Arm, Draws, over_seeds
from simulation.comparison.demographics import AGES, Demographics
from simulation.comparison.draws import Drawn, Estimate, draw_parts, estimate

DEFAULT_MINIMUM = 10
"""Patients below which a group is withheld."""

SITE = "site"

FAIRNESS_METRICS: dict[Task, tuple[str, ...]] = {
    Task.MORTALITY: ("auroc", "auprc", "brier"),
    Task.LENGTH_OF_STAY: ("kappa", "accuracy", "auroc", "brier"),
    Task.DISEASE_PROGRESSION: ("f1", "auroc", "brier"),
}
"""The metrics that are shown by group."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The patients of one group; the same for every arm."""

    attribute: str
    """site, sex, age or race group."""
    name: str
    num_patients: int | None
    """None where the group is withheld."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One metric of one arm over the groups of one attribute."""

    metric: str
    arm: str
    attribute: str
    by_group: Mapping[str, Estimate]
    """Of the groups that are not withheld."""
    worst: str | None
    """The group with the worst value; None where fewer than two groups have one."""
    spread: Estimate
    """Largest minus smallest value."""


@dataclass(frozen=True, kw_only=True)
class Fairness:
    """Everything by group."""

    minimum: int
    metrics: tuple[str, ...]
    groups: tuple[Group, ...]
    spreads: tuple[Spread, ...]
    notes: tuple[str, ...]
    """Why groups are missing."""


def fairness(
    comparison: Comparison, arms: Sequence[Arm], demographics: Demographics, minimum: int = DEFAULT_MINIMUM
) -> Fairness:
    """Every arm's metrics by group, under one set of draws for all groups and arms.

    A group with fewer than `minimum` patients is withheld: it has no value, and is neither the worst nor in the spread.
    """
    first = next(iter(comparison.predictions.values()))
    attributes = {SITE: first.site, **demographics.groups}
    patients, parts, groups = first.patients, {}, []
    for attribute, of_sample in attributes.items():
        for name in _in_order(comparison, attribute, of_sample):
            rows = np.array(of_sample == name)
            count = len(np.unique(patients[rows]))
            groups.append(Group(attribute=attribute, name=name, num_patients=count if count >= minimum else None))
            if count >= minimum:
                parts[f"{attribute}/{name}"] = rows
    metrics = FAIRNESS_METRICS[comparison.task]
    drawn = draw_parts(
        comparison.predictions, parts, metrics, num_resamples=comparison.num_resamples, seed=comparison.seed
    )
    draws = {(metric, model, part): each for (model, metric, part), each in drawn.items()}
    spreads = [
        _spread(comparison, draws, arm, metric, attribute, [each for each in groups if each.attribute == attribute])
        for attribute in attributes
        for metric in metrics
        for arm in arms
    ]
    return Fairness(
        minimum=minimum, metrics=metrics, groups=tuple(groups), spreads=tuple(spreads), notes=demographics.notes
    )


def _in_order(comparison: Comparison, attribute: str, of_sample: np.ndarray) -> list[str]:
    """The groups of an attribute that have samples; sites and ages in their own order, others by name."""
    present = set(of_sample.tolist())
    orders = {SITE: [column.site for column in comparison.columns], "age": [name for name, _, _ in AGES]}
    known = [name for name in orders.get(attribute, []) if name in present]
    return known + sorted(present - set(known))


def _spread(
    comparison: Comparison, draws: Draws, arm: Arm, metric: str, attribute: str, groups: Sequence[Group]
) -> Spread:
    shown = [group.name for group in groups if group.num_patients is not None]
    own = {name: over_seeds(draws, arm, metric, f"{attribute}/{name}") for name in shown}
    estimates = {name: estimate(drawn, level=comparison.level) for name, drawn in own.items()}
    values = {name: found.value for name, found in estimates.items() if found.value is not None}
    worst = (max if metric in LOWER_IS_BETTER else min)(values, key=lambda name: values[name], default=None)
    return Spread(
        metric=metric,
        arm=arm.label,
        attribute=attribute,
        by_group=estimates,
        worst=worst if len(values) > 1 else None,
        spread=_range([own[name] for name in values], comparison.level),
    )


def _range(drawn: Sequence[Drawn], level: float) -> Estimate:
    """Largest minus smallest, draw by draw. Chance pushes it up as it does the calibration error: mirrored interval."""
    if len(drawn) < 2:
        nothing = Drawn(value=np.nan, resampled=np.empty(0))
        return estimate(nothing, level=level, reason="a spread needs two groups with a value")
    values = [each.value for each in drawn]
    resampled = np.stack([each.resampled for each in drawn])
    return estimate(
        Drawn(value=max(values) - min(values), resampled=resampled.max(axis=0) - resampled.min(axis=0)),
        level=level,
        mirrored=True,
    )
