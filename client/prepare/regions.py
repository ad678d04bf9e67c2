"""Region crops: every kept radiograph is decoded once, its regions cut and stored in one memory-mapped array."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from client.cohort import REGION_PIXELS
from client.prepare.parallel import Progress, map_files, silent
from client.prepare.rejections import PrepareError, Rejections
from client.prepare.scene_graphs import ABSENT
from dipro_model.vocabulary import REGIONS

WHERE = "radiographs"
"""The stage under which rejections are counted."""

_SIZE = (REGION_PIXELS, REGION_PIXELS)


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """One image's work: its file, the boxes of its regions in the order of REGIONS, and its row in the array."""

    dicom_id: str
    path: Path
    boxes: tuple[tuple[int, int, int, int], ...]
    row: int


def radiograph_path(folder: Path, subject_id: int, study_id: int, dicom_id: str) -> Path:
    """Where MIMIC-CXR-JPG keeps a radiograph below its folder `files`."""
    return folder / f"p{str(subject_id)[:2]}" / f"p{subject_id}" / f"s{study_id}" / f"{dicom_id}.jpg"


def cut_regions(
    images: pd.DataFrame,
    boxes: pd.DataFrame,
    folder: Path,
    out: Path,
    rejections: Rejections,
    *,
    reuse: pd.Series | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> set[str]:
    """Write the crops of every image to `out` and return the dicom_ids of radiographs that cannot be read.

    `images` needs dicom_id, subject_id and study_id; row i of `out`, uint8 [image, region, 224, 224], holds row i of
    `images`. Every image needs its ten rows in `boxes`. Rows of unreadable radiographs stay zero: the caller selects
    again without those images. `reuse`, rows by dicom_id, names crops that `out` holds already, from an earlier call:
    they are moved, not cut again. Memory does not grow with the number of images.
    Raises PrepareError where `folder` does not exist or the disk is too full for `out`.
    """
    if not folder.is_dir():
        raise PrepareError(f"{folder}: expected the folder of radiographs, found none; check the path of MIMIC-CXR-JPG")
    earlier = out.with_name(f"earlier-{out.name}")
    if reuse is not None and len(reuse):
        out.replace(earlier)
    _create_array(out, len(images))
    done = _move_rows(images, reuse, earlier, out)
    work = [item for item in _plan(images, boxes, folder) if item.dicom_id not in done]
    cut = partial(_cut_image, out=out)
    unreadable = set()
    what = "radiographs taken in instead" if done else "radiographs"
    results = map_files(cut, work, what=what, workers=workers, progress=progress)
    for item, fault in zip(work, results, strict=True):
        if fault:
            rejections.add(fault, where=WHERE, examples=[f"dicom_id {item.dicom_id}"])
            unreadable.add(item.dicom_id)
    return unreadable


def crop_regions(radiograph: Image.Image, boxes: Sequence[tuple[int, int, int, int]]) -> np.ndarray:
    """Nearest-neighbour crops of a gray image: uint8 [region, 224, 224], zero where a box is absent.

    What a box covers beyond the image is black.
    """
    crops = np.zeros((len(boxes), REGION_PIXELS, REGION_PIXELS), np.uint8)
    for crop, box in zip(crops, boxes, strict=True):
        if box != ABSENT:
            crop[:] = np.asarray(_crop(radiograph, box))
    return crops


def _crop(radiograph: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    x1, y1, x2, y2 = box
    if x1 >= 0 and y1 >= 0 and x2 <= radiograph.width and y2 <= radiograph.height:
        # Not resize(box=...): its sampling points, counted from the image's corner, round differently here and there.
        return radiograph.crop(box).resize(_SIZE, Image.Resampling.NEAREST)
    # A crop as large as the box would take memory for pixels that do not exist.
    return radiograph.transform(_SIZE, Image.Transform.EXTENT, box, Image.Resampling.NEAREST, fillcolor=0)


def _create_array(out: Path, num_images: int) -> None:
    shape = (num_images, len(REGIONS), REGION_PIXELS, REGION_PIXELS)
    if num_images == 0:
        np.save(out, np.zeros(shape, np.uint8))
        return
    try:
        np.lib.format.open_memmap(out, mode="w+", dtype=np.uint8, shape=shape)
        with out.open("r+b") as file:
            # A memory-mapped file has its blocks only when they are written; without room, that kills the process.
            os.posix_fallocate(file.fileno(), 0, out.stat().st_size)
    except OSError as error:
        out.unlink(missing_ok=True)
        raise PrepareError(
            f"{out}: expected room for {np.prod(shape) / 1e9:.1f} GB of region crops ({error}); free space or choose "
            "another folder for the cohort"
        ) from None


def _move_rows(images: pd.DataFrame, reuse: pd.Series | None, earlier: Path, out: Path) -> set[str]:
    """Copy the rows that `reuse` names from `earlier` into `out`, delete `earlier`; the dicom_ids copied."""
    if reuse is None or not len(reuse):
        return set()
    source, target = np.load(earlier, mmap_mode="r"), np.load(out, mmap_mode="r+")
    for row, dicom_id in enumerate(images["dicom_id"]):
        if dicom_id in reuse.index:
            target[row] = source[reuse[dicom_id]]
    earlier.unlink()
    return set(images["dicom_id"]) & set(reuse.index)


def _plan(images: pd.DataFrame, boxes: pd.DataFrame, folder: Path) -> list[_Cut]:
    sides = boxes[["x1", "y1", "x2", "y2"]].to_numpy().tolist()
    keys = zip(boxes["dicom_id"], boxes["region"], strict=True)
    corners = {key: (x1, y1, x2, y2) for key, (x1, y1, x2, y2) in zip(keys, sides, strict=True)}
    columns = (images["dicom_id"], images["subject_id"], images["study_id"])
    return [
        _Cut(
            dicom_id=dicom_id,
            path=radiograph_path(folder, subject_id, study_id, dicom_id),
            boxes=tuple(corners[dicom_id, region] for region in REGIONS),
            row=row,
        )
        for row, (dicom_id, subject_id, study_id) in enumerate(zip(*columns, strict=True))
    ]


def _cut_image(work: _Cut, *, out: Path) -> str | None:
    """Cut one image into its row of `out`; the reason where its file cannot be used."""
    try:
        radiograph = _open_gray(work.path)
    except FileNotFoundError:
        return "radiograph missing"
    except UnidentifiedImageError:
        return "radiograph is not an image"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "radiograph damaged or truncated"
    crops = crop_regions(radiograph, work.boxes)
    np.load(out, mmap_mode="r+")[work.row] = crops
    return None


def _open_gray(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("L")
