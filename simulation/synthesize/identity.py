"""Identifiers, dates and demographics of one patient's records; identifiers of hospitals never meet."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from simulation.synthesize.settings import MAX_PATIENTS

MAX_IMAGES_OF_PATIENT = 40

UNITS = (
    "Medical Intensive Care Unit (MICU)",
    "Surgical Intensive Care Unit (SICU)",
    "Cardiac Vascular Intensive Care Unit (CVICU)",
    "Medical/Surgical Intensive Care Unit (MICU/SICU)",
)
_RACES = {
    "WHITE": 0.62,
    "BLACK/AFRICAN AMERICAN": 0.14,
    "HISPANIC OR LATINO": 0.07,
    "ASIAN - CHINESE": 0.05,
    "OTHER": 0.05,
    "UNKNOWN": 0.07,
}
_PERIODS = {"2008 - 2010": 0.3, "2011 - 2013": 0.25, "2014 - 2016": 0.25, "2017 - 2019": 0.2}
_INSURANCE_BELOW_65 = {"Medicare": 0.15, "Medicaid": 0.2, "Other": 0.65}
_INSURANCE_FROM_65 = {"Medicare": 0.8, "Medicaid": 0.03, "Other": 0.17}
_MARITAL = {"MARRIED": 0.45, "SINGLE": 0.27, "WIDOWED": 0.14, "DIVORCED": 0.09, "": 0.05}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who a patient is in the tables, and when things happened there."""

    subject_id: int
    hadm_id: int
    stay_id: int
    admitted: datetime
    intime: datetime
    unit: str
    race: str
    language: str
    marital_status: str
    anchor_years: int
    """Whole years from the anchor year to the admission."""
    days_home: float
    """Days from the ICU's end to discharge, if the patient lives."""
    late_death_days: float | None
    """Days from discharge to a death at home, if that is known."""
    block: int
    """Number of the patient over all hospitals; study numbers are derived from it."""

    def at(self, hours: float) -> datetime:
        """The moment `hours` after ICU admission, to the millisecond."""
        return self.intime + timedelta(milliseconds=round(3_600_000 * hours))

    def study_id(self, study: int) -> int:
        """Identifier of the stay's study number `study`."""
        return 50_000_000 + self.block * MAX_IMAGES_OF_PATIENT + study

    def dicom_id(self, seed: int, row: int) -> str:
        """Identifier of the stay's image number `row`: five groups of eight hexadecimal digits."""
        digits = hashlib.blake2b(f"{seed}/{self.subject_id}/{row}".encode(), digest_size=20).hexdigest()
        return "-".join(digits[start : start + 8] for start in range(0, 40, 8))


@dataclass(frozen=True, kw_only=True)
class Groups:
    """What only natural splits into sites look at; the care unit and the race are in the identity."""

    admission_period: str
    """The three years of the real admission, MIMIC's anchor_year_group; nothing else changes with them."""
    insurance: str
    """Follows the age, so that a split by insurance has sites of other ages and outcomes."""


def draw_groups(rng: np.random.Generator, age: float) -> Groups:
    """Admission period and insurance of a patient of this age in years."""
    insurance = _INSURANCE_BELOW_65 if age < 65 else _INSURANCE_FROM_65
    return Groups(admission_period=_pick(rng, _PERIODS), insurance=_pick(rng, insurance))


def draw_identity(rng: np.random.Generator, hospital: int, patient: int) -> Identity:
    """Identity of patient `patient` of hospital `hospital`, both from 0; dates are shifted as MIMIC's are."""
    block = hospital * MAX_PATIENTS + patient
    intime = datetime(2110, 1, 1) + timedelta(seconds=int(rng.integers(80 * 365 * 86_400)))  # naive, as the tables are
    return Identity(
        # A factor of 19 spreads the subjects over MIMIC's folders p10 to p19.
        subject_id=10_000_003 + 19 * block,
        hadm_id=20_000_000 + block,
        stay_id=30_000_000 + block,
        admitted=(intime - timedelta(hours=float(rng.uniform(0.8, 24.0)))).replace(second=0, microsecond=0),
        intime=intime,
        unit=str(rng.choice(UNITS)),
        race=_pick(rng, _RACES),
        language="ENGLISH" if rng.random() < 0.9 else "?",
        marital_status=_pick(rng, _MARITAL),
        anchor_years=int(rng.integers(4)),
        days_home=float(rng.uniform(1.0, 6.0)),
        late_death_days=float(rng.uniform(10.0, 300.0)) if rng.random() < 0.08 else None,
        block=block,
    )


def _pick(rng: np.random.Generator, shares: dict[str, float]) -> str:
    return str(rng.choice(list(shares), p=np.array(list(shares.values()))))
