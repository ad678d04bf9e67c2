"""A cohort of random values of any size, written as a hospital without MIMIC would write it (docs/cohort.md)."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from client.cohort import REGION_FILE, REGION_PIXELS, REPORT, STATISTICS, TABLES, Windows
from client.prepare.writer import write_manifest, write_table
from dipro_model.vocabulary import DEMOGRAPHICS, DISEASES, EHR_VARIABLES, NOT_MENTIONED, REGIONS, SPLITS
from federation.site_statistics import MEASURES

ADMISSION = pd.Timestamp("2150-01-01")


def write_cohort(
    folder: Path,
    *,
    num_stays: int,
    num_images: int,
    num_hours: int,
    held_out: int | None = None,
    signal: float = 0.0,
    black: bool = False,
) -> Path:
    """`num_stays` training stays, and `held_out` (one in ten) more for each other split, all of one shape.

    Every image and every hour lies in the window of mortality and length of stay. Values of those who died lie `signal`
    higher in the first EHR variable; no other value tells anything. Black images take no room on disk.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    others = max(2, num_stays // 10) if held_out is None else held_out
    splits = ["train"] * num_stays + [split for split in SPLITS[1:] for _ in range(others)]
    stays = pd.DataFrame({"stay_id": np.arange(len(splits)) + 1, "subject_id": np.arange(len(splits)) + 1})
    stays = stays.assign(hadm_id=stays.stay_id, intime=ADMISSION, outtime=ADMISSION + pd.Timedelta(hours=num_hours + 1))
    stays = stays.assign(los_days=(num_hours + 1) / 24, age=60.0, mortality_inhospital=stays.stay_id % 2, split=splits)
    hours = np.linspace(1.0, num_hours - 1.0, num_images)
    images = pd.DataFrame(
        [(f"{stay}-{place}", stay, stay, hour) for stay in stays.stay_id for place, hour in enumerate(hours)],
        columns=TABLES["images"].names,
    )
    write_table(folder, "stays", stays)
    write_table(folder, "images", images)
    write_table(folder, "boxes", _boxes(images))
    hourly = _hourly(stays, num_hours, rng)
    hourly[EHR_VARIABLES[0]] += signal * hourly.stay_id.isin(stays.stay_id[stays.mortality_inhospital == 1])
    write_table(folder, "ehr_hourly", hourly)
    write_table(folder, "demographics", _random(stays.loc[:, ["stay_id"]], DEMOGRAPHICS, rng))
    write_table(folder, "pairs", _pairs(images, num_images, rng))
    write_table(folder, "samples_mortality", stays.assign(label=stays.mortality_inhospital))
    write_table(folder, "samples_length_of_stay", stays.assign(label=stays.stay_id % 4))
    groups = dict.fromkeys(TABLES["groups"].names[1:], "unknown")
    write_table(folder, "groups", stays.loc[:, ["stay_id"]].assign(**groups))
    _write_regions(folder / REGION_FILE, 0 if black else len(images), len(images), rng)
    (folder / STATISTICS).write_text(json.dumps(_statistics(num_hours * len(splits))) + "\n")
    (folder / REPORT).write_text(json.dumps({"counts": {"stays": len(stays)}, "rejections": {}}) + "\n")
    windows = Windows(
        stay_hours=num_hours, stay_image_hours=float(num_hours), pair_hours_before=1.0, pair_hours_after=0.0
    )
    write_manifest(folder, profile="random", profile_digest="", windows=windows, counts={"stays": len(stays)})
    return folder


def _statistics(num_values: int) -> dict[str, object]:
    """Values of mean 0 and standard deviation 1, which their z-scores equal."""
    ehr = {"mean": 0.0, "sd": 1.0, "fill": 0.0, "num_values": num_values}
    measures = {"mean": dict.fromkeys(MEASURES, 0.0), "sd": dict.fromkeys(MEASURES, 1.0)}
    return {"ehr": dict.fromkeys(EHR_VARIABLES, ehr), "demographics": measures}


def _boxes(images: pd.DataFrame) -> pd.DataFrame:
    boxes = images[["dicom_id"]].merge(pd.DataFrame({"region": list(REGIONS)}), how="cross")
    return boxes.assign(x1=0, y1=0, x2=REGION_PIXELS, y2=REGION_PIXELS)


def _hourly(stays: pd.DataFrame, num_hours: int, rng: np.random.Generator) -> pd.DataFrame:
    rows = stays.loc[:, ["stay_id"]].merge(pd.DataFrame({"hour": np.arange(num_hours)}), how="cross")
    masks = pd.DataFrame({f"{name}_mask": True for name in EHR_VARIABLES}, index=rows.index)
    return pd.concat([_random(rows, EHR_VARIABLES, rng), masks], axis=1)


def _random(rows: pd.DataFrame, names: Sequence[str], rng: np.random.Generator) -> pd.DataFrame:
    values = pd.DataFrame(rng.normal(size=(len(rows), len(names))), columns=list(names), index=rows.index)
    return pd.concat([rows, values], axis=1)


def _pairs(images: pd.DataFrame, num_images: int, rng: np.random.Generator) -> pd.DataFrame:
    place = np.arange(len(images)) % num_images
    first = images[place < num_images - 1].reset_index(drop=True)
    second = images[place > 0].reset_index(drop=True)
    labels = rng.integers(0, NOT_MENTIONED + 1, (len(first), len(DISEASES)))
    regions = rng.integers(0, NOT_MENTIONED + 1, (len(first), len(REGIONS) * len(DISEASES))).astype(np.int8)
    pairs = pd.DataFrame(labels, columns=list(DISEASES)).assign(
        stay_id=first.stay_id,
        first_dicom_id=first.dicom_id,
        second_dicom_id=second.dicom_id,
        first_hour=first.hours,
        second_hour=second.hours,
    )
    return pairs.assign(region_progression=list(regions))


def _write_regions(path: Path, num_random: int, num_images: int, rng: np.random.Generator) -> None:
    shape = (num_images, len(REGIONS), REGION_PIXELS, REGION_PIXELS)
    regions = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for row in range(num_random):
        regions[row] = rng.integers(0, 256, shape[1:], dtype=np.uint8)
    regions.flush()
