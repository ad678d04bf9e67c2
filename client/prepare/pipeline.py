"""The whole preparation, in the order of the data: raw files of a hospital to a prepared cohort."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import pandas as pd

from client.cohort import REGION_FILE, REPORT, STATISTICS, Cohort, open_cohort
from client.prepare.demographics import (
    DemographicStatistics,
    body_sizes,
    demographic_statistics,
    raw_demographics,
    scale_demographics,
)
from client.prepare.ehr import Statistic, gather_hours, hourly_batches, settle_instants, variable_statistics
from client.prepare.events import EVENT_COLUMNS, HEIGHT, WEIGHT, read_events
from client.prepare.groups import stay_groups
from client.prepare.images import METADATA_COLUMNS, METADATA_TABLE
from client.prepare.imaging import Imaging, ImagingSources, prepare_imaging
from client.prepare.labels import GOLD_COLUMNS, GOLD_TABLE, build_pairs, read_gold
from client.prepare.parallel import Progress, silent
from client.prepare.profile import Profile, load_profile
from client.prepare.raw import connect, create_view, find_table, read_table
from client.prepare.rejections import PrepareError, Rejections
from client.prepare.samples import build_samples
from client.prepare.stays import ADMISSION_COLUMNS, PATIENT_COLUMNS, STAY_COLUMNS, read_stays
from client.prepare.variables import SOURCES
from client.prepare.writer import staged, table_writer, write_json, write_manifest, write_table

_SCRATCH = "scratch"


@dataclass(frozen=True, kw_only=True)
class RawFolders:
    """Where a hospital's raw files lie."""

    mimic_iv: Path
    """Tables of MIMIC-IV's shape, in `hosp` and `icu`."""
    mimic_cxr: Path
    """Tables and radiographs (`files`) of MIMIC-CXR-JPG's shape."""
    chest_imagenome: Path
    """Scene graphs and gold labels of Chest ImaGenome's shape."""

    @property
    def scene_graphs(self) -> Path:
        return self.chest_imagenome / "silver_dataset" / "scene_graph"

    @property
    def radiographs(self) -> Path:
        return self.mimic_cxr / "files"


def prepare(
    mimic_iv: Path | str,
    mimic_cxr: Path | str,
    chest_imagenome: Path | str,
    out: Path | str,
    *,
    profile: Profile | Path | str = "corrected",
    strict: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Progress = silent,
) -> Cohort:
    """Prepare a hospital's raw files into the cohort folder `out` and open it.

    `profile` is one of `corrected` and `published`, a YAML file, or a loaded profile. With `strict` the first rejected
    row, image or stay stops the preparation; otherwise rejections are counted in report.json. `workers` is the number
    of processes and threads (None: one a core). `out` appears whole, at the end, or not at all.

    Raises PrepareError, naming file and fault, where raw files or columns are missing, where a profile has unknown
    settings, where `out` holds something already (see `overwrite`), and at the first rejection with `strict`.
    """
    raw = RawFolders(mimic_iv=Path(mimic_iv), mimic_cxr=Path(mimic_cxr), chest_imagenome=Path(chest_imagenome))
    profile = profile if isinstance(profile, Profile) else load_profile(profile)
    workers = workers or os.cpu_count() or 1
    rejections = Rejections(strict)
    with staged(Path(out), overwrite=overwrite) as folder:
        (folder / _SCRATCH).mkdir()
        with connect(folder / _SCRATCH, threads=workers) as connection:
            _check_sources(connection, raw)
            counts = _write_cohort(connection, raw, folder, profile, rejections, workers, progress)
        _remove_scratch(folder / _SCRATCH)
        report = {"profile": profile.name, "strict": strict, "counts": counts, "rejections": rejections.to_report()}
        write_json(folder / REPORT, report)
        progress("checksums", 0, 1)
        write_manifest(
            folder,
            profile=profile.name,
            profile_digest=profile.digest,
            windows=profile.rules.samples.windows,
            counts=counts,
        )
        progress("checksums", 1, 1)
    return open_cohort(out, verify_regions=False)


def _check_sources(connection: duckdb.DuckDBPyConnection, raw: RawFolders) -> None:
    """Miss nothing late: every table with its columns, and every folder, before the first long step."""
    wanted = {
        (raw.mimic_iv, "icu/icustays"): STAY_COLUMNS,
        (raw.mimic_iv, "hosp/admissions"): ADMISSION_COLUMNS,
        (raw.mimic_iv, "hosp/patients"): PATIENT_COLUMNS,
        **{(raw.mimic_iv, f"icu/{source}"): EVENT_COLUMNS for source in SOURCES},
        (raw.mimic_cxr, METADATA_TABLE): METADATA_COLUMNS,
        (raw.chest_imagenome, GOLD_TABLE): GOLD_COLUMNS,
    }
    for (folder, name), columns in wanted.items():
        create_view(connection, "checked_table", find_table(folder, name), columns)
    for folder, what in ((raw.scene_graphs, "scene graphs"), (raw.radiographs, "radiographs")):
        if not folder.is_dir():
            raise PrepareError(f"{folder}: expected the folder of {what}, found none; check the path of the raw data")


