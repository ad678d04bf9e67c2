"""The YAML of a sweep: cohorts, seeds, partitions, models and attacks, checked once; docs/sweeps.md explains it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from client.gaps import Gaps
from dipro_model.vocabulary import Task
from federation.sections import Section
from federation.settings import RunSettings, SettingsError, load_settings
from simulation.attacks import AttackKind
from simulation.partition.schemes import Scheme, SchemeName, known_variables

Value = bool | int | float | str
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,59}")
FILES = ("model.backbone_weights", "model.start")
"""Settings that name a file of weights."""


class SweepError(ValueError):
    """A sweep that cannot be run or read; says what was expected, what came and what to change."""


class GapPlan(Section):
    """What a site of a partition lacks."""

    variables: list[str] = Field(default_factory=list)
    """EHR variables that it never charts."""
    max_images: int | None = None
    """Radiographs of a stay at most."""
    no_region_labels: bool = False
    """Whether reports are not compared region by region."""

    def gaps(self) -> Gaps:
        return Gaps(
            variables=known_variables(self.variables),
            max_images=self.max_images,
            no_region_labels=self.no_region_labels,
        )


class PartitionPlan(Section):
    """Who has which patients: a scheme of `dipro-fed partition` with its parameters."""

    cohorts: str
    """Name of the cohorts that it is of."""
    scheme: Annotated[SchemeName, Field(strict=False)]
    """docs/partitions.md lists them; `cohorts` makes each cohort a site."""
    sites: int | None = None
    alpha: float | None = None
    sigma: float | None = None
    exponent: float | None = None
    min_patients: int | None = None
    gaps: dict[int, GapPlan] = Field(default_factory=dict)
    """By number of the site, from 1."""

    def made(self) -> Scheme:
        given = self.model_dump(include={"alpha", "sigma", "exponent", "min_patients"}, exclude_none=True)
        for name, owner in (("alpha", "dirichlet"), ("sigma", "log_normal"), ("exponent", "power_law")):
            if name in given and self.scheme != owner:
                raise ValueError(f"{name} belongs to the scheme {owner}, found {self.scheme}; leave it out")
        gaps = {number: gap.gaps() for number, gap in self.gaps.items()}
        return Scheme(name=self.scheme, num_sites=self.sites, gaps=gaps, **given)


class ModelPlan(Section):
    """One way to train."""

    kind: Literal["centralized", "local", "federated"]
    """local: a model of each site's own."""
    set: dict[str, Value] = Field(default_factory=dict)
    """Settings by dotted name, instead of the sweep's."""
    partitions: list[str] = Field(default_factory=list)
    """Partitions that it is trained on; empty: all."""


class AttackPlan(Section):
    """One malicious site, in runs of their own beside those without it."""

    kind: Annotated[AttackKind, Field(strict=False)]
    site: Annotated[int, Field(ge=1)]
    """Number of the site, from 1."""
    models: list[str]
    """Federated models that are attacked."""
    partitions: list[str] = Field(default_factory=list)
    """Partitions on which they are; empty: all."""


class SweepPlan(Section):
    """Everything that a sweep's YAML says."""

    task: Annotated[Task, Field(strict=False)]
    config: str = ""
    """Settings in YAML that all runs begin with, relative to the sweep's file; empty: the defaults."""
    set: dict[str, Value] = Field(default_factory=dict)
    """Settings of all runs by dotted name."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    partition_seed: int = 0
    """Seed of the partitions, which are the same for all seeds of training."""
    cohorts: dict[str, list[str]] = Field(default_factory=dict)
    """Folders of cohorts by name, relative to the sweep's file; `--cohorts NAME=PATH,...` replaces them."""
    partitions: Annotated[dict[str, PartitionPlan], Field(min_length=1)]
    models: Annotated[dict[str, ModelPlan], Field(min_length=1)]
    attacks: dict[str, AttackPlan] = Field(default_factory=dict)
    checkpoints: Literal["none", "chosen", "all"] = "chosen"
    """Which models of a finished run stay on disk."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A plan with everything that it names found."""

    path: Path
    plan: SweepPlan
    cohorts: Mapping[str, tuple[Path, ...]]
    overrides: tuple[str, ...]
    """KEY=VALUE for all runs, from the command line; models have the last word."""

    def settings(self, model: str, seed: int) -> RunSettings:
        """The settings of one model's runs. Raises SweepError naming model and setting."""
        config = self.path.parent / self.plan.config if self.plan.config else None
        own = [*self._words(self.plan.set), *self.overrides, *self._words(self.plan.models[model].set)]
        try:
            return load_settings(config, [*own, f"task={self.plan.task}", f"seed={seed}"])
        except SettingsError as error:
            raise SweepError(f"{self.path}: models, {model}: {error}") from None

    def _words(self, settings: Mapping[str, Value]) -> list[str]:
        """KEY=VALUE each; weights are found beside the sweep's file, as cohorts are."""
        words = []
        for key, value in settings.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            if key in FILES and text:
                text = str((self.path.parent / text).resolve())
            words.append(f"{key}={text}")
        return words


