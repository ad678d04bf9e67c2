"""`dipro-fed simulate`: a federated run on Flower's simulation engine, one process a site, or all in this process."""

import logging
from enum import StrEnum
from functools import partial
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
    Out,
    Overrides,
    PartitionPath,
    PartitionSeed,
    SchemeWord,
    Seed,
    Sigma,
    TaskName,
    gather_overrides,
    require_fresh_or_unfinished,
    scheme_of,
)


class Engine(StrEnum):
    """What runs the sites of a simulation."""

    FLOWER = "flower"
    IN_PROCESS = "in-process"


def simulate(
    cohorts: Cohorts,
    task: TaskName,
    out: Out,
    rounds: Annotated[int | None, typer.Option(help="Rounds of local training and aggregation.")] = None,
    config: Config = None,
    override: Overrides = None,
    seed: Seed = None,
    sites: NumSites = None,
    partition_seed: PartitionSeed = 0,
    scheme: SchemeWord = None,
    alpha: Alpha = None,
    sigma: Sigma = None,
    exponent: Exponent = None,
    gap: GapWords = None,
    min_patients: MinPatients = None,
    partition: PartitionPath = None,
    engine: Annotated[
        Engine, typer.Option(help="flower: `flwr run`, a process a site; in-process: sites in turn, no start-up.")
    ] = Engine.FLOWER,
    site_cpus: Annotated[int, typer.Option(min=1, help="CPU cores of a site's process.")] = 1,
    site_gpus: Annotated[float, typer.Option(min=0.0, help="Share of a GPU that a site's process may use.")] = 0.0,
) -> None:
    """Train DiPro federated over simulated sites: every site keeps its cohort, weights travel."""
    from dipro_fed.display import print_results, round_display
    from federation.settings import load_settings
    from simulation.flower import Resources
    from simulation.flower import simulate as run_simulation
    from simulation.in_process import simulate_in_process
    from simulation.partition.choose import FOLDER, choose_partitioned_sites, keep_partition

    given = gather_overrides(task=task, seed=seed, federation__rounds=rounds)
    settings = load_settings(config, [*(override or []), *given])
    require_fresh_or_unfinished(out)
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
    resources = Resources(num_cpus=site_cpus, num_gpus=site_gpus)
    run = partial(run_simulation, resources=resources) if engine is Engine.FLOWER else simulate_in_process
    # Flower tells every aggregation; with a simulation of its own that goes into its log.
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with round_display(settings.federation.rounds, f"{settings.task}, federated, {len(specs)} sites") as on_round:
        record = run(specs, settings, out, on_round=on_round)
    if drawn is not None:
        keep_partition(drawn, out / FOLDER)
    print_results(record)
