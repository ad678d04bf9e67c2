"""`dipro-fed stay`: one stay as a model sees it."""

from pathlib import Path
from typing import Annotated

import typer

from dipro_fed.options import Checkpoint, Device, OwnTask, require_split, require_task


def stay(
    checkpoint: Checkpoint,
    cohort: Annotated[Path, typer.Argument(metavar="COHORT", help="The prepared cohort that the stay is in.")],
    out: Annotated[Path, typer.Option("--out", help="The picture (PNG) to write.")],
    stay: Annotated[
        int | None, typer.Option("--stay", help="stay_id; by default the stay of the split with the most images.")
    ] = None,
    task: OwnTask = None,
    split: Annotated[str, typer.Option("--split", help="Where to look for a stay: train, val or test.")] = "test",
    device: Device = "auto",
) -> None:
    """Draw a stay's radiographs tinted by attention, the model's score as they arrive, and the EHR curves."""
    from rich.console import Console

    from client.cohort import open_cohort
    from client.pictures.stay import draw_stay
    from client.stay_scores import choose_stay, records_of, score_stay
    from client.training import choose_device, place
    from federation.trained import load_trained

    require_split(split)
    console = Console()
    trained = load_trained(checkpoint, require_task(task))
    opened, settings = open_cohort(cohort, verify_regions=False), trained.settings
    chosen = choose_stay(opened, settings.task, split) if stay is None else stay
    site = records_of(opened, chosen, crop_pixels=settings.model.crop_pixels, agreement=trained.agreement)
    with console.status(f"Scoring stay {chosen}"):
        scores = score_stay(place(trained.model, choose_device(device), settings), site, settings, chosen)
    draw_stay(opened, scores, out)
    console.print(f"Wrote {out}: stay {chosen}, {len(scores.images)} images.", soft_wrap=True)
    console.print("It shows a patient: treat it like their records.")
