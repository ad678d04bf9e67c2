"""`dipro-fed train`: centralized training, or one site's own model."""

from typing import Annotated

import typer

from dipro_fed.options import (
    Cohorts,
    Config,
    NumSites,
    Out,
    Overrides,
    PartitionSeed,
    Seed,
    TaskName,
    gather_overrides,
    require_fresh,
)


def train(
    cohorts: Cohorts,
    task: TaskName,
    out: Out,
    config: Config = None,
    override: Overrides = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training samples at most.")] = None,
    seed: Seed = None,
    sites: NumSites = None,
    partition_seed: PartitionSeed = 0,
    only: Annotated[str | None, typer.Option(help="Learn from this site alone; all sites are scored.")] = None,
    name: Annotated[str | None, typer.Option(help="What reports call the model.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train DiPro on all patients of the cohorts, or of one site, and score every site."""
    from dipro_fed.display import print_results, training_display
    from federation.settings import load_settings
    from simulation.sites import choose_sites
    from simulation.train import train as train_model

    given = gather_overrides(task=task, seed=seed, training__epochs=epochs)
    settings = load_settings(config, [*(override or []), *given])
    require_fresh(out)
    specs = choose_sites(cohorts, num_sites=sites, seed=partition_seed)
    with training_display(settings.training.epochs, f"{settings.task}, {name or only or 'centralized'}") as on_epoch:
        record = train_model(specs, settings, out, only=only, name=name, device=device, on_epoch=on_epoch)
    print_results(record)
