"""Which simulated hospitals a run has: one cohort a site, or one cohort split into sites by patient."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from client.cohort import Cohort, open_cohort
from client.records import SiteSpec
from dipro_model.vocabulary import SPLITS
from federation.seeds import derive_seed


def choose_sites(cohorts: Sequence[Path], *, num_sites: int | None = None, seed: int = 0) -> list[SiteSpec]:
    """The sites of these cohorts, each verified in full.

    Several cohorts are one site each, named after their folders; a single cohort is one site, or `num_sites` sites by
    patient. Raises ValueError where the two are mixed or where names clash, CohortError for a cohort that is not whole.
    """
    if not cohorts:
        raise ValueError("expected one cohort folder or more, got none")
    paths = [path.resolve() for path in cohorts]
    opened = [open_cohort(path) for path in paths]
    if num_sites is None:
        names = site_names(paths)
        return [SiteSpec(name=name, cohort=path) for name, path in zip(names, paths, strict=True)]
    if len(opened) > 1:
        raise ValueError(
            f"--sites {num_sites} splits one cohort by patient, but {len(opened)} cohorts were given; "
            "leave --sites out to make each cohort a site"
        )
    return split_by_patient(opened[0], num_sites, seed)


def split_by_patient(cohort: Cohort, num_sites: int, seed: int) -> list[SiteSpec]:
    """Deal the patients of each split out to `num_sites` sites, evenly and at random; no patient is at two sites.

    Deaths are dealt out first and separately, so that a small cohort still gives every site both outcomes where it can.
    """
    if num_sites < 1:
        raise ValueError(f"--sites: expected one site or more, got {num_sites}")
    stays = cohort.stays[cohort.stays.stay_id.isin(cohort.images.stay_id)]
    died = stays.groupby("subject_id").mortality_inhospital.max()
    parts: list[list[int]] = [[] for _ in range(num_sites)]
    for split in SPLITS:
        subjects = np.sort(stays.subject_id[stays.split == split].unique())
        order = np.random.default_rng(derive_seed(seed, "partition", split)).permutation(subjects)
        dealt = sorted(order.tolist(), key=lambda subject: -died[subject])  # stable: random within each outcome
        for place, subject in enumerate(dealt):
            parts[place % num_sites].append(subject)
    return [
        SiteSpec(name=f"site {number}", cohort=cohort.path, subjects=tuple(sorted(part)))
        for number, part in enumerate(parts, start=1)
    ]


def site_names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, or parent-and-name where these clash. Raises ValueError for names that still clash."""
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}-{path.name}" for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"expected cohorts in folders of different names, found {names}; give each once")
    return names
