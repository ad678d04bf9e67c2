"""`dipro-fed sweep`: many runs over seeds, partitions and models from one YAML, and their table."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipro_fed.options import Overrides

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation.sweep.cells import Cell
    from simulation.sweep.folder import SweepFolder
    from simulation.sweep.run import Outcome, Progress

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended."""


def sweep(
    plan: Annotated[Path, typer.Argument(help="What to run, in YAML; see configs/sweeps.", metavar="SWEEP.yaml")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the sweep: new, empty, or of one that goes on.")],
    cohorts: Annotated[
        list[str] | None,
        typer.Option("--cohorts", help="Cohorts of a name, NAME=PATH,PATH,...; may be given again for another name."),
    ] = None,
    override: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time, one thread each; as many as cores unless given.")
    ] = None,
    recommend: Annotated[
        Path | None, typer.Option(help="Write the recommended setting of each partition, with evidence, in Markdown.")
    ] = None,
) -> None:
    """Run all cells of a sweep and make their table; stopped at any moment, the same command goes on."""
    from simulation.sweep.cells import make_cells
    from simulation.sweep.folder import SweepFolder
    from simulation.sweep.plan import load_sweep
    from simulation.sweep.run import run_sweep

    asked = load_sweep(plan, cohorts=_cohorts(cohorts or []), overrides=override or [])
    folder = SweepFolder(path=out)
    folder.require()
    cells = make_cells(asked).cells
    try:
        with _display() as on_progress:
            outcome = run_sweep(
                cells,
                folder,
                workers=workers or os.cpu_count() or 1,
                checkpoints=asked.plan.checkpoints,
                on_progress=on_progress,
                tell=lambda words: typer.echo(words, err=True),
            )
    except KeyboardInterrupt:
        typer.echo(f"{out}: stopped; the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _report(cells, folder, outcome, recommend, plan)
    if outcome.failed:
        raise typer.Exit(1)


def _cohorts(texts: list[str]) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for text in texts:
        name, found, paths = text.partition("=")
        if not found or not name or not paths:
            raise ValueError(f"--cohorts {text}: expected NAME=PATH or NAME=PATH,PATH,...")
        named.setdefault(name, []).extend(Path(path) for path in paths.split(","))
    return named


def _report(
    cells: "tuple[Cell, ...]", folder: "SweepFolder", outcome: "Outcome", recommend: Path | None, plan: Path
) -> None:
    """Tables, recommendation, and a list of what failed."""
    from federation.files import write_whole
    from federation.run_folder import read_run
    from simulation.sweep.recommend import recommendation_page
    from simulation.sweep.results import collect_results
    from simulation.sweep.tables import write_tables

    by_name = {cell.name: cell for cell in cells}
    if outcome.finished:
        results = collect_results(cells, folder, failed=outcome.failed)
        written = write_tables(results, folder.path)
        if recommend is not None:
            hours = sum(read_run(folder.run(cell)).seconds for cell in outcome.finished) / 3600
            # As it is given in the project's folder, wherever the files lie.
            words = (
                os.path.relpath(plan),
                "--out",
                "runs/sweeps/" + plan.stem,
                "--recommend",
                os.path.relpath(recommend),
            )
            page = recommendation_page(results, command=f"dipro-fed sweep {shlex.join(words)}", hours=hours)
            write_whole(recommend, page.encode())
            written.append(recommend)
        for path in written:
            typer.echo(f"Wrote {path}")
    typer.echo(f"{len(outcome.finished)} of {len(cells)} runs finished in {outcome.seconds:.0f} s")
    for name, reason in outcome.failed.items():
        typer.secho(f"failed: {name}: {reason}", err=True, fg=typer.colors.RED)
        typer.echo(f"  its log is {folder.log(by_name[name])}", err=True)


@contextmanager
def _display() -> "Iterator[Callable[[Progress], None]]":
    """A bar over runs; below it what is running, and how long it may take. In a file a line for each finished run."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    bar = bars.add_task("runs", total=None, left="")
    console, written = Console(stderr=True), 0
    with Live(bars, console=console, refresh_per_second=4) as live:

        def on_progress(progress: "Progress") -> None:
            nonlocal written
            failed = f"{progress.num_failed} failed, " if progress.num_failed else ""
            left = f"{failed}{_left(progress.seconds_left)}"
            bars.update(bar, total=progress.num_cells, completed=progress.num_done, left=left)
            lines = [Text(f"  {each.name}: {each.step} of {each.num_steps}") for each in progress.running]
            live.update(Group(bars, *lines))
            if not console.is_terminal and progress.num_done > written:
                written = progress.num_done
                console.print(Text(f"{written} of {progress.num_cells} runs; {left}"), soft_wrap=True)

        yield on_progress


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute left" if seconds else ""
    return f"about {minutes // 60} h {minutes % 60} min left" if minutes >= 60 else f"about {minutes} min left"
