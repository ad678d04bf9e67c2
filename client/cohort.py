"""The prepared cohort: the contract between a hospital's records and everything that trains on them.

A cohort is a folder. `manifest.json` names the schema version and the checksum of every other file; a folder
without a manifest is not a cohort. docs/cohort.md documents each column for those who write cohorts themselves.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dipro_model.vocabulary import DEMOGRAPHICS, DISEASES, EHR_VARIABLES, REGIONS

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 is version 2 without the table of groups."""
REGION_PIXELS = 224
"""Side of a stored region crop, in pixels."""

MANIFEST = "manifest.json"
STATISTICS = "statistics.json"
REPORT = "report.json"
REGION_FILE = "regions.npy"
FEATURE_FOLDER = "features"
"""What can be computed from the regions again; the manifest knows nothing of it."""

_KEY, _WHEN = pa.int64(), pa.timestamp("us")

TABLES: dict[str, pa.Schema] = {
    # One row a stay that passes the stay filters, with or without images.
    "stays": pa.schema(
        [
            ("stay_id", _KEY),
            ("subject_id", _KEY),
            ("hadm_id", _KEY),
            ("intime", _WHEN),
            ("outtime", _WHEN),
            ("los_days", pa.float64()),
            ("age", pa.float64()),
            ("mortality_inhospital", pa.int8()),
            ("split", pa.string()),
        ]
    ),
    # One row a kept radiograph; its row number is its row in regions.npy. Hours are since ICU admission.
    "images": pa.schema([("dicom_id", pa.string()), ("stay_id", _KEY), ("study_id", _KEY), ("hours", pa.float64())]),
    # Ten rows an image, pixels of the original JPEG; a region that is absent has the empty box 0, 0, 0, 0.
    "boxes": pa.schema(
        [("dicom_id", pa.string()), ("region", pa.string())] + [(side, pa.int32()) for side in ("x1", "y1", "x2", "y2")]
    ),
    # One row a stay and hour; values are z-scores, a mask is true where the hour was measured and not filled.
    "ehr_hourly": pa.schema(
        [("stay_id", _KEY), ("hour", pa.int32())]
        + [(name, pa.float32()) for name in EHR_VARIABLES]
        + [(f"{name}_mask", pa.bool_()) for name in EHR_VARIABLES]
    ),
    # One row a stay; age, height and weight are z-scores, the rest is 0 or 1.
    "demographics": pa.schema([("stay_id", _KEY)] + [(name, pa.float64()) for name in DEMOGRAPHICS]),
    # One row a labelled pair of consecutive kept images of a stay; 3 means not mentioned.
    "pairs": pa.schema(
        [
            ("stay_id", _KEY),
            ("first_dicom_id", pa.string()),
            ("second_dicom_id", pa.string()),
            ("first_hour", pa.float64()),
            ("second_hour", pa.float64()),
        ]
        + [(disease, pa.int8()) for disease in DISEASES]
        + [("region_progression", pa.list_(pa.int8(), len(REGIONS) * len(DISEASES)))]
    ),
    "samples_mortality": pa.schema([("stay_id", _KEY), ("label", pa.int8()), ("split", pa.string())]),
    "samples_length_of_stay": pa.schema([("stay_id", _KEY), ("label", pa.int8()), ("split", pa.string())]),
    # One row a stay: what hospitals and their patients differ by, as plain words; `unknown` where none is recorded.
    "groups": pa.schema(
        [("stay_id", _KEY)]
        + [(name, pa.string()) for name in ("first_careunit", "anchor_year_group", "insurance", "race_group", "sex")]
    ),
}
"""Arrow schema of each table, `<name>.parquet` in the folder."""

COHORT_FILES: tuple[str, ...] = (*(f"{name}.parquet" for name in TABLES), REGION_FILE, STATISTICS, REPORT)
"""Every file that a manifest of the present version must list."""

_ADDED_IN_VERSION_2 = frozenset({"groups"})
"""Tables that cohorts of version 1 do not have."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Which images and which hourly rows belong to a sample; the profile chose them, the manifest keeps them.

    Row h of `ehr_hourly` holds what was charted in [h, h + 1). All numbers are hours.
    """

    stay_hours: int
    """Mortality and length of stay read the rows h with 0 <= h < stay_hours."""
    stay_image_hours: float
    """Mortality and length of stay read the images taken before this hour."""
    pair_hours_before: float
    """Progression reads the rows h with h >= hour of the first image - pair_hours_before ..."""
    pair_hours_after: float
    """... and h <= hour of the second image + pair_hours_after."""


