"""One stay as a model sees it: radiographs tinted by attention, the scores as images arrive, the EHR curves below."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.ticker import MultipleLocator

from client.cohort import Cohort
from client.pictures.arrivals import class_handles, draw_words
from client.pictures.ehr import CURVES, draw_curves
from client.pictures.radiograph import read_radiograph
from client.pictures.style import GRAY, add_caption, save
from client.stay_scores import StayScores
from dipro_model.vocabulary import REGIONS, TASK_CLASSES, Task

_COLUMNS = 7
"""Radiographs side by side."""
_WIDTH = 13.5
_MAP = matplotlib.colormaps["viridis"]
_HIGHEST = 0.2
"""The scale of attention ends here at least, so that small differences look small."""
_EVEN = 1 / len(REGIONS)
_GAP = 0.022
"""Least distance between the numbers of two images, as a part of the time line."""


def draw_stay(cohort: Cohort, scores: StayScores, out: Path) -> Path:
    """Draw the stay and write the picture (PNG) to `out`; it shows a patient.

    Radiographs are no part of a cohort: each is put together from its region crops, large regions first.
    """
    num_images = len(scores.images)
    columns = min(num_images, _COLUMNS)
    num_rows = -(-num_images // columns)
    image_height = num_rows * (min(3.3, 0.95 * _WIDTH / columns) + 0.4)
    num_panels = 7 if scores.task is Task.DISEASE_PROGRESSION else 1
    time_height = 0.4 + (0.55 * num_panels if num_panels > 1 else 2.0) + 0.62 * len(CURVES) + 0.6
    figure = Figure(figsize=(_WIDTH, image_height + time_height + 1.3), layout="constrained")
    figure.suptitle(_title(scores), x=0.01, ha="left", fontsize=12, fontweight="bold")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[image_height, time_height])[:, 0]
    _draw_images(above, cohort, scores, (num_rows, columns))
    _draw_time(below, cohort, scores, num_panels)
    add_caption(figure, _caption(scores))
    return save(figure, out)


def _title(scores: StayScores) -> str:
    words = [f"stay {scores.stay_id}", scores.site, f"{scores.split} split"]
    label = scores.words[-1].label
    if scores.task is Task.MORTALITY:
        words.append(("survived the hospital", "died in hospital")[label[0]])
    elif scores.task is Task.LENGTH_OF_STAY:
        words.append(f"stayed {TASK_CLASSES[scores.task][label[0]]}")
    return " · ".join(words)


def _draw_images(block: SubFigure, cohort: Cohort, scores: StayScores, shape: tuple[int, int]) -> None:
    highest = max([_HIGHEST, *(float(glance.shares.max()) for glance in scores.glances.values())])
    scale = ScalarMappable(Normalize(0, highest), _MAP)
    grid = block.subplots(*shape, squeeze=False)
    rows = {dicom: row for row, dicom in enumerate(cohort.images["dicom_id"])}
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (axes, (dicom, hour)) in enumerate(zip(grid.flat, scores.images, strict=False), start=1):
        radiograph = read_radiograph(cohort, rows[dicom], dicom)
        glance = scores.glances.get(dicom)
        title = f"{number} · hour {hour:.1f}"
        if glance is None:
            radiograph.draw(axes)
            colors = [GRAY] * len(REGIONS)
        else:
            colors = scale.to_rgba(glance.shares)[:, :3]
            radiograph.draw_tinted(axes, colors)
            if scores.task is not Task.DISEASE_PROGRESSION:
                title += f"\nattention {100 * glance.of_stay:.0f} %"
        axes.set_title(title, fontsize=9, loc="left")
        for region in radiograph.present:
            x1, y1, x2, y2 = radiograph.boxes[region].tolist()
            box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colors[region], linewidth=1.3)
            axes.add_patch(box)
    if scores.glances:
        bar = block.colorbar(scale, ax=grid, fraction=0.02, pad=0.01, aspect=25)
        bar.set_label("share of a pair's attention", fontsize=8)
        bar.ax.axhline(_EVEN, color="white", linewidth=1.5)
        bar.ax.yaxis.set_major_locator(MultipleLocator(0.05))
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        bar.ax.tick_params(labelsize=8)


def _draw_time(block: SubFigure, cohort: Cohort, scores: StayScores, num_panels: int) -> None:
    heights = [0.4, *([0.55] * num_panels if num_panels > 1 else [2.0]), *[0.62] * len(CURVES)]
    rows = block.add_gridspec(len(heights), 1, height_ratios=heights)
    axes = [block.add_subplot(rows[place]) for place in range(len(heights))]
    hours = [hour for _, hour in scores.images]
    window = float(cohort.windows.stay_hours)
    is_pairs = scores.task is Task.DISEASE_PROGRESSION
    until = 1.03 * hours[-1] if is_pairs else window
    draw_curves(axes[1 + num_panels :], cohort, scores.stay_id, hours, until=until)
    draw_words(axes[1 : 1 + num_panels], scores, until=until)
    # Behind the window, room for what the model says of all of it.
    end = until if is_pairs else 1.07 * window
    for axis in axes:
        axis.set_xlim(0, end)
    _number_images(block, axes[0], axes[1], hours, end)
    handles = class_handles(scores.task)
    if handles:
        block.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8, frameon=False)


def _number_images(block: SubFigure, axes: Axes, below: Axes, hours: Sequence[float], end: float) -> None:
    """The images' numbers, apart from each other, with lines to where they were taken."""
    axes.set_axis_off()
    axes.set_ylim(0, 1)
    for number, (place, hour) in enumerate(zip(spread(hours, _GAP * end, end), hours, strict=True), start=1):
        axes.text(place, 0.5, str(number), ha="center", va="bottom", fontsize=9)
        line = ConnectionPatch(
            xyA=(place, 0.4),
            coordsA=axes.transData,
            xyB=(hour, 1),
            coordsB=below.get_xaxis_transform(),
            axesA=axes,
            axesB=below,
            color=GRAY,
            linewidth=0.8,
        )
        block.add_artist(line)


