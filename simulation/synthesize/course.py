"""One patient's course: hidden states, severities over time, when radiographs were taken, length of stay and death.

With t in hours, ramp(t) = min(t, 72) / 48 and standard normal variables wherever `~ N` stands:

    radiographic burden     C(t) = c0 + tau * ramp(t)
    systemic physiology     e(t) = e0 + epsilon * ramp(t)
    respiratory state       q(t) = q0 + q1 * ramp(t),   corr(q0, c0) = corr(q1, tau) = rho
    severity of disease k on side s
                            z_ks(t) = sigmoid(mu_k + lambda_k * C(t) + a_ks + v_ks(t))

a_ks is static (the patient's own look), v_ks an Ornstein-Uhlenbeck process. Only C reaches the radiographs and only
e, q and age reach the charts; the risk of death needs both (`risk_logit`).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from simulation.synthesize.settings import TASK_HOURS, HospitalSettings, WorldSettings

LEFT, RIGHT, MIDDLE = "left", "right", "middle"

LOADINGS: dict[str, tuple[float, float]] = {
    "atelectasis": (-0.3, 1.2),
    "enlarged cardiac silhouette": (-0.2, 0.9),
    "consolidation": (-0.5, 1.3),
    "pulmonary edema": (-0.2, 1.5),
    "pleural effusion": (-0.3, 1.4),
    "pneumonia": (-0.5, 1.2),
}
"""mu_k and lambda_k: the logit severity of an average burden, and what one unit of burden adds."""

FINDINGS: tuple[tuple[str, str], ...] = tuple(
    (disease, side)
    for disease in LOADINGS
    for side in ((MIDDLE,) if disease == "enlarged cardiac silhouette" else (LEFT, RIGHT))
)
"""Disease and side of each severity, in the order of every severity array."""

DIRT: dict[str, float] = {
    "second view": 0.20,
    "second image of a study": 0.20,
    "image outside the stay": 0.15,
    "image too soon": 0.10,
    "no scene graph": 0.10,
    "gap between images": 0.05,
    "care-unit transfer": 0.08,
    "short stay": 0.07,
    "long stay": 0.05,
}
"""What can be untidy about a patient's records, and its share among untidy patients."""

MAX_IMAGES = 14
"""AP images of one stay that a plan may hold."""


@dataclass(frozen=True, kw_only=True)
class Latents:
    """The hidden states of one patient; a trend is the change over 48 h."""

    burden: float
    burden_trend: float
    physiology: float
    physiology_trend: float
    respiratory: float
    respiratory_trend: float
    age: float
    """Years at admission."""
    offsets: Float[np.ndarray, " finding"]
    """a_ks, in logits."""


