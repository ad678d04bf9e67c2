"""What all pictures share: colours that colour-blind people tell apart, captions, and saving whole or not at all."""

import io
import textwrap
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dipro_model.vocabulary import PROGRESSIONS, TASK_CLASSES, Task
from federation.files import write_whole

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito, Color Universal Design (2008), without the yellow, which is too light for a line."""

GRAY = "0.45"

_ORDINAL = matplotlib.colormaps["cividis"]

CLASS_COLORS: dict[Task, dict[str, str]] = {
    Task.DISEASE_PROGRESSION: dict(zip(PROGRESSIONS, (COLORS[1], COLORS[0], "0.55"), strict=True)),
    Task.MORTALITY: {"survived": COLORS[0], "died": COLORS[1]},
    Task.LENGTH_OF_STAY: {
        name: to_hex(_ORDINAL(0.85 * place / (len(TASK_CLASSES[Task.LENGTH_OF_STAY]) - 1)))
        for place, name in enumerate(TASK_CLASSES[Task.LENGTH_OF_STAY])
    },
}
"""A colour for each class of each task; those of length of stay run from dark to light with the days."""

_LETTERS_PER_INCH = 17
"""Letters of a caption that fit in an inch at its size."""
_CAPTION_SIZE = 8.0
_DPI = 120


def line_styles(number: int) -> Iterator[tuple[str, str]]:
    """Colour and dash of each of several lines; after seven lines the colours come again with another dash."""
    dashes = ("-", "--", ":", "-.")
    pairs = ((color, dash) for dash in cycle(dashes) for color in COLORS)
    return islice(pairs, number)


def add_caption(figure: Figure, text: str) -> None:
    """What a reader must know to read the picture, below it, in lines as wide as the picture."""
    width = int(figure.get_figwidth() * _LETTERS_PER_INCH)
    lines = "\n".join(textwrap.fill(paragraph, width) for paragraph in text.splitlines())
    # A label of the figure, unlike a free text, is given room by the layout.
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=_CAPTION_SIZE, color="0.25")


def add_title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=12, fontweight="bold")


def plain(axes: Axes) -> None:
    """Axes without the lines that say nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def say_instead(axes: Axes, text: str) -> None:
    """A sentence where there is nothing to draw."""
    axes.text(
        0.5,
        0.5,
        textwrap.fill(text, 24),
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=8,
        color=GRAY,
    )


def save(figure: Figure, out: Path) -> Path:
    """Write the picture as PNG: it is whole or not there."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=_DPI, format="png")
    write_whole(out, buffer.getbuffer())
    return out
