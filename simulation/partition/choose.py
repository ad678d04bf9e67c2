"""Which simulated hospitals a run has, where a partition says so: a scheme drawn now, or a manifest drawn before."""

from collections.abc import Sequence
from pathlib import Path

from client.cohort import open_cohort
from client.records import SiteSpec
from dipro_model.vocabulary import Task
from simulation.partition.draw import draw_partition
from simulation.partition.manifest import (
    PICTURE,
    Partition,
    PartitionError,
    read_partition,
    site_specs,
    write_partition,
)
from simulation.partition.picture import draw_partition_picture
from simulation.partition.schemes import Scheme
from simulation.sites import choose_sites

FOLDER = "partition"
"""Below a run's folder: the manifest and the picture of its sites."""


def choose_partitioned_sites(
    cohorts: Sequence[Path],
    task: Task,
    *,
    num_sites: int | None = None,
    seed: int = 0,
    scheme: Scheme | None = None,
    manifest: Path | None = None,
) -> tuple[list[SiteSpec], Partition | None]:
    """The sites of a run, each cohort verified in full, and the partition that they come from.

    With a manifest, its sites; with a scheme, those drawn now from `seed` for the task; with neither, those of
    `choose_sites` and no partition. Raises PartitionError, ValueError where several of these are given.
    """
    if manifest is not None and (scheme is not None or num_sites is not None):
        raise PartitionError("--partition: its manifest says which sites there are; leave --sites and --scheme out")
    if manifest is None and scheme is None:
        return choose_sites(cohorts, num_sites=num_sites, seed=seed), None
    opened = [open_cohort(path.resolve()) for path in cohorts]
    if manifest is not None:
        partition, source = read_partition(manifest), manifest
    else:
        partition, source = draw_partition(opened, scheme or Scheme(), task, seed), "this partition"
    return site_specs(partition, opened, source=source), partition


def keep_partition(partition: Partition, folder: Path) -> list[Path]:
    """Write the manifest and the picture into the folder; returns their paths."""
    return [write_partition(partition, folder), draw_partition_picture(partition, folder / PICTURE)]
