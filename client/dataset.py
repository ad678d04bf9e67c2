"""Samples of one task and split, cut from the records of one site or of several."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch.utils.data import Dataset

from client.records import SiteRecords, StayRecord, not_mentioned
from dipro_model import Stay
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, PROGRESSIONS, REGIONS, Task


class DataError(ValueError):
    """Records that cannot serve a task; names the site, the split and what to do."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Which frames and hours of a stay make one sample, and its label."""

    site: str
    stay: StayRecord
    sample_id: str
    """The stay for tasks of a whole stay, the second image for progression; unique in a site."""
    frames: slice
    steps: slice
    label: tuple[int, ...]
    """One value, or one for each disease."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a model is given of each sample's radiographs."""

    radiographs: bool = True
    """False gives empty features in their place, for a model that does not look."""
    sequence: bool = True
    """False gives the last radiograph only, as a pair with itself that began at ICU admission."""
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By site, float32 [image of the cohort, region, feature]: given in place of the crops, where there is one."""


class SampleSet(Dataset[Stay]):
    """The samples of a task and split over all given sites, in the order of the sites, stays and hours."""

    def __init__(self, sites: Sequence[SiteRecords], task: Task, split: str, inputs: Inputs | None = None) -> None:
        self.task, self.split, self.inputs = task, split, inputs or Inputs()
        self.sites = {site.name: site for site in sites}
        if len(self.sites) != len(sites):
            raise DataError(f"expected sites of different names, found {[site.name for site in sites]}")
        self.samples: list[Sample] = [
            sample for site in sites for sample in _samples(site, task) if sample.stay.split == split
        ]
        # Made when a sample is first read; a megabyte for a thousand samples.
        self._values: dict[int, dict[str, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Stay:
        sample = self.samples[index]
        rows = sample.stay.image_rows[sample.frames]
        if not self.inputs.sequence:
            rows = rows[[-1, -1]]
        if index not in self._values:
            self._values[index] = self._values_of(sample)
        return Stay(regions=self._images(sample.site, rows), **self._values[index])

    def _values_of(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Everything of a sample but its images: views of the stay's arrays, and little beside them."""
        stay, hours = sample.stay, sample.stay.image_hours[sample.frames]
        intervals = np.stack([hours[:-1], hours[1:]], axis=-1)
        regions = self._region_progression(sample)
        if not self.inputs.sequence:
            intervals = np.array([[min(0.0, hours[-1]), hours[-1]]], np.float32)
            regions = np.stack([not_mentioned()])
        whole_stay = self.task is not Task.DISEASE_PROGRESSION
        return {
            "ehr": torch.from_numpy(stay.ehr[sample.steps]),
            "ehr_hours": torch.from_numpy(stay.ehr_hours[sample.steps]),
            "intervals": torch.from_numpy(intervals),
            "demographics": torch.from_numpy(stay.demographics),
            "label": torch.tensor(sample.label[0] if whole_stay else sample.label, dtype=torch.int64),
            "region_progression": torch.from_numpy(regions.astype(np.int64)),
        }

    def with_samples(self, chosen: Sequence[Sample]) -> "SampleSet":
        """The same set with these samples, which may be parts of its own, in place of its own."""
        other = copy(self)
        other.samples, other._values = list(chosen), {}
        return other

    def load(self) -> None:
        """Bring into memory what samples are cut from, before processes that read ahead are forked."""
        if self.inputs.radiographs:
            for name in self.sites.keys() - self.inputs.features.keys():
                self.sites[name].load_crops()

    def _images(self, site: str, rows: np.ndarray) -> torch.Tensor:
        if not self.inputs.radiographs:
            return torch.zeros(len(rows), len(REGIONS), 0)
        if site in self.inputs.features:
            return torch.from_numpy(self.inputs.features[site][rows])
        return self.sites[site].crops(rows)

    def _region_progression(self, sample: Sample) -> np.ndarray:
        known, dicoms = self.sites[sample.site].region_progression, sample.stay.dicom_ids[sample.frames]
        return np.stack([known.get(pair, not_mentioned()) for pair in pairwise(dicoms)])

    def name(self, index: int) -> str:
        """Site and stay of a sample, for people who look for it."""
        sample = self.samples[index]
        what = f"stay {sample.stay.stay_id}"
        is_stay = sample.sample_id == str(sample.stay.stay_id)
        return f"{sample.site}, {what}" + ("" if is_stay else f", image {sample.sample_id}")

    @property
    def labels(self) -> np.ndarray:
        """int64 [sample], or [sample, disease] for progression."""
        labels = np.array([sample.label for sample in self.samples], dtype=np.int64)
        if self.task is Task.DISEASE_PROGRESSION:
            return labels.reshape(-1, len(DISEASES))
        return labels.reshape(-1)

    @property
    def patients(self) -> list[tuple[str, int]]:
        """The site and patient of each sample."""
        return [(sample.site, sample.stay.subject_id) for sample in self.samples]

    def progression_counts(self) -> np.ndarray:
        """int64 [disease, class]: image-level progression labels of this split's pairs, without 'not mentioned'."""
        counts = np.zeros((len(DISEASES), len(PROGRESSIONS)), np.int64)
        for site in self.sites.values():
            inside = site.pairs.stay_id.map(lambda stay, site=site: site.stays[stay].split == self.split)
            labels = site.pairs.loc[inside.astype(bool), list(DISEASES)].to_numpy()
            for k, disease in enumerate(labels.T):
                counts[k] += np.bincount(disease[disease != NOT_MENTIONED], minlength=len(PROGRESSIONS))
        return counts


