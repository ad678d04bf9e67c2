"""Plotly figures of the page, without colours, which the page gives them for its light or dark theme.

Curves over training, and reliability curves of the models on all test patients.
"""

import html
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dipro_model.curves import Reliability
from dipro_model.vocabulary import DISEASES, Task
from federation.run_folder import POOLED, Measurement
from simulation.compare import Comparison
from simulation.runs import Run
from simulation.tables import METRIC_NAMES

Value = Callable[[Measurement], float | None]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot of the page."""

    name: str
    """Its id on the page."""
    title: str
    x_axis: dict[str, Any]
    y_axis: dict[str, Any]
    """Plotly's settings of the axes."""
    traces: tuple[dict[str, Any], ...]
    """Plotly traces; `meta.color` is the number of the model's colour, None for a help line; `meta.main` is false for
    a thin line."""


def curves(comparison: Comparison) -> list[Figure]:
    """The validation metric by which models are chosen, and the training and validation losses; empty ones left out."""
    monitor = comparison.runs[0].record.monitor
    name = METRIC_NAMES.get(monitor, monitor)
    plans: list[tuple[str, str, str, str, Value]] = [
        ("monitor", f"{name} on validation patients", name, "val", lambda each: each.metrics.get(monitor)),
        ("loss-val", "Loss on validation patients", "loss", "val", lambda each: each.loss),
        ("loss-train", "Loss on training patients", "loss", "train", lambda each: each.loss),
    ]
    units = " or ".join(dict.fromkeys(run.record.step_unit for run in comparison.runs))
    figures = []
    for key, title, y_title, split, value in plans:
        traces = tuple(
            trace
            for color, run in enumerate(comparison.runs)
            for trace in _traces(run, color, split, value, is_first=key == "monitor")
        )
        if traces:
            last = max(step for trace in traces for step in trace["x"])
            x_axis = {"title": {"text": units}} | ({"dtick": 1} if last <= 12 else {})
            figures.append(
                Figure(name=key, title=title, x_axis=x_axis, y_axis={"title": {"text": y_title}}, traces=traces)
            )
    return figures


def reliability(comparison: Comparison) -> list[Figure]:
    """Predicted against observed, a figure an output and a line a model; outputs without any curve are left out."""
    death = comparison.task is Task.MORTALITY
    x_title, y_title = ("predicted risk", "share who died") if death else ("model's certainty", "share that was right")
    outputs = dict.fromkeys(output for curves in comparison.reliability.values() for output in curves)
    axis = {"range": [-0.02, 1.02], "dtick": 0.2}
    figures = []
    for number, output in enumerate(outputs):
        traces = tuple(
            _reliability_trace(model.label, color, comparison.reliability[model.label][output], named=len(outputs) == 1)
            for color, model in enumerate(comparison.models)
            if comparison.reliability[model.label][output].reason is None
        )
        if traces:
            figures.append(
                Figure(
                    name=f"reliability-{number}",
                    title=output.capitalize() if output in DISEASES else "Predicted and observed, all sites together",
                    x_axis={**axis, "title": {"text": x_title}},
                    y_axis={**axis, "title": {"text": y_title}},
                    traces=(_DIAGONAL, *traces),
                )
            )
    return figures


_DIAGONAL = {
    "type": "scatter",
    "mode": "lines",
    "x": [0, 1],
    "y": [0, 1],
    "line": {"width": 1, "dash": "dash"},
    "showlegend": False,
    "hoverinfo": "skip",
    "meta": {"color": None, "main": False},
}
"""Where predicted and observed agree."""


def _reliability_trace(label: str, color: int, curve: Reliability, *, named: bool) -> dict[str, Any]:
    """A line through the bins; the area of a marker is the bin's share of the samples."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": _plain(label),
        "x": curve.predicted.tolist(),
        "y": curve.observed.tolist(),
        "customdata": curve.count.tolist(),
        "line": {"width": 1.5},
        "marker": {"size": (4 + 14 * np.sqrt(curve.count / curve.count.sum())).round(1).tolist()},
        "showlegend": named,
        "hovertemplate": f"predicted %{{x:.0%}}, observed %{{y:.0%}} of %{{customdata}}<extra>{_plain(label)}</extra>",
        "meta": {"color": color, "main": True},
    }


def _traces(run: Run, color: int, split: str, value: Value, *, is_first: bool) -> Iterable[dict[str, Any]]:
    """A run's main line (pooled, or its only site) and a thin one for every other site.

    The first figure names every line and marks the chosen step. The others keep the legend short: they leave out the
    lines that would be hidden at first, and name the thin ones only of a run without a main line.
    """
    rows = [each for each in run.history if each.split == split]
    sites = list(dict.fromkeys(each.site for each in rows))
    main = POOLED if POOLED in sites else (sites[0] if len(sites) == 1 else None)
    for site in sorted(sites, key=lambda each: each != main):
        is_main = site == main
        # Sites of a federation are part of its story; those of other runs are one click away in the first legend.
        is_shown = is_main or run.record.kind == "federated"
        own = sorted((each for each in rows if each.site == site), key=lambda each: each.step)
        if not (is_shown or is_first) or all(value(each) is None for each in own):
            continue
        line = _line(run, color, site, own, value, is_main=is_main)
        named = is_main or is_first or main is None
        yield line | {"visible": True if is_shown else "legendonly", "showlegend": named}
        if is_main and is_first:
            yield from _best(run, color, own, value)


def _line(run: Run, color: int, site: str, own: list[Measurement], value: Value, *, is_main: bool) -> dict[str, Any]:
    name = run.label if is_main else f"{run.label}: {site}"
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(own) < 12 else "lines",
        "name": _plain(name),
        "x": [each.step for each in own],
        "y": [value(each) for each in own],
        "line": {"width": 2.5 if is_main else 1.2, "dash": "solid" if is_main else "dot"},
        "marker": {"size": 5 if is_main else 3},
        "hovertemplate": f"{run.record.step_unit} %{{x}}: %{{y:.4f}}<extra>{_plain(name)}</extra>",
        "meta": {"color": color, "main": is_main},
    }


def _best(run: Run, color: int, own: list[Measurement], value: Value) -> Iterable[dict[str, Any]]:
    chosen = [each for each in own if each.step == run.record.best_step and value(each) is not None]
    if chosen:
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": _plain(f"{run.label}: chosen"),
            "x": [chosen[-1].step],
            "y": [value(chosen[-1])],
            "marker": {"size": 11, "symbol": "diamond"},
            "showlegend": False,
            "hovertemplate": f"chosen: {run.record.step_unit} %{{x}}, %{{y:.4f}}<extra>{_plain(run.label)}</extra>",
            "meta": {"color": color, "main": True},
        }


def _plain(text: str) -> str:
    """Text that plotly shows as it is: it reads tags, entities and %{...} in names and hover labels."""
    return html.escape(text, quote=False).replace("%{", "%&#123;")
