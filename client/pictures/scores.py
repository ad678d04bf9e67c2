"""How good scores are, drawn: ROC, precision-recall and reliability of every class or disease, with their intervals."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from matplotlib.typing import DrawStyleType

from client.pictures.bands import GRID, NUM_RESAMPLES, Band, OneClass, precision_recall_band, roc_band, wilson
from client.pictures.style import CLASS_COLORS, COLORS, GRAY, add_caption, add_title, plain, save, say_instead
from client.predictions import Predictions
from dipro_model.curves import Curve, Reliability, precision_recall_curve, reliability_curve, roc_curve
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, TASK_CLASSES, Task

_ROOM = 0.42
"""Inches below an axis that its numbers and label take."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """All that is drawn of one class."""

    name: str
    color: str
    roc: Curve
    precision_recall: Curve
    reliability: Reliability
    roc_band: Band | None
    """None where the curve has no points."""
    precision_recall_band: Band | None
    trapezoid: bool
    """Whether the area under the precision-recall curve is that under straight lines, or under steps."""


def draw_scores(predictions: Predictions, out: Path, *, title: str) -> Path:
    """Draw one model's curves on these samples, which should be those of one split.

    A small multiple is a class of length of stay, or a disease with its three changes. Bands and the intervals of
    areas are 95 % bootstrap intervals over patients. Raises ValueError where there is no sample.
    """
    if not len(predictions):
        raise ValueError(f"{title}: no sample to draw curves of; choose a split that has some")
    panels = _panels(predictions)
    if len(panels) == 1:
        figure = Figure(figsize=(12.5, 5.7), layout="constrained")
        grid = figure.add_gridspec(2, 3, height_ratios=[5, 1])
        places = [(grid[:, 0], grid[:, 1], grid[0, 2], grid[1, 2])]
    else:
        figure = Figure(figsize=(2.75 * len(panels) + 0.5, 11.6), layout="constrained")
        grid = figure.add_gridspec(4, len(panels), height_ratios=[5, 5, 5, 1])
        places = [tuple(grid[row, column] for row in range(4)) for column in range(len(panels))]
    for column, ((name, lines), spots) in enumerate(zip(panels.items(), places, strict=True)):
        axes = [figure.add_subplot(spot) for spot in spots]
        _draw_roc(axes[0], lines)
        _draw_precision_recall(axes[1], lines)
        _draw_reliability(axes[2], axes[3], lines)
        if len(panels) > 1:
            axes[0].set_title(name, fontsize=10, loc="left", fontweight="bold")
        if column:
            for each in axes:
                each.set_ylabel("")
    add_title(figure, title)
    add_caption(figure, _caption(predictions))
    return save(figure, out)


def _panels(predictions: Predictions) -> dict[str, list[Line]]:
    """The lines of each small multiple, by its title."""
    task = predictions.task
    given = (task, predictions.labels, predictions.probabilities)
    roc_curves, precision_recall_curves = roc_curve(*given), precision_recall_curve(*given)
    reliability_curves = reliability_curve(*given)
    panels: dict[str, list[Line]] = {}
    for output, name, own in _one_against_others(predictions):
        roc, precision_recall = roc_curves[output][name], precision_recall_curves[output][name]
        # Classes of length of stay have a panel each, so they need no colour to tell them apart.
        is_panel = task is Task.LENGTH_OF_STAY
        trapezoid = task is not Task.MORTALITY
        line = Line(
            name=name,
            color=COLORS[0] if is_panel else CLASS_COLORS[task][name],
            roc=roc,
            precision_recall=precision_recall,
            reliability=reliability_curves[output][name],
            roc_band=roc_band(own) if len(roc.x) else None,
            precision_recall_band=precision_recall_band(own, trapezoid=trapezoid) if len(roc.x) else None,
            trapezoid=trapezoid,
        )
        panels.setdefault(name if is_panel else output, []).append(line)
    return panels


def _one_against_others(predictions: Predictions) -> Iterator[tuple[str, str, OneClass]]:
    """Output, class and samples of every curve, named as the curves are; not mentioned takes no part."""
    task = predictions.task
    names = list(enumerate(TASK_CLASSES[task]))[1 if task is Task.MORTALITY else 0 :]
    outputs = DISEASES if task is Task.DISEASE_PROGRESSION else (task.value,)
    labels = predictions.labels.reshape(len(predictions), -1)
    patients = predictions.patients
    for k, output in enumerate(outputs):
        # A task of whole stays has a label for every stay; its classes may use the number of `not mentioned`.
        known = labels[:, k] != NOT_MENTIONED if task is Task.DISEASE_PROGRESSION else np.ones(len(labels), bool)
        for place, (value, name) in enumerate(names):
            scores = predictions.probabilities[known, k, place].astype(np.float64)
            yield output, name, OneClass(positive=labels[known, k] == value, scores=scores, patients=patients[known])


def _draw_roc(axes: Axes, lines: list[Line]) -> None:
    axes.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, linestyle="--")
    for line in lines:
        if line.roc_band is not None:
            area = _area(line.roc, line.roc_band, trapezoid=True)
            _draw_curve(axes, line, line.roc, line.roc_band, area)
    _finish(axes, lines, "false positive rate", "true positive rate")
    _add_legend(axes, "AUROC")


def _draw_precision_recall(axes: Axes, lines: list[Line]) -> None:
    for line in lines:
        if line.precision_recall_band is not None:
            curve = line.precision_recall
            guessing = curve.num_positive / curve.num_samples
            axes.axhline(guessing, color=line.color, linewidth=0.8, linestyle="--", alpha=0.7)
            area = _area(curve, line.precision_recall_band, trapezoid=line.trapezoid)
            # Steps as the average precision sums them: the height is that of the right end.
            style: DrawStyleType = "default" if line.trapezoid else "steps-pre"
            _draw_curve(axes, line, curve, line.precision_recall_band, area, style)
    _finish(axes, lines, "recall", "precision")
    _add_legend(axes, "AUPRC")


def _draw_curve(axes: Axes, line: Line, curve: Curve, band: Band, area: str, style: DrawStyleType = "default") -> None:
    axes.fill_between(GRID, band.low, band.high, color=line.color, alpha=0.13, linewidth=0)
    axes.plot(curve.x, curve.y, color=line.color, linewidth=1.5, drawstyle=style, label=f"{line.name}  {area}")


def _area(curve: Curve, band: Band, *, trapezoid: bool) -> str:
    """The area under the curve and its interval, as `score` and `bootstrap` have them."""
    value = np.trapezoid(curve.y, curve.x) if trapezoid else np.sum(np.diff(curve.x) * curve.y[1:])
    low, high = band.area
    return f"{value:.2f}" if np.isnan(low) else f"{value:.2f} ({low:.2f}–{high:.2f})"


def _finish(axes: Axes, lines: list[Line], x: str, y: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=9)
    plain(axes)
    if not any(len(line.roc.x) for line in lines):
        say_instead(axes, str(lines[0].roc.reason))


def _add_legend(axes: Axes, area: str) -> None:
    """Below the axis: no corner inside is free of both good and poor curves."""
    if axes.get_legend_handles_labels()[0]:
        figure = axes.get_figure(root=True)
        assert figure is not None
        below = axes.transAxes + ScaledTranslation(0, -_ROOM, figure.dpi_scale_trans)
        legend = axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            bbox_transform=below,
            fontsize=7,
            title=area,
            title_fontsize=7,
            handlelength=1.2,
            borderaxespad=0,
        )
        legend.get_frame().set(linewidth=0)


def _draw_reliability(axes: Axes, counts: Axes, lines: list[Line]) -> None:
    axes.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, linestyle="--")
    for line in lines:
        own = line.reliability
        if not len(own.count):
            continue
        low, high = wilson(own.observed, own.count)
        axes.vlines(own.predicted, low, high, color=line.color, linewidth=0.9, alpha=1.0 if len(lines) == 1 else 0.4)
        style = {"color": line.color, "marker": "o", "linewidth": 1.2}
        axes.plot(own.predicted, own.observed, markersize=3.5, **style)
        counts.plot(own.predicted, own.count, markersize=2.5, **style)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.tick_params(labelbottom=False)
    axes.set_ylabel("observed share", fontsize=9)
    counts.set(xlim=(-0.01, 1.01), yscale="log")
    counts.set_ylim(bottom=0.8, top=max(12, 1.5 * counts.get_ylim()[1]))
    counts.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    counts.minorticks_off()
    counts.set_xlabel("predicted probability", fontsize=8)
    counts.set_ylabel("samples\nin bin", fontsize=8)
    plain(axes)
    plain(counts)
    if not any(len(line.reliability.count) for line in lines):
        say_instead(axes, str(lines[0].reliability.reason))


_AGAINST = {
    Task.DISEASE_PROGRESSION: (
        " Each change against the other two; pairs whose report does not mention a disease are left out there."
    ),
    Task.MORTALITY: "",
    Task.LENGTH_OF_STAY: " Each class against the others.",
}


def _caption(predictions: Predictions) -> str:
    task = predictions.task
    splits = " and ".join(dict.fromkeys(predictions.split.tolist()))
    num_patients = len(np.unique(predictions.patients))
    sample = "radiograph pairs" if task is Task.DISEASE_PROGRESSION else "stays"
    return (
        f"{len(predictions)} {sample} of {num_patients} patients, {splits} split.{_AGAINST[task]} Bands, and the "
        f"numbers in brackets behind each area: 95 % bootstrap intervals over patients ({NUM_RESAMPLES} resamples), "
        "point by point. Dashed: guessing. Reliability: ten bins of equal width; bars are 95 % Wilson intervals, which "
        "take the samples of a bin as independent; below, how many samples a bin holds. On the diagonal a predicted "
        "probability is what happens."
    )
