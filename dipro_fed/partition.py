"""`dipro-fed partition`: split a cohort into sites as hospitals would differ, and show who has what."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipro_fed.options import (
    Alpha,
    Cohorts,
    Exponent,
    GapWords,
    MinPatients,
    NumSites,
    PartitionSeed,
    SchemeWord,
    Sigma,
    require_task,
    scheme_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from client.gaps import Gaps
    from simulation.partition.manifest import Partition


def partition(
    cohorts: Cohorts,
    out: Annotated[Path, typer.Option("--out", help="Folder for manifest.json and partition.png.")],
    sites: NumSites = None,
    scheme: SchemeWord = "iid",
    alpha: Alpha = None,
    sigma: Sigma = None,
    exponent: Exponent = None,
    gap: GapWords = None,
    min_patients: MinPatients = None,
    partition_seed: PartitionSeed = 0,
    task: Annotated[
        str, typer.Option("--task", help="Whose classes count: disease_progression, mortality or length_of_stay.")
    ] = "mortality",
) -> None:
    """Split a cohort by patient into sites that differ as hospitals do, and write the manifest and a picture."""
    from rich.console import Console

    from client.cohort import open_cohort
    from dipro_model.vocabulary import Task
    from simulation.partition.choose import keep_partition
    from simulation.partition.draw import draw_partition

    chosen = require_task(task) or Task.MORTALITY
    asked = scheme_of(
        scheme,
        num_sites=sites,
        alpha=alpha,
        sigma=sigma,
        exponent=exponent,
        gaps=gap,
        min_patients=min_patients,
    )
    if asked is None:
        raise AssertionError("the option has a default")
    drawn = draw_partition([open_cohort(path.resolve()) for path in cohorts], asked, chosen, partition_seed)
    console = Console()
    print_partition(drawn, console)
    for path in keep_partition(drawn, out):
        console.print(f"Wrote {path}", markup=False, highlight=False, soft_wrap=True)
    console.print("The manifest names patients: treat it like their records.")


def print_partition(partition: "Partition", console: "Console") -> None:
    """A row a site: patients by split, training labels by class, images and pairs; then what sites lack."""
    from rich import box
    from rich.table import Table

    from dipro_model.vocabulary import SPLITS, TASK_CLASSES

    drawn = f", draw {partition.draw} of at most {partition.max_draws}" if partition.max_draws > 1 else ""
    title = f"{partition.scheme} for {partition.task}, seed {partition.seed}{drawn}: patients by split, training labels"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("site", min_width=6)
    for column in (*SPLITS, *TASK_CLASSES[partition.task], "images", "pairs"):
        # Where a terminal is narrow, names are broken and numbers are not.
        table.add_column(column, justify="right", min_width=4)
    for site in partition.sites:
        counts = [site.counts[split] for split in SPLITS]
        numbers = [*(own.patients for own in counts), *site.counts["train"].labels.values()]
        numbers += [sum(own.images for own in counts), sum(own.pairs for own in counts)]
        table.add_row(site.name, *map(str, numbers))
    console.print(table)
    for site in partition.sites:
        for words in _lacks(site.gaps):
            console.print(f"{site.name} lacks {words}", markup=False, highlight=False, soft_wrap=True)


def _lacks(gaps: "Gaps") -> list[str]:
    variables = [f"the EHR variables {', '.join(gaps.variables)}"] if gaps.variables else []
    images = [] if gaps.max_images is None else [f"the images of a stay from number {gaps.max_images + 1} on"]
    return [*variables, *images, *(["labels by region"] if gaps.no_region_labels else [])]
