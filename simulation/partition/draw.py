"""Drawing a partition: the scheme's assignment, what each site then has, and the refusal of what cannot be."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from client.cohort import Cohort
from client.gaps import NO_GAPS
from dipro_model.vocabulary import Task
from federation.duplicates import DuplicatePatientsError, draw_salt, hash_patients, require_no_duplicates
from federation.seeds import derive_seed
from simulation.partition.counts import Counter, Part, shortcomings
from simulation.partition.manifest import (
    SCHEMA_VERSION,
    CohortName,
    Partition,
    PartitionError,
    PartitionSite,
    cohort_checksum,
)
from simulation.partition.names import group_names
from simulation.partition.patients import patient_groups
from simulation.partition.schemes import (
    DRAWN,
    NATURAL,
    Scheme,
    SchemeName,
    by_label,
    by_size,
    merge_groups,
    size_shares,
)
from simulation.sites import site_names, split_by_patient

MAX_DRAWS = 100
"""Of a scheme that draws the sites' shares; each draw has a seed of its own, and the manifest says which was taken."""


def draw_partition(cohorts: Sequence[Cohort], scheme: Scheme, task: Task, seed: int) -> Partition:
    """Give every patient with radiographs to one site, and count what each site has.

    A patient keeps the split of the cohort. Every site has samples of the task in every split, and two classes or more
    and `min_patients` patients or more in training. Schemes that draw the sites' shares are drawn again until that
    holds, MAX_DRAWS times at most. Raises PartitionError saying what to change where it does not hold,
    DuplicatePatientsError where cohorts that are a site each share patients.
    """
    if scheme.name is SchemeName.COHORTS:
        return _cohorts_as_sites(cohorts, scheme, task, seed)
    if len(cohorts) != 1:
        raise PartitionError(
            f"--scheme {scheme.name} splits one cohort, but {len(cohorts)} were given; --scheme cohorts makes each of "
            "them a site"
        )
    if scheme.num_sites is None and scheme.name not in NATURAL:
        raise PartitionError(f"--scheme {scheme.name}: expected --sites, the number of sites, found none")
    counter = Counter(cohorts[0], task, *site_names([cohorts[0].path.resolve()]))
    max_draws, problems = MAX_DRAWS if scheme.name in DRAWN else 1, []
    for draw in range(1, max_draws + 1):
        parts = _parts(counter, scheme, seed, draw)
        counts = counter.count(parts)
        problems = shortcomings(counts, [part.name for part in parts], task, scheme.min_patients)
        if not problems:
            sites = [counter.site(part, counts.loc[place]) for place, part in enumerate(parts)]
            return _partition(cohorts, scheme, task, seed, sites, draw=draw, max_draws=max_draws)
    raise PartitionError(_impossible(counter, scheme, seed, problems))


def _parts(counter: Counter, scheme: Scheme, seed: int, draw: int) -> list[Part]:
    """The sites of one draw."""
    assigned = _assign(counter, scheme, seed, draw)
    gaps, numbers = scheme.site_gaps, range(1, len(assigned) + 1)
    beyond = sorted(set(scheme.gaps) - set(numbers))
    if beyond:
        raise PartitionError(
            f"--gap: expected the number of a site from 1 to {len(assigned)}, found {', '.join(map(str, beyond))}"
        )
    groups = [own for _, own in assigned]
    names = group_names(groups) if any(groups) else [f"site {number}" for number in numbers]
    return [
        Part(name=name, subjects=subjects, groups=own, gaps=gaps.get(number, NO_GAPS))
        for number, name, (subjects, own) in zip(numbers, names, assigned, strict=True)
    ]


def _assign(counter: Counter, scheme: Scheme, seed: int, draw: int) -> list[tuple[np.ndarray, tuple[str, ...]]]:
    """The patients of each site, and the groups that it is made of."""
    patients, num_sites = counter.patients(), scheme.num_sites or 0
    rng = np.random.default_rng(derive_seed(seed, "partition", scheme.name, draw))
    if scheme.name in NATURAL:
        groups = patient_groups(counter.cohort, NATURAL[scheme.name]).loc[patients.index]
        merged = merge_groups(_training_sizes(patients, groups), scheme.num_sites)
        return [(patients.index[groups.isin(own)].to_numpy(), own) for own in merged]
    if scheme.name in (SchemeName.IID, SchemeName.MODALITY_GAPS):
        # The deal that `--sites` alone has always been.
        specs = split_by_patient(counter.cohort, num_sites, seed)
        return [(np.array(spec.subjects or (), np.int64), ()) for spec in specs]
    if scheme.name is SchemeName.DIRICHLET:
        place = by_label(patients, scheme.alpha, num_sites, rng)
    else:
        place = by_size(patients, size_shares(scheme, num_sites, rng), rng)
    return [(patients.index[place == site].to_numpy(), ()) for site in range(num_sites)]


