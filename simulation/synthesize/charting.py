"""Charted events of one stay: bedside values, laboratory values, coma scale, urine, height and weight.

Events are irregular, noisy and incomplete: panels have their own rhythm with jitter, single measurements are skipped,
some panels are never measured in a patient, and some items never in a hospital. One value in three thousand is absurd,
as if a digit had slipped.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from simulation.synthesize.course import Patient, ramp
from simulation.synthesize.items import ARTERIAL, Item, Panel, panels
from simulation.synthesize.settings import HospitalSettings, WorldSettings

ABSURD_SHARE = 1 / 3000
HOURS_BEFORE = 0.7
"""Charting starts this long before the ICU admission."""

EYE = ("None", "To Pain", "To Speech", "Spontaneously")
VERBAL = ("No Response", "Incomprehensible sounds", "Inappropriate Words", "Confused", "Oriented")
MOTOR = (
    "No response",
    "Abnormal extension",
    "Abnormal Flexion",
    "Flex-withdraws",
    "Localizes Pain",
    "Obeys Commands",
)
VERBAL_INTUBATED = "No Response-ETT"


@dataclass(frozen=True, kw_only=True)
class Body:
    """What is measured once: sex (F or M), height in cm, weight in kg."""

    sex: str
    height_cm: float
    weight_kg: float


@dataclass(frozen=True, kw_only=True)
class Events:
    """Rows of one item of one stay."""

    itemid: int
    minutes: Float[np.ndarray, " row"]
    """Whole minutes since ICU admission; may be negative."""
    texts: tuple[str, ...]
    """The value as charted."""
    numbers: tuple[str, ...]
    """The value as a number."""
    unit: str


def draw_body(rng: np.random.Generator) -> Body:
    """Sex, height and weight of a patient."""
    sex = "F" if rng.random() < 0.45 else "M"
    height = rng.normal(162.0 if sex == "F" else 175.0, 7.0)
    weight = (height / 100.0) ** 2 * np.clip(rng.normal(28.0, 5.0), 16.0, 50.0)
    return Body(sex=sex, height_cm=round(float(height)), weight_kg=round(float(weight), 1))


def is_ventilated(patient: Patient) -> bool:
    """Whether the patient breathes through a tube: the third with the worst breathing or consciousness."""
    return patient.latents.respiratory + 0.5 * patient.latents.physiology > 0.5


def chart_events(
    rng: np.random.Generator, world: WorldSettings, hospital: HospitalSettings, patient: Patient, body: Body
) -> list[Events]:
    """All rows of chartevents of one stay, item by item."""
    charted = []
    for panel in panels().values():
        # Drawn for every panel, so that what one hospital leaves out does not change the rest.
        present = rng.random() < panel.charted_share or (panel.name == "ventilator" and is_ventilated(patient))
        hours = _measurement_hours(rng, panel, patient.stay_hours)
        if present and panel.items:
            charted += _panel_events(rng, world, hospital, patient, panel, hours)
    charted += _coma_scale(rng, world, patient)
    charted += _body_events(rng, hospital, patient, body)
    return [events for events in charted if len(events.minutes)]


def urine_events(rng: np.random.Generator, world: WorldSettings, patient: Patient) -> list[Events]:
    """Rows of outputevents: volumes through a Foley catheter in ml, which 85 per cent of the patients have."""
    every, has_catheter = float(rng.choice([1.0, 2.0])), rng.random() < 0.85
    hours = np.arange(0.5, patient.stay_hours - 0.5, every) + rng.uniform(-0.2, 0.2)
    hours = hours[rng.random(len(hours)) > 0.08]
    flow = 75.0 * np.exp(0.3 * rng.normal() - 0.35 * _physiology(world, patient, hours))
    volume = flow * every * np.exp(0.35 * rng.normal(size=len(hours)))
    texts = tuple(str(int(v)) for v in np.clip(5.0 * np.round(volume / 5.0), 0.0, 1200.0))
    events = Events(itemid=226559, minutes=np.round(60.0 * hours), texts=texts, numbers=texts, unit="ml")
    return [events] if has_catheter and len(hours) else []


def _physiology(world: WorldSettings, patient: Patient, hours: np.ndarray) -> np.ndarray:
    return patient.latents.physiology + patient.latents.physiology_trend * ramp(hours, world)


def _respiratory(world: WorldSettings, patient: Patient, hours: np.ndarray) -> np.ndarray:
    return patient.latents.respiratory + patient.latents.respiratory_trend * ramp(hours, world)


def _measurement_hours(rng: np.random.Generator, panel: Panel, stay_hours: float) -> Float[np.ndarray, " row"]:
    """Times of a panel: a rhythm with jitter, from shortly before admission to the end of the stay."""
    start = -HOURS_BEFORE + rng.uniform(0.0, min(panel.every_hours, 6.0))
    planned = np.arange(start, stay_hours, panel.every_hours)
    planned = planned + rng.uniform(-0.15, 0.15, len(planned)) * panel.every_hours
    kept = planned[rng.random(len(planned)) > panel.skipped_share]
    return np.unique(np.round(60.0 * kept[(kept >= -HOURS_BEFORE) & (kept < stay_hours - 0.02)])) / 60.0


def _panel_events(
    rng: np.random.Generator,
    world: WorldSettings,
    hospital: HospitalSettings,
    patient: Patient,
    panel: Panel,
    hours: np.ndarray,
) -> list[Events]:
    e, q = _physiology(world, patient, hours), _respiratory(world, patient, hours)
    # An arterial line replaces the cuff for the whole panel, for most patients of hospitals that use it.
    arterial = hospital.arterial_pressure and panel.name == "pressure" and rng.random() < 0.7
    found = []
    for item in panel.items:
        values = _item_values(rng, item, e, q)
        if item.variable not in hospital.missing_variables:
            found.append(_item_events(hospital, item, hours, values, arterial=arterial))
    return found


def _item_values(rng: np.random.Generator, item: Item, e: np.ndarray, q: np.ndarray) -> Float[np.ndarray, " row"]:
    """The equation of simulation.synthesize.items, clipped, with the rare absurd value."""
    change = item.between * rng.normal() + item.e * e + item.q * q + item.noise * rng.normal(size=len(e))
    values = np.clip(item.base * np.exp(change) if item.log else item.base + change, item.low, item.high)
    return np.where(rng.random(len(e)) < ABSURD_SHARE, values * 1000.0, values)


def _item_events(
    hospital: HospitalSettings, item: Item, hours: np.ndarray, values: np.ndarray, *, arterial: bool
) -> Events:
    """Values in the units and under the items that this hospital uses."""
    itemid, unit, decimals = item.itemid, item.unit, item.decimals
    if item.variable == "Temperature" and hospital.celsius:
        itemid, unit, values = 223762, "°C", (values - 32.0) / 1.8
    if item.variable == "Fraction inspired oxygen" and hospital.oxygen_as_fraction:
        values, decimals = values / 100.0, 2
    if arterial:
        itemid = ARTERIAL[itemid][0]
    texts = tuple(f"{value:.{decimals}f}" for value in values)
    return Events(itemid=itemid, minutes=np.round(60.0 * hours), texts=texts, numbers=texts, unit=unit)


def _coma_scale(rng: np.random.Generator, world: WorldSettings, patient: Patient) -> list[Events]:
    """Glasgow coma scale as MIMIC's words; consciousness falls with systemic physiology."""
    hours = np.arange(rng.uniform(0.2, 2.0), patient.stay_hours - 0.6, 4.0)
    hours = np.round(60.0 * (hours + rng.uniform(-0.5, 0.5, len(hours)))) / 60.0
    awake = 0.6 * rng.normal() - 0.7 * _physiology(world, patient, hours)
    eye = np.digitize(awake + 0.4 * rng.normal(size=len(hours)), [-1.9, -1.2, -0.4])
    verbal = np.digitize(awake + 0.4 * rng.normal(size=len(hours)), [-1.9, -1.5, -1.1, -0.1])
    motor = np.digitize(awake + 0.4 * rng.normal(size=len(hours)), [-2.4, -2.2, -2.0, -1.6, -1.0])
    if is_ventilated(patient):
        verbal, words = np.zeros_like(verbal), (VERBAL_INTUBATED, *VERBAL[1:])
    else:
        words = VERBAL
    return [
        Events(
            itemid=itemid,
            minutes=np.round(60.0 * hours),
            texts=tuple(labels[score] for score in scores),
            numbers=tuple(str(score + 1) for score in scores),
            unit="",
        )
        for itemid, labels, scores in ((220739, EYE, eye), (223900, words, verbal), (223901, MOTOR, motor))
    ]


def _body_events(rng: np.random.Generator, hospital: HospitalSettings, patient: Patient, body: Body) -> list[Events]:
    """Height and weight at admission in the hospital's units, then a daily weight in kg."""
    # Fluid retained by the sicker makes the weight rise.
    days = np.arange(1.3, patient.stay_hours / 24.0 - 0.01)
    weights = body.weight_kg * (1.0 + 0.01 * days * max(patient.latents.physiology, 0.0)) + 0.4 * rng.normal(
        size=len(days)
    )
    if hospital.imperial:
        at_once = [(226707, f"{body.height_cm / 2.54:.0f}", "Inch"), (226531, f"{body.weight_kg / 0.453592:.1f}", "")]
    else:
        at_once = [(226730, f"{body.height_cm:.0f}", "cm"), (226512, f"{body.weight_kg:.1f}", "kg")]
    charted = [
        Events(itemid=itemid, minutes=np.array([10.0]), texts=(text,), numbers=(text,), unit=unit)
        for itemid, text, unit in at_once
    ]
    texts = tuple(f"{weight:.1f}" for weight in weights)
    daily = Events(itemid=224639, minutes=np.round(1440.0 * days), texts=texts, numbers=texts, unit="kg")
    return [*charted, daily]
