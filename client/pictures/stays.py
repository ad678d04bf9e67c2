"""A picture of a few stays: their radiographs, put together from region crops, on a time line above EHR curves."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import ConnectionPatch, Rectangle

from client.cohort import Cohort
from client.pictures.ehr import CURVES, draw_curves
from client.pictures.radiograph import read_radiograph
from client.pictures.style import GRAY, save
from dipro_model.vocabulary import DISEASES, PROGRESSIONS, REGIONS

_COLORS = dict(zip(REGIONS, matplotlib.colormaps["tab10"].colors, strict=True))  # pyright: ignore[reportAttributeAccessIssue]
_HOURS_SHOWN = 48.0
"""Hours of every stay that the curves show at least, and ..."""
_HOURS_AFTER = 12.0
"""... hours that they go on after the last image shown."""
_CAPTION_LETTERS = 140
"""Letters that fit above all radiographs of a stay together."""
_MAX_SHOWN = 6
"""Radiographs drawn for one stay; more would be too small to see."""


def choose_stays(cohort: Cohort, number: int) -> list[int]:
    """The stays with the most images; ties by stay_id."""
    counts = Counter(cohort.images["stay_id"].tolist())
    return sorted(counts, key=lambda stay: (-counts[stay], stay))[:number]


def draw_stays(cohort: Cohort, stay_ids: Sequence[int], out: Path) -> None:
    """Draw the stays below each other and write the picture (PNG) to `out`.

    Radiographs are no part of a cohort: each is put together from its region crops, large regions first, so that what
    no region covers stays black.
    """
    figure = Figure(figsize=(13, 6.6 * len(stay_ids) + 0.4), layout="constrained")
    blocks = figure.subfigures(len(stay_ids), 1, squeeze=False)[:, 0]
    for block, stay_id in zip(blocks, stay_ids, strict=True):
        _draw_stay(block, cohort, stay_id)
    handles = [Rectangle((0, 0), 1, 1, fill=False, edgecolor=_COLORS[name], linewidth=1.5) for name in REGIONS]
    figure.legend(handles, REGIONS, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    save(figure, out)


def _draw_stay(block: SubFigure, cohort: Cohort, stay_id: int) -> None:
    stay = cohort.stays.set_index("stay_id").loc[stay_id]
    images = cohort.images.loc[cohort.images["stay_id"] == stay_id].sort_values("hours")
    hidden = len(images) - _MAX_SHOWN
    images = images.head(_MAX_SHOWN)
    left_out = f", the last {hidden} not shown" if hidden > 0 else ""
    block.suptitle(
        f"stay {stay_id} · {stay['split']} · {stay['los_days']:.1f} days · {len(images)} images{left_out}",
        x=0.01,
        ha="left",
        fontsize=11,
        fontweight="bold",
    )
    rows = block.add_gridspec(2 + len(CURVES), len(images), height_ratios=[5.2, 0.55, *[0.8] * len(CURVES)])
    curves = [block.add_subplot(rows[2 + i, :]) for i in range(len(CURVES))]
    hours = images["hours"].tolist()
    draw_curves(curves, cohort, stay_id, hours, until=max(_HOURS_SHOWN, hours[-1] + _HOURS_AFTER))
    for place, (row, dicom_id, hour) in enumerate(zip(images.index, images["dicom_id"], hours, strict=True)):
        axes = block.add_subplot(rows[0, place])
        _draw_radiograph(axes, cohort, row, dicom_id)
        axes.set_title(_caption(cohort, dicom_id, hour, _CAPTION_LETTERS // len(images)), fontsize=7.5, loc="left")
        line = ConnectionPatch(
            xyA=(0.5, 0),
            coordsA=axes.transAxes,
            xyB=(hour, 1),
            coordsB=curves[0].get_xaxis_transform(),
            axesA=axes,
            axesB=curves[0],
            color=GRAY,
            linewidth=0.8,
        )
        block.add_artist(line)


def _draw_radiograph(axes: Axes, cohort: Cohort, row: int, dicom_id: str) -> None:
    radiograph = read_radiograph(cohort, row, dicom_id)
    radiograph.draw(axes)
    for region in radiograph.present:
        x1, y1, x2, y2 = radiograph.boxes[region].tolist()
        color = _COLORS[REGIONS[region]]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=1.1))


def _caption(cohort: Cohort, dicom_id: str, hour: float, width: int) -> str:
    """When the image was taken and what it shows against the image before, in lines of at most `width` letters."""
    before = cohort.pairs.loc[cohort.pairs["second_dicom_id"] == dicom_id]
    lines = [f"hour {hour:.1f}"]
    for code, word in enumerate(PROGRESSIONS):
        named = [disease for disease in DISEASES if len(before) and before[disease].iloc[0] == code]
        if named:
            lines += textwrap.wrap(f"{word}: {', '.join(named)}", width, subsequent_indent="    ")
    return "\n".join(lines)
