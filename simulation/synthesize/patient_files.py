"""One patient's part of a hospital: draws everything, writes the images and scene graphs, returns the table rows."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from simulation.synthesize.anatomy import draw_anatomy, draw_view, pixel_boxes
from simulation.synthesize.charting import chart_events, draw_body, is_ventilated, urine_events
from simulation.synthesize.course import FINDINGS, Patient, kept_rows, reference_rows, simulate_patient
from simulation.synthesize.identity import Identity, draw_groups, draw_identity
from simulation.synthesize.oracles import evidence_logits
from simulation.synthesize.progression import gold_comparisons, reported_severities, silver_comparisons
from simulation.synthesize.radiograph import draw_radiograph, prepare_canvas
from simulation.synthesize.scene_graph import PixelBoxes, gold_row, scene_graph
from simulation.synthesize.settings import HospitalSettings, WorldSettings
from simulation.synthesize.streams import Stream, random_stream
from simulation.synthesize.tables import chart_text, chexpert_row, hospital_tables, metadata_row, output_text

GOLD_EVERY = 40
"""One patient in this many has gold comparisons."""
MISSING_REGION_SHARE = 0.012
"""Share of regions that a scene graph leaves out."""
JPEG_QUALITY = 90

METADATA = "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv"
CHEXPERT = "mimic-cxr-jpg/mimic-cxr-2.0.0-chexpert.csv"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to make one patient."""

    world: WorldSettings
    hospital: HospitalSettings
    seed: int
    hospital_index: int
    patient_index: int
    image_pixels: int
    folder: Path
    """The hospital's folder."""


@dataclass(frozen=True, kw_only=True)
class PatientRows:
    """What a patient adds to the hospital's tables."""

    tables: dict[str, str]
    """CSV text by path of the table."""
    gold: tuple[tuple[str, ...], ...]
    truth: dict[str, Any]
    """One row of truth.parquet."""
    image_truth: tuple[dict[str, Any], ...]
    """One row of image_truth.parquet each."""


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """One image of the patient as written."""

    dicom_id: str
    size: tuple[int, int]
    boxes: PixelBoxes


def simulate(job: Job) -> Patient:
    """The patient's course alone: fast, no file."""
    rng = random_stream(job.seed, job.hospital_index, job.patient_index, Stream.COURSE)
    return simulate_patient(rng, job.world, job.hospital)


def write_patient(job: Job) -> PatientRows:
    """Write the patient's JPEGs and scene graphs below `job.folder` and return the rows of all tables."""
    patient = simulate(job)
    rng = random_stream(job.seed, job.hospital_index, job.patient_index, Stream.CHARTING)
    identity, body = draw_identity(rng, job.hospital_index, job.patient_index), draw_body(rng)
    # A stream of its own: the rest of the records is as it was before there were groups.
    groups_rng = random_stream(job.seed, job.hospital_index, job.patient_index, Stream.GROUPS)
    groups = draw_groups(groups_rng, patient.latents.age)
    tables = hospital_tables(identity, groups, patient, body)
    tables["mimiciv/icu/chartevents.csv.gz"] = chart_text(
        identity, chart_events(rng, job.world, job.hospital, patient, body)
    )
    tables["mimiciv/icu/outputevents.csv.gz"] = output_text(identity, urine_events(rng, job.world, patient))
    pictures = _write_images(job, patient, identity)
    tables[METADATA] = "".join(
        metadata_row(identity, picture.dicom_id, image.study, image.view, image.hours, picture.size)
        for picture, image in zip(pictures, patient.images, strict=True)
    )
    tables[CHEXPERT] = _chexpert(identity, patient)
    return PatientRows(
        tables=tables,
        gold=tuple(_write_graphs(job, patient, identity, body.sex, pictures)),
        truth=_truth_row(job, patient, identity),
        image_truth=tuple(_image_truth(patient, identity, pictures)),
    )


def image_path(identity: Identity, study: int, dicom_id: str) -> Path:
    """Where MIMIC-CXR-JPG keeps an image, below its folder."""
    subject = str(identity.subject_id)
    return Path("files") / f"p{subject[:2]}" / f"p{subject}" / f"s{identity.study_id(study)}" / f"{dicom_id}.jpg"


def draw_images(job: Job, patient: Patient) -> list[tuple[UInt8[np.ndarray, "height width"], PixelBoxes]]:
    """Pixels and region boxes of each of the patient's images, no file."""
    rng = random_stream(job.seed, job.hospital_index, job.patient_index, Stream.ANATOMY)
    noise = random_stream(job.seed, job.hospital_index, job.patient_index, Stream.PIXELS)
    scanner = job.hospital.scanner
    height = round(job.image_pixels * scanner.relative_pixels)
    width = round(height * scanner.aspect)
    anatomy = draw_anatomy(rng, ventilated=is_ventilated(patient))
    canvas = prepare_canvas(anatomy, width, height)
    drawn = []
    for severities in patient.severities:
        view = draw_view(rng)
        present = rng.random(10) >= MISSING_REGION_SHARE
        boxes = pixel_boxes(anatomy, view, width, height)
        pixels = draw_radiograph(noise, anatomy, canvas, severities, view, scanner)
        drawn.append(
            (pixels, {region: box for (region, box), there in zip(boxes.items(), present, strict=True) if there})
        )
    return drawn


