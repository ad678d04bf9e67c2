"""Where models look: the mean attention to each region, as shares around a circle."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MultipleLocator

from client.pictures.bands import NUM_RESAMPLES, SEED
from client.pictures.style import GRAY, add_caption, add_title, line_styles, save
from client.predictions import Predictions
from dipro_model.metrics import resamples
from dipro_model.vocabulary import REGIONS

AROUND = (
    "mediastinum",
    "left hilar structures",
    "left lung",
    "left lower lung zone",
    "left costophrenic angle",
    "cardiac silhouette",
    "right costophrenic angle",
    "right lower lung zone",
    "right lung",
    "right hilar structures",
)
"""Regions clockwise from the top, about where a radiograph shows them: the patient's left is on the right."""

_ORDER = [REGIONS.index(name) for name in AROUND]


def draw_attention(models: Mapping[str, Predictions], out: Path, *, title: str) -> Path:
    """Draw one line a model, named by its key.

    Raises ValueError where no sample of a model carries attention: it reads no radiographs.
    """
    figure = Figure(figsize=(9.6, 8.4))
    # The layout engine does not see how far the labels around a circle reach.
    axes = figure.add_axes((0.16, 0.17, 0.6, 0.6857), projection="polar")
    assert isinstance(axes, PolarAxes)
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    angles = np.linspace(0, 2 * np.pi, len(AROUND), endpoint=False)
    circle = np.linspace(0, 2 * np.pi, 200)
    even = 1 / len(REGIONS)
    axes.plot(circle, np.full(len(circle), even), color=GRAY, linewidth=1, linestyle="--", label="equal shares")
    highest = 1.5 * even
    for (name, predictions), (color, dash) in zip(models.items(), line_styles(len(models)), strict=True):
        mean, low, high = attention_shares(predictions, name)
        around, lower, upper = (_closed(each) for each in (mean, low, high))
        axes.fill_between(_closed_angles(angles), lower, upper, color=color, alpha=0.15, linewidth=0)
        axes.plot(
            _closed_angles(angles),
            around,
            color=color,
            linestyle=dash,
            linewidth=1.6,
            marker="o",
            markersize=3.5,
            label=f"{name}\n{_count(predictions)}",
        )
        highest = max(highest, float(mean.max()), *high[~np.isnan(high)])
    axes.set_ylim(0, 1.08 * highest)
    axes.set_xticks(angles, [textwrap.fill(name, 13) for name in AROUND], fontsize=9)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        label.set_horizontalalignment(_side(angle))
    axes.yaxis.set_major_locator(MultipleLocator(0.05))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_rlabel_position(18)
    axes.tick_params(axis="y", labelsize=7.5, labelcolor="0.35")
    for label in axes.get_yticklabels():
        label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    axes.grid(color="0.87")
    axes.spines["polar"].set_color("0.7")
    figure.legend(loc="upper right", fontsize=8.5, frameon=False)
    add_title(figure, title)
    add_caption(figure, _CAPTION)
    return save(figure, out)


def attention_shares(
    predictions: Predictions, name: str = "the model"
) -> tuple[Float[np.ndarray, " region"], Float[np.ndarray, " region"], Float[np.ndarray, " region"]]:
    """Mean share of each region in the attention that a sample gives to regions, and its 95 % interval over patients.

    A sample's attention is the mean over its outputs and pairs; its shares sum to 1, so that every sample counts the
    same, however much it looks at hours instead. A single patient has no interval (NaN).

    Raises ValueError where no sample carries attention.
    """
    weight = predictions.attention.astype(np.float64).mean(axis=1)
    total = weight.sum(axis=1)
    seen = total > 0
    if not seen.any():
        raise ValueError(f"{name}: none of its {len(predictions)} samples carries attention; it reads no radiographs")
    shares = weight[seen] / total[seen, None]
    if len(np.unique(predictions.patients[seen])) < 2:
        unknown = np.full(len(REGIONS), np.nan)
        return shares.mean(axis=0), unknown, unknown
    draws = [
        weights @ shares / weights.sum(axis=1, keepdims=True)
        for weights in resamples(predictions.patients[seen], num_resamples=NUM_RESAMPLES, seed=SEED)
    ]
    low, high = np.quantile(np.concatenate(draws), (0.025, 0.975), axis=0)
    return shares.mean(axis=0), low, high


def _side(angle: float) -> Literal["left", "center", "right"]:
    """On which side of a label its point on the circle lies, clockwise from the top."""
    across = np.sin(angle)
    return "center" if abs(across) < 1e-6 else ("left" if across > 0 else "right")


def _closed(values: Float[np.ndarray, " region"]) -> Float[np.ndarray, " corner"]:
    around = values[_ORDER]
    return np.append(around, around[0])


def _closed_angles(angles: Float[np.ndarray, " region"]) -> Float[np.ndarray, " corner"]:
    return np.append(angles, 2 * np.pi)


def _count(predictions: Predictions) -> str:
    return f"{len(predictions)} samples of {len(np.unique(predictions.patients))} patients"


_CAPTION = (
    "Share of each region in the attention that the class tokens give to all regions: mean over heads, layers, outputs "
    "and pairs of a sample, then over samples. Shares sum to 100 %; the dashed circle is what a model without "
    "preference would give. Bands: 95 % bootstrap intervals over patients. Attention says what is mixed in, not what a "
    "prediction rests on. Regions lie as on a radiograph: the patient's left is on the right."
)