def load_sweep(
    path: Path, *, cohorts: Mapping[str, Sequence[Path]] | None = None, overrides: Sequence[str] = ()
) -> Sweep:
    """Read a sweep's YAML; `cohorts` of a name replace the file's.

    Raises SweepError naming what is unknown, missing or does not fit.
    """
    plan = _read(path)
    found = {name: tuple((path.parent / each).resolve() for each in folders) for name, folders in plan.cohorts.items()}
    found |= {name: tuple(each.resolve() for each in folders) for name, folders in (cohorts or {}).items()}
    sweep = Sweep(path=path, plan=plan, cohorts=found, overrides=tuple(overrides))
    problems = [*_problems(plan, found)]
    if problems:
        raise SweepError(f"{path}: {'; '.join(problems)}")
    for model in plan.models:
        sweep.settings(model, plan.seeds[0])
    return sweep


def _read(path: Path) -> SweepPlan:
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise SweepError(f"{path}: no such file; configs/sweeps has examples") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SweepError(f"{path}: expected YAML, found text that does not parse: {error}") from None
    if not isinstance(tree, dict):
        raise SweepError(f"{path}: expected seeds, partitions, models, found a {type(tree).__name__}")
    try:
        return SweepPlan.model_validate(tree)
    except ValidationError as error:
        raise SweepError(f"{path}: {'; '.join(dict.fromkeys(_words_of(each) for each in error.errors()))}") from None


def _words_of(problem: Any) -> str:
    """One problem of pydantic's in words."""
    # A union names its members behind the field's own name.
    key = ", ".join(str(part) for part in problem["loc"] if part not in ("bool", "int", "float", "str"))
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown; docs/sweeps.md lists what a sweep's file may say"
    if problem["type"] == "missing":
        return f"{key}: expected, found nothing"
    return f"{key}: {problem['msg'].lower()}, found {problem['input']!r}"


def _problems(plan: SweepPlan, cohorts: Mapping[str, Sequence[Path]]) -> list[str]:
    """What of a plan names nothing, or does not fit together."""
    names = {"partitions": plan.partitions, "models": plan.models, "attacks": plan.attacks}
    problems = [
        f"{kind}, {name}: expected a name of letters, digits, space, dot, dash, underscore, at most 60, that begins "
        "neither with `seed_` nor with `all of`, because folders are named after it"
        for kind, own in names.items()
        for name in own
        if not _NAME.fullmatch(name) or name.startswith(("seed_", "all of"))
    ]
    if len(set(plan.seeds)) < len(plan.seeds):
        problems.append(f"seeds: expected different numbers, found {plan.seeds}")
    for name, partition in plan.partitions.items():
        if not cohorts.get(partition.cohorts):
            known = ", ".join(cohorts) or "none"
            problems.append(
                f"partitions, {name}: expected cohorts that the file or --cohorts gives ({known}), found "
                f"{partition.cohorts!r}"
            )
        try:
            partition.made()
        except ValueError as error:
            problems.append(f"partitions, {name}: {error}")
    users = [("models", name, own.partitions) for name, own in plan.models.items()]
    users += [("attacks", name, own.partitions) for name, own in plan.attacks.items()]
    for kind, name, partitions in users:
        if unknown := [each for each in partitions if each not in plan.partitions]:
            problems.append(f"{kind}, {name}: expected partitions of the file, found {', '.join(unknown)}")
    federated = [name for name, own in plan.models.items() if own.kind == "federated"]
    for name, attack in plan.attacks.items():
        if unknown := [each for each in attack.models if each not in federated]:
            problems.append(f"attacks, {name}: expected federated models of the file, found {', '.join(unknown)}")
    return problems
