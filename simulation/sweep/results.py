"""What a sweep's runs say together: each model's metrics over seeds, beside centralized training on the same patients.

Metrics are those of all sites' patients of a split as one set. Partitions are the same for all seeds, so that all runs
on one partition are scored on the same patients; differences are taken patient by patient, in resamples of patients
that are the same for all runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from dipro_model.metrics import HEADLINE, metric_names, score
from dipro_model.vocabulary import Task
from federation.run_folder import RunRecord, read_run
from simulation.sweep.aligned import read_in_order, resampled, sample_keys
from simulation.sweep.cells import Cell
from simulation.sweep.folder import SweepFolder
from simulation.sweep.plan import SweepError

SCORED = ("val", "test")
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number over seeds."""

    by_seed: Mapping[int, float | None]
    mean: float | None
    """Over the seeds that define it."""
    sd: float | None
    """Of the same, n - 1 below the line; None for fewer than two."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of a metric, mean over the seeds that both have, with an interval over patients."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model on one partition, over all seeds that are finished."""

    partition: str
    model: str
    attack: str
    """Name of the attack; empty without one."""
    site: str
    """Of a local model, its site; empty otherwise."""
    kind: str
    metrics: Mapping[tuple[str, str], Spread]
    """By split and metric."""
    share: Mapping[str, float | None]
    """By metric, of the test mean: this divided by the centralized one's; empty without a centralized run."""
    difference: Mapping[str, Difference]
    """By metric, on the test patients: this minus centralized."""
    from_unattacked: Mapping[str, Difference]
    """By metric, on the test patients: this minus the same model without the attack; empty without an attack."""
    above_local: Mapping[str, bool]
    """By metric, whether the test mean is above that of every local model; empty without local models."""
    seconds: float
    """Mean over seeds of a run's wall time."""
    to_sites_bytes: float | None
    from_sites_bytes: float | None
    """Means over seeds of what travelled in a run; None where nothing does."""
    steps: float | None
    """Mean over seeds of the rounds that were made; None where none are counted."""
    num_refused: int
    """Replies refused by guards, over all seeds."""
    num_failed: int
    """Seeds whose run failed, and which are in no number here."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that the tables say."""

    task: Task
    rows: tuple[Row, ...]
    """By partition, then in the order of the file."""
    num_patients: Mapping[str, int]
    """Of each partition's test part."""
    num_resamples: int
    codes: tuple[str, ...]
    """Digests of the code that made the runs; more than one means that it changed meanwhile."""

    def of(self, partition: str) -> list[Row]:
        return [row for row in self.rows if row.partition == partition]

    @property
    def partitions(self) -> list[str]:
        return list(dict.fromkeys(row.partition for row in self.rows))


def shown_metrics(task: Task) -> tuple[str, ...]:
    """What a sweep's table shows: both areas, and the first published metric of the task."""
    return tuple(dict.fromkeys(("auroc", "auprc", HEADLINE[task][0])))


def collect_results(
    cells: Sequence[Cell], folder: SweepFolder, *, failed: Iterable[str] = (), num_resamples: int = 1000, seed: int = 0
) -> Results:
    """Score the finished runs of a sweep; those of `failed` names are counted and left out.

    Raises SweepError where two runs on one partition are not of the same patients, or none is finished.
    """
    broken = set(failed)
    records = {cell.name: read_run(folder.run(cell)) for cell in cells if cell.name not in broken}
    if not records:
        raise SweepError(f"{folder.path}: expected at least one finished run to make a table of, found none")
    rows: list[Row] = []
    num_patients: dict[str, int] = {}
    for partition in dict.fromkeys(name for cell in cells for name in cell.partitions):
        own = [cell for cell in cells if partition in cell.partitions]
        table = _Table(partition, own, folder, records, num_resamples, seed)
        rows += table.rows()
        num_patients[partition] = table.num_patients
    return Results(
        task=cells[0].settings.task,
        rows=tuple(rows),
        num_patients=num_patients,
        num_resamples=num_resamples,
        codes=tuple(sorted({str(record.more.get("code_digest")) for record in records.values()})),
    )


_Key = tuple[str, str, str]
"""Model, attack and site: what a row is of."""


