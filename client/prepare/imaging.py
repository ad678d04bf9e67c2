"""The imaging half of a preparation: from the metadata table to kept images, their boxes and crops, and the split."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from client.prepare.images import ImageRules, find_radiographs, place_in_stays, select_images, usual_length
from client.prepare.parallel import Progress, silent
from client.prepare.regions import cut_regions
from client.prepare.rejections import PrepareError, Rejections
from client.prepare.scene_graphs import read_scene_graphs
from client.prepare.split import SplitRules, split_patients


@dataclass(frozen=True, kw_only=True)
class Imaging:
    """What the imaging half gives to the rest of a preparation."""

    images: pd.DataFrame
    """The kept images: dicom_id, stay_id, study_id, hours; row i is row i of the region crops."""
    boxes: pd.DataFrame
    """dicom_id, region, x1, y1, x2, y2 of the kept images, in their order."""
    comparisons: pd.DataFrame
    """Comparisons read from scene graphs, for `build_pairs`."""
    split: pd.Series
    """"train", "val" or "test" of every patient of `stays`, indexed by subject_id."""


@dataclass(frozen=True, kw_only=True)
class ImagingSources:
    """Where images and what belongs to them come from."""

    metadata: pd.DataFrame
    """METADATA_COLUMNS of the metadata table, as text."""
    gold: pd.DataFrame
    """Gold comparisons of `read_gold`; their patients go to the test split."""
    radiographs: Path
    """The folder `files` of MIMIC-CXR-JPG."""
    scene_graphs: Path
    """The folder of scene graphs, one JSON file an image."""


def prepare_imaging(
    sources: ImagingSources,
    stays: pd.DataFrame,
    regions_path: Path,
    image_rules: ImageRules,
    split_rules: SplitRules,
    rejections: Rejections,
    *,
    workers: int = 1,
    progress: Progress = silent,
) -> Imaging:
    """Select images, write their region crops to `regions_path` and split the patients of `stays`.

    `stays` needs stay_id, subject_id, intime, outtime and los_days. A radiograph that cannot be read is no image: the
    selection is made again without it, as though it had never been taken, and what was cut before is kept.
    Raises PrepareError where a folder of `sources` does not exist.
    """
    if not sources.scene_graphs.is_dir():
        raise PrepareError(f"{sources.scene_graphs}: expected the folder of scene graphs, found none; check the path")
    radiographs = find_radiographs(sources.metadata, image_rules, rejections)
    placed = place_in_stays(radiographs, stays, image_rules, rejections)
    graphs = read_scene_graphs(
        placed["dicom_id"].tolist(), sources.scene_graphs, rejections, workers=workers, progress=progress
    )
    usable = placed.loc[placed["dicom_id"].isin(graphs.boxes["dicom_id"])]
    gold_patients = set(sources.gold["subject_id"])

    cut: pd.Series = pd.Series(dtype="int64")  # row in the array of crops, by dicom_id
    while True:
        # Counted only once it stands: this selection may fall with a radiograph that turns out to be unreadable.
        images, _ = _choose(usable, stays, gold_patients, image_rules, split_rules, Rejections())
        unreadable = cut_regions(
            images,
            graphs.boxes,
            sources.radiographs,
            regions_path,
            rejections,
            reuse=cut,
            workers=workers,
            progress=progress,
        )
        if not unreadable:
            break
        usable = usable.loc[~usable["dicom_id"].isin(unreadable)]
        cut = pd.Series(images.index, index=images["dicom_id"]).drop(list(unreadable))
    images, split = _choose(usable, stays, gold_patients, image_rules, split_rules, rejections)
    return Imaging(
        images=images.loc[:, ["dicom_id", "stay_id", "study_id", "hours"]],
        boxes=images[["dicom_id"]].merge(graphs.boxes, on="dicom_id"),
        comparisons=graphs.comparisons,
        split=split,
    )


def _choose(
    usable: pd.DataFrame,
    stays: pd.DataFrame,
    gold_patients: set[int],
    image_rules: ImageRules,
    split_rules: SplitRules,
    rejections: Rejections,
) -> tuple[pd.DataFrame, pd.Series]:
    """Kept images and the split of all patients."""
    everyone = set(stays["subject_id"])
    if image_rules.quartiles_over == "all":
        limits = usual_length(stays, image_rules)
        images = select_images(usable, stays, image_rules, rejections, length_limits=limits).reset_index(drop=True)
        return images, split_patients(set(images["subject_id"]), everyone, gold_patients, split_rules)
    # Which stays are outliers depends on the training patients, so patients are split before outliers are left out.
    candidates = select_images(usable, stays, image_rules, Rejections())
    split = split_patients(set(candidates["subject_id"]), everyone, gold_patients, split_rules)
    training = [subject for subject, name in split.items() if name == "train"]
    limits = usual_length(stays.loc[stays["subject_id"].isin(training)], image_rules)
    images = select_images(usable, stays, image_rules, rejections, length_limits=limits)
    return images.reset_index(drop=True), split
