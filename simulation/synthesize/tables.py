"""Rows of MIMIC's tables for one patient, as CSV text with the columns of MIMIC-IV v2.2 and MIMIC-CXR-JPG v2.0.0."""

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import numpy as np

from simulation.synthesize.charting import Body, Events
from simulation.synthesize.course import Patient
from simulation.synthesize.identity import UNITS, Groups, Identity
from simulation.synthesize.items import OTHER_LABELS, panels

COLUMNS: dict[str, tuple[str, ...]] = {
    "mimiciv/hosp/patients.csv.gz": (
        "subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod",
    ),
    "mimiciv/hosp/admissions.csv.gz": (
        "subject_id", "hadm_id", "admittime", "dischtime", "deathtime", "admission_type", "admit_provider_id",
        "admission_location", "discharge_location", "insurance", "language", "marital_status", "race", "edregtime",
        "edouttime", "hospital_expire_flag",
    ),
    "mimiciv/icu/icustays.csv.gz": (
        "subject_id", "hadm_id", "stay_id", "first_careunit", "last_careunit", "intime", "outtime", "los",
    ),
    "mimiciv/icu/chartevents.csv.gz": (
        "subject_id", "hadm_id", "stay_id", "caregiver_id", "charttime", "storetime", "itemid", "value", "valuenum",
        "valueuom", "warning",
    ),
    "mimiciv/icu/outputevents.csv.gz": (
        "subject_id", "hadm_id", "stay_id", "caregiver_id", "charttime", "storetime", "itemid", "value", "valueuom",
    ),
    "mimiciv/icu/d_items.csv.gz": (
        "itemid", "label", "abbreviation", "linksto", "category", "unitname", "param_type", "lownormalvalue",
        "highnormalvalue",
    ),
    "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv": (
        "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
        "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
        "PatientOrientationCodeSequence_CodeMeaning",
    ),
    "mimic-cxr-jpg/mimic-cxr-2.0.0-chexpert.csv": (
        "subject_id", "study_id", "Atelectasis", "Cardiomegaly", "Consolidation", "Edema",
        "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion",
        "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
    ),
}  # fmt: skip
"""Header of each table that a hospital has, by path."""

_CHEXPERT = {
    "atelectasis": "Atelectasis",
    "enlarged cardiac silhouette": "Cardiomegaly",
    "consolidation": "Consolidation",
    "pulmonary edema": "Edema",
    "lung opacity": "Lung Opacity",
    "pleural effusion": "Pleural Effusion",
    "pneumonia": "Pneumonia",
}


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV, quoted only where a value needs it."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def hospital_tables(identity: Identity, groups: Groups, patient: Patient, body: Body) -> dict[str, str]:
    """One row each of patients, admissions and icustays."""
    who = (identity.subject_id, identity.hadm_id)
    left = _end_of_stay(identity, patient)
    death = None if patient.hours_to_death is None else max(left, _second(identity.at(patient.hours_to_death)))
    discharged = death or left + timedelta(days=identity.days_home)
    dod = death or (discharged + timedelta(days=identity.late_death_days) if identity.late_death_days else None)
    anchor_age = int(patient.latents.age) - identity.anchor_years
    anchor_year = identity.admitted.year - identity.anchor_years
    anchor = (anchor_age, anchor_year, groups.admission_period, dod.date() if dod else "")
    last_unit = UNITS[(UNITS.index(identity.unit) + 1) % len(UNITS)] if _transferred(patient) else identity.unit
    stay = (identity.stay_id, identity.unit, last_unit, identity.intime, left)
    # fmt: off
    admission = (
        identity.admitted, _minute(discharged), _minute(death) if death else "", "EW EMER.", "", "EMERGENCY ROOM",
        "DIED" if death else "HOME", groups.insurance, identity.language, identity.marital_status, identity.race,
        "", "", int(death is not None),
    )
    # fmt: on
    return {
        "mimiciv/hosp/patients.csv.gz": csv_text([(identity.subject_id, body.sex, *anchor)]),
        "mimiciv/hosp/admissions.csv.gz": csv_text([(*who, *admission)]),
        "mimiciv/icu/icustays.csv.gz": csv_text([(*who, *stay, (left - identity.intime) / timedelta(days=1))]),
    }


