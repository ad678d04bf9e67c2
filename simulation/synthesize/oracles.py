"""How well anyone could tell who dies, given only some of the evidence: exact posteriors under the disease model.

All hidden states but age are jointly Gaussian and the log odds of death are linear in them, so the posterior mean of
the log odds given Gaussian evidence is one linear solve, and ranking patients by it is the best possible ranking. The
evidence is idealised: a radiograph gives every severity without pixel noise, and charts give e, q and age without
measurement noise. A figure found here is therefore a ceiling for a model that sees pixels and charted values.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Int
from sklearn.metrics import roc_auc_score

from simulation.synthesize.course import FINDINGS, LOADINGS, Latents, Patient, kept_rows, ramp, risk_logit
from simulation.synthesize.settings import TASK_HOURS, HospitalSettings, WorldSettings

EVIDENCE: tuple[str, ...] = ("images", "last_image", "ehr", "last_image_and_ehr", "images_and_ehr")
"""Images are those of kept view and time before 48 h; ehr stands for charted physiology and age."""

TRUTH = "truth.parquet"
"""Table beside a hospital's raw files: one row a stay with its true risk and the scores of `EVIDENCE`."""

# Order of the Gaussian states: c0, tau, e0, epsilon, q0, q1.
_STATES = 6


def evidence_logits(patient: Patient, world: WorldSettings, hospital: HospitalSettings) -> dict[str, float]:
    """Posterior mean of the patient's log odds of death given each kind of evidence."""
    usable = usable_images(patient)
    none = usable[:0]
    choices = {
        "images": (usable, False),
        "last_image": (usable[-1:], False),
        "ehr": (none, True),
        "last_image_and_ehr": (usable[-1:], True),
        "images_and_ehr": (usable, True),
    }
    return {name: _posterior_logit(patient, world, hospital, rows, ehr) for name, (rows, ehr) in choices.items()}


def usable_images(patient: Patient) -> Int[np.ndarray, " image"]:
    """Rows of the images that an outcome task may use: kept ones before 48 h."""
    rows = [row for row in kept_rows(patient) if patient.images[row].hours < TASK_HOURS]
    return np.array(rows, dtype=int)


def ceilings(died: Sequence[bool], scores: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """AUROC of death of each score, or None where only one outcome came about."""
    if len(set(died)) < 2:
        return dict.fromkeys(scores)
    return {name: float(roc_auc_score(died, values)) for name, values in scores.items()}


def ceilings_of_folders(hospitals: Sequence[Path], stay_ids: Collection[int] | None = None) -> dict[str, float | None]:
    """Best possible AUROC of death by evidence and with the true risk, over stays above 48 h of written hospitals.

    `stay_ids` restricts it, for example to a test split. A model's AUROC on few stays may exceed a ceiling by luck.
    """
    tables = [pq.read_table(folder / TRUTH).to_pylist() for folder in hospitals]
    rows = [row for table in tables for row in table if row["los_days"] > TASK_HOURS / 24.0]
    rows = [row for row in rows if stay_ids is None or row["stay_id"] in stay_ids]
    scores = {name: [row[f"logit_{name}"] for row in rows] for name in EVIDENCE}
    return ceilings([row["died"] for row in rows], {**scores, "true_risk": [row["risk"] for row in rows]})


def _posterior_logit(
    patient: Patient, world: WorldSettings, hospital: HospitalSettings, rows: np.ndarray, ehr: bool
) -> float:
    mean, precision = _prior(world, hospital)
    information = precision @ mean
    if rows.size:
        added_precision, added_information = _image_evidence(patient, world, rows)
        precision, information = precision + added_precision, information + added_information
    if ehr:
        latents = patient.latents
        seen = [latents.physiology, latents.physiology_trend, latents.respiratory, latents.respiratory_trend]
        states = _condition(precision, information, np.array(seen))
    else:
        states = np.linalg.solve(precision, information)
    return risk_logit(_as_latents(states, patient.latents.age if ehr else hospital.mean_age), world)


def _prior(world: WorldSettings, hospital: HospitalSettings) -> tuple[np.ndarray, np.ndarray]:
    """Mean and precision of (c0, tau, e0, epsilon, q0, q1) in a hospital."""
    sd = np.array([world.burden_sd, world.burden_trend_sd, 1.0, world.physiology_trend_sd, 1.0, 1.0])
    correlation = np.eye(_STATES)
    correlation[[0, 4], [4, 0]] = correlation[[1, 5], [5, 1]] = world.respiratory_correlation
    shift = np.array([hospital.burden_shift, 0.0, hospital.physiology_shift, 0.0, hospital.burden_shift, 0.0])
    return sd * shift, np.linalg.inv(correlation * np.outer(sd, sd))


def _image_evidence(patient: Patient, world: WorldSettings, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and information that the severities at some images add about c0 and tau.

    Within a disease the mean of the logits over its sides is sufficient for the burden: the sides differ only in
    exchangeable terms. Its noise is the static offset plus the fluctuation's covariance in time.
    """
    hours = np.array([patient.images[row].hours for row in rows])
    logits = np.log(patient.severities[rows] / (1.0 - patient.severities[rows]))
    kernel = np.exp(-np.abs(hours[:, None] - hours) / world.fluctuation_hours) * world.fluctuation_sd**2
    design = np.stack([np.ones_like(hours), ramp(hours, world)], axis=1)
    precision, information = np.zeros((_STATES, _STATES)), np.zeros(_STATES)
    for disease, (intercept, loading) in LOADINGS.items():
        columns = [index for index, (name, _) in enumerate(FINDINGS) if name == disease]
        sides = len(columns)
        shared = world.side_correlation + (1.0 - world.side_correlation) / sides
        noise = np.linalg.inv(world.offset_sd**2 / sides + shared * kernel)
        observed = logits[:, columns].mean(axis=1) - intercept
        precision[:2, :2] += loading**2 * design.T @ noise @ design
        information[:2] += loading * design.T @ noise @ observed
    return precision, information


def _condition(precision: np.ndarray, information: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Mean of all states when the last four are known exactly."""
    hidden = np.linalg.solve(precision[:2, :2], information[:2] - precision[:2, 2:] @ seen)
    return np.concatenate([hidden, seen])


def _as_latents(states: np.ndarray, age: float) -> Latents:
    values = [float(value) for value in states]
    return Latents(
        burden=values[0],
        burden_trend=values[1],
        physiology=values[2],
        physiology_trend=values[3],
        respiratory=values[4],
        respiratory_trend=values[5],
        age=age,
        offsets=np.zeros(len(FINDINGS)),
    )
