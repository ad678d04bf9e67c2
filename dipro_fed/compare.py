"""`dipro-fed compare`: centralized, local and federated runs side by side."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs of one task.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html and its tables in CSV and JSON.")],
    split: Annotated[str, typer.Option("--split", help="Whose patients are scored: train, val or test.")] = "test",
    resamples: Annotated[int, typer.Option("--resamples", min=1, help="Resamples behind every interval.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the resampling.")] = 0,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Model that the others are compared with; else the centralized.")
    ] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option("--margin", metavar="METRIC=NUMBER", help="How much worse is still non-inferior; repeatable."),
    ] = None,
    cohort: Annotated[
        list[Path] | None,
        typer.Option("--cohort", help="Cohort that was scored, for sex, age and race group; repeatable."),
    ] = None,
    minimum_group: Annotated[
        int, typer.Option("--minimum-group", min=1, help="Groups of fewer patients are withheld.")
    ] = 10,
) -> None:
    """Compare runs on the same patients: scores, differences with verdicts, gains of joining, fairness and cost."""
    from rich.console import Console

    from dipro_model.vocabulary import SPLITS
    from simulation.compare import compare as compare_runs
    from simulation.comparison.study import study
    from simulation.comparison.terminal import print_study
    from simulation.report_folder import PAGE, check_report_folder, write_report
    from simulation.runs import load_runs
    from simulation.tables import print_table

    if split not in SPLITS:
        raise ValueError(f"--split: expected one of {', '.join(SPLITS)}, found {split!r}")
    margins = dict(_margin(words) for words in margin or [])
    check_report_folder(out)
    console = Console()
    with console.status("Reading the runs"):
        loaded = load_runs(runs)
    with console.status(f"Scoring {len(loaded)} runs with {resamples} resamples"):
        comparison = compare_runs(loaded, split=split, num_resamples=resamples, seed=seed)
        concluded = study(
            comparison, reference=reference, margins=margins, cohorts=cohort or [], minimum_group=minimum_group
        )
        write_report(concluded, out)
    print_table(comparison, console)
    print_study(concluded, console)
    console.print(f"Report: {out / PAGE}", markup=False, highlight=False, soft_wrap=True)


def _margin(words: str) -> tuple[str, float]:
    """METRIC=NUMBER; which metrics and numbers there may be is checked where the task is known."""
    metric, _, number = words.partition("=")
    try:
        return metric, float(number)
    except ValueError:
        raise ValueError(
            f"--margin: expected a metric and a number, as in --margin auroc=0.01, found {words!r}"
        ) from None