def chart_text(identity: Identity, events: list[Events]) -> str:
    """Rows of chartevents in order of time."""
    rows = [
        (time, f"{event.itemid},{text},{number},{event.unit},0")
        for event in events
        for time, text, number in zip(_times(identity, event), event.texts, event.numbers, strict=True)
    ]
    start = f"{identity.subject_id},{identity.hadm_id},{identity.stay_id},,"
    return "".join(f"{start}{time},,{rest}\n" for time, rest in sorted(rows))


def output_text(identity: Identity, events: list[Events]) -> str:
    """Rows of outputevents in order of time."""
    start = f"{identity.subject_id},{identity.hadm_id},{identity.stay_id},,"
    return "".join(
        f"{start}{time},,{event.itemid},{text},{event.unit}\n"
        for event in events
        for time, text in zip(_times(identity, event), event.texts, strict=True)
    )


def item_text() -> str:
    """d_items: every item that any hospital charts."""
    rows = {
        item.itemid: (item.label, "", "chartevents", "", item.unit, "Numeric", "", "")
        for panel in panels().values()
        for item in panel.items
    }
    for itemid, (label, table, unit) in OTHER_LABELS.items():
        rows[itemid] = (label, "", table, "", unit, "Text" if label.startswith("GCS") else "Numeric", "", "")
    return csv_text((itemid, *rows[itemid]) for itemid in sorted(rows))


def metadata_row(identity: Identity, dicom_id: str, study: int, view: str, hours: float, size: tuple[int, int]) -> str:
    """One row of the image metadata; StudyTime has lost its leading zeros, as in MIMIC-CXR-JPG."""
    taken = identity.at(hours)
    clock = f"{int(taken.strftime('%H%M%S'))}.{taken.microsecond // 1000:03d}"
    name, code = {"AP": ("CHEST (PORTABLE AP)", "antero-posterior"), "PA": ("CHEST (PA AND LAT)", "postero-anterior")}[
        view
    ]
    study_id, (width, height) = identity.study_id(study), size
    day = taken.strftime("%Y%m%d")
    row = (dicom_id, identity.subject_id, study_id, name, view, height, width, day, clock, name, code, "")
    return csv_text([row])


def chexpert_row(identity: Identity, study: int, severities: dict[tuple[str, str], float], *, devices: bool) -> str:
    """One row of CheXpert labels: 1.0 for a clear finding, 0.0 for a clear absence, blank between."""
    found: dict[str, str] = {}
    for disease, column in _CHEXPERT.items():
        worst = max(value for (name, _), value in severities.items() if name == disease)
        found[column] = "1.0" if worst > 0.45 else "0.0" if worst < 0.2 else ""
    found["No Finding"] = "1.0" if all(value == "0.0" for value in found.values()) else ""
    found["Support Devices"] = "1.0" if devices else ""
    columns = COLUMNS["mimic-cxr-jpg/mimic-cxr-2.0.0-chexpert.csv"][2:]
    return csv_text([(identity.subject_id, identity.study_id(study), *(found.get(column, "") for column in columns))])


def _transferred(patient: Patient) -> bool:
    return patient.dirt == "care-unit transfer"


def _end_of_stay(identity: Identity, patient: Patient) -> datetime:
    return _second(identity.at(patient.stay_hours))


def _second(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


def _minute(moment: datetime) -> datetime:
    """The next whole minute, so that a death at the end of the stay is not before it."""
    return (moment + timedelta(seconds=59)).replace(second=0, microsecond=0)


def _times(identity: Identity, events: Events) -> list[str]:
    """Charted times are whole minutes."""
    moments = np.datetime64(identity.intime, "s") + events.minutes.astype("timedelta64[m]")
    return [text.replace("T", " ") + ":00" for text in np.datetime_as_string(moments, unit="m", casting="unsafe")]
