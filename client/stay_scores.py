"""What a model says of one stay as its radiographs arrive, and where on them it looks."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32

from client.cohort import Cohort
from client.dataset import DataError, Inputs, Sample, SampleSet
from client.normalisation import agreed_records
from client.records import SiteRecords, SiteSpec
from client.training import predict
from dipro_model import ClassWeights, DiPro, collate
from dipro_model.vocabulary import SPLITS, Task
from federation.agreement import Agreement
from federation.settings import RunSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class Glance:
    """How a model looks at one radiograph, as the later one of a pair."""

    shares: Float32[np.ndarray, " region"]
    """Share of each region in the attention given to the pair's regions; sums to 1."""
    of_stay: float
    """Share of the pair in the attention given to the regions of all pairs of its sample."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Word:
    """What a model says from some of a stay's images and hours."""

    begin: float
    end: float
    """Hours since ICU admission: of a pair, its two images; else `end` is when it could be said, `begin` the same."""
    num_images: int
    probabilities: Float32[np.ndarray, "output class"]
    label: tuple[int, ...]
    """What the cohort knows; of the whole stay, or of the pair."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StayScores:
    """A stay, scored."""

    task: Task
    site: str
    stay_id: int
    split: str
    images: tuple[tuple[str, float], ...]
    """dicom_id and hour of every image that the model is given, in order."""
    words: tuple[Word, ...]
    """In order of time. Of a whole-stay task the last one is that of the sample itself, with its whole window."""
    glances: dict[str, Glance]
    """By dicom_id; the first image of a sample has none, nor has any where the model reads no radiographs."""
    sequence: bool = True
    """Whether the model is given all radiographs so far, or the latest alone, as a pair with itself."""


def choose_stay(cohort: Cohort, task: Task, split: str) -> int:
    """The stay with the most images (or pairs, for progression) in its samples of a split; ties by stay_id.

    Raises DataError where the split has no sample.
    """
    if task is Task.DISEASE_PROGRESSION:
        stays = cohort.stays.loc[cohort.stays["split"] == split, "stay_id"]
        seen = cohort.pairs.loc[cohort.pairs["stay_id"].isin(stays), "stay_id"]
    else:
        samples = cohort.samples_mortality if task is Task.MORTALITY else cohort.samples_length_of_stay
        stays = samples.loc[samples["split"] == split, "stay_id"]
        early = cohort.images["hours"] < cohort.windows.stay_image_hours
        seen = cohort.images.loc[early & cohort.images["stay_id"].isin(stays), "stay_id"]
    counts = Counter(seen.tolist())
    if not counts:
        raise DataError(f"{cohort.path}: no sample for {task} in the {split} split; choose another one with --split")
    return min(counts, key=lambda stay: (-counts[stay], stay))


def records_of(cohort: Cohort, stay_id: int, *, crop_pixels: int, agreement: Agreement | None = None) -> SiteRecords:
    """The records of a stay's patient alone, as those of a site named after the cohort's folder.

    Values are z-scores of the `agreement` that a model was trained with, or else the cohort's own.
    """
    patient = cohort.stays.loc[cohort.stays["stay_id"] == stay_id, "subject_id"]
    if patient.empty:
        raise DataError(f"{cohort.path}: has no stay {stay_id}; choose another one, or leave --stay out")
    spec = SiteSpec(name=cohort.path.resolve().name, cohort=cohort.path, subjects=(int(patient.iloc[0]),))
    records = SiteRecords(spec, crop_pixels=crop_pixels)
    return records if agreement is None else agreed_records(records, agreement, guest=True)


def score_stay(model: DiPro, site: SiteRecords, settings: RunSettings, stay_id: int) -> StayScores:
    """Score every sample of a stay with a model that `place` has placed; of a whole-stay task also its beginnings.

    A beginning is the stay's first 2, 3, ... images with the hours that were over when the last of them was taken, so
    that nothing is used that was not yet known. Raises DataError where the stay has no sample for the task.
    """
    samples = _samples_of(site, settings, stay_id)
    glances: dict[str, Glance] = {}
    for index in range(len(samples)):
        glances |= _glances(model, samples, index)
    own, is_pairs = samples.samples, settings.task is Task.DISEASE_PROGRESSION
    asked = own if is_pairs else [*_beginnings(own[0]), own[0]]
    probabilities = predict(model, samples.with_samples(asked), settings, ClassWeights()).probabilities
    words = [_word(sample, each) for sample, each in zip(asked, probabilities, strict=True)]
    if not is_pairs:
        words = [replace(word, begin=word.end) for word in words]
        words[-1] = replace(words[-1], begin=site.windows.stay_hours, end=site.windows.stay_hours)
    stay = own[0].stay
    frames = slice(0, len(stay.dicom_ids)) if is_pairs else own[0].frames
    return StayScores(
        task=settings.task,
        site=site.name,
        stay_id=stay_id,
        split=stay.split,
        images=tuple(zip(stay.dicom_ids[frames], stay.image_hours[frames].tolist(), strict=True)),
        words=tuple(words),
        glances=glances,
        sequence=samples.inputs.sequence,
    )


def _samples_of(site: SiteRecords, settings: RunSettings, stay_id: int) -> SampleSet:
    # Crops, not cached features: those of a whole cohort are not worth computing for one stay.
    inputs = Inputs(radiographs=settings.parts.radiographs, sequence=settings.parts.sequence)
    for split in SPLITS:
        samples = SampleSet([site], settings.task, split, inputs)
        own = [sample for sample in samples.samples if sample.stay.stay_id == stay_id]
        if own:
            return samples.with_samples(sorted(own, key=lambda sample: sample.frames.start))
    raise DataError(
        f"{site.name}: stay {stay_id} has no sample for {settings.task}; docs/cohort.md says which stays and pairs "
        "become samples. Choose another stay, or leave --stay out"
    )


def _beginnings(sample: Sample) -> list[Sample]:
    """The sample as it could have been when its second, third, ... image was taken."""
    stay, begin = sample.stay, sample.steps.start
    beginnings = []
    for num_images in range(2, sample.frames.stop + 1):
        taken = stay.image_hours[num_images - 1]
        # Row h holds what was charted in [h, h + 1).
        over = int(np.searchsorted(stay.ehr_hours + 1, taken, side="right"))
        steps = slice(begin, min(max(begin, over), sample.steps.stop))
        beginnings.append(replace(sample, frames=slice(0, num_images), steps=steps))
    return beginnings


def _word(sample: Sample, probabilities: np.ndarray) -> Word:
    hours = sample.stay.image_hours[sample.frames].tolist()
    return Word(begin=hours[0], end=hours[-1], num_images=len(hours), probabilities=probabilities, label=sample.label)


@torch.no_grad()
def _glances(model: DiPro, samples: SampleSet, index: int) -> dict[str, Glance]:
    """How the outputs, on average, look at the images of one sample."""
    model.eval()
    device = next(model.parameters()).device
    output = model(collate([samples[index]]).to(device))
    weight: Float[np.ndarray, "pair region"] = output.region_attention[0].mean(dim=0).float().cpu().numpy()
    total = weight.sum()
    if not total:
        return {}
    sample = samples.samples[index]
    # A model that is given the last image only sees one pair; it is that image's.
    later = sample.stay.dicom_ids[sample.frames][-len(weight) :]
    return {
        dicom: Glance(shares=pair / pair.sum(), of_stay=float(pair.sum() / total))
        for dicom, pair in zip(later, weight, strict=True)
    }
