"""What the terminal shows of a run: progress while it trains, a small table when it is done."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dipro_model.metrics import METRICS
from federation.results import SplitResult
from federation.run_folder import Measurement, RunRecord
from simulation.flower import OnRound
from simulation.train import OnEpoch


@contextmanager
def training_display(num_epochs: int, title: str) -> Iterator[OnEpoch]:
    """A progress bar over epochs, with the losses and the validation metrics of the last one."""
    with _progress("epochs") as progress:
        bar = progress.add_task(title, total=num_epochs, last="")

        def on_epoch(epoch: int, trained: SplitResult, validated: SplitResult) -> None:
            losses = f"loss {trained.losses['total']:.3f} train, {validated.losses['total']:.3f} val"
            progress.update(bar, completed=epoch, last=f"{losses}; {_brief(validated.metrics)}")

        yield on_epoch


@contextmanager
def round_display(num_rounds: int, title: str) -> Iterator[OnRound]:
    """A progress bar over rounds, with the sites' validation results of the last one."""
    with _progress("rounds") as progress:
        bar = progress.add_task(f"{title} (starting Flower)", total=num_rounds, last="")

        def on_round(measurements: list[Measurement]) -> None:
            step = max(each.step for each in measurements)
            sites = [each for each in measurements if each.step == step and each.split == "val"]
            last = "; ".join(f"{each.site}: {_brief(each.metrics)}" for each in sites)
            progress.update(bar, completed=step, description=title, last=last)

        yield on_round


def print_results(record: RunRecord) -> None:
    """The metrics of the chosen model by site and split."""
    table = Table(title=f"{record.name}: {record.task}, {_chosen(record)}", title_justify="left")
    table.add_column("site")
    table.add_column("split")
    for metric in METRICS[record.task]:
        table.add_column(metric, justify="right")
    for site, splits in record.more["results"].items():
        for split, metrics in splits.items():
            table.add_row(site, split, *(_number(metrics[metric]) for metric in METRICS[record.task]))
    Console().print(table)


def _chosen(record: RunRecord) -> str:
    if record.best_step is None:
        return f"last {record.step_unit} (validation {record.monitor} is undefined, so none is best)"
    return f"best {record.step_unit} {record.best_step} by validation {record.monitor}"


def _progress(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}"),
        console=Console(stderr=True),
    )


def _brief(metrics: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in metrics.items() if "/" not in name)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