def _write_images(job: Job, patient: Patient, identity: Identity) -> list[_Picture]:
    pictures = []
    for row, (pixels, boxes) in enumerate(draw_images(job, patient)):
        dicom_id = identity.dicom_id(job.seed, row)
        path = job.folder / "mimic-cxr-jpg" / image_path(identity, patient.images[row].study, dicom_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=JPEG_QUALITY)
        pictures.append(_Picture(dicom_id=dicom_id, size=(pixels.shape[1], pixels.shape[0]), boxes=boxes))
    return pictures


def _write_graphs(
    job: Job, patient: Patient, identity: Identity, sex: str, pictures: list[_Picture]
) -> list[tuple[str, ...]]:
    """Write the scene graph of each image that has one; return the patient's rows of the gold file."""
    rng = random_stream(job.seed, job.hospital_index, job.patient_index, Stream.REPORTS)
    references, gold = reference_rows(patient), []
    folder = job.folder / "chest-imagenome" / "silver_dataset" / "scene_graph"
    for row, image in enumerate(patient.images):
        if not image.has_graph:
            continue
        place = references.index(row) if row in references else 0
        previous = references[place - 1] if place else None
        comparisons = []
        if previous is not None:
            before, after = patient.severities[previous], patient.severities[row]
            said = silver_comparisons(rng, job.world, before, after)
            comparisons = [c for c in said if _boxed(c.region, pictures, row, previous)]
            if job.patient_index % GOLD_EVERY == 0:
                true = gold_comparisons(job.world, before, after)
                kept = [c for c in true if _boxed(c.region, pictures, row, previous)]
                now, then = (_parts(pictures[index]) for index in (row, previous))
                gold += [gold_row(identity.subject_id, n, c, now, then) for n, c in enumerate(kept, start=1)]
        header = _graph_header(identity, patient, sex, row, pictures[row].dicom_id)
        previous_id = None if previous is None else pictures[previous].dicom_id
        graph = scene_graph(header, pictures[row].boxes, pictures[row].size, previous_id, comparisons)
        (folder / f"{pictures[row].dicom_id}_SceneGraph.json").write_text(json.dumps(graph, separators=(",", ":")))
    return gold


def _boxed(region: str, pictures: list[_Picture], *rows: int) -> bool:
    return all(region in pictures[row].boxes for row in rows)


def _parts(picture: _Picture) -> tuple[str, PixelBoxes, tuple[int, int]]:
    return picture.dicom_id, picture.boxes, picture.size


def _graph_header(identity: Identity, patient: Patient, sex: str, row: int, dicom_id: str) -> dict[str, Any]:
    image, decade = patient.images[row], int(patient.latents.age) // 10 * 10
    return {
        "image_id": dicom_id,
        "viewpoint": image.view,
        "patient_id": identity.subject_id,
        "study_id": identity.study_id(image.study),
        "gender": sex,
        "age_decile": f"{decade}-{decade + 10}",
        "reason_for_exam": "[synthetic, none]",
        "StudyOrder": row + 1,
        "StudyDateTime": f"{identity.at(image.hours):%Y-%m-%d %H:%M:%S} UTC",
    }


def _chexpert(identity: Identity, patient: Patient) -> str:
    """One row a study, of its last image."""
    rows = {image.study: row for row, image in enumerate(patient.images)}
    return "".join(
        chexpert_row(identity, study, reported_severities(patient.severities[row]), devices=is_ventilated(patient))
        for study, row in sorted(rows.items())
    )


def _truth_row(job: Job, patient: Patient, identity: Identity) -> dict[str, Any]:
    latents = asdict(patient.latents)
    offsets = latents.pop("offsets")
    logits = evidence_logits(patient, job.world, job.hospital)
    return {
        "stay_id": identity.stay_id,
        "subject_id": identity.subject_id,
        "risk": patient.risk,
        "died": patient.died,
        "los_days": patient.stay_hours / 24.0,
        "dirt": patient.dirt or "",
        **latents,
        **_by_finding("offset ", offsets),
        **{f"logit_{name}": value for name, value in logits.items()},
    }


def _image_truth(patient: Patient, identity: Identity, pictures: list[_Picture]) -> list[dict[str, Any]]:
    kept = set(kept_rows(patient))
    return [
        {
            "dicom_id": picture.dicom_id,
            "stay_id": identity.stay_id,
            "hours": patient.images[row].hours,
            "kept": row in kept,
            **{
                f"{disease} {side}": float(v)
                for (disease, side), v in zip(FINDINGS, patient.severities[row], strict=True)
            },
        }
        for row, picture in enumerate(pictures)
    ]


def _by_finding(prefix: str, values: Float[np.ndarray, " finding"]) -> dict[str, float]:
    return {f"{prefix}{disease} {side}": float(v) for (disease, side), v in zip(FINDINGS, values, strict=True)}
