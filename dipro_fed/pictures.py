"""`dipro-fed pictures`: how trainings went, how good the models are, and where they look."""

from pathlib import Path
from typing import Annotated

import typer

from dipro_fed.options import require_split


def pictures(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs, of any tasks.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures (PNG).")],
    split: Annotated[str, typer.Option("--split", help="Whose patients are scored: train, val or test.")] = "test",
) -> None:
    """Draw each run's training, its ROC, precision-recall and reliability curves, and the attention by region."""
    from rich.console import Console

    from simulation.run_pictures import draw_runs

    require_split(split)
    console = Console()
    with console.status(f"Drawing {len(runs)} runs"):
        written = draw_runs(runs, out, split=split, tell=typer.echo)
    for path in written:
        console.print(f"Wrote {path}", markup=False, highlight=False, soft_wrap=True)
    console.print("docs/pictures.md says how to read them. Curves of few patients tell about each of them.")
