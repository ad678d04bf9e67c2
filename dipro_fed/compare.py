"""`dipro-fed compare`: centralized, local and federated runs side by side."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs of one task.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html, table.csv, table.json and curves.csv.")],
    split: Annotated[str, typer.Option("--split", help="Whose patients are scored: train, val or test.")] = "test",
    resamples: Annotated[int, typer.Option("--resamples", min=1, help="Resamples behind every interval.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the resampling.")] = 0,
) -> None:
    """Compare runs on the same patients: one table with intervals, curves, as HTML, CSV and JSON."""
    from rich.console import Console

    from dipro_model.vocabulary import SPLITS
    from simulation.compare import compare as compare_runs
    from simulation.report_folder import PAGE, check_report_folder, write_report
    from simulation.runs import load_runs
    from simulation.tables import print_table

    if split not in SPLITS:
        raise ValueError(f"--split: expected one of {', '.join(SPLITS)}, found {split!r}")
    check_report_folder(out)
    console = Console()
    with console.status("Reading the runs"):
        loaded = load_runs(runs)
    with console.status(f"Scoring {len(loaded)} runs with {resamples} resamples"):
        comparison = compare_runs(loaded, split=split, num_resamples=resamples, seed=seed)
        write_report(comparison, out)
    print_table(comparison, console)
    console.print(f"Report: {out / PAGE}", markup=False, highlight=False, soft_wrap=True)