def _training_sizes(patients: pd.DataFrame, groups: pd.Series) -> dict[str, int]:
    training = groups.loc[patients.split == "train"].tolist()
    return {str(name): training.count(name) for name in groups.unique()}


def _cohorts_as_sites(cohorts: Sequence[Cohort], scheme: Scheme, task: Task, seed: int) -> Partition:
    """Each cohort is a site, as hospitals with scanners and habits of their own are."""
    if scheme.num_sites not in (None, len(cohorts)):
        raise PartitionError(
            f"--scheme cohorts makes each of the {len(cohorts)} cohorts a site; leave --sites {scheme.num_sites} out"
        )
    names, salt = site_names([cohort.path.resolve() for cohort in cohorts]), draw_salt()
    try:
        require_no_duplicates(
            {name: hash_patients(cohort.stays.subject_id, salt) for name, cohort in zip(names, cohorts, strict=True)}
        )
    except DuplicatePatientsError as error:
        raise PartitionError(str(error)) from None
    sites, problems = [], []
    for number, (name, cohort) in enumerate(zip(names, cohorts, strict=True), start=1):
        counter = Counter(cohort, task, name)
        subjects = counter.patients().index.to_numpy()
        part = Part(name=name, subjects=subjects, gaps=scheme.gaps.get(number, NO_GAPS))
        counts = counter.count([part])
        problems += shortcomings(counts, [name], task, scheme.min_patients)
        sites.append(counter.site(part, counts.loc[0], whole_cohort=True))
    if problems:
        raise PartitionError(f"--scheme cohorts: {_some(problems)}; add patients, or leave these cohorts out")
    return _partition(cohorts, scheme, task, seed, sites, draw=1, max_draws=1)


def _partition(
    cohorts: Sequence[Cohort],
    scheme: Scheme,
    task: Task,
    seed: int,
    sites: Sequence[PartitionSite],
    *,
    draw: int,
    max_draws: int,
) -> Partition:
    names = site_names([cohort.path.resolve() for cohort in cohorts])
    return Partition(
        schema_version=SCHEMA_VERSION,
        scheme=scheme.name,
        parameters={**scheme.parameters, "num_sites": len(sites)},
        seed=seed,
        draw=draw,
        max_draws=max_draws,
        task=task,
        cohorts=tuple(
            CohortName(name=name, checksum=cohort_checksum(cohort)) for name, cohort in zip(names, cohorts, strict=True)
        ),
        sites=tuple(sites),
    )


def _impossible(counter: Counter, scheme: Scheme, seed: int, problems: Sequence[str]) -> str:
    """Why there is no such partition, and what to change."""
    asked = f"--scheme {scheme.name}" + (f" --sites {scheme.num_sites}" if scheme.num_sites else "")
    if scheme.name in NATURAL:
        fitting = _largest_fitting(counter, scheme, seed)
        words = f"use --sites {fitting}, which merges the smallest groups" if fitting else "use another --scheme"
        return f"{asked}: {_some(problems)}; {words}"
    draws = f"in none of {MAX_DRAWS} draws every site can take part (in the last, " if scheme.name in DRAWN else ""
    more = {SchemeName.DIRICHLET: "a larger --alpha, ", SchemeName.LOG_NORMAL: "a smaller --sigma, "}
    more[SchemeName.POWER_LAW] = "a smaller --exponent, "
    fewer = " or fewer --min-patients" if scheme.min_patients > 1 else ""
    return (
        f"{asked}, --partition-seed {seed}: {draws}{_some(problems)}{')' if draws else ''}; use fewer --sites, "
        f"{more.get(scheme.name, '')}another --partition-seed{fewer}, or a larger cohort"
    )


def _largest_fitting(counter: Counter, scheme: Scheme, seed: int) -> int | None:
    """The most sites into which the groups can be merged so that each can take part."""
    most = (scheme.num_sites or len(_assign(counter, scheme, seed, 1))) - 1
    for num_sites in range(most, 1, -1):
        fewer = Scheme(name=scheme.name, num_sites=num_sites, min_patients=scheme.min_patients)
        parts = _parts(counter, fewer, seed, 1)
        if not shortcomings(counter.count(parts), [part.name for part in parts], counter.task, fewer.min_patients):
            return num_sites
    return None


def _some(problems: Sequence[str]) -> str:
    return ", ".join(problems[:3]) + (f", and {len(problems) - 3} more" if len(problems) > 3 else "")
