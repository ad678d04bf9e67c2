"""What the terminal shows of a run: progress while it trains, a small table when it is done."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dipro_model.metrics import CALIBRATION, HEADLINE, METRICS
from federation.results import SplitResult
from federation.run_folder import RUN, Measurement, RunRecord
from simulation.flower import OnRound
from simulation.train import OnEpoch

BRIEF = ("accuracy", "kappa", "f1", "auprc", "auroc")
"""What the line below a progress bar may name, the first two of the task's: its monitor and one more."""


@contextmanager
def training_display(num_epochs: int, title: str) -> Iterator[OnEpoch]:
    """A progress bar over epochs, with the losses and the validation metrics of the last one below it."""
    with _Progress("epochs") as progress:
        bar = progress.add_task(title, total=num_epochs, last="")

        def on_epoch(epoch: int, trained: SplitResult, validated: SplitResult) -> None:
            losses = f"loss {trained.losses['total']:.3f} train, {validated.losses['total']:.3f} val"
            progress.step(bar, epoch, f"{losses}; val {brief(validated.metrics)}")

        yield on_epoch


@contextmanager
def round_display(num_rounds: int, title: str) -> Iterator[OnRound]:
    """A progress bar over rounds, with the sites' validation metrics of the last one below it."""
    with _Progress("rounds") as progress:
        bar = progress.add_task(f"{title} (starting)", total=num_rounds, last="")

        def on_round(measurements: list[Measurement]) -> None:
            step = max(each.step for each in measurements)
            sites = [each for each in measurements if each.step == step and each.split == "val"]
            last = "; ".join(f"{each.site}: {brief(each.metrics)}" for each in sites)
            progress.update(bar, description=title)
            progress.step(bar, step, f"val {last}")

        yield on_round


def print_results(record: RunRecord, console: Console | None = None) -> None:
    """The chosen model by site and split: what was published for the task, and its calibration."""
    shown = (*HEADLINE[record.task], *CALIBRATION)
    table = Table()
    table.add_column("site", overflow="fold")
    table.add_column("split")
    for metric in shown:
        table.add_column(metric, justify="right", no_wrap=True)
    results = record.more["results"]
    for site, splits in results.items():
        for split, metrics in splits.items():
            table.add_row(Text(site), split, *(_number(metrics[metric], "–") for metric in shown))
    console = console or Console()
    # Not the table's title: that would be folded to the width of a narrow table.
    console.print(Text(f"{record.name}: {record.task}, {_chosen(record)}", style="italic"))
    console.print(table)
    if any(metrics[name] is None for splits in results.values() for metrics in splits.values() for name in shown):
        console.print("–: undefined by the labels there; `dipro-fed compare` says why.", highlight=False)
    others = [name for name in METRICS[record.task] if name not in shown]
    if others:
        console.print(f"In {RUN}, too: {', '.join(others)}.", highlight=False)
    if "site_privacy" in record.more:
        for line in site_privacy_lines(record.more["site_privacy"]):
            console.print(line, highlight=False)


def brief(metrics: Mapping[str, float | None]) -> str:
    """The monitor and one more metric, in words."""
    named = [name for name in BRIEF if name in metrics][:2]
    return ", ".join(f"{name} {_number(metrics[name])}" for name in named)


_SHOWN_ROUNDS = 8


def site_privacy_lines(spent: Mapping[str, Any]) -> list[str]:
    """What a run spent of its sites' privacy, in all and after some of its rounds, evenly spread."""
    charges = spent["by_round"]
    places = sorted({round(place * (len(charges) - 1) / (_SHOWN_ROUNDS - 1)) for place in range(_SHOWN_ROUNDS)})
    by_round = ", ".join(f"{charges[place][0]}: {charges[place][1]:.2f}" for place in places) if charges else "none"
    lines = [
        f"Site-level privacy: epsilon {spent['epsilon']:.2f} of {spent['budget']:g} at delta {spent['delta']:g}; after "
        f"round {by_round}."
    ]
    return [*lines, f"The budget ended the run {spent['ended']}."] if "ended" in spent else lines


def _chosen(record: RunRecord) -> str:
    if record.best_step is None:
        return f"last {record.step_unit} (validation {record.monitor} is undefined, so none is best)"
    return f"best {record.step_unit} {record.best_step} by validation {record.monitor}"


class _Progress(Progress):
    """A bar, and what is said of the last step on a line of its own: side by side they need more than 100 columns.

    Where nobody looks, as in a file of output, there is a line for each step instead, and the bar at the end.
    """

    def __init__(self, unit: str) -> None:
        self._unit, self._written = unit, 0
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )

    def step(self, bar: TaskID, completed: int, last: str) -> None:
        """So many steps are done, and this is said of the last."""
        self.update(bar, completed=completed, last=last)
        if self.console.is_terminal or completed == self._written:
            return
        self._written = completed
        task = self.tasks[bar]
        words = f"{task.description}: {completed} of {task.total:g} {self._unit}; {last}"
        self.console.print(Text(words), soft_wrap=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["last"]:
                yield Text(f"  {task.fields['last']}")


def _number(value: float | None, undefined: str = "undefined") -> str:
    return undefined if value is None else f"{value:.3f}"
