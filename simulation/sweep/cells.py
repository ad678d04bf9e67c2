"""The cells of a sweep: one run each, with all that its result depends on."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from client.cohort import Cohort, open_cohort, sha256_of
from client.gaps import NO_GAPS
from client.records import SiteSpec
from federation.settings import RunSettings, SettingsError
from server.strategies import StrategyError, make_strategy
from simulation.attacks import Attack
from simulation.flower import for_sites
from simulation.partition.draw import draw_partition
from simulation.partition.manifest import Partition, PartitionError, cohort_checksum, site_specs
from simulation.sites import site_names
from simulation.sweep.plan import FILES, Sweep, SweepError


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One run of a sweep."""

    name: str
    """Where it lies below the sweep's folders: who has which patients, the model, the seed."""
    label: str
    """What reports call the model."""
    partitions: tuple[str, ...]
    """Partitions whose tables it is in: a centralized run serves all that pool the same patients."""
    model: str
    kind: str
    """centralized, local or federated."""
    seed: int
    only: str | None
    """The one site that a local model learns from."""
    attack_name: str
    """Empty without one."""
    attack: Attack | None
    specs: tuple[SiteSpec, ...]
    settings: RunSettings
    data: Mapping[str, str]
    """By site, a digest of its patients, records and gaps."""
    weights: str
    """SHA-256 of the files of weights that the network begins with; empty without."""
    work: float
    """Passes over all training patients, about; for estimates of time."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes a finished run this one; plain values for JSON."""
        attack = None if self.attack is None else {"site": self.attack.site, "kind": str(self.attack.kind)}
        return {
            "kind": self.kind,
            "label": self.label,
            "only": self.only,
            "attack": attack,
            "sites": dict(self.data),
            "weights": self.weights,
            "settings": self.settings.model_dump(mode="json"),
        }

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    @property
    def num_steps(self) -> int:
        """Epochs or rounds, at most."""
        return self.settings.federation.rounds if self.kind == "federated" else self.settings.training.epochs


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A sweep taken apart."""

    cells: tuple[Cell, ...]
    """In the order in which they are run: seed after seed, so that the first seed's table is complete early."""
    partitions: Mapping[str, Partition]


@dataclass(frozen=True, kw_only=True)
class _Sites:
    """Sites that cells share."""

    specs: tuple[SiteSpec, ...]
    data: Mapping[str, str]


def make_cells(sweep: Sweep) -> Cells:
    """Draw the partitions and lay out every run; nothing is trained or written.

    Raises SweepError naming partition and model for what cannot be: a partition that leaves a site short, a strategy
    that so many sites cannot serve, weights that are not there; CohortError for a cohort that is not whole.
    """
    cohorts = {
        name: [open_cohort(path) for path in sweep.cohorts[name]]
        for name in dict.fromkeys(partition.cohorts for partition in sweep.plan.partitions.values())
    }
    checksums = {cohort.path: cohort_checksum(cohort) for opened in cohorts.values() for cohort in opened}
    partitions: dict[str, Partition] = {}
    sites: dict[str, _Sites] = {}
    for name, plan in sweep.plan.partitions.items():
        try:
            drawn = draw_partition(cohorts[plan.cohorts], plan.made(), sweep.plan.task, sweep.plan.partition_seed)
        except PartitionError as error:
            raise SweepError(f"{sweep.path}: partitions, {name}: {error}") from None
        partitions[name] = drawn
        sites[name] = _sites(site_specs(drawn, cohorts[plan.cohorts], source=sweep.path), checksums)
    pools = {name: _sites(_whole(opened), checksums) for name, opened in cohorts.items()}
    layout = _Layout(sweep=sweep, sites=sites, pools=pools)
    cells = tuple(cell for seed in sweep.plan.seeds for cell in layout.cells(seed))
    return Cells(cells=cells, partitions=partitions)


def _whole(cohorts: Sequence[Cohort]) -> list[SiteSpec]:
    """Each cohort as one site, with all its patients."""
    names = site_names([cohort.path for cohort in cohorts])
    return [SiteSpec(name=name, cohort=cohort.path) for name, cohort in zip(names, cohorts, strict=True)]


def _sites(specs: Sequence[SiteSpec], checksums: Mapping[Path, str]) -> _Sites:
    data = {}
    for spec in specs:
        facts = {"cohort": checksums[spec.cohort], "subjects": spec.subjects, "gaps": asdict(spec.gaps)}
        data[spec.name] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return _Sites(specs=tuple(specs), data=data)


