"""How a training went: losses, their terms and the monitored metric, step by step."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from client.pictures.style import COLORS, GRAY, add_caption, add_title, plain, save
from federation.run_folder import POOLED, Measurement, RunRecord

Value = Callable[[Measurement], float | None]

TERMS = {
    "task": "task",
    "orthogonal": "orthogonal (static, dynamic)",
    "temporal": "temporal (static, next pair)",
    "static": "static (under time reversal)",
    "dynamic": "dynamic (progression of regions)",
}
"""Terms of the objective in words, in the order of the panels."""

_SPLITS = {"train": COLORS[0], "val": COLORS[1]}
_WORDS = {"train": "training", "val": "validation", "test": "test"}
_COLUMNS = 4


def draw_training(record: RunRecord, history: Sequence[Measurement], out: Path) -> Path:
    """Draw the objective, its terms and the monitored metric over the steps of a run, with the chosen step marked.

    Raises ValueError where nothing was measured.
    """
    sites = {each.site for each in history} - {POOLED}
    if len(sites) > 1:
        history = [*history, *_mean_of_sites(record, history)]
    panels = _panels(record, history)
    if not panels:
        raise ValueError(f"{record.name}: its history holds no loss and no metric, so there is nothing to draw")
    num_rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(3.1 * min(_COLUMNS, len(panels)) + 0.2, 2.6 * num_rows + 1.1), layout="constrained")
    grid = figure.subplots(num_rows, min(_COLUMNS, len(panels)), squeeze=False, sharex=True)
    for axes, (title, value) in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, title, value, record, history)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for column in range(grid.shape[1]):
        lowest = [axes for axes in grid[:, column] if axes.axison][-1]
        lowest.set_xlabel(record.step_unit, fontsize=9)
        lowest.tick_params(labelbottom=True)
    add_title(figure, f"{record.name}: {record.task.replace('_', ' ')}, training")
    _add_legend(figure, record, history)
    add_caption(figure, _caption(record, history))
    return save(figure, out)


def _panels(record: RunRecord, history: Sequence[Measurement]) -> list[tuple[str, Value]]:
    """Title and value of every panel that has a value other than 0 at some step; a term that is off is 0 throughout."""
    terms = [*TERMS, *sorted({name for each in history for name in each.parts} - set(TERMS))]
    planned: list[tuple[str, Value]] = [("objective", lambda each: each.loss)]
    planned += [(TERMS.get(name, name), lambda each, name=name: each.parts.get(name)) for name in terms]
    planned.append((f"{record.monitor} (higher is better)", lambda each: each.metrics.get(record.monitor)))
    return [(title, value) for title, value in planned if any(value(each) for each in history)]


def _draw_panel(axes: Axes, title: str, value: Value, record: RunRecord, history: Sequence[Measurement]) -> None:
    sites = list(dict.fromkeys(each.site for each in history))
    for split, color in _SPLITS.items():
        for site in sites:
            own = [each for each in history if (each.split, each.site) == (split, site) and value(each) is not None]
            is_main = site == POOLED or len(sites) == 1
            axes.plot(
                [each.step for each in own],
                [value(each) for each in own],  # pyright: ignore[reportArgumentType]
                color=color,
                linewidth=1.8 if is_main else 0.8,
                alpha=1.0 if is_main else 0.45,
                marker="o" if len(own) < 12 else None,
                markersize=3.5 if is_main else 2,
            )
    if record.best_step is not None:
        axes.axvline(record.best_step, color=GRAY, linewidth=1, linestyle=":")
    axes.set_title(title, fontsize=9, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    plain(axes)


def _mean_of_sites(record: RunRecord, history: Sequence[Measurement]) -> Iterator[Measurement]:
    """Means over the sites, weighted by samples, at steps where none was measured over all sites together.

    Of a loss it is the loss of all samples; of a metric it is what a federation chooses its round by.
    """
    steps = dict.fromkeys((each.step, each.split) for each in history)
    for step, split in steps:
        own = [each for each in history if (each.step, each.split) == (step, split)]
        if POOLED in {each.site for each in own}:
            continue
        names = dict.fromkeys(name for each in own for name in each.parts)
        parts = {name: _mean([(each.parts.get(name), each.num_samples) for each in own]) for name in names}
        yield Measurement(
            step=step,
            site=POOLED,
            split=split,
            loss=_mean([(each.loss, each.num_samples) for each in own]),
            parts={name: value for name, value in parts.items() if value is not None},
            metrics={record.monitor: _mean([(each.metrics.get(record.monitor), each.num_samples) for each in own])},
            num_samples=sum(each.num_samples for each in own),
            seconds=max(each.seconds for each in own),
        )


def _mean(values: Sequence[tuple[float | None, int]]) -> float | None:
    defined = [(value, weight) for value, weight in values if value is not None and weight]
    return sum(value * weight for value, weight in defined) / sum(weight for _, weight in defined) if defined else None


def _add_legend(figure: Figure, record: RunRecord, history: Sequence[Measurement]) -> None:
    measured = {each.split for each in history}
    handles = [
        Line2D([], [], color=_SPLITS[split], linewidth=1.8, label=f"{_WORDS[split]} patients")
        for split in _SPLITS
        if split in measured
    ]
    if record.best_step is not None:
        label = f"chosen: {record.step_unit} {record.best_step}"
        handles.append(Line2D([], [], color=GRAY, linewidth=1, linestyle=":", label=label))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8, frameon=False)


def _caption(record: RunRecord, history: Sequence[Measurement]) -> str:
    sites = {each.site for each in history}
    main = POOLED if POOLED in sites else next(iter(sites))
    counts = {each.split: each.num_samples for each in history if each.site == main}
    samples = " and ".join(f"{count} {_WORDS[split]} samples" for split, count in counts.items())
    text = (
        f"Means over {samples}. Training losses are those met on the way, with dropout; validation losses are those of "
        "the finished step. Terms are drawn before their factors; the objective is their weighted sum."
    )
    if len(sites) > 1:
        text += " Thin lines: the sites; thick ones: all of them, where they only report means, weighted by samples."
    if record.best_step is not None:
        text += f" The model kept is that of the best validation {record.monitor}."
    return text
