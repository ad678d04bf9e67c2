"""Everything that is concluded from a comparison: who is non-inferior to whom, who gains, who is served worse, at what
cost, and what was hidden from whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simulation.compare import Comparison, at_site
from simulation.comparison.arms import Arm, ArmValue, arm_value, arms_of, find_arm
from simulation.comparison.costs import Cost, costs_of
from simulation.comparison.demographics import read_demographics
from simulation.comparison.differences import Difference, checked_margins, differences, gains_of_joining
from simulation.comparison.draws import draw, studied_metrics
from simulation.comparison.fairness import DEFAULT_MINIMUM, Fairness, fairness
from simulation.comparison.privacy import Hidden, hidden_of

CROSS_SITE_KINDS = ("centralized", "federated", "local", "evaluated")
"""Arms that are one model for all sites' patients."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison and what follows from it."""

    comparison: Comparison
    metrics: tuple[str, ...]
    """The metrics of values, differences and gains."""
    arms: tuple[Arm, ...]
    values: Mapping[tuple[str, str, str], ArmValue]
    """By metric, arm and site."""
    reference: str | None
    """The arm that differences are to."""
    reference_note: str | None
    """Why there is none, or how it was chosen among several."""
    margins: Mapping[str, float]
    differences: tuple[Difference, ...]
    gains: tuple[Difference, ...]
    fairness: Fairness
    costs: tuple[Cost, ...]
    hidden: tuple[Hidden, ...]
    """Of the runs that hid anything."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about what is missing."""
        return (*([self.reference_note] if self.reference_note else []), *self.fairness.notes)

    @property
    def cross_site(self) -> tuple[Arm, ...]:
        """Rows of the cross-site matrix: local models in the order of their sites, then the others."""
        sites = [column.site for column in self.comparison.columns]
        rows = [arm for arm in self.arms if arm.kind in CROSS_SITE_KINDS]
        local = sorted((arm for arm in rows if arm.kind == "local"), key=lambda arm: sites.index(arm.trained_on[0]))
        return (*local, *(arm for arm in rows if arm.kind != "local"))


def study(
    comparison: Comparison,
    *,
    reference: str | None = None,
    margins: Mapping[str, float] | None = None,
    cohorts: Sequence[Path] = (),
    minimum_group: int = DEFAULT_MINIMUM,
) -> Study:
    """Conclude from the models of `compare`, with its resamples, seed and level.

    reference: the arm to compare the others with, by default the centralized one. margins: by metric, beside the
    default ones. cohorts: where sex, age and race group are found, by default where the runs say.

    Raises RunError for an unknown reference, ValueError for margins that make no sense, CohortError for given cohorts
    that do not hold the scored stays.
    """
    task, metrics = comparison.task, studied_metrics(comparison.task)
    checked = checked_margins(task, margins or {})
    arms = arms_of(comparison)
    base, note = find_arm(arms, reference)
    demographics = read_demographics(comparison.runs, next(iter(comparison.predictions.values())), cohorts)
    draws = {}
    for site in (column.site for column in comparison.columns):
        scored = {model: at_site(predictions, site) for model, predictions in comparison.predictions.items()}
        drawn = draw(scored, metrics, num_resamples=comparison.num_resamples, seed=comparison.seed)
        draws |= {(metric, model, site): each for (model, metric), each in drawn.items()}
    return Study(
        comparison=comparison,
        metrics=metrics,
        arms=arms,
        values={
            (metric, arm.label, column.site): arm_value(comparison, draws, arm, metric, column.site)
            for metric in metrics
            for arm in arms
            for column in comparison.columns
        },
        reference=base.label if base else None,
        reference_note=note,
        margins=checked,
        differences=tuple(differences(comparison, draws, arms, base, checked) if base else ()),
        gains=tuple(gains_of_joining(comparison, draws, arms)),
        fairness=fairness(comparison, arms, demographics, minimum_group),
        costs=costs_of(comparison.runs),
        hidden=hidden_of(comparison.runs),
    )
