"""Drawn figures under test: caught before they are written, and searched for texts that nobody could read."""

from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def catch(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Figure]:
    """The figures that a module saves from now on: they are drawn and laid out, but not written."""
    caught: list[Figure] = []

    def keep(figure: Figure, out: Path) -> Path:
        FigureCanvasAgg(figure).draw()
        figure.set_layout_engine("none")
        caught.append(figure)
        return out

    monkeypatch.setattr(module, "save", keep)
    return caught


def unreadable(figure: Figure) -> list[str]:
    """Texts that overlap another one, or reach beyond the figure."""
    beyond = _beyond_limits(figure)
    texts = [text for text in figure.findobj(Text) if _is_shown(text) and text not in beyond]
    names = [repr(text.get_text()) for text in texts]
    boxes = np.array([text.get_window_extent().extents for text in texts])
    # Without the white that a font keeps around letters.
    low, high = boxes[:, :2] + (1, 2), boxes[:, 2:] - (1, 2)
    leaves = (low < -2).any(axis=1) | (high > figure.bbox.max + 2).any(axis=1)
    overlap = ((low[:, None] < high) & (low < high[:, None])).all(axis=2)
    pairs = [f"{names[i]} and {names[j]}" for i, j in combinations(range(len(names)), 2) if overlap[i, j]]
    return [f"{names[i]} leaves the figure" for i in np.flatnonzero(leaves)] + pairs


def _beyond_limits(figure: Figure) -> set[Text]:
    """Labels of ticks outside their axis, which are never drawn."""
    hidden: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
            hidden |= {label for tick in ticks for label in (tick.label1, tick.label2)}
    return hidden


def _is_shown(text: Text) -> bool:
    if not (text.get_visible() and text.get_text().strip()):
        return False
    axes = text.axes
    # Of axes that are switched off, titles and free texts remain.
    return not isinstance(axes, Axes) or axes.axison or text in (*axes.texts, axes.title, axes._left_title)
