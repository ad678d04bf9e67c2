"""A few hourly records of a stay as curves on a time line that other panels share."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from client.cohort import Cohort
from client.pictures.style import GRAY

CURVES = (
    "Heart Rate",
    "Mean blood pressure",
    "Respiratory rate",
    "Oxygen saturation",
    "Fraction inspired oxygen",
    "White blood cell count",
)
"""The variables drawn, top to bottom."""

_HOURS_OF_BIG_DOTS = 96.0
"""Hours on a time line beyond which dots of every hour would run into each other."""


def draw_curves(
    axes: Sequence[Axes], cohort: Cohort, stay_id: int, image_hours: Sequence[float], *, until: float
) -> None:
    """One variable an axis, from ICU admission to the hour `until`, with a line where each image was taken.

    Curves are z-scores; dots are measured hours, lines carry values forward.
    """
    hourly = cohort.ehr_hourly.loc[cohort.ehr_hourly["stay_id"] == stay_id].sort_values("hour")
    hourly = hourly.loc[hourly["hour"] < until]
    for axis, name in zip(axes, CURVES, strict=True):
        _draw_curve(axis, hourly, name, dot=4 if until <= _HOURS_OF_BIG_DOTS else 2)
        mark_images(axis, image_hours)
        axis.set_xlim(0, until)
        axis.margins(y=0.25)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.tick_params(labelsize=7, labelbottom=axis is axes[-1])
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("hours since ICU admission (curves: z-scores; dots: measured)", fontsize=8)


def mark_images(axis: Axes, image_hours: Sequence[float]) -> None:
    """A thin line where each image was taken."""
    for hour in image_hours:
        axis.axvline(hour, color=GRAY, linewidth=0.8)


def _draw_curve(axis: Axes, hourly: pd.DataFrame, name: str, *, dot: float) -> None:
    measured = hourly.loc[hourly[f"{name}_mask"]]
    # A row holds the last value of the hour that begins at `hour`.
    axis.step(hourly["hour"] + 1, hourly[name], where="post", linewidth=0.9, color="tab:blue", alpha=0.7)
    axis.plot(measured["hour"] + 1, measured[name], ".", markersize=dot, color="tab:blue")
