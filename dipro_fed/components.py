"""`dipro-fed components`: make a public model the start of private training."""

from pathlib import Path
from typing import Annotated

import typer

from dipro_fed.options import Checkpoint, Cohorts, Device


def components(
    checkpoint: Checkpoint,
    cohorts: Cohorts,
    out: Annotated[Path, typer.Option("--out", help="The file to write, for model.start of other runs.")],
    count: Annotated[int, typer.Option("--components", help="Principal components that a head reads.")] = 32,
    device: Device = "auto",
) -> None:
    """Give a trained model linear heads on the principal components of these public cohorts' class tokens."""
    from rich.console import Console

    from federation.trained import load_trained
    from simulation.components import save_start, with_components
    from simulation.sites import choose_sites

    console = Console()
    trained = load_trained(checkpoint)
    specs = choose_sites(cohorts)
    with console.status(f"Reading {len(specs)} cohorts with {trained.path}"):
        save_start(with_components(specs, trained, count, device=device), out)
    console.print(f"Wrote {out}: start of runs with model.trained=readout and model.components={count}.")
    console.print("It tells of the patients it was made with, who must be public: nothing protects them.")
