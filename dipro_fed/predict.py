"""`dipro-fed predict`: what a finished model says of every sample, as a table."""

from pathlib import Path
from typing import Annotated

import typer

from dipro_fed.options import Checkpoint, Cohorts, Device, OwnTask, require_split, require_task


def predict(
    checkpoint: Checkpoint,
    cohorts: Cohorts,
    out: Annotated[Path, typer.Option("--out", help="The file to write, .parquet or .csv.")],
    task: OwnTask = None,
    split: Annotated[str | None, typer.Option("--split", help="Only train, val or test; else all patients.")] = None,
    device: Device = "auto",
) -> None:
    """Write probabilities and the attention to each region of every stay, or pair of radiographs for progression."""
    from rich.console import Console

    from client.prediction_table import require_table_path, write_prediction_table
    from dipro_model.vocabulary import SPLITS
    from federation.trained import load_trained
    from simulation.evaluate import predict as predict_samples
    from simulation.sites import choose_sites

    require_table_path(out)
    splits = SPLITS if split is None else (require_split(split),)
    console = Console()
    trained = load_trained(checkpoint, require_task(task))
    specs = choose_sites(cohorts)
    with console.status(f"Scoring {trained.path} on {len(specs)} sites"):
        predictions = predict_samples(specs, trained, splits=splits, device=device)
        write_prediction_table(predictions, out)
    what = "radiograph pairs" if predictions.attention.shape[1] > 1 else "stays"
    console.print(f"Wrote {out}: {len(predictions)} {what} of {len(set(predictions.patients.tolist()))} patients.")
    console.print("It holds patients' scores: treat it like their records.")