class CohortError(ValueError):
    """A folder is not a cohort that this version can read; the message says why and what to do."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A prepared cohort on disk. Tables are read on first use; regions stay on disk, memory-mapped."""

    path: Path
    manifest: dict[str, Any]

    @cached_property
    def stays(self) -> pd.DataFrame:
        return self._read("stays")

    @cached_property
    def images(self) -> pd.DataFrame:
        return self._read("images")

    @cached_property
    def boxes(self) -> pd.DataFrame:
        return self._read("boxes")

    @cached_property
    def ehr_hourly(self) -> pd.DataFrame:
        return self._read("ehr_hourly")

    @cached_property
    def demographics(self) -> pd.DataFrame:
        return self._read("demographics")

    @cached_property
    def pairs(self) -> pd.DataFrame:
        return self._read("pairs")

    @cached_property
    def samples_mortality(self) -> pd.DataFrame:
        return self._read("samples_mortality")

    @cached_property
    def samples_length_of_stay(self) -> pd.DataFrame:
        return self._read("samples_length_of_stay")

    @cached_property
    def groups(self) -> pd.DataFrame:
        """Raises CohortError for a cohort of version 1, which has none."""
        if self.manifest["schema_version"] < SCHEMA_VERSION:
            raise CohortError(
                f"{self.path}: expected the table groups.parquet (care unit, admission period, insurance, race group, "
                f"sex), found a cohort of schema version {self.manifest['schema_version']}, which has none; prepare it "
                "again with this version of dipro-fed (`dipro-fed prepare --overwrite`)"
            )
        return self._read("groups")

    @cached_property
    def windows(self) -> Windows:
        return Windows(**self.manifest["windows"])

    @cached_property
    def statistics(self) -> dict[str, Any]:
        return json.loads((self.path / STATISTICS).read_text())

    @cached_property
    def report(self) -> dict[str, Any]:
        return json.loads((self.path / REPORT).read_text())

    @cached_property
    def regions(self) -> np.ndarray:
        """uint8 [image, region, 224, 224], memory-mapped, rows in the order of `images`."""
        return np.load(self.path / REGION_FILE, mmap_mode="r")

    def _read(self, name: str) -> pd.DataFrame:
        return pq.read_table(self.path / f"{name}.parquet", schema=TABLES[name]).to_pandas()


def open_cohort(path: Path | str, *, verify_regions: bool = True) -> Cohort:
    """Open a cohort after checking that it is whole.

    The schema version (1 or 2), every file's presence and size, the checksum and the columns of every table and the
    shape of the regions are checked always. `verify_regions=False` leaves out only the checksum of the pixels, by far
    the largest file: for processes that start often on a cohort that was verified in full before.

    Raises CohortError naming the file and what to do.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    left_out = _ADDED_IN_VERSION_2 if manifest["schema_version"] == 1 else frozenset()
    for name in COHORT_FILES:
        if name.removesuffix(".parquet") not in left_out:
            _check_file(folder, name, manifest, checksum=verify_regions or name != REGION_FILE)
    for name in (name for name in TABLES if name not in left_out):
        for problem in _schema_problems(pq.read_schema(folder / f"{name}.parquet"), TABLES[name]):
            raise CohortError(f"{folder / name}.parquet: {problem}; see docs/cohort.md for the columns")
    cohort = Cohort(path=folder, manifest=manifest)
    _check_regions(cohort)
    return cohort


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise CohortError(
            f"{folder}: expected a prepared cohort, found no {MANIFEST}; an interrupted preparation leaves none. "
            "Run `dipro-fed prepare` (again), or check the path"
        )
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise CohortError(f"{path}: expected JSON, found text that does not parse ({error}); prepare again") from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version not in READABLE_VERSIONS:
        raise CohortError(
            f"{path}: expected schema version {' or '.join(map(str, READABLE_VERSIONS))}, found {version!r}; "
            "prepare the cohort again with this version of dipro-fed"
        )
    if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("counts"), dict):
        raise CohortError(f"{path}: expected the objects `files` and `counts`; see docs/cohort.md")
    expected = {field.name for field in fields(Windows)}
    if set(manifest.get("windows") or ()) != expected:
        raise CohortError(f"{path}: expected the object `windows` with {sorted(expected)}; see docs/cohort.md")
    return manifest


def _check_file(folder: Path, name: str, manifest: dict[str, Any], *, checksum: bool) -> None:
    path, entry = folder / name, manifest["files"].get(name)
    if not isinstance(entry, dict) or not {"sha256", "bytes"} <= set(entry):
        raise CohortError(f"{folder / MANIFEST}: expected `files` to give sha256 and bytes of {name}; prepare again")
    if not path.is_file():
        raise CohortError(f"{path}: the manifest lists this file, but it is missing; prepare the cohort again")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise CohortError(f"{path}: expected {entry['bytes']} bytes, found {size}; prepare the cohort again")
    if checksum and sha256_of(path) != entry["sha256"]:
        raise CohortError(
            f"{path}: its checksum differs from the manifest's, so the file was changed or damaged after it was "
            "prepared; restore it or prepare the cohort again"
        )


def _schema_problems(found: pa.Schema, expected: pa.Schema) -> Iterator[str]:
    for field in expected:
        if field.name not in found.names:
            yield f"expected a column `{field.name}` of type {field.type}, found none"
        elif found.field(field.name).type != field.type:
            yield f"expected column `{field.name}` of type {field.type}, found {found.field(field.name).type}"


def _check_regions(cohort: Cohort) -> None:
    rows = pq.read_metadata(cohort.path / "images.parquet").num_rows
    expected = (rows, len(REGIONS), REGION_PIXELS, REGION_PIXELS)
    regions = cohort.regions
    if regions.shape != expected or regions.dtype != np.uint8:
        raise CohortError(
            f"{cohort.path / REGION_FILE}: expected uint8 {list(expected)}, one row for each row of images.parquet, "
            f"found {regions.dtype} {list(regions.shape)}; prepare the cohort again"
        )