class _Table:
    """The rows of one partition."""

    def __init__(
        self,
        partition: str,
        cells: Sequence[Cell],
        folder: SweepFolder,
        records: Mapping[str, RunRecord],
        num_resamples: int,
        seed: int,
    ) -> None:
        self.partition, self.cells, self.folder, self.records = partition, cells, folder, records
        self.num_resamples, self.seed = num_resamples, seed
        self.task = cells[0].settings.task
        self.names = shown_metrics(self.task)
        self.order: list[tuple[Any, ...]] | None = None
        self.num_patients = 0
        self.scores: dict[tuple[_Key, int], dict[tuple[str, str], float | None]] = {}
        self.draws: dict[tuple[_Key, int], dict[str, np.ndarray]] = {}
        for cell in cells:
            if cell.name in records:
                self._read(cell)

    def rows(self) -> list[Row]:
        keys = list(dict.fromkeys(_key(cell) for cell in self.cells))
        central = next((_key(cell) for cell in self.cells if cell.kind == "centralized"), None)
        return [self._row(key, central) for key in keys]

    def _read(self, cell: Cell) -> None:
        predictions = read_in_order(cell, self.folder.run(cell))
        keys = sample_keys(predictions)
        if self.order is None:
            self.order = keys
        if keys != self.order:
            raise SweepError(
                f"{self.folder.run(cell)}: expected the patients of the other runs on {self.partition}, found others; "
                "delete this run, and the same command makes it anew"
            )
        key = (_key(cell), cell.seed)
        self.scores[key] = {}
        for split in SCORED:
            own = predictions.select(predictions.split == split)
            metrics = score(self.task, own.labels, own.probabilities)
            self.scores[key] |= {(split, name): metrics[name].value for name in metric_names(self.task)}
        if cell.kind != "local":
            test = predictions.select(predictions.split == "test")
            self.num_patients = len(np.unique(test.patients))
            self.draws[key] = resampled(test, self.names, num_resamples=self.num_resamples, seed=self.seed)

    def _row(self, key: _Key, central: _Key | None) -> Row:
        cells = [cell for cell in self.cells if _key(cell) == key]
        records = [self.records[cell.name] for cell in cells if cell.name in self.records]
        model, attack, site = key
        kind = cells[0].kind
        metrics = {(split, name): self._spread(key, split, name) for split in SCORED for name in self.names}
        is_compared = central is not None and key != central and bool(records)
        traffic = [record.more["traffic"] for record in records if "traffic" in record.more]
        return Row(
            partition=self.partition,
            model=model,
            attack=attack,
            site=site,
            kind=kind,
            metrics=metrics,
            share=self._shares(key, central) if is_compared and central else {},
            difference=self._differences(key, central) if is_compared and central and kind != "local" else {},
            from_unattacked=self._differences(key, (model, "", "")) if attack else {},
            above_local=self._above_local(key) if kind != "local" else {},
            seconds=fmean(record.seconds for record in records) if records else 0.0,
            to_sites_bytes=_mean(each["to_sites_bytes"] for each in traffic),
            from_sites_bytes=_mean(each["from_sites_bytes"] for each in traffic),
            steps=_mean(each["rounds"] for each in traffic),
            num_refused=sum(len(record.more.get("refused", [])) for record in records),
            num_failed=len(cells) - len(records),
        )

    def _spread(self, key: _Key, split: str, name: str) -> Spread:
        by_seed = {seed: scores[split, name] for (own, seed), scores in self.scores.items() if own == key}
        values = [value for value in by_seed.values() if value is not None]
        return Spread(by_seed=by_seed, mean=_mean(values), sd=stdev(values) if len(values) > 1 else None)

    def _shares(self, key: _Key, central: _Key) -> dict[str, float | None]:
        shares: dict[str, float | None] = {}
        for name in self.names:
            own, whole = self._spread(key, "test", name).mean, self._spread(central, "test", name).mean
            shares[name] = own / whole if own is not None and whole else None
        return shares

    def _differences(self, key: _Key, other: _Key) -> dict[str, Difference]:
        """Mean over the seeds that both have, in every resample; the interval is of that mean."""
        seeds = [seed for own, seed in self.draws if own == key and (other, seed) in self.draws]
        differences = {}
        for name in self.names:
            plain = [(self.scores[key, seed]["test", name], self.scores[other, seed]["test", name]) for seed in seeds]
            values = [own - whole for own, whole in plain if own is not None and whole is not None]
            if not values or len(values) < len(seeds):
                continue
            drawn = np.mean([self.draws[key, seed][name] - self.draws[other, seed][name] for seed in seeds], axis=0)
            drawn = drawn[~np.isnan(drawn)]
            if 2 * len(drawn) < self.num_resamples:
                continue
            low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            differences[name] = Difference(value=fmean(values), low=float(low), high=float(high))
        return differences

    def _above_local(self, key: _Key) -> dict[str, bool]:
        local = list(dict.fromkeys(_key(cell) for cell in self.cells if cell.kind == "local"))
        above = {}
        for name in self.names:
            own = self._spread(key, "test", name).mean
            others = [value for each in local if (value := self._spread(each, "test", name).mean) is not None]
            if own is not None and others:
                above[name] = own > max(others)
        return above


def _key(cell: Cell) -> _Key:
    return cell.model, cell.attack_name, cell.only or ""


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return fmean(listed) if listed else None
