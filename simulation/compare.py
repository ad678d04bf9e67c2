"""The comparison: every model's metrics on the same patients, pooled and at each site, with intervals.

Rows are models: centralized, federated, personal, each site alone; and one row (with several seeds, one a seed) that
gives every site's patients to the model which that site would have had alone. Columns are the pooled samples of a split
and those of each site.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from client.predictions import Predictions
from dipro_model.curves import Reliability, reliability_curve
from dipro_model.metrics import METRICS, Interval, Metric, bootstrap, metric_names, score
from dipro_model.vocabulary import TASK_CLASSES, Task
from federation.run_folder import POOLED, RunError
from simulation.runs import Run

ALONE = "each site alone, on its own patients"


@dataclass(frozen=True, kw_only=True)
class Model:
    """One row of the table."""

    label: str
    kind: str
    """centralized, federated, personal (a model of each site's own that a federation began), local, evaluated, or alone
    (the union of all sites' own models on their own patients)."""
    trained_on: tuple[str, ...]
    run: str
    """Folder of the run; empty for the union."""
    seed: int | None
    """None for a union of runs of different seeds."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table: whose samples."""

    site: str
    """A site's name, or `pooled`."""
    num_patients: int
    num_samples: int
    class_counts: Mapping[str, int]
    """Labels of each class; for progression over all diseases, so that a sample counts up to seven times."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of one model on one column's samples."""

    metric: str
    model: str
    site: str
    result: Metric
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that the report shows."""

    task: Task
    split: str
    level: float
    num_resamples: int
    seed: int
    models: tuple[Model, ...]
    columns: tuple[Column, ...]
    """Pooled first, then the sites in order."""
    cells: Mapping[tuple[str, str, str], Cell]
    """By metric, model label and site."""
    predictions: Mapping[str, Predictions]
    """By model label, of the split; all models have the same samples in the same order."""
    reliability: Mapping[str, Mapping[str, Reliability]]
    """By model label and output (diseases, or the task), on the pooled samples: the curve behind the `ece`."""
    runs: tuple[Run, ...]
    differing_settings: Mapping[str, Mapping[str, str]]
    """Settings that are not the same in all runs: name -> run label -> value as JSON text, absent where unset."""
    num_leaked: int
    """Patients with samples in more than one split; more than 0 means that scores may be too good."""
    notes: tuple[str, ...]
    """What a reader must know about what the table lacks."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's metrics, those of single diseases left out."""
        return METRICS[self.task]


def compare(
    runs: Sequence[Run], *, split: str = "test", num_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Comparison:
    """Score the models of `load_runs` on one split.

    Within a column every model is resampled with the same draws of patients, so that their intervals differ by the
    models alone. Raises RunError where a model was evaluated on another split.
    """
    task, sites = runs[0].record.task, runs[0].record.sites
    _require_split(runs, split)
    scored = {_model(run): _of_split(run.predictions, split) for run in runs}
    unions, notes = _each_site_alone(runs, sites)
    scored |= {union: _of_split(together, split) for union, together in unions.items()}
    num_leaked = _num_leaked(runs[0].predictions)
    if num_leaked:
        notes.append(f"Patients with samples in more than one split: {num_leaked}. Scores may be too good.")
    reference = next(iter(scored.values()))
    columns = [_column(task, site, at_site(reference, site)) for site in (POOLED, *sites)]
    cells = [
        cell
        for model, predictions in scored.items()
        for site in (POOLED, *sites)
        for cell in _cells(task, model.label, site, at_site(predictions, site), num_resamples, seed, level)
    ]
    return Comparison(
        task=task,
        split=split,
        level=level,
        num_resamples=num_resamples,
        seed=seed,
        models=tuple(scored),
        columns=tuple(columns),
        cells={(cell.metric, cell.model, cell.site): cell for cell in cells},
        predictions={model.label: predictions for model, predictions in scored.items()},
        reliability={model.label: _reliability(predictions) for model, predictions in scored.items()},
        runs=tuple(runs),
        differing_settings=differing_settings(runs),
        num_leaked=num_leaked,
        notes=tuple(notes),
    )


def _require_split(runs: Sequence[Run], split: str) -> None:
    for run in runs:
        if split not in run.splits:
            found = ", ".join(sorted(run.splits))
            raise RunError(
                f"{run.path}: expected scores of the {split} split, found those of {found} alone; evaluate the model "
                f"with --split {split} too, or compare with --split {found}"
            )


def differing_settings(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Settings, by dotted name, that some runs have otherwise or not at all; the seed is one of them."""
    flat = {run.label: _flat({"seed": run.record.seed, **run.record.settings}) for run in runs}
    names = dict.fromkeys(name for settings in flat.values() for name in settings)
    table = {name: {label: settings[name] for label, settings in flat.items() if name in settings} for name in names}
    return {name: values for name, values in table.items() if len(values) < len(runs) or len(set(values.values())) > 1}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value, ensure_ascii=False)
    return flat


def _model(run: Run) -> Model:
    kind = "personal" if run.is_personal else run.record.kind
    return Model(label=run.label, kind=kind, trained_on=run.record.trained_on, run=str(run.path), seed=run.record.seed)


def _free(label: str, runs: Sequence[Run]) -> str:
    """The label, marked where a run has taken it for itself."""
    return f"{label} (union)" if label in {run.label for run in runs} else label


def _each_site_alone(runs: Sequence[Run], sites: tuple[str, ...]) -> tuple[dict[Model, Predictions], list[str]]:
    """Each site's samples as scored by the site's own local model, or a note why there is no such row.

    One row where there is one local run of every site, whatever the seeds; else a row for every seed that has one.
    """
    local = [run for run in runs if run.record.kind == "local"]
    seeds = sorted({run.record.seed for run in local})
    if not local:
        return {}, []
    if len(seeds) == 1 or not _why_no_union(local, sites):
        why = _why_no_union(local, sites)
        if why:
            return {}, [f"There is no row “{ALONE}”: it needs one local run of every site, found {why}."]
        seed = seeds[0] if len(seeds) == 1 else None
        union = Model(label=_free(ALONE, runs), kind="alone", trained_on=sites, run="", seed=seed)
        return {union: _union(local, sites)}, []
    unions, notes = {}, []
    for seed in seeds:
        own = [run for run in local if run.record.seed == seed]
        why, label = _why_no_union(own, sites), _free(f"{ALONE}, seed {seed}", runs)
        if why:
            notes.append(f"There is no row “{label}”: it needs one local run of every site, found {why}.")
        else:
            unions[Model(label=label, kind="alone", trained_on=sites, run="", seed=seed)] = _union(own, sites)
    return unions, notes


def _why_no_union(local: Sequence[Run], sites: tuple[str, ...]) -> str:
    """Of which sites there is no local run or more than one, in words; empty where every site has one."""
    counts = Counter(run.record.trained_on for run in local)
    missing = [site for site in sites if not counts[(site,)]]
    several = [site for site in sites if counts[(site,)] > 1]
    words = [f"no local run of {', '.join(missing)}"] if missing else []
    words += [f"several local runs of {', '.join(several)}"] if several else []
    return " and ".join(words)


def _union(local: Sequence[Run], sites: tuple[str, ...]) -> Predictions:
    """The samples of each site, as its own run scored them."""
    own = {run.record.trained_on: run.predictions for run in local}
    first, *others = [at_site(own[(site,)], site) for site in sites]
    joined = first.join(others)
    # The order of the other models' rows, so that the same draws hit the same patients.
    return joined.select(np.lexsort((joined.sample_id, joined.site)))


def _of_split(predictions: Predictions, split: str) -> Predictions:
    return predictions.select(predictions.split == split)


def at_site(predictions: Predictions, site: str) -> Predictions:
    """The samples of a site, or all where it is `pooled`."""
    return predictions if site == POOLED else predictions.select(predictions.site == site)


def _num_leaked(predictions: Predictions) -> int:
    """Patients whose samples lie in more than one split."""
    in_splits = set(zip(predictions.patients.tolist(), predictions.split.tolist(), strict=True))
    return sum(times > 1 for times in Counter(patient for patient, _ in in_splits).values())


def _column(task: Task, site: str, predictions: Predictions) -> Column:
    return Column(
        site=site,
        num_patients=len(np.unique(predictions.patients)),
        num_samples=len(predictions),
        class_counts={name: int((predictions.labels == value).sum()) for value, name in enumerate(TASK_CLASSES[task])},
    )


def _cells(
    task: Task, model: str, site: str, predictions: Predictions, num_resamples: int, seed: int, level: float
) -> list[Cell]:
    names = metric_names(task)
    arguments = (task, predictions.labels, predictions.probabilities)
    results = score(*arguments)
    intervals = bootstrap(
        *arguments, predictions.patients, metrics=names, num_resamples=num_resamples, seed=seed, level=level
    )
    return [Cell(metric=name, model=model, site=site, result=results[name], interval=intervals[name]) for name in names]


def _reliability(predictions: Predictions) -> dict[str, Reliability]:
    """The first curve of every output, which is the one that the calibration error sums up."""
    curves = reliability_curve(predictions.task, predictions.labels, predictions.probabilities)
    return {output: next(iter(classes.values())) for output, classes in curves.items()}
