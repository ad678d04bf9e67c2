"""A site's records in memory, stay by stay: what a sample of any task is cut from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import adaptive_avg_pool2d

from client.cohort import REGION_FILE, REGION_PIXELS, Cohort, CohortError, Windows, open_cohort
from client.gaps import NO_GAPS, Gaps, images_taken, pairs_seen, uncharted_values
from dipro_model.vocabulary import DEMOGRAPHICS, DISEASES, EHR_VARIABLES, NOT_MENTIONED, REGIONS
from federation.run_folder import POOLED

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
"""Names of sites become names of files and of records."""

_IMAGES_AT_ONCE = 64
"""Images that are downsampled together; bounds the memory of it to about 130 MB."""


@dataclass(frozen=True, kw_only=True)
class SiteSpec:
    """Which patients are a site: a cohort, or some patients of it, and what a simulated site lacks of their records."""

    name: str
    cohort: Path
    subjects: tuple[int, ...] | None = None
    """Patients of the cohort that belong to the site; None means all of them."""
    gaps: Gaps = NO_GAPS
    """What the site lacks of what the cohort holds."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == POOLED:
            raise ValueError(
                f"{self.name!r} cannot be a site's name: expected letters, digits, space, dot, dash or underscore, at "
                f"most 64, and not `{POOLED}`; rename the site or its cohort's folder"
            )


@dataclass(frozen=True, kw_only=True)
class StayRecord:
    """One stay's values in time order, without any task's window."""

    stay_id: int
    subject_id: int
    split: str
    image_rows: np.ndarray
    """int64 [frame]: row of each kept radiograph in the cohort's regions."""
    image_hours: np.ndarray
    """float32 [frame]: hours since ICU admission."""
    dicom_ids: tuple[str, ...]
    ehr: np.ndarray
    """float32 [step, variable]: z-scores."""
    ehr_hours: np.ndarray
    """float32 [step]: hour of each row."""
    demographics: np.ndarray
    """float32 [demographic]."""


