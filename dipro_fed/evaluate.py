"""`dipro-fed evaluate`: how good a finished model is on prepared cohorts, a released one or one of our own."""

from typing import Annotated

import typer

from dipro_fed.options import Checkpoint, Cohorts, Device, Out, OwnTask, require_fresh, require_split, require_task


def evaluate(
    checkpoint: Checkpoint,
    cohorts: Cohorts,
    out: Out,
    task: OwnTask = None,
    split: Annotated[str, typer.Option("--split", help="Whose patients are scored: train, val or test.")] = "test",
    name: Annotated[str | None, typer.Option(help="What reports call the model.")] = None,
    device: Device = "auto",
    resamples: Annotated[int, typer.Option("--resamples", min=1, help="Resamples behind every interval.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the resampling.")] = 0,
) -> None:
    """Score a finished model: metrics with 95 % intervals, predictions and pictures, a folder that `compare` reads."""
    from rich.console import Console

    from federation.trained import load_trained
    from simulation.compare import compare
    from simulation.evaluate import evaluate as evaluate_model
    from simulation.run_pictures import draw_run
    from simulation.runs import load_runs
    from simulation.sites import choose_sites
    from simulation.tables import print_table, write_table_json

    require_split(split)
    require_fresh(out)
    console = Console()
    trained = load_trained(checkpoint, require_task(task))
    specs = choose_sites(cohorts)
    with console.status(f"Scoring {trained.path} on {len(specs)} sites"):
        evaluate_model(specs, trained, out, split=split, name=name, device=device)
    with console.status(f"Resampling the patients {resamples} times"):
        runs = load_runs([out])
        comparison = compare(runs, split=split, num_resamples=resamples, seed=seed)
        write_table_json(comparison, out / "metrics.json")
    with console.status("Drawing"):
        pictures = draw_run(runs[0], out / "pictures", split=split)
    print_table(comparison, console)
    for path in [out / "metrics.json", *pictures]:
        console.print(f"Wrote {path}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{out / 'predictions'} holds patients' scores and labels: treat it like their records.", soft_wrap=True
    )
