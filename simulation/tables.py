"""The comparison as files for other programs (table.csv, table.json, curves.csv) and as tables in a terminal."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dipro_model.curves import Reliability
from dipro_model.metrics import CALIBRATION, HEADLINE, LOWER_IS_BETTER, Interval
from dipro_model.vocabulary import Task
from simulation.compare import Cell, Column, Comparison

METRIC_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "kappa": "Cohen's kappa",
    "accuracy": "Accuracy",
    "f1": "Macro F1",
    "precision": "Macro precision",
    "recall": "Macro recall",
    "f1_micro": "Micro F1",
    "precision_micro": "Micro precision",
    "recall_micro": "Micro recall",
    "brier": "Brier score",
    "ece": "Calibration error",
}
"""What people call the metrics."""

TABLE_COLUMNS = (
    "metric",
    "model",
    "kind",
    "trained_on",
    "site",
    "split",
    "value",
    "low",
    "high",
    "level",
    "num_resamples",
    "num_undefined",
    "num_patients",
    "num_samples",
    "class_counts",
    "reason",
)
"""Columns of table.csv, one row a metric, model and site; lists and counts are JSON text, None is empty."""

CURVE_COLUMNS = ("run", "kind", "step_unit", "step", "site", "split", "quantity", "value", "num_samples")
"""Columns of curves.csv; `quantity` is loss, loss/<part> or a metric; an undefined value is empty."""


def write_table_csv(comparison: Comparison, path: Path) -> None:
    """Every cell of the comparison as a row, at full precision."""
    write_csv(path, TABLE_COLUMNS, _rows(comparison))


def write_table_json(comparison: Comparison, path: Path) -> None:
    """The whole comparison but its curves, at full precision; null is undefined, beside its reason."""
    facts = {
        "schema_version": 1,
        "task": comparison.task,
        "split": comparison.split,
        "bootstrap": {
            "unit": "patient",
            "kind": "percentile",
            "kind_of_ece": "basic",
            "level": comparison.level,
            "num_resamples": comparison.num_resamples,
            "seed": comparison.seed,
        },
        "columns": [
            {
                "site": column.site,
                "num_patients": column.num_patients,
                "num_samples": column.num_samples,
                "class_counts": dict(column.class_counts),
            }
            for column in comparison.columns
        ],
        "runs": [
            {
                "label": run.label,
                "folder": str(run.path),
                "kind": run.record.kind,
                "trained_on": run.record.trained_on,
                "seed": run.record.seed,
                "best_step": run.record.best_step,
                "step_unit": run.record.step_unit,
                "seconds": run.record.seconds,
                "settings": run.record.settings,
            }
            for run in comparison.runs
        ],
        "differing_settings": comparison.differing_settings,
        "notes": comparison.notes,
        "lower_is_better": [metric for metric in comparison.metrics if metric in LOWER_IS_BETTER],
        "reliability": {
            model: {output: _reliability_facts(curve) for output, curve in outputs.items()}
            for model, outputs in comparison.reliability.items()
        },
        "cells": list(_rows(comparison)),
    }
    path.write_text(json.dumps(facts, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def write_curves_csv(comparison: Comparison, path: Path) -> None:
    """Every loss and metric of every step of every run."""
    write_csv(path, CURVE_COLUMNS, _curve_rows(comparison))


def print_table(comparison: Comparison, console: Console) -> None:
    """One table: a section a published or calibration metric, models in rows; pooled samples and sites in columns."""
    shown = (*HEADLINE[comparison.task], *CALIBRATION)
    table = Table(title=f"{comparison.task}, {comparison.split} split", title_justify="left")
    table.add_column("model")
    for column in comparison.columns:
        table.add_column(Text(f"{column.site}\n{in_words(comparison.task, column)}"), justify="right")
    for metric in shown:
        table.add_section()
        table.add_row(Text(METRIC_NAMES[metric] + direction(metric), style="bold"))
        for model in comparison.models:
            cells = [comparison.cells[metric, model.label, column.site] for column in comparison.columns]
            table.add_row(Text(model.label), *[Text(_in_terminal(cell)) for cell in cells])
    console.print(table)
    console.print(f"Below each value: {100 * comparison.level:g} % bootstrap interval over patients.", highlight=False)
    others = [metric for metric in comparison.metrics if metric not in shown]
    if others:
        console.print(f"In table.csv, too: {', '.join(others)}.", highlight=False)
    for note in [*_why_undefined(comparison, shown), *comparison.notes]:
        console.print(Text(note))


def in_words(task: Task, column: Column) -> str:
    """How many patients and samples."""
    sample = "radiograph pair" if task is Task.DISEASE_PROGRESSION else "stay"
    return f"{_counted(column.num_patients, 'patient')}, {_counted(column.num_samples, sample)}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def three_digits(value: float) -> str:
    """Three decimals, with a minus that does not look like a dash."""
    return f"{value:.3f}".replace("-", "−")


def interval_in_words(interval: Interval) -> str | None:
    """Lower and upper end; None where there is no interval."""
    if interval.low is None or interval.high is None:
        return None
    return f"{three_digits(interval.low)}–{three_digits(interval.high)}"


def direction(metric: str) -> str:
    """What has to be said beside a metric of which less is better; nothing for the others."""
    return " (lower is better)" if metric in LOWER_IS_BETTER else ""


def _why_undefined(comparison: Comparison, shown: Sequence[str]) -> list[str]:
    """A line for every reason that a shown cell has no value."""
    sites: dict[str, dict[str, None]] = {}
    for cell in (cell for (metric, _, _), cell in comparison.cells.items() if metric in shown):
        if cell.result.value is None:
            sites.setdefault(str(cell.result.reason), {})[cell.site] = None
    return [f"undefined at {', '.join(where)}: {reason}" for reason, where in sites.items()]


def _in_terminal(cell: Cell) -> str:
    if cell.result.value is None:
        return "undefined"
    return "\n".join(filter(None, [three_digits(cell.result.value), interval_in_words(cell.interval)]))


def _rows(comparison: Comparison) -> Iterable[dict[str, Any]]:
    models = {model.label: model for model in comparison.models}
    columns = {column.site: column for column in comparison.columns}
    for cell in comparison.cells.values():
        model, column = models[cell.model], columns[cell.site]
        yield {
            "metric": cell.metric,
            "model": cell.model,
            "kind": model.kind,
            "trained_on": list(model.trained_on),
            "site": cell.site,
            "split": comparison.split,
            "value": cell.result.value,
            "low": cell.interval.low,
            "high": cell.interval.high,
            "level": comparison.level,
            "num_resamples": cell.interval.num_resamples,
            "num_undefined": cell.interval.num_undefined,
            "num_patients": column.num_patients,
            "num_samples": column.num_samples,
            "class_counts": dict(column.class_counts),
            "reason": "; ".join(reason for reason in (cell.result.reason, cell.interval.reason) if reason) or None,
        }


def _reliability_facts(curve: Reliability) -> dict[str, Any]:
    return {
        "predicted": curve.predicted.tolist(),
        "observed": curve.observed.tolist(),
        "count": curve.count.tolist(),
        "reason": curve.reason,
    }


def _for_csv(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        for name, value in row.items()
    }


def _curve_rows(comparison: Comparison) -> Iterable[dict[str, Any]]:
    for run in comparison.runs:
        for each in run.history:
            parts = {f"loss/{name}": value for name, value in each.parts.items()}
            for quantity, value in {"loss": each.loss, **parts, **each.metrics}.items():
                yield {
                    "run": run.label,
                    "kind": run.record.kind,
                    "step_unit": run.record.step_unit,
                    "step": each.step,
                    "site": each.site,
                    "split": each.split,
                    "quantity": quantity,
                    "value": value,
                    "num_samples": each.num_samples,
                }


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """A header and these rows; lists and objects become JSON text, None and what a row lacks is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(_for_csv(row) for row in rows)
