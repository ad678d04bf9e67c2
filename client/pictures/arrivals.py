"""What a model says of a stay as time goes on: risk, classes, or the changes of each disease, on a time line."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from client.pictures.ehr import mark_images
from client.pictures.style import CLASS_COLORS, GRAY, plain
from client.stay_scores import StayScores, Word
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, TASK_CLASSES, Task

_STACK = {Task.DISEASE_PROGRESSION: (0, 2, 1), Task.LENGTH_OF_STAY: (0, 1, 2, 3)}
"""Classes from the bottom of a stack to its top: no change lies between worsened and improved."""


def draw_words(axes: Sequence[Axes], scores: StayScores, *, until: float) -> None:
    """One axis, or one a disease; `until` is the hour at which the window of a whole-stay task ends."""
    hours = [hour for _, hour in scores.images]
    if scores.task is Task.DISEASE_PROGRESSION:
        _draw_progression(axes, scores)
    elif scores.task is Task.MORTALITY:
        _draw_risk(axes[0], scores, until)
    else:
        _draw_classes(axes[0], scores, until)
    for axis in axes:
        mark_images(axis, hours)
        axis.tick_params(labelbottom=False)
        axis.set_ylim(0, 1)
        plain(axis)


def _draw_risk(axis: Axes, scores: StayScores, until: float) -> None:
    color = CLASS_COLORS[Task.MORTALITY]["died"]
    *early, whole = scores.words
    risks = [float(word.probabilities[0, 0]) for word in early]
    times = [word.end for word in early]
    axis.step([*times, until], [*risks, risks[-1]], where="post", color=color, linewidth=1.4)
    axis.plot(times, risks, "o", color=color, markersize=5)
    final = float(whole.probabilities[0, 0])
    axis.axvline(until, color=GRAY, linewidth=0.8, linestyle="--")
    axis.plot([1.02 * until], [final], "D", color=color, markersize=6)
    axis.annotate(f"{final:.2f}", (1.02 * until, final), (7, 0), textcoords="offset points", va="center", fontsize=9)
    _name_window(axis, until)
    axis.set_ylabel("risk of death\nin hospital", rotation=0, ha="right", va="center", fontsize=9)


def _draw_classes(axis: Axes, scores: StayScores, until: float) -> None:
    *early, whole = scores.words
    ends = [*(word.end for word in early[1:]), until]
    for word, end in zip(early, ends, strict=True):
        _stack(axis, Task.LENGTH_OF_STAY, word.probabilities[0], word.end, end)
    axis.axvline(until, color=GRAY, linewidth=0.8, linestyle="--")
    _stack(axis, Task.LENGTH_OF_STAY, whole.probabilities[0], 1.01 * until, 1.06 * until)
    _name_window(axis, until)
    axis.set_ylabel("probability of\neach class", rotation=0, ha="right", va="center", fontsize=9)


def _draw_progression(axes: Sequence[Axes], scores: StayScores) -> None:
    for k, (axis, disease) in enumerate(zip(axes, DISEASES, strict=True)):
        for word in scores.words:
            _stack(axis, scores.task, word.probabilities[k], word.begin, word.end)
            if word.label[k] != NOT_MENTIONED:
                _outline(axis, word, k)
        axis.set_ylabel(disease, rotation=0, ha="right", va="center", fontsize=8)
        axis.set_yticks([0, 1])


def _name_window(axis: Axes, until: float) -> None:
    place = (1.035 * until, 1.0)
    axis.annotate(f"all {until:g} h", place, (0, 3), textcoords="offset points", ha="center", fontsize=8, color=GRAY)


def _stack(axis: Axes, task: Task, probabilities: np.ndarray, begin: float, end: float) -> None:
    bottom = 0.0
    for place in _STACK[task]:
        height = float(probabilities[place])
        color = CLASS_COLORS[task][TASK_CLASSES[task][place]]
        axis.add_patch(
            Rectangle((begin, bottom), end - begin, height, facecolor=color, edgecolor="white", linewidth=0.4)
        )
        bottom += height


def _outline(axis: Axes, word: Word, disease: int) -> None:
    """Around the class that the report says."""
    order = _STACK[Task.DISEASE_PROGRESSION]
    below = order[: order.index(word.label[disease])]
    own = word.probabilities[disease]
    corner = (word.begin, float(own[list(below)].sum()))
    size = word.end - word.begin, float(own[word.label[disease]])
    axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor="black", linewidth=1.5, zorder=3))


def class_handles(task: Task) -> list[Patch]:
    """A legend's entries for stacked classes, from the top of a stack to its bottom; none for a single risk."""
    names = [TASK_CLASSES[task][place] for place in reversed(_STACK.get(task, ()))]
    return [Patch(facecolor=CLASS_COLORS[task][name], label=name) for name in names]
