"""`dipro-fed synthesize`: hospitals that anyone may share."""

from pathlib import Path
from typing import Annotated

import typer


def synthesize(
    out: Annotated[Path, typer.Option(help="New or empty folder; gets hospital_1, hospital_2, ...")],
    hospitals: Annotated[int, typer.Option(help="Number of hospitals.")] = 3,
    patients: Annotated[int, typer.Option(help="Patients of EACH hospital, one stay each.")] = 100,
    seed: Annotated[int, typer.Option(help="Everything follows from it, whatever the number of workers.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that draw patients.")] = 2,
    image_pixels: Annotated[int, typer.Option(help="Height of a radiograph, before each scanner's own factor.")] = 384,
) -> None:
    """Write raw files of MIMIC's shape for synthetic hospitals, with the true risk of every stay beside them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from simulation.synthesize.generate import synthesize as generate
    from simulation.synthesize.oracles import ceilings_of_folders

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars = [progress.add_task(f"hospital {index + 1}", total=patients) for index in range(hospitals)]
        summaries = generate(
            out,
            hospitals=hospitals,
            patients=patients,
            seed=seed,
            workers=workers,
            image_pixels=image_pixels,
            advance=lambda hospital, count: progress.advance(bars[hospital], count),
        )
    for row in summaries:
        typer.echo(
            f"{row.folder}: {row.name}, {row.num_patients} patients, {row.num_images} images, {row.num_deaths} deaths"
        )
    ceilings = ceilings_of_folders([row.folder for row in summaries])
    typer.echo("best possible AUROC of death in hospital, by what a model sees:")
    for evidence, value in ceilings.items():
        figure = "not defined, as everybody had the same outcome" if value is None else f"{value:.3f}"
        typer.echo(f"  {evidence.replace('_', ' '):<20} {figure}")
