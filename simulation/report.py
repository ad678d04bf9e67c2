"""The comparison as one page that needs no network: what a clinician reads first, then the details."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline
from markupsafe import Markup

import monitor
from dipro_model.metrics import CALIBRATION, EQUAL_TO_ACCURACY, HEADLINE, METRICS
from dipro_model.vocabulary import DISEASES, Task
from federation.run_folder import POOLED
from simulation import report_words as words
from simulation.compare import Cell, Column, Comparison
from simulation.comparison import words as study_words
from simulation.comparison.page import study_context
from simulation.comparison.study import Study
from simulation.figures import curves, reliability
from simulation.runs import Run
from simulation.tables import METRIC_NAMES, direction, in_words, interval_in_words, three_digits


@dataclass(kw_only=True)
class _Footnotes:
    """Reasons, numbered in the order in which the page first needs them."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def render_report(study: Study) -> str:
    """The whole page as HTML; every name in it is escaped, and nothing in it is loaded from elsewhere."""
    comparison = study.comparison
    footnotes = _Footnotes()
    context = {
        **_header(comparison),
        "columns": [_column(comparison.task, column) for column in comparison.columns],
        **{name: _blocks(comparison, metrics, footnotes) for name, metrics in _groups(comparison.task).items()},
        "equal_to_accuracy": words.equal_to_accuracy(comparison.task),
        "by_disease": _by_disease(comparison, footnotes),
        "diseases": DISEASES,
        "any_own": any(model.kind == "local" for model in comparison.models),
        "footnotes": footnotes.texts,
        "notes": [*comparison.notes, *words.undefined_resamples(comparison)],
        **_figures(comparison),
        "runs": [_run(run) for run in comparison.runs],
        "settings": comparison.differing_settings,
        "method": [*words.method(comparison)[:-1], *study_words.method(study), *words.method(comparison)[-1:]],
        **study_context(study),
    }
    return _template().render(context)


def _template() -> jinja2.Template:
    # The monitor's page has the same look, which is written down there.
    look = Path(monitor.__file__).parent / "static"
    loader = jinja2.FileSystemLoader([Path(__file__).parent / "templates", look])
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")


def _header(comparison: Comparison) -> dict[str, Any]:
    return {
        "title": words.title(comparison),
        "split": words.SPLIT_WORDS[comparison.split],
        "num_sites": len(comparison.columns) - 1,
        "lead": words.lead(comparison),
        "findings": words.findings(comparison),
        "caution": words.CAUTION,
        "level": words.percent(comparison.level),
    }


def _figures(comparison: Comparison) -> dict[str, Any]:
    training, calibration = curves(comparison), reliability(comparison)
    figures = [*training, *calibration]
    # No `<` in the JSON, so that no text in it can end the script element.
    safe = Markup(json.dumps([asdict(figure) for figure in figures], allow_nan=False).replace("<", "\\u003c"))
    return {
        "curves": training,
        "curves_caption": words.curves_caption(comparison),
        "reliability": calibration,
        "reliability_caption": words.reliability_caption(comparison.task),
        "figures_json": safe,
        "plotly_js": Markup(plotly.offline.get_plotlyjs()) if figures else "",
    }


def _groups(task: Task) -> dict[str, list[str]]:
    """The metrics of the page in its order: what was published, the rest, and calibration."""
    rest = [name for name in METRICS[task] if name not in (*HEADLINE[task], *CALIBRATION, *EQUAL_TO_ACCURACY)]
    return {"headline": list(HEADLINE[task]), "further": rest, "calibration": list(CALIBRATION)}


def _column(task: Task, column: Column) -> dict[str, Any]:
    title = "All sites together" if column.site == POOLED else column.site
    return {"title": title, "counts": in_words(task, column), "classes": words.classes(task, column)}


def _blocks(comparison: Comparison, metrics: Iterable[str], footnotes: _Footnotes) -> list[dict[str, Any]]:
    return [_metric_block(comparison, metric, footnotes) for metric in metrics]


def _metric_block(comparison: Comparison, metric: str, footnotes: _Footnotes) -> dict[str, Any]:
    """One metric: a row a model, a cell a column, all on one scale."""
    sites = [column.site for column in comparison.columns]
    rows = [[comparison.cells[metric, model.label, site] for site in sites] for model in comparison.models]
    scale = _scale(cell for row in rows for cell in row)
    return {
        "title": METRIC_NAMES[metric],
        "meaning": words.meaning(comparison, metric),
        "rows": [
            {
                "number": number,
                "label": model.label,
                "about": words.about(model, len(sites) - 1),
                "cells": [
                    _cell(cell, scale, footnotes) | {"own": model.kind == "local" and model.trained_on == (cell.site,)}
                    for cell in row
                ],
            }
            for number, (model, row) in enumerate(zip(comparison.models, rows, strict=True))
        ],
    }


def _by_disease(comparison: Comparison, footnotes: _Footnotes) -> list[dict[str, Any]]:
    """One table a metric with diseases in columns, on the pooled samples; none for tasks without diseases."""
    if comparison.task is not Task.DISEASE_PROGRESSION:
        return []
    blocks = []
    for metric in comparison.metrics:
        rows = [
            [comparison.cells[f"{metric}/{disease}", model.label, POOLED] for disease in DISEASES]
            for model in comparison.models
        ]
        scale = _scale(cell for row in rows for cell in row)
        shown = [
            {"number": number, "label": model.label, "cells": [_cell(cell, scale, footnotes) for cell in row]}
            for number, (model, row) in enumerate(zip(comparison.models, rows, strict=True))
        ]
        blocks.append({"title": METRIC_NAMES[metric] + direction(metric), "rows": shown})
    return blocks


def _scale(cells: Iterable[Cell]) -> tuple[float, float]:
    """Smallest and largest number that a metric's cells show; never of zero length."""
    numbers = [
        number
        for cell in cells
        for number in (cell.result.value, cell.interval.low, cell.interval.high)
        if number is not None
    ]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _cell(cell: Cell, scale: tuple[float, float], footnotes: _Footnotes) -> dict[str, Any]:
    """A cell as text, with the places of its bar in percent of the cell's width."""
    value, low, high = cell.result.value, cell.interval.low, cell.interval.high
    # Without a value, why there is no interval either goes without saying.
    reasons = [cell.result.reason] if value is None else [cell.result.reason, cell.interval.reason]
    texts = [reason for reason in reasons if reason]
    facts = {"value": None, "at": None, "interval": None, "span": None}
    if value is not None:
        facts |= {"value": three_digits(value), "at": _place(value, scale)}
        if low is not None and high is not None:
            span = (_place(low, scale), _place(high, scale))
            facts |= {"interval": interval_in_words(cell.interval), "span": span}
    return facts | {"hint": "; ".join(texts), "footnotes": [footnotes.number(text) for text in texts]}


def _place(value: float, scale: tuple[float, float]) -> float:
    """Where a value lies between the ends of the scale, in percent, a little away from both."""
    return round(3 + 94 * (value - scale[0]) / (scale[1] - scale[0]), 2)


def _run(run: Run) -> dict[str, Any]:
    record = run.record
    return {
        "label": run.label,
        "kind": record.kind,
        "trained_on": ", ".join(record.trained_on) or "not known",
        "seed": record.seed,
        "chosen": "–" if record.best_step is None else f"{record.step_unit} {record.best_step}",
        "time": words.duration(record.seconds),
        "folder": str(run.path),
    }
