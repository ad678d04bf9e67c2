"""Runs that differ only in their seed, summed up: each metric's mean and standard deviation beside the published ones.

The metrics are those of the union of all sites' patients of a split, computed from the runs' predictions: a mean of
the sites' own metrics would be another number. The standard deviation is over seeds, with one less than their number
below the line, as the published ones are: it says how training moves a metric, and nothing about other patients.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dipro_model.metrics import LOWER_IS_BETTER, METRICS, Metric, metric_names, score
from dipro_model.vocabulary import SPLITS, Task
from federation.files import write_whole
from federation.run_folder import RunError
from simulation.compare import differing_settings
from simulation.published import PUBLISHED, SEEDS, SOURCE, PublishedRow
from simulation.runs import Run, load_runs
from simulation.tables import METRIC_NAMES, three_digits

CSV_NAME, JSON_NAME = "seeds.csv", "seeds.json"

CSV_COLUMNS: tuple[str, ...] = ("metric", "source", "split", "mean", "sd", "num_seeds", "values", "reason")
"""Columns of seeds.csv; `source` is `these runs` or a published row, `values` is JSON text by seed, None is empty."""

_SHOWN_SEEDS = 5
"""As many seeds have a column of their own in a terminal."""


@dataclass(frozen=True, kw_only=True)
class SeedMetric:
    """One metric over the seeds."""

    name: str
    by_seed: Mapping[int, Metric]
    mean: float | None
    """Over the seeds that define it; None where none does."""
    sd: float | None
    """Of the same seeds, n - 1 below the line; None for fewer than two."""
    reason: str | None
    """What is missing, and in which seeds; None where nothing is."""


@dataclass(frozen=True, kw_only=True)
class SeedSummary:
    """Everything that the files and the table say."""

    task: Task
    split: str
    kind: str
    trained_on: tuple[str, ...]
    sites: tuple[str, ...]
    """Sites whose patients are scored, as one set."""
    num_patients: int
    num_samples: int
    folders: Mapping[int, Path]
    """By seed, in the order given."""
    settings: Mapping[str, Any]
    """Of every run but for the seed."""
    metrics: tuple[SeedMetric, ...]
    """All of `metric_names(task)`, in that order."""
    published: tuple[PublishedRow, ...]
    """DiPro's published rows of the task; none for another split than test."""
    notes: tuple[str, ...]
    """What a reader must know before comparing."""


def summarise_seeds(folders: Sequence[Path], split: str = "test") -> SeedSummary:
    """Sum up finished runs of one kind, task, cohort and settings, one a seed.

    Raises RunError (or PredictionsError) naming what else differs between them, a seed that comes twice, and what
    `load_runs` refuses: unfinished runs, other tasks, other sites or samples.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    runs = load_runs(folders)
    _require_one_training(runs)
    first = runs[0]
    scored = {run.record.seed: _score(run, split) for run in runs}
    samples = first.predictions.select(first.predictions.split == split)
    published = PUBLISHED[first.record.task] if split == "test" else ()
    return SeedSummary(
        task=first.record.task,
        split=split,
        kind=first.record.kind,
        trained_on=first.record.trained_on,
        sites=first.record.sites,
        num_patients=len(np.unique(samples.patients)),
        num_samples=len(samples),
        folders={run.record.seed: run.path for run in runs},
        settings={name: value for name, value in first.record.settings.items() if name != "seed"},
        metrics=tuple(
            _over_seeds(name, {seed: metrics[name] for seed, metrics in scored.items()})
            for name in metric_names(first.record.task)
        ),
        published=published,
        notes=tuple(_notes(runs, published)),
    )


def write_seed_summary(summary: SeedSummary, folder: Path) -> None:
    """Write seeds.csv and seeds.json into a folder, each whole or not at all; earlier ones are replaced."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(CSV_COLUMNS))
    writer.writeheader()
    writer.writerows(_csv_rows(summary))
    write_whole(folder / CSV_NAME, text.getvalue().encode())
    facts = {"schema_version": 1, "sd": "over seeds, n - 1", "published_source": SOURCE, **asdict(summary)}
    write_whole(folder / JSON_NAME, (json.dumps(facts, indent=2, allow_nan=False, default=str) + "\n").encode())