@dataclass(frozen=True, kw_only=True)
class PlannedImage:
    """One radiograph to be taken."""

    hours: float
    """Hours since ICU admission."""
    study: int
    """Number of the study within the stay."""
    view: str = "AP"
    has_graph: bool = True


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Everything about one patient that records and radiographs show."""

    latents: Latents
    risk: float
    """True probability of death in hospital."""
    died: bool
    stay_hours: float
    hours_to_death: float | None
    """Hours from ICU admission, not before the end of the stay."""
    dirt: str | None
    images: tuple[PlannedImage, ...]
    severities: Float[np.ndarray, "image finding"]
    """In 0 to 1, at the time of each planned image."""


def reference_rows(patient: Patient) -> list[int]:
    """Rows of `images` that a report would compare: the latest AP image of each study that has a scene graph."""
    latest = {image.study: row for row, image in enumerate(patient.images) if image.view == "AP" and image.has_graph}
    return sorted(latest.values())


def kept_rows(patient: Patient) -> list[int]:
    """Those that a preparation keeps: inside the stay and at least 8 h after the one before."""
    kept: list[int] = []
    for row in reference_rows(patient):
        hours = patient.images[row].hours
        spaced = not kept or hours - patient.images[kept[-1]].hours >= 8.0
        if spaced and hours <= patient.stay_hours:
            kept.append(row)
    return kept


def ramp(hours: Float[np.ndarray, "*shape"], world: WorldSettings) -> Float[np.ndarray, "*shape"]:
    """The share of a 48 h trend that has come about after `hours`."""
    return np.clip(hours, 0.0, world.trend_end_hours) / TASK_HOURS


def simulate_patient(rng: np.random.Generator, world: WorldSettings, hospital: HospitalSettings) -> Patient:
    """Draw one patient: hidden states, then outcome, then the plan of the stay, then severities at its images."""
    latents = draw_latents(rng, world, hospital)
    risk = 1.0 / (1.0 + np.exp(-risk_logit(latents, world)))
    dirt = _draw_dirt(rng, hospital)
    stay_hours = _draw_stay_hours(rng, world, latents, dirt)
    # The tasks ask about stays over 48 h, so nobody dies in a stay that is short by design.
    died = bool(rng.random() < risk) and dirt != "short stay"
    in_unit, ward_hours = rng.random() < 0.85, rng.uniform(6.0, 72.0)
    images = _plan_images(rng, stay_hours, dirt)
    hours = np.array([image.hours for image in images])
    return Patient(
        latents=latents,
        risk=float(risk),
        died=died,
        stay_hours=stay_hours,
        hours_to_death=(stay_hours if in_unit else stay_hours + ward_hours) if died else None,
        dirt=dirt,
        images=images,
        severities=draw_severities(rng, world, latents, hours),
    )


def draw_latents(rng: np.random.Generator, world: WorldSettings, hospital: HospitalSettings) -> Latents:
    """Hidden states of one patient of a hospital, jointly Gaussian but for age, which is clipped to 22 to 89."""
    level, trend, physiology, physiology_trend, own_level, own_trend = rng.normal(size=6)
    rho = world.respiratory_correlation
    rest = np.sqrt(1.0 - rho**2)
    return Latents(
        burden=world.burden_sd * (level + hospital.burden_shift),
        burden_trend=world.burden_trend_sd * trend,
        physiology=physiology + hospital.physiology_shift,
        physiology_trend=world.physiology_trend_sd * physiology_trend,
        respiratory=rho * level + rest * own_level + hospital.burden_shift,
        respiratory_trend=rho * trend + rest * own_trend,
        age=float(np.clip(rng.normal(hospital.mean_age, 15.0), 22.0, 89.0)),
        offsets=rng.normal(0.0, world.offset_sd, len(FINDINGS)),
    )


def risk_logit(latents: Latents, world: WorldSettings) -> float:
    """Log odds of death in hospital: b + risk_sd * u, u a weighted sum of standardised states with unit variance."""
    w = world
    level_sd = float(np.hypot(w.burden_sd, w.burden_trend_sd))
    parts = {
        "burden trend": w.weight_burden_trend * latents.burden_trend / w.burden_trend_sd,
        "burden at 48 h": w.weight_burden_level * (latents.burden + latents.burden_trend) / level_sd,
        "physiology": w.weight_physiology_level * latents.physiology,
        "physiology trend": w.weight_physiology_trend * latents.physiology_trend / w.physiology_trend_sd,
        "age": w.weight_age * (latents.age - 65.0) / 15.0,
    }
    # Trend and level at 48 h share tau: their weights add before they are squared.
    variance = (
        (w.weight_burden_trend + w.weight_burden_level * w.burden_trend_sd / level_sd) ** 2
        + (w.weight_burden_level * w.burden_sd / level_sd) ** 2
        + w.weight_physiology_level**2
        + w.weight_physiology_trend**2
        + w.weight_age**2
    )
    return w.risk_intercept + w.risk_sd * sum(parts.values()) / float(np.sqrt(variance))


def draw_severities(
    rng: np.random.Generator, world: WorldSettings, latents: Latents, hours: Float[np.ndarray, " image"]
) -> Float[np.ndarray, "image finding"]:
    """z_ks at the given hours, which must not decrease."""
    mean, loading = np.array([LOADINGS[disease] for disease, _ in FINDINGS]).T
    burden = latents.burden + latents.burden_trend * ramp(hours, world)
    logits = mean + burden[:, None] * loading + latents.offsets + _fluctuations(rng, world, hours)
    return 1.0 / (1.0 + np.exp(-logits))


def _fluctuations(
    rng: np.random.Generator, world: WorldSettings, hours: Float[np.ndarray, " image"]
) -> Float[np.ndarray, "image finding"]:
    """Ornstein-Uhlenbeck paths v_ks at irregular times; the two sides of a disease share a part."""
    diseases = list(LOADINGS)
    column = [diseases.index(disease) for disease, _ in FINDINGS]
    shared, own = np.sqrt(world.side_correlation), np.sqrt(1.0 - world.side_correlation)

    def innovation() -> np.ndarray:
        return shared * rng.normal(size=len(diseases))[column] + own * rng.normal(size=len(FINDINGS))

    state = innovation()
    path = []
    for step in np.diff(hours, prepend=hours[:1]):
        keep = np.exp(-step / world.fluctuation_hours)
        state = keep * state + np.sqrt(1.0 - keep**2) * innovation()
        path.append(state)
    return world.fluctuation_sd * np.array(path)


def _draw_dirt(rng: np.random.Generator, hospital: HospitalSettings) -> str | None:
    untidy = rng.random() < hospital.dirt
    kind = str(rng.choice(list(DIRT), p=np.array(list(DIRT.values()))))
    return kind if untidy else None


def _draw_stay_hours(rng: np.random.Generator, world: WorldSettings, latents: Latents, dirt: str | None) -> float:
    """Length of stay: 2.05 to 10.55 days, longer for the sicker and the worsening, quartiles near 3, 4 and 6 days."""
    drive = (
        0.35 * latents.burden / world.burden_sd
        + 0.35 * latents.burden_trend / world.burden_trend_sd
        + 0.30 * latents.physiology
        + 0.20 * latents.physiology_trend / world.physiology_trend_sd
        + 0.15 * (latents.age - 65.0) / 15.0
        + 0.776 * rng.normal()
    )
    usual = 2.05 + 8.5 / (1.0 + np.exp(1.21 - 1.59 * drive))
    unusual = {
        "short stay": rng.uniform(1.0, 1.9),
        "long stay": rng.uniform(16.0, 22.0),
        "gap between images": max(usual, 8.0),
    }
    return float(24.0 * unusual.get(dirt or "", usual))


def _plan_images(rng: np.random.Generator, stay_hours: float, dirt: str | None) -> tuple[PlannedImage, ...]:
    """Daily portable AP images, closer together in the first two days, with the patient's untidiness added."""
    hours = [float(rng.uniform(0.5, 6.0))]
    while len(hours) < MAX_IMAGES:
        usual = np.clip(rng.normal(20.0, 3.0), 12.0, 28.0) if hours[-1] < 28.0 else rng.normal(26.0, 5.0)
        gap = 104.0 if dirt == "gap between images" and len(hours) == 3 else max(float(usual), 12.0)
        if hours[-1] + gap > stay_hours - 1.0:
            break
        hours.append(hours[-1] + gap)
    images = [PlannedImage(hours=hour, study=study) for study, hour in enumerate(hours)]
    return tuple(sorted(_untidy(images, dirt, stay_hours), key=lambda image: image.hours))


def _untidy(images: list[PlannedImage], dirt: str | None, stay_hours: float) -> list[PlannedImage]:
    first, last_study = images[0].hours, len(images)
    if dirt == "second view":
        return [*images, PlannedImage(hours=first + 5.0, study=last_study, view="PA")]
    if dirt == "second image of a study":
        return [*images, PlannedImage(hours=first + 0.05, study=0)]
    if dirt == "image outside the stay":
        return [*images, PlannedImage(hours=stay_hours + 9.0, study=last_study)]
    if dirt == "image too soon":
        return [*images, PlannedImage(hours=first + 4.0, study=last_study)]
    if dirt == "no scene graph":
        return [*images[:-1], PlannedImage(hours=images[-1].hours, study=images[-1].study, has_graph=False)]
    return images
