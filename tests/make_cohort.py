"""A small cohort written by hand, as a hospital without MIMIC would write it: random values under the contract."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from client.cohort import COHORT_FILES, SCHEMA_VERSION, TABLES
from dipro_model.vocabulary import DEMOGRAPHICS, DISEASES, EHR_VARIABLES, NOT_MENTIONED, REGIONS

WINDOWS = {"stay_hours": 48, "stay_image_hours": 48.0, "pair_hours_before": 1.0, "pair_hours_after": 0.0}


def write_cohort(
    folder: Path,
    *,
    num_patients: int = 12,
    seed: int = 0,
    first_subject: int = 100,
    num_images: int | None = None,
    splits: tuple[str, ...] = ("train", "train", "val", "test"),
    region_progression: np.ndarray | None = None,
    deaths: bool = True,
    careunits: tuple[str, ...] = ("MICU", "SICU", "CVICU"),
    ehr_mean: float = 10.0,
) -> Path:
    """Write a cohort whose labels follow its first EHR variable and the brightness of its images.

    `num_images` fixes the radiographs of a stay (else 2 to 4); `region_progression` ([70]) gives every pair the same
    region labels. Patients alternate between survival and death, and take the splits in turn; after a round of these
    the care unit changes. EHR variables have the mean `ehr_mean`, sd 2 and the fill value 8 in their unit.
    """
    rng = np.random.default_rng(seed)
    stays, images, boxes, hourly, pairs, crops = [], [], [], [], [], []
    for number in range(num_patients):
        subject, stay = first_subject + number, 10 * (first_subject + number)
        died = int(deaths and (number // len(splits)) % 2)
        stays.append((stay, subject, stay + 1, died, splits[number % len(splits)], 2.5 + number % 6))
        hours = np.sort(rng.uniform(0, 46, num_images or rng.integers(2, 5)))
        dicoms = [f"{seed}-{stay}-{place}" for place in range(len(hours))]
        for dicom, hour in zip(dicoms, hours, strict=True):
            images.append((dicom, stay, stay + 2, hour))
            boxes += [(dicom, region, 0, 0, 50, 60) for region in REGIONS]
            crops.append(_noise(rng, (len(REGIONS), 224, 224)) + np.uint8(100 * died))
        for hour in range(54):
            values = rng.normal(size=len(EHR_VARIABLES))
            values[0] += 2 * died - 1
            hourly.append((stay, hour, *values, *(rng.random(len(EHR_VARIABLES)) < 0.3)))
        for place in range(len(dicoms) - 1):
            labels = rng.integers(0, NOT_MENTIONED + 1, len(DISEASES))
            regions = rng.integers(0, NOT_MENTIONED + 1, 70) if region_progression is None else region_progression
            pair = (stay, dicoms[place], dicoms[place + 1], hours[place], hours[place + 1])
            pairs.append((*pair, *labels, regions.astype(np.int8).tolist()))
    units = [careunits[(number // len(splits)) % len(careunits)] for number in range(num_patients)]
    return _write(folder, stays, images, boxes, hourly, pairs, np.stack(crops), rng, units, ehr_mean)


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 in [0, 128): a twentieth of the time of rng.integers."""
    return (np.frombuffer(rng.bytes(math.prod(shape)), np.uint8) >> 1).reshape(shape)


def reseal(folder: Path) -> None:
    """Write the manifest anew after a test changed a file on purpose."""
    files = {
        name: {
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "bytes": (folder / name).stat().st_size,
        }
        for name in COHORT_FILES
    }
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "profile": "by hand",
        "windows": WINDOWS,
        "counts": {},
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_table(folder: Path, name: str, frame: pd.DataFrame) -> None:
    pq.write_table(pa.Table.from_pandas(frame, schema=TABLES[name], preserve_index=False), folder / f"{name}.parquet")


def _write(folder, stays, images, boxes, hourly, pairs, crops, rng, units, ehr_mean) -> Path:
    folder.mkdir(parents=True)
    table = pd.DataFrame(
        stays, columns=["stay_id", "subject_id", "hadm_id", "mortality_inhospital", "split", "los_days"]
    )
    table["intime"] = pd.Timestamp("2150-01-01")
    table["outtime"] = table.intime + pd.to_timedelta(table.los_days, unit="D")
    demographics = pd.DataFrame(rng.normal(size=(len(table), len(DEMOGRAPHICS))), columns=list(DEMOGRAPHICS))
    table["age"] = 60.0 + 10.0 * demographics["age"]
    write_table(folder, "stays", table)
    write_table(folder, "images", pd.DataFrame(images, columns=TABLES["images"].names))
    write_table(folder, "boxes", pd.DataFrame(boxes, columns=TABLES["boxes"].names))
    write_table(folder, "ehr_hourly", pd.DataFrame(hourly, columns=TABLES["ehr_hourly"].names))
    write_table(folder, "demographics", demographics.assign(stay_id=table.stay_id))
    write_table(folder, "pairs", pd.DataFrame(pairs, columns=TABLES["pairs"].names))
    write_table(folder, "samples_mortality", table.rename(columns={"mortality_inhospital": "label"}))
    write_table(folder, "samples_length_of_stay", table.assign(label=np.arange(len(table)) % 4))
    write_table(folder, "groups", _groups(table.stay_id, units))
    np.save(folder / "regions.npy", crops)
    statistic = {"mean": ehr_mean, "sd": 2.0, "num_values": 100, "fill": 8.0}
    means = {"age": 60.0, "height": 170.0, "weight": 80.0}
    statistics = {
        "ehr": dict.fromkeys(EHR_VARIABLES, statistic),
        "demographics": {"mean": means, "sd": dict.fromkeys(means, 10.0)},
    }
    (folder / "statistics.json").write_text(json.dumps(statistics))
    (folder / "report.json").write_text("{}")
    reseal(folder)
    return folder


def _groups(stay_ids: pd.Series, units: list[str]) -> pd.DataFrame:
    number = np.arange(len(stay_ids))
    return pd.DataFrame(
        {
            "stay_id": stay_ids,
            "first_careunit": units,
            "anchor_year_group": np.array(["2011 - 2013", "2014 - 2016"])[number // 8 % 2],
            "insurance": np.array(["Medicare", "Medicaid", "Other"])[number // 4 % 3],
            "race_group": "WHITE",
            "sex": np.array(["F", "M"])[number % 2],
        }
    )


def write_two_cohorts(folder: Path) -> list[Path]:
    """Eight patients each, of two images, at north and south."""
    return [
        write_cohort(folder / name, num_patients=8, num_images=2, seed=seed, first_subject=100 * seed)
        for name, seed in (("north", 1), ("south", 2))
    ]