class _Layout:
    """Lays out the cells of a sweep."""

    def __init__(self, *, sweep: Sweep, sites: Mapping[str, _Sites], pools: Mapping[str, _Sites]) -> None:
        self.sweep, self.sites, self.pools = sweep, sites, pools
        self._weights: dict[str, str] = {}

    def cells(self, seed: int) -> Iterator[Cell]:
        """All of one seed: centralized ones first, because all else is compared with them."""
        plan = self.sweep.plan
        for model, own in plan.models.items():
            if own.kind == "centralized":
                yield from self._centralized(model, seed)
        for partition in plan.partitions:
            for model, own in plan.models.items():
                if own.partitions and partition not in own.partitions:
                    continue
                if own.kind == "local":
                    for spec in self.sites[partition].specs:
                        yield self._cell(model, seed, self.sites[partition], (partition,), only=spec.name)
                elif own.kind == "federated":
                    yield self._cell(model, seed, self.sites[partition], (partition,))
                    yield from self._attacked(partition, model, seed)

    def _centralized(self, model: str, seed: int) -> Iterator[Cell]:
        """A run for all partitions of the same cohorts, and one more for each that lacks something."""
        shared: dict[str, list[str]] = {}
        for name, partition in self.sweep.plan.partitions.items():
            wanted = self.sweep.plan.models[model].partitions
            if wanted and name not in wanted:
                continue
            if all(spec.gaps == NO_GAPS for spec in self.sites[name].specs):
                shared.setdefault(partition.cohorts, []).append(name)
            else:
                yield self._cell(model, seed, self.sites[name], (name,))
        for cohorts, names in shared.items():
            yield self._cell(model, seed, self.pools[cohorts], tuple(names), place=f"all of {cohorts}")

    def _attacked(self, partition: str, model: str, seed: int) -> Iterator[Cell]:
        specs = self.sites[partition].specs
        for name, plan in self.sweep.plan.attacks.items():
            if model in plan.models and (not plan.partitions or partition in plan.partitions):
                if plan.site > len(specs):
                    raise SweepError(
                        f"{self.sweep.path}: attacks, {name}: expected a site from 1 to {len(specs)} of the partition "
                        f"{partition}, found {plan.site}"
                    )
                attack = Attack(kind=plan.kind, site=specs[plan.site - 1].name)
                yield self._cell(model, seed, self.sites[partition], (partition,), attack=(name, attack))

    def _cell(
        self,
        model: str,
        seed: int,
        sites: _Sites,
        partitions: tuple[str, ...],
        *,
        place: str | None = None,
        only: str | None = None,
        attack: tuple[str, Attack] | None = None,
    ) -> Cell:
        kind = self.sweep.plan.models[model].kind
        settings = self.sweep.settings(model, seed)
        if kind == "federated":
            settings = self._federated(settings, sites, f"models, {model}, on {partitions[0]}")
        parts = [place or partitions[0], model, *([only] if only else []), *([attack[0]] if attack else [])]
        label = f"{model}, {only}" if only else f"{model}, attacked: {attack[0]}" if attack else model
        passes = settings.federation.rounds * settings.federation.local_epochs
        return Cell(
            name="/".join([*parts, f"seed_{seed}"]),
            label=label,
            partitions=partitions,
            model=model,
            kind=kind,
            seed=seed,
            only=only,
            attack_name=attack[0] if attack else "",
            attack=attack[1] if attack else None,
            specs=sites.specs,
            settings=settings,
            data=sites.data,
            weights=" ".join(filter(None, (self._digest(key, settings) for key in FILES))),
            work=passes if kind == "federated" else settings.training.epochs / (len(sites.specs) if only else 1),
        )

    def _federated(self, settings: RunSettings, sites: _Sites, where: str) -> RunSettings:
        """The settings for these sites, once it is sure that the strategy can serve them."""
        strategy = settings.strategy
        try:
            settings = for_sites(settings, sites.specs)
            make_strategy(strategy.name, strategy.parameters(), num_sites=len(sites.specs))
        except (SettingsError, StrategyError) as error:
            raise SweepError(f"{self.sweep.path}: {where}: {error}") from None
        return settings

    def _digest(self, key: str, settings: RunSettings) -> str:
        path = getattr(settings.model, key.removeprefix("model."))
        if path and path not in self._weights:
            if not Path(path).is_file():
                raise SweepError(
                    f"{self.sweep.path}: {key}: expected a file of weights, found none at {path}; "
                    f"train it first, or give another with --set {key}=FILE"
                )
            self._weights[path] = sha256_of(Path(path))
        return self._weights.get(path, "")