def _write_cohort(
    connection: duckdb.DuckDBPyConnection,
    raw: RawFolders,
    folder: Path,
    profile: Profile,
    rejections: Rejections,
    workers: int,
    progress: Progress,
) -> dict[str, int]:
    """Every file but report and manifest; returns the number of rows of each table."""
    rules = profile.rules
    progress("stays", 0, 1)
    stays = read_stays(connection, raw.mimic_iv, rules.stays, rejections)
    progress("stays", 1, 1)
    gold = read_gold(connection, raw.chest_imagenome, rejections)
    imaging = _prepare_imaging(connection, raw, folder, stays, gold, profile, rejections, workers, progress)
    pairs = build_pairs(imaging.images, imaging.comparisons, gold, rules.labels, rejections)
    stays = stays.assign(split=imaging.split.loc[stays["subject_id"]].to_numpy())
    num_hours, ehr_statistics, demographics, demographic_scale = prepare_ehr(
        connection, raw.mimic_iv, stays, folder, profile, rejections, progress
    )
    mortality, length_of_stay = build_samples(stays, imaging.images, rules.samples, rejections)
    write_json(folder / STATISTICS, _statistics_json(ehr_statistics, demographic_scale))
    tables = {
        "stays": stays,
        "images": imaging.images,
        "boxes": imaging.boxes,
        "demographics": demographics,
        "pairs": pairs,
        "samples_mortality": mortality,
        "samples_length_of_stay": length_of_stay,
        "groups": stay_groups(stays, rules.demographics.race_groups, rejections),
    }
    counts = {name: write_table(folder, name, frame) for name, frame in tables.items()}
    return {**counts, "ehr_hourly": num_hours, "patients": len(set(stays["subject_id"]))}


def _prepare_imaging(
    connection: duckdb.DuckDBPyConnection,
    raw: RawFolders,
    folder: Path,
    stays: pd.DataFrame,
    gold: pd.DataFrame,
    profile: Profile,
    rejections: Rejections,
    workers: int,
    progress: Progress,
) -> Imaging:
    metadata = read_table(connection, find_table(raw.mimic_cxr, METADATA_TABLE), METADATA_COLUMNS, rejections)
    sources = ImagingSources(metadata=metadata, gold=gold, radiographs=raw.radiographs, scene_graphs=raw.scene_graphs)
    return prepare_imaging(
        sources,
        stays,
        folder / REGION_FILE,
        profile.rules.images,
        profile.rules.split,
        rejections,
        workers=workers,
        progress=progress,
    )


def prepare_ehr(
    connection: duckdb.DuckDBPyConnection,
    mimic_iv: Path,
    stays: pd.DataFrame,
    folder: Path,
    profile: Profile,
    rejections: Rejections,
    progress: Progress = silent,
) -> tuple[int, dict[str, Statistic], pd.DataFrame, DemographicStatistics]:
    """Write ehr_hourly.parquet; returns its number of rows, its statistics, the demographics and theirs.

    `stays` are those of `read_stays` with their split.
    """
    rules = profile.rules
    read_events(
        connection,
        mimic_iv,
        stays,
        profile.variables,
        {HEIGHT: rules.demographics.height, WEIGHT: rules.demographics.weight},
        profile.units,
        rules.ehr,
        rejections,
        check_static=rules.demographics.body_size == "within bounds",
        progress=progress,
    )
    settle_instants(connection, profile.variables)
    gather_hours(connection, profile.variables)
    statistics = variable_statistics(connection, profile.variables, _counted(stays, rules.ehr.statistics_over))
    num_hours = _write_hours(connection, stays, folder, profile, statistics, rejections, progress)
    raw = raw_demographics(stays, body_sizes(connection, rules.demographics), rules.demographics, rejections)
    counted = _counted(stays, rules.demographics.statistics_over)
    scale = demographic_statistics(raw, counted, rules.demographics)
    return num_hours, statistics, scale_demographics(raw, scale, rejections), scale


def _write_hours(
    connection: duckdb.DuckDBPyConnection,
    stays: pd.DataFrame,
    folder: Path,
    profile: Profile,
    statistics: Mapping[str, Statistic],
    rejections: Rejections,
    progress: Progress,
) -> int:
    num_hours = num_stays = 0
    progress("hourly EHR of stays", 0, len(stays))
    with table_writer(folder, "ehr_hourly") as writer:
        for rows, num_stays_of_batch in hourly_batches(connection, profile.variables, statistics):
            writer.write_table(rows)
            num_hours += rows.num_rows
            num_stays += num_stays_of_batch
            progress("hourly EHR of stays", num_stays, len(stays))
    rejections.exclude("stay without any charted value, so without hours", len(stays) - num_stays, where="ehr_hourly")
    progress("hourly EHR of stays", len(stays), len(stays))
    return num_hours


def _counted(stays: pd.DataFrame, over: str) -> pd.Series:
    return stays.loc[stays["split"] == "train", "stay_id"] if over == "train" else stays.loc[:, "stay_id"]


def _statistics_json(ehr: Mapping[str, Statistic], demographics: DemographicStatistics) -> dict[str, object]:
    variables = {name: asdict(statistic) for name, statistic in ehr.items()}
    return {"ehr": variables, "demographics": asdict(demographics)}


def _remove_scratch(scratch: Path) -> None:
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()