def require_trainable(samples: SampleSet) -> None:
    """Refuse training samples that no model can learn from.

    Raises DataError where there is no sample, or where all samples carry the same label.
    """
    where = ", ".join(samples.sites)
    if not len(samples):
        raise DataError(
            f"{where}: no sample for {samples.task} in the {samples.split} split; "
            "`dipro-fed inspect` shows the counts, report.json what was rejected"
        )
    labels = samples.labels
    if len(np.unique(labels[labels != NOT_MENTIONED] if labels.ndim == 2 else labels)) < 2:
        raise DataError(
            f"{where}: all {len(samples)} samples for {samples.task} in the {samples.split} split carry the same "
            "label; training needs at least two classes: add patients, or choose another split or task"
        )


def require_every_split(sites: Sequence[SiteRecords], task: Task, splits: Sequence[str]) -> None:
    """Refuse a site that has no sample of one of the splits. Raises DataError naming the site and split."""
    for site in sites:
        for split in splits:
            if not len(SampleSet([site], task, split)):
                raise DataError(
                    f"{site.name}: no patient with a sample for {task} in the {split} split; "
                    "use fewer sites, another --partition-seed, or a larger cohort"
                )


def _samples(site: SiteRecords, task: Task) -> Iterator[Sample]:
    if task is Task.DISEASE_PROGRESSION:
        yield from _pair_samples(site)
        return
    for stay_id, label in site.labels[str(task)].items():
        stay = site.stays[stay_id]
        frames = int(np.searchsorted(stay.image_hours, site.windows.stay_image_hours, side="left"))
        steps = _between(stay.ehr_hours, 0.0, site.windows.stay_hours - 1)
        yield Sample(
            site=site.name,
            stay=stay,
            sample_id=str(stay_id),
            frames=slice(0, frames),
            steps=steps,
            label=(label,),
        )


def _pair_samples(site: SiteRecords) -> Iterator[Sample]:
    windows = site.windows
    for row in site.pairs.to_dict("records"):
        stay = site.stays[row["stay_id"]]
        first = stay.dicom_ids.index(row["first_dicom_id"])
        start, end = row["first_hour"] - windows.pair_hours_before, row["second_hour"] + windows.pair_hours_after
        yield Sample(
            site=site.name,
            stay=stay,
            sample_id=row["second_dicom_id"],
            frames=slice(first, first + 2),
            steps=_between(stay.ehr_hours, start, end),
            label=tuple(int(row[disease]) for disease in DISEASES),
        )


def _between(hours: np.ndarray, first: float, last: float) -> slice:
    """The rows whose hour lies in [first, last]."""
    return slice(int(np.searchsorted(hours, first, side="left")), int(np.searchsorted(hours, last, side="right")))
