"""A picture of a few stays: their radiographs, put together from region crops, on a time line above EHR curves."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import ConnectionPatch, Rectangle
from PIL import Image

from client.cohort import Cohort
from dipro_model.vocabulary import DISEASES, PROGRESSIONS, REGIONS

CURVES = (
    "Heart Rate",
    "Mean blood pressure",
    "Respiratory rate",
    "Oxygen saturation",
    "Fraction inspired oxygen",
    "White blood cell count",
)
"""The variables drawn below the radiographs, top to bottom."""

_COLORS = dict(zip(REGIONS, matplotlib.colormaps["tab10"].colors, strict=True))  # pyright: ignore[reportAttributeAccessIssue]
_LONGEST_SIDE = 420
"""Pixels of a radiograph that is put together; more than a picture of several shows."""
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
    no region covers stays black. Curves are z-scores; dots are measured hours, lines carry values forward.
    """
    figure = Figure(figsize=(13, 6.6 * len(stay_ids) + 0.4), layout="constrained")
    blocks = figure.subfigures(len(stay_ids), 1, squeeze=False)[:, 0]
    for block, stay_id in zip(blocks, stay_ids, strict=True):
        _draw_stay(block, cohort, stay_id)
    handles = [Rectangle((0, 0), 1, 1, fill=False, edgecolor=_COLORS[name], linewidth=1.5) for name in REGIONS]
    figure.legend(handles, REGIONS, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(out, dpi=110)


def compose_radiograph(crops: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Put crops [region, 224, 224] back at their boxes [region, 4], large regions first, black in between.

    Returns the picture, uint8 with its longest side scaled to at most 420 pixels, and the part of the radiograph that
    it covers (x1, y1, x2, y2 in pixels of the radiograph).
    """
    present = [i for i in np.argsort(-_areas(boxes), kind="stable") if _areas(boxes)[i] > 0]
    if not present:
        return np.zeros((1, 1), np.uint8), (0, 0, 1, 1)
    left, top = boxes[present, :2].min(axis=0)
    right, bottom = boxes[present, 2:].max(axis=0)
    scale = min(1.0, _LONGEST_SIDE / max(right - left, bottom - top))
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    canvas = Image.new("L", size)
    for i in present:
        corners = np.rint((boxes[i] - [left, top, left, top]) * scale).astype(int)
        width, height = np.maximum(corners[2:] - corners[:2], 1)
        crop = Image.fromarray(np.ascontiguousarray(crops[i])).resize((int(width), int(height)))
        canvas.paste(crop, (int(corners[0]), int(corners[1])))
    return np.asarray(canvas), (int(left), int(top), int(right), int(bottom))


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = boxes[:, 2:].astype(float) - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]


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
    _draw_curves(curves, cohort, stay_id, images["hours"].tolist())
    for place, (row, dicom_id, hour) in enumerate(zip(images.index, images["dicom_id"], images["hours"], strict=True)):
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
            color="0.45",
            linewidth=0.8,
        )
        block.add_artist(line)


def _draw_radiograph(axes: Axes, cohort: Cohort, row: int, dicom_id: str) -> None:
    boxes = cohort.boxes.loc[cohort.boxes["dicom_id"] == dicom_id].set_index("region").loc[list(REGIONS)]
    corners = boxes[["x1", "y1", "x2", "y2"]].to_numpy()
    picture, (left, top, right, bottom) = compose_radiograph(cohort.regions[row], corners)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(left, right, bottom, top))
    for region, (x1, y1, x2, y2) in zip(REGIONS, corners.tolist(), strict=True):
        if x2 > x1:
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=_COLORS[region], linewidth=1.1))
    axes.set_anchor("S")
    axes.set_axis_off()


def _caption(cohort: Cohort, dicom_id: str, hour: float, width: int) -> str:
    """When the image was taken and what it shows against the image before, in lines of at most `width` letters."""
    before = cohort.pairs.loc[cohort.pairs["second_dicom_id"] == dicom_id]
    lines = [f"hour {hour:.1f}"]
    for code, word in enumerate(PROGRESSIONS):
        named = [disease for disease in DISEASES if len(before) and before[disease].iloc[0] == code]
        if named:
            lines += textwrap.wrap(f"{word}: {', '.join(named)}", width, subsequent_indent="    ")
    return "\n".join(lines)


def _draw_curves(axes: Sequence[Axes], cohort: Cohort, stay_id: int, image_hours: Sequence[float]) -> None:
    hourly = cohort.ehr_hourly.loc[cohort.ehr_hourly["stay_id"] == stay_id].sort_values("hour")
    shown = max(_HOURS_SHOWN, image_hours[-1] + _HOURS_AFTER)
    hourly = hourly.loc[hourly["hour"] < shown]
    for axis, name in zip(axes, CURVES, strict=True):
        _draw_curve(axis, hourly, name)
        for hour in image_hours:
            axis.axvline(hour, color="0.45", linewidth=0.8)
        axis.set_xlim(0, shown)
        axis.margins(y=0.25)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.tick_params(labelsize=7, labelbottom=axis is axes[-1])
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("hours since ICU admission (curves: z-scores; dots: measured)", fontsize=8)


def _draw_curve(axis: Axes, hourly: pd.DataFrame, name: str) -> None:
    measured = hourly.loc[hourly[f"{name}_mask"]]
    # A row holds the last value of the hour that begins at `hour`.
    axis.step(hourly["hour"] + 1, hourly[name], where="post", linewidth=0.9, color="tab:blue", alpha=0.7)
    axis.plot(measured["hour"] + 1, measured[name], ".", markersize=4, color="tab:blue")