def print_seed_summary(summary: SeedSummary, console: Console) -> None:
    """One table: metrics in rows; the seeds, their mean and standard deviation, and the published ones in columns."""
    seeds = list(summary.folders)
    shown = seeds if len(seeds) <= _SHOWN_SEEDS else []
    table = Table(title=f"{summary.task}, {summary.split} split, {len(seeds)} seeds", title_justify="left")
    table.add_column("metric")
    for heading in (*(f"seed {seed}" for seed in shown), "mean ± sd", *(f"DiPro, {r.name}" for r in summary.published)):
        table.add_column(heading, justify="right")
    for metric in summary.metrics:
        if metric.name in METRICS[summary.task]:
            values = [_number(metric.by_seed[seed].value) for seed in shown]
            published = [_mean_and_sd(*row.metrics.get(metric.name, (None, None))) for row in summary.published]
            name = METRIC_NAMES[metric.name] + (" ↓" if metric.name in LOWER_IS_BETTER else "")
            table.add_row(Text(name), *values, _mean_and_sd(metric.mean, metric.sd), *published)
    console.print(table)
    patients = (
        f"{summary.num_patients} patients, {summary.num_samples} samples of {', '.join(summary.sites)} as one set"
    )
    for line in (f"{patients}; sd over seeds (n - 1). ↓: lower is better.", *_reasons(summary), *summary.notes):
        console.print(Text(line))


def _require_one_training(runs: Sequence[Run]) -> None:
    """Refuse runs that differ in more than their seed, or not even in that."""
    twice = [seed for seed, times in Counter(run.record.seed for run in runs).items() if times > 1]
    if twice:
        folders = ", ".join(str(run.path) for run in runs if run.record.seed in twice)
        raise RunError(f"expected one run a seed, found seed {', '.join(map(str, twice))} several times: {folders}")
    settings = {name: values for name, values in differing_settings(runs).items() if name != "seed"}
    for name in ("kind", "trained_on"):
        values = {run.label: json.dumps(getattr(run.record, name)) for run in runs}
        if len(set(values.values())) > 1:
            settings[name] = values
    if settings:
        words = [
            f"{name} ({', '.join(f'{values.get(run.label)} in {run.path}' for run in runs)})"
            for name, values in settings.items()
        ]
        raise RunError(
            f"expected runs that differ only in their seed, but these differ in {'; '.join(words)}. "
            "Sum up the runs of each setting by themselves; `dipro-fed compare` shows different ones side by side"
        )


def _score(run: Run, split: str) -> dict[str, Metric]:
    own = run.predictions.select(run.predictions.split == split)
    return score(own.task, own.labels, own.probabilities)


def _over_seeds(name: str, by_seed: Mapping[int, Metric]) -> SeedMetric:
    values = [metric.value for metric in by_seed.values() if metric.value is not None]
    reasons: dict[str, list[int]] = {}
    for seed, metric in by_seed.items():
        if metric.reason is not None:
            reasons.setdefault(metric.reason, []).append(seed)
    words = [
        reason if len(seeds) == len(by_seed) else f"seed {', '.join(map(str, seeds))}: {reason}"
        for reason, seeds in reasons.items()
    ]
    if 0 < len(values) < len(by_seed):
        words.append(f"mean and sd over the other {len(values)} of {len(by_seed)} seeds")
    if len(values) == 1:
        words.append("a standard deviation needs at least two seeds")
    return SeedMetric(
        name=name,
        by_seed=by_seed,
        mean=fmean(values) if values else None,
        sd=stdev(values) if len(values) > 1 else None,
        reason="; ".join(words) or None,
    )


def _notes(runs: Sequence[Run], published: Sequence[PublishedRow]) -> Iterator[str]:
    if len({run.record.more.get("code_digest") for run in runs}) > 1:
        yield "The runs were not made by the same version of the code."
    if published:
        yield f"DiPro: {SOURCE}. Other patients give other numbers, whatever the model."
        reads = runs[0].record.settings.get("parts", {})
        radiographs = "all radiographs" if reads.get("sequence", True) else "the last radiograph only"
        records = "hourly records" if reads.get("ehr", True) else "no hourly records"
        yield f"These runs read {radiographs if reads.get('radiographs', True) else 'no radiograph'} and {records}."


def _reasons(summary: SeedSummary) -> list[str]:
    """A line for each thing that is missing in a shown metric."""
    metrics: dict[str, list[str]] = {}
    for metric in summary.metrics:
        if metric.reason and metric.name in METRICS[summary.task]:
            metrics.setdefault(metric.reason, []).append(metric.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in metrics.items()]


def _csv_rows(summary: SeedSummary) -> Iterator[dict[str, Any]]:
    for metric in summary.metrics:
        common = {"metric": metric.name, "split": summary.split}
        values = json.dumps({seed: each.value for seed, each in metric.by_seed.items()})
        own = {"mean": metric.mean, "sd": metric.sd, "num_seeds": len(metric.by_seed), "reason": metric.reason}
        yield {"source": "these runs", "values": values, **common, **own}
        for row in summary.published:
            if metric.name in row.metrics:
                mean, sd = row.metrics[metric.name]
                yield {"source": f"DiPro, {row.name}", "mean": mean, "sd": sd, "num_seeds": len(SEEDS), **common}


def _number(value: float | None) -> str:
    return "undefined" if value is None else three_digits(value)


def _mean_and_sd(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return "–"
    return three_digits(mean) + (f" ± {three_digits(sd)}" if sd is not None else "")