class SiteRecords:
    """All stays of a site that have radiographs, its crops at the size the network sees, and its labels."""

    def __init__(self, spec: SiteSpec, *, crop_pixels: int = REGION_PIXELS, verify_regions: bool = False) -> None:
        self.name = spec.name
        cohort = open_cohort(spec.cohort, verify_regions=verify_regions)
        self.path: Path = cohort.path
        self.windows: Windows = cohort.windows
        self.crop_pixels = crop_pixels
        self.gaps: Gaps = spec.gaps
        images = images_taken(cohort.images.assign(row=np.arange(len(cohort.images))), spec.gaps)
        self.stays: dict[int, StayRecord] = {stay.stay_id: stay for stay in _stays(cohort, spec, images)}
        if not self.stays:
            raise CohortError(
                f"{spec.name}: none of its stays in {spec.cohort} has a kept radiograph; "
                f"read {cohort.path / 'report.json'} for what was rejected and why"
            )
        pairs = pairs_seen(cohort.pairs, images)
        self.pairs: pd.DataFrame = pairs.loc[pairs.stay_id.isin(self.stays)].reset_index(drop=True)
        self.region_progression: dict[tuple[str, str], np.ndarray] = (
            {} if spec.gaps.no_region_labels else _region_progression(self.pairs)
        )
        self.labels: dict[str, dict[int, int]] = {
            "mortality": _labels(cohort.samples_mortality, self.stays),
            "length_of_stay": _labels(cohort.samples_length_of_stay, self.stays),
        }
        self.regions: np.ndarray = cohort.regions
        """uint8 [image, region, 224, 224] of the whole cohort, memory-mapped."""
        self.regions_sha256: str = cohort.manifest["files"][REGION_FILE]["sha256"]

    def crops(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """uint8 [frame, region, 1, height, width] of these rows of the cohort's regions, for reading only.

        Rows that follow one another, as those of a stay do where `dipro-fed prepare` wrote them, are not copied.
        """
        crops, place_of = self._crops
        places = place_of[rows].tolist()
        first, last = places[0], places[-1]
        in_order = places == list(range(first, last + 1))
        return (crops[first : last + 1] if in_order else crops[places]).unsqueeze(2)

    def load_crops(self) -> None:
        """Bring small crops into memory now; otherwise the first `crops` does, in whichever process it runs."""
        _ = self._crops

    @cached_property
    def _crops(self) -> tuple[torch.Tensor, np.ndarray]:
        """Crops as the network sees them, and where among them each row of the regions lies.

        Those of the stored size stay on disk. Smaller ones are averaged once and kept: a whole site fits in memory.
        """
        if self.crop_pixels == REGION_PIXELS:
            # Private pages, which torch takes for writable; a write would never reach the file.
            regions = np.load(self.path / REGION_FILE, mmap_mode="c")
            return torch.from_numpy(regions), np.arange(len(regions))
        rows = np.unique(np.concatenate([stay.image_rows for stay in self.stays.values()]))
        small = torch.empty(len(rows), len(REGIONS), self.crop_pixels, self.crop_pixels, dtype=torch.uint8)
        for start in range(0, len(rows), _IMAGES_AT_ONCE):
            part = slice(start, start + _IMAGES_AT_ONCE)
            small[part] = shrink(self.regions[rows[part]], self.crop_pixels)
        place_of = np.full(len(self.regions), -1)
        place_of[rows] = np.arange(len(rows))
        return small, place_of


def shrink(regions: np.ndarray, crop_pixels: int) -> torch.Tensor:
    """uint8 [image, region, pixel, pixel]: crops averaged down, each to the mean of the square behind a pixel."""
    crops = torch.tensor(regions)
    if crop_pixels == REGION_PIXELS:
        return crops
    return adaptive_avg_pool2d(crops.float(), crop_pixels).round().to(torch.uint8)


def _stays(cohort: Cohort, spec: SiteSpec, images: pd.DataFrame) -> list[StayRecord]:
    """`images` are those that the site has, each with its row in the cohort's regions."""
    stays = cohort.stays if spec.subjects is None else cohort.stays[cohort.stays.subject_id.isin(spec.subjects)]
    images = images.loc[images.stay_id.isin(stays.stay_id)].sort_values(["stay_id", "hours"])
    images_of = dict(iter(images.groupby("stay_id")))
    hourly = cohort.ehr_hourly.loc[cohort.ehr_hourly.stay_id.isin(images_of.keys())].sort_values(["stay_id", "hour"])
    hourly_of = dict(iter(hourly.assign(**uncharted_values(cohort, spec.gaps)).groupby("stay_id")))
    demographics = cohort.demographics.set_index("stay_id")[list(DEMOGRAPHICS)]
    records = []
    # Tables give read-only arrays, which tensors must not share: hence the copies.
    for stay_id, subject_id, split in zip(stays.stay_id, stays.subject_id, stays.split, strict=True):
        if stay_id not in images_of:
            continue
        if stay_id not in demographics.index:
            raise CohortError(
                f"{cohort.path}: stay {stay_id} has images but no row in demographics; every stay needs one, "
                "see docs/cohort.md"
            )
        # A stay in which nothing was charted has no hours; the model then reads its images and demographics.
        frames, steps = images_of[stay_id], hourly_of.get(stay_id, hourly.head(0))
        records.append(
            StayRecord(
                stay_id=int(stay_id),
                subject_id=int(subject_id),
                split=str(split),
                image_rows=frames.row.to_numpy(np.int64, copy=True),
                image_hours=frames.hours.to_numpy(np.float32, copy=True),
                dicom_ids=tuple(frames.dicom_id),
                ehr=steps[list(EHR_VARIABLES)].to_numpy(np.float32, copy=True),
                ehr_hours=steps.hour.to_numpy(np.float32, copy=True),
                demographics=demographics.loc[stay_id].to_numpy(np.float32, copy=True),
            )
        )
    return records


def _region_progression(pairs: pd.DataFrame) -> dict[tuple[str, str], np.ndarray]:
    shape = (len(REGIONS), len(DISEASES))
    return {
        (first, second): np.asarray(labels, np.int8).reshape(shape)
        for first, second, labels in zip(
            pairs.first_dicom_id, pairs.second_dicom_id, pairs.region_progression, strict=True
        )
    }


def _labels(samples: pd.DataFrame, stays: dict[int, StayRecord]) -> dict[int, int]:
    return {
        int(stay): int(label) for stay, label in zip(samples.stay_id, samples.label, strict=True) if int(stay) in stays
    }


def not_mentioned() -> np.ndarray:
    """int8 [region, disease] of a pair that no report compares."""
    return np.full((len(REGIONS), len(DISEASES)), NOT_MENTIONED, np.int8)
