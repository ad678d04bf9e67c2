"""The manifest of a partition: which patients are at which site, how that was drawn, and what each site has.

It names patients and is to be treated like the cohort itself.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic

from client.cohort import REPORT, Cohort
from client.gaps import Gaps
from client.records import SiteSpec
from dipro_model.vocabulary import SPLITS, Task
from federation.files import write_whole
from simulation.partition.schemes import SchemeName

SCHEMA_VERSION = 1
MANIFEST, PICTURE = "manifest.json", "partition.png"


class PartitionError(ValueError):
    """A partition that cannot be, or does not fit the cohort; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """What a site has of one split."""

    patients: int
    """Patients with radiographs."""
    stays: int
    """Stays with radiographs."""
    samples: int
    """Samples of the task."""
    images: int
    pairs: int
    """Labelled pairs of radiographs."""
    region_pairs: int
    """Pairs with a label of at least one region."""
    labels: Mapping[str, int]
    """Labels of each class of the task; for progression over all pairs and diseases."""


@dataclass(frozen=True, kw_only=True)
class PartitionSite:
    """One site."""

    name: str
    cohort: str
    """Name of its cohort."""
    whole_cohort: bool
    """Whether all patients of the cohort belong to it, with radiographs or without."""
    groups: tuple[str, ...]
    """Of a natural split, the groups whose patients are here."""
    gaps: Gaps
    patients: Mapping[str, tuple[int, ...]]
    """subject_id of the site's patients with radiographs, by split."""
    counts: Mapping[str, SplitCounts]
    """By split, as the site with its gaps sees its patients."""
    charted: Mapping[str, float]
    """By EHR variable, the share of the site's stays in which it was measured at all; 0 where the site lacks it."""


@dataclass(frozen=True, kw_only=True)
class CohortName:
    """Which cohort was split."""

    name: str
    """Its folder's name."""
    checksum: str
    """SHA-256 over the checksums of its files, but for report.json, and its windows."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """All that a manifest holds."""

    schema_version: int
    scheme: SchemeName
    parameters: Mapping[str, int | float | None]
    seed: int
    draw: int
    """Which draw it is, from 1: earlier ones left a site without what it needs."""
    max_draws: int
    """How many draws would have been made before giving up."""
    task: Task
    """Whose classes, samples and labels are meant."""
    cohorts: tuple[CohortName, ...]
    sites: tuple[PartitionSite, ...]


def cohort_checksum(cohort: Cohort) -> str:
    """What must be equal for a manifest to fit a cohort; the folder's place and name do not count."""
    files = {name: entry["sha256"] for name, entry in cohort.manifest["files"].items() if name != REPORT}
    facts = {"files": files, "windows": cohort.manifest["windows"]}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write_partition(partition: Partition, folder: Path) -> Path:
    """Write manifest.json into the folder, whole or not at all; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(partition), indent=1, ensure_ascii=False)
    write_whole(folder / MANIFEST, text.encode())
    return folder / MANIFEST


def read_partition(path: Path) -> Partition:
    """The manifest at `path`, or in that folder. Raises PartitionError naming what is wrong with it."""
    file = path / MANIFEST if path.is_dir() else path
    if not file.is_file():
        raise PartitionError(
            f"{path}: expected a partition's folder or its {MANIFEST}, found none; run `dipro-fed partition`"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PartitionError(f"{file}: expected JSON, found text that does not parse ({error})") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise PartitionError(
            f"{file}: expected a partition's manifest of schema version {SCHEMA_VERSION}, found {version!r}; "
            "partition again with this version of dipro-fed"
        )
    return _checked(file, content)


def _checked(file: Path, content: Any) -> Partition:
    try:
        # Through JSON, because there strict checking takes a list for a tuple.
        return pydantic.TypeAdapter(Partition).validate_json(json.dumps(content), strict=True, extra="forbid")
    except pydantic.ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
            for fault in error.errors(include_url=False, include_input=False)[:3]
        )
        raise PartitionError(f"{file}: {faults}; docs/partitions.md lists the fields, or partition again") from None


def site_specs(partition: Partition, cohorts: Sequence[Cohort], *, source: Path | str) -> list[SiteSpec]:
    """The sites of a manifest on these cohorts; `source` names it in errors.

    Raises PartitionError where a cohort is not the one that was split, where one is missing or too many, or where the
    patients of the manifest are not the cohort's, are in another split, or are at two sites.
    """
    by_checksum = {cohort_checksum(cohort): cohort for cohort in cohorts}
    missing = [known.name for known in partition.cohorts if known.checksum not in by_checksum]
    if missing or len(cohorts) != len(partition.cohorts):
        given = ", ".join(cohort.path.name for cohort in cohorts)
        raise PartitionError(
            f"{source}: expected the cohorts that were split ({', '.join(known.name for known in partition.cohorts)}), "
            f"found {given}, where the checksum of {', '.join(missing) or 'one too many'} does not fit; give the "
            "cohorts that were split, or run `dipro-fed partition` on these"
        )
    of_name = {known.name: by_checksum[known.checksum] for known in partition.cohorts}
    for name, cohort in of_name.items():
        _check_patients(partition, name, cohort, source)
    return [
        SiteSpec(
            name=site.name,
            cohort=of_name[site.cohort].path,
            subjects=None if site.whole_cohort else tuple(sorted(sum((site.patients[split] for split in SPLITS), ()))),
            gaps=site.gaps,
        )
        for site in partition.sites
    ]


def _check_patients(partition: Partition, name: str, cohort: Cohort, source: Path | str) -> None:
    sites = [site for site in partition.sites if site.cohort == name]
    split_of = dict(zip(cohort.stays.subject_id, cohort.stays.split, strict=True))
    placed = [(split, subject) for site in sites for split in SPLITS for subject in site.patients[split]]
    foreign = sum(split_of.get(subject) != split for split, subject in placed)
    repeated = sum(times > 1 for times in Counter(subject for _, subject in placed).values())
    if foreign or repeated:
        raise PartitionError(
            f"{source}: expected every patient of {name} once and in the cohort's own split, found {foreign} in "
            f"another split or unknown and {repeated} more than once; partition again"
        )
