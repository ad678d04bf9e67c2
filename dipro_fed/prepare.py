"""`dipro-fed prepare`: raw files of a hospital to a prepared cohort."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from client.cohort import Cohort


def prepare(
    mimic_iv: Annotated[Path, typer.Option(help="Folder of hosp/ and icu/ tables, plain or gzipped CSV.")],
    mimic_cxr: Annotated[Path, typer.Option(help="Folder of the radiographs (files/) and their metadata table.")],
    chest_imagenome: Annotated[Path, typer.Option(help="Folder of silver_dataset/ and gold_dataset/.")],
    out: Annotated[Path, typer.Option(help="New folder for the cohort.")],
    profile: Annotated[str, typer.Option(help="`corrected`, `published`, or a YAML file.")] = "corrected",
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first rejected row, image or stay, instead of counting it.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes and threads to use.", show_default="one a core")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the cohort that is at --out.")] = False,
) -> None:
    """Prepare raw hospital files into a cohort: stays, images, region crops, hourly EHR, labels, split."""
    from rich.console import Console

    from client.prepare.pipeline import prepare as run

    with _bars() as progress:
        cohort = run(
            mimic_iv,
            mimic_cxr,
            chest_imagenome,
            out,
            profile=profile,
            strict=strict,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
        )
    _print_summary(Console(), cohort)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each step, with counts, as the steps come."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as display:

        def progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = display.add_task(what, total=total)
            display.update(bars[what], completed=done, total=total)

        yield progress


def _print_summary(console: "Console", cohort: "Cohort") -> None:
    from rich.table import Table

    counts = Table(title=f"{cohort.path} (profile {cohort.manifest['profile']})", title_justify="left")
    counts.add_column("table")
    counts.add_column("rows", justify="right")
    for name, count in cohort.manifest["counts"].items():
        counts.add_row(name, f"{count:,}")
    console.print(counts)
    rejected = Table(title="Left out, by reason", title_justify="left")
    rejected.add_column("stage")
    rejected.add_column("reason")
    rejected.add_column("count", justify="right")
    for stage, reasons in cohort.report["rejections"].items():
        for reason, entry in reasons.items():
            rejected.add_row(stage, reason, f"{entry['count']:,}")
    console.print(rejected)
