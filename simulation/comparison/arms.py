"""The arms of a study: a model, or the models of runs that differ by their seed alone, judged as one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import stdev

from federation.run_folder import RunError
from simulation.compare import ALONE, Comparison, Model
from simulation.comparison.draws import Drawn, Estimate, estimate, mean_of

_SETTINGS_IN_LABEL = 2

Draws = Mapping[tuple[str, str, str], Drawn]
"""By metric, model label and site."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training, with one seed or several."""

    label: str
    """The model's label where there is one seed, else what its runs are called."""
    kind: str
    """As of a model."""
    trained_on: tuple[str, ...]
    models: Mapping[int | None, str]
    """Labels of its models, by seed."""


@dataclass(frozen=True, kw_only=True)
class ArmValue:
    """One metric of an arm on one column's samples."""

    estimate: Estimate
    """The mean over the seeds, with its interval over patients."""
    by_seed: Mapping[int | None, float | None]
    sd: float | None
    """Over the seeds that define the metric, n - 1 below the line; None for fewer than two."""


def arms_of(comparison: Comparison) -> tuple[Arm, ...]:
    """The models of a comparison, those joined that differ by their seed alone; in the order of their first ones.

    Joined are runs of one kind, name, sites to learn from and settings. A seed that comes twice joins nothing.
    """
    groups: dict[tuple[str, ...], list[Model]] = {}
    for model in comparison.models:
        groups.setdefault(_training(comparison, model), []).append(model)
    parts: list[list[Model]] = []
    for members in groups.values():
        seeds = [model.seed for model in members]
        parts += [members] if len(set(seeds)) == len(seeds) else [[model] for model in members]
    return tuple(
        Arm(
            label=label,
            kind=part[0].kind,
            trained_on=part[0].trained_on,
            models={model.seed: model.label for model in part},
        )
        for part, label in zip(parts, _labels(comparison, parts), strict=True)
    )


def _labels(comparison: Comparison, parts: list[list[Model]]) -> list[str]:
    """Names of the arms; where two share one, what differs in their settings tells them apart, else the folder."""
    names = [_name(comparison, part) for part in parts]
    longer = []
    for name, part in zip(names, parts, strict=True):
        rivals = [other for other, own in zip(parts, names, strict=True) if own == name and other is not part]
        longer.append(f"{name} ({_what_differs(comparison, part, rivals) or part[0].run})" if rivals else name)
    return [
        name if longer.count(name) == 1 else f"{name} ({part[0].run})" for name, part in zip(longer, parts, strict=True)
    ]


def _what_differs(comparison: Comparison, part: list[Model], rivals: list[list[Model]]) -> str:
    """The first settings in which an arm is unlike its rivals, with its own values."""
    own, others = part[0].label, [rival[0].label for rival in rivals]
    found = [
        f"{name.removesuffix('.name')} {str(json.loads(values[own])) if own in values else 'not set'}"
        for name, values in comparison.differing_settings.items()
        if name != "seed" and any(values.get(other) != values.get(own) for other in others)
    ]
    return ", ".join(found[:_SETTINGS_IN_LABEL])


def _training(comparison: Comparison, model: Model) -> tuple[str, ...]:
    """What must be equal for models to be seeds of one arm."""
    runs = [run for run in comparison.runs if str(run.path) == model.run]
    if model.kind == "alone":
        runs = [run for run in comparison.runs if run.record.kind == "local" and model.seed in (None, run.record.seed)]
    facts = [
        [run.record.name, {name: value for name, value in run.record.settings.items() if name != "seed"}]
        for run in runs
    ]
    where = sorted(json.dumps(fact, sort_keys=True) for fact in facts)
    return (model.kind, *model.trained_on, *where)


def _name(comparison: Comparison, models: list[Model]) -> str:
    if len(models) == 1:
        return models[0].label
    if models[0].kind == "alone":
        return ALONE
    return next(run.record.name for run in comparison.runs if str(run.path) == models[0].run)


def common_seeds(one: Arm, other: Arm) -> tuple[list[int | None], list[int | None]]:
    """Seeds of each arm whose models are compared: those that both have, or all of each where they share none."""
    shared = [seed for seed in one.models if seed in other.models]
    return (shared, shared) if shared else (list(one.models), list(other.models))


def over_seeds(draws: Draws, arm: Arm, metric: str, site: str, seeds: list[int | None] | None = None) -> Drawn:
    """A metric of an arm: the mean over the seeds, draw by draw."""
    chosen = list(arm.models) if seeds is None else seeds
    return mean_of([draws[metric, arm.models[seed], site] for seed in chosen])


def arm_value(comparison: Comparison, draws: Draws, arm: Arm, metric: str, site: str) -> ArmValue:
    """A metric's mean over the seeds with its interval, and its spread over them."""
    results = {seed: comparison.cells[metric, label, site].result for seed, label in arm.models.items()}
    values = [result.value for result in results.values() if result.value is not None]
    return ArmValue(
        estimate=estimate(
            over_seeds(draws, arm, metric, site),
            level=comparison.level,
            reason=why_undefined(comparison, arm, metric, site),
        ),
        by_seed={seed: result.value for seed, result in results.items()},
        sd=stdev(values) if len(values) > 1 else None,
    )


def why_undefined(comparison: Comparison, arm: Arm, metric: str, site: str) -> str | None:
    """The first seed's reason for having no value."""
    results = [comparison.cells[metric, label, site].result for label in arm.models.values()]
    return next((result.reason for result in results if result.value is None), None)


def find_arm(arms: tuple[Arm, ...], name: str | None) -> tuple[Arm | None, str | None]:
    """The arm to compare the others with, and a note where it was not chosen by name.

    name: an arm's label, or that of one of its models; None means the centralized one, the first where there are
    several. Raises RunError for a name that no arm has.
    """
    if name is not None:
        found = [arm for arm in arms if name == arm.label] or [arm for arm in arms if name in arm.models.values()]
        if not found:
            labels = ", ".join(f"“{arm.label}”" for arm in arms)
            raise RunError(f"--reference: expected the name of a model ({labels}), found {name!r}")
        return found[0], None
    central = [arm for arm in arms if arm.kind == "centralized"]
    if not central:
        return None, "There are no differences: no run is centralized. Name a model to compare with: --reference NAME."
    if len(central) > 1:
        return central[0], (
            f"There are {len(central)} centralized models; the differences are to “{central[0].label}”. "
            "--reference NAME chooses another."
        )
    return central[0], None
