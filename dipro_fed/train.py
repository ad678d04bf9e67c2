"""`dipro-fed train`: centralized training, or one site's own model; with several seeds, a run for each."""

from pathlib import Path
from typing import Annotated

import typer

from dipro_fed.options import (
    Alpha,
    Cohorts,
    Config,
    Exponent,
    GapWords,
    MinPatients,
    NumSites,
    Overrides,
    PartitionPath,
    PartitionSeed,
    SchemeWord,
    Seed,
    Sigma,
    TaskName,
    gather_overrides,
    scheme_of,
)
from federation.run_folder import RUN
from federation.settings import RunSettings

Out = Annotated[
    Path, typer.Option("--out", help="Folder of the run: new, empty, or of the same run unfinished, which goes on.")
]


def train(
    cohorts: Cohorts,
    task: TaskName,
    out: Out,
    config: Config = None,
    override: Overrides = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training samples at most.")] = None,
    seed: Seed = None,
    seeds: Annotated[
        str | None, typer.Option(help="Several runs, one after the other: 23,29,66 leaves OUT/seed_23 and so on.")
    ] = None,
    sites: NumSites = None,
    partition_seed: PartitionSeed = 0,
    scheme: SchemeWord = None,
    alpha: Alpha = None,
    sigma: Sigma = None,
    exponent: Exponent = None,
    gap: GapWords = None,
    min_patients: MinPatients = None,
    partition: PartitionPath = None,
    only: Annotated[str | None, typer.Option(help="Learn from this site alone; all sites are scored.")] = None,
    name: Annotated[str | None, typer.Option(help="What reports call the model.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train DiPro on all patients of the cohorts, or of one site, and score every site.

    Stopped at any moment, the same command goes on where it was.
    """
    from dipro_fed.display import print_results, training_display
    from federation.resume import require_fresh_or_run
    from federation.settings import load_settings
    from simulation.partition.choose import FOLDER, choose_partitioned_sites, keep_partition
    from simulation.train import train as train_model

    if seeds is not None and seed is not None:
        raise ValueError("--seed and --seeds: expected one of the two; --seeds 23,29,66 makes a run for each")
    given = gather_overrides(task=task, seed=seed, training__epochs=epochs)
    settings = load_settings(config, [*(override or []), *given])
    runs = {out: settings} if seeds is None else _run_for_each(out, settings, seeds)
    for folder in runs:
        require_fresh_or_run(folder)
    asked = scheme_of(
        scheme,
        num_sites=sites,
        alpha=alpha,
        sigma=sigma,
        exponent=exponent,
        gaps=gap,
        min_patients=min_patients,
    )
    specs, drawn = choose_partitioned_sites(
        cohorts, settings.task, num_sites=sites, seed=partition_seed, scheme=asked, manifest=partition
    )
    for folder, own in runs.items():
        title = f"{own.task}, {name or only or 'centralized'}" + (f", seed {own.seed}" if seeds else "")
        with training_display(own.training.epochs, title) as on_epoch:
            record = train_model(
                specs,
                own,
                folder,
                only=only,
                name=name,
                device=device,
                keep_finished=seeds is not None,
                on_epoch=on_epoch,
                tell=lambda words: typer.echo(words, err=True),
            )
        print_results(record)
    if drawn is not None:
        keep_partition(drawn, out / FOLDER)
    if seeds is not None:
        _sum_up(list(runs), out)


def _run_for_each(out: Path, settings: RunSettings, seeds: str) -> dict[Path, RunSettings]:
    """The folder and the settings of each seed's run. Raises ValueError for what is no list of seeds, or no place."""
    numbers = [text.strip() for text in seeds.split(",")]
    if not all(number.isdecimal() for number in numbers) or len({int(number) for number in numbers}) < len(numbers):
        raise ValueError(f"--seeds {seeds}: expected different whole numbers such as 23,29,66")
    if (out / RUN).exists():
        raise ValueError(f"{out}: expected a folder for runs, found a run; with --seeds choose another --out")
    return {out / f"seed_{int(number)}": settings.model_copy(update={"seed": int(number)}) for number in numbers}


def _sum_up(folders: list[Path], out: Path) -> None:
    from rich.console import Console

    from simulation.seeds import print_seed_summary, summarise_seeds, write_seed_summary

    summary = summarise_seeds(folders)
    write_seed_summary(summary, out)
    print_seed_summary(summary, Console())
