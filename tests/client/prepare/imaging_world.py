"""A few radiographs with scene graphs, written by hand in the shape of MIMIC-CXR-JPG and Chest ImaGenome."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from client.prepare.images import METADATA_COLUMNS
from client.prepare.profile import Rules, load_profile
from client.prepare.regions import radiograph_path
from client.prepare.scene_graphs import scene_graph_path
from dipro_model.vocabulary import REGIONS

ADMITTED = pd.Timestamp("2150-03-04 05:06:07")


def rules_of(profile: str) -> Rules:
    return load_profile(profile).rules


def metadata_row(dicom_id: str, hour: float, *, subject: int = 1, study: int | None = None, view: str | None = "AP"):
    """A row of the metadata table for an image taken `hour` hours after ADMITTED."""
    taken = ADMITTED + pd.Timedelta(hours=hour)
    # MIMIC writes the time as a number, so leading zeros are lost and a fraction follows.
    time = f"{int(taken.strftime('%H%M%S'))}.25"
    number = sum(map(ord, dicom_id)) if study is None else study
    return (dicom_id, str(subject), str(number), view, taken.strftime("%Y%m%d"), time)


def metadata(rows: Sequence[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(METADATA_COLUMNS), dtype=object)


def stays_table(lengths_in_days: Mapping[int, float], *, subject_of: Mapping[int, int] | None = None) -> pd.DataFrame:
    """Stays (by stay_id) that begin at ADMITTED; patient of stay s is s unless `subject_of` says otherwise."""
    frame = pd.DataFrame({"stay_id": list(lengths_in_days), "los_days": list(lengths_in_days.values())})
    subject = frame["stay_id"].map(subject_of or {stay: stay for stay in lengths_in_days})
    outtime = ADMITTED + pd.to_timedelta(frame["los_days"], unit="D")
    return frame.assign(subject_id=subject, intime=ADMITTED, outtime=outtime, mortality_inhospital=0)


def graph_object(region: str, box: Sequence[Any]) -> dict:
    sides = ("original_x1", "original_y1", "original_x2", "original_y2")
    return {"bbox_name": region} | dict(zip(sides, box, strict=True))


def relationship(first: str, second: str, region: str, words: Sequence[str], attributes: Sequence[str]) -> dict:
    return {
        "relationship_names": [f"comparison|yes|{word}" for word in words],
        "attributes": list(attributes),
        "bbox_name": region,
        "subject_id": f"{second}_{region}",
        "object_id": f"{first}_{region}",
    }


def write_graph(folder: Path, dicom_id: str, *, objects=None, relationships=()) -> None:
    """A scene graph; without `objects`, each region i has the box [i, i, i + 20, i + 30]."""
    if objects is None:
        objects = [graph_object(name, (i, i, i + 20, i + 30)) for i, name in enumerate(REGIONS)]
    folder.mkdir(parents=True, exist_ok=True)
    content = {"objects": objects, "relationships": list(relationships)}
    scene_graph_path(folder, dicom_id).write_text(json.dumps(content))


def write_radiograph(folder: Path, row: tuple, *, size=(60, 50)) -> np.ndarray:
    """A JPEG of noise for a metadata row; returns its pixels as decoded."""
    dicom_id, subject, study = row[:3]
    path = radiograph_path(folder, int(subject), int(study), dicom_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(sum(map(ord, dicom_id))).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    with Image.open(path) as image:
        return np.asarray(image)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
