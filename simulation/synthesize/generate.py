"""Write synthetic hospitals: each is built in a staging folder and takes its name when it is whole."""

import contextlib
import gzip
import io
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from simulation.synthesize.oracles import TRUTH
from simulation.synthesize.patient_files import Job, PatientRows, write_patient
from simulation.synthesize.scene_graph import GOLD_COLUMNS
from simulation.synthesize.settings import (
    MAX_HOSPITALS,
    MAX_PATIENTS,
    HospitalSettings,
    WorldSettings,
    hospital_settings,
)
from simulation.synthesize.tables import COLUMNS, csv_text, item_text

SCENE_GRAPHS = Path("chest-imagenome/silver_dataset/scene_graph")
GOLD_FILE = Path("chest-imagenome/gold_dataset/gold_object_comparison_with_coordinates.txt")
IMAGE_TRUTH = "image_truth.parquet"
DESCRIPTION = "hospital.json"

_PATIENTS_PER_TASK = 4


@dataclass(frozen=True, kw_only=True)
class HospitalSummary:
    """What one written hospital holds."""

    folder: Path
    name: str
    num_patients: int
    num_images: int
    num_deaths: int


def synthesize(
    out: Path,
    *,
    hospitals: int = 3,
    patients: int = 100,
    seed: int = 0,
    workers: int = 1,
    image_pixels: int = 384,
    world: WorldSettings | None = None,
    advance: Callable[[int, int], None] = lambda hospital, patients: None,
) -> list[HospitalSummary]:
    """Write `hospitals` folders hospital_1, hospital_2, ... below `out`, each with `patients` patients.

    The files depend on the seed and the sizes alone, not on `workers`. `advance(hospital, n)` is called when n more
    patients of a hospital (from 0) are written. A folder `hospital_k` exists only when it is whole.

    Raises ValueError where `out` is not empty or a number is out of range.
    """
    _check(hospitals, patients, seed, workers, image_pixels)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out}: expected a new or an empty folder; nothing is overwritten. Choose another, or delete it"
        )
    out.mkdir(parents=True, exist_ok=True)
    summaries = []
    with _pool(workers) as run:
        for index in range(hospitals):
            settings = hospital_settings(seed, index)
            job = Job(
                world=world or WorldSettings(),
                hospital=settings,
                seed=seed,
                hospital_index=index,
                patient_index=0,
                image_pixels=image_pixels,
                folder=out / f".hospital_{index + 1}.partial",
            )
            summaries.append(_write_hospital(out / f"hospital_{index + 1}", job, patients, run, advance))
    return summaries


def _check(hospitals: int, patients: int, seed: int, workers: int, image_pixels: int) -> None:
    limits = {
        "hospitals": (hospitals, 1, MAX_HOSPITALS),
        "patients": (patients, 1, MAX_PATIENTS),
        "seed": (seed, 0, 2**63),
        "workers": (workers, 1, 256),
        "image-pixels": (image_pixels, 64, 4096),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ValueError(f"--{name}: expected a whole number from {low} to {high}, found {value}")


Runner = Callable[[list[list[Job]]], Iterator[list[PatientRows]]]


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Runner]:
    """A function that makes tasks of patients in order, in this process or in several."""
    if workers == 1:
        yield lambda tasks: map(_write_patients, tasks)
        return
    # Fresh interpreters: a fork would copy the locks of whatever threads the caller runs.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield lambda tasks: pool.map(_write_patients, tasks)
        except BaseException:
            # Without this an interrupted run would first finish every patient that is still queued.
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _write_patients(jobs: list[Job]) -> list[PatientRows]:
    return [write_patient(job) for job in jobs]


def _write_hospital(
    target: Path, job: Job, patients: int, run: Runner, advance: Callable[[int, int], None]
) -> HospitalSummary:
    staging = job.folder
    try:
        (staging / SCENE_GRAPHS).mkdir(parents=True)
        (staging / GOLD_FILE).parent.mkdir(parents=True)
        jobs = [replace(job, patient_index=patient) for patient in range(patients)]
        tasks = [jobs[start : start + _PATIENTS_PER_TASK] for start in range(0, patients, _PATIENTS_PER_TASK)]
        truth, image_truth = _write_tables(staging, run(tasks), lambda n: advance(job.hospital_index, n))
        pq.write_table(pa.Table.from_pylist(truth), staging / TRUTH)
        pq.write_table(pa.Table.from_pylist(image_truth), staging / IMAGE_TRUTH)
        _describe(staging / DESCRIPTION, job, patients)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return HospitalSummary(
        folder=target,
        name=job.hospital.name,
        num_patients=patients,
        num_images=len(image_truth),
        num_deaths=sum(row["died"] for row in truth),
    )


def _write_tables(
    staging: Path, results: Iterator[list[PatientRows]], advance: Callable[[int], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Append every patient's rows to the tables, in the order of the patients; return the rows of the truth."""
    truth, image_truth = [], []
    with contextlib.ExitStack() as stack:
        tables = {name: stack.enter_context(_open_table(staging / name)) for name in COLUMNS}
        gold = stack.enter_context((staging / GOLD_FILE).open("w", encoding="utf-8"))
        for name, file in tables.items():
            file.write(csv_text([COLUMNS[name]]))
        tables["mimiciv/icu/d_items.csv.gz"].write(item_text())
        gold.write("\t".join(GOLD_COLUMNS) + "\n")
        for task in results:
            for rows in task:
                for name, text in rows.tables.items():
                    tables[name].write(text)
                gold.writelines("\t".join(row) + "\n" for row in rows.gold)
                truth.append(rows.truth)
                image_truth.extend(rows.image_truth)
            advance(len(task))
    return truth, image_truth


@contextlib.contextmanager
def _open_table(path: Path) -> Iterator[TextIO]:
    """A text file, gzipped where its name says so; the time of writing stays out of it, so that runs are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw:
        if path.suffix != ".gz":
            with io.TextIOWrapper(raw, encoding="utf-8") as text:
                yield text
            return
        with (
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=3) as packed,
            io.TextIOWrapper(packed, encoding="utf-8") as text,
        ):
            yield text


def _describe(path: Path, job: Job, patients: int) -> None:
    """What made this hospital, for people and for the tests."""
    description = {
        "synthetic": "No record, image or label in this folder belongs to any person.",
        "seed": job.seed,
        "hospital_index": job.hospital_index,
        "num_patients": patients,
        "image_pixels": job.image_pixels,
        "hospital": _plain(job.hospital),
        "world": asdict(job.world),
    }
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _plain(hospital: HospitalSettings) -> dict[str, Any]:
    values = asdict(hospital)
    values["missing_variables"] = sorted(hospital.missing_variables)
    return values