def spread(values: Sequence[float], gap: float, end: float) -> list[float]:
    """Rising values moved as little to the right as keeps them `gap` apart, and back where they pass `end`."""
    places: list[float] = []
    for value in values:
        places.append(value if not places else max(value, places[-1] + gap))
    for later in range(len(places) - 1, -1, -1):
        limit = end if later == len(places) - 1 else places[later + 1] - gap
        places[later] = min(places[later], limit)
    return places


_TINT = (
    "Boxes are tinted by the share of each region in the attention that the class tokens give to the regions of the "
    "pair which the image completes (mean over heads and layers); the white line is an equal share. Regions overlap: "
    "a pixel shows the smallest."
)


def _caption(scores: StayScores) -> str:
    return f"{_said(scores)}\n{_seen(scores)} Attention says what is mixed in, not why a score is high."


def _said(scores: StayScores) -> str:
    """What the scores on the time line are of."""
    if scores.task is Task.DISEASE_PROGRESSION:
        images = "" if scores.sequence else " (from the second image alone: this model is not given the first)"
        return (
            "Each pair of images, scored with the hours of its own window: stacked probabilities from the first image "
            f"to the second{images}; outlined: what the report says, where it mentions the disease."
        )
    images, first = (
        ("images so far", "One image alone gives none: the model reads pairs.")
        if scores.sequence
        else ("latest image, as a pair with itself,", "This model is given no earlier image; drawn from the second on.")
    )
    return (
        f"At each image, the model's score of the {images} with the hours that were over by then; at the right, of its "
        f"whole window, which is the score that evaluation counts. {first} No interval: it is one model."
    )


def _seen(scores: StayScores) -> str:
    """What the tint of the radiographs means."""
    if not scores.glances:
        return "This model reads no radiographs, so no region is tinted."
    if scores.task is Task.DISEASE_PROGRESSION:
        tint = _TINT.replace("heads and layers", "heads, layers and diseases")
        return f"{tint} The first image completes no pair."
    if not scores.sequence:
        return f"{_TINT} Only the last image is tinted: the score of the whole window is of that one."
    share = "Above an image: the share of its pair in the attention to all pairs."
    return f"{_TINT} The first image completes no pair. {share}"
