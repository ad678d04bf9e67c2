"""A hospital's raw tables written by hand, in MIMIC-IV's shape, and what preparing them gives in the model's units."""

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd

from client.prepare.demographics import DemographicStatistics
from client.prepare.ehr import Statistic
from client.prepare.pipeline import prepare_ehr
from client.prepare.profile import Profile, load_profile
from client.prepare.raw import connect
from client.prepare.rejections import Rejections
from client.prepare.stays import read_stays
from dipro_model.vocabulary import EHR_VARIABLES

ADMITTED = datetime(2150, 3, 4, 5, 6, 7)
"""Start of every stay, unless a test says otherwise."""

HEART_RATE, CREATININE, FIO2, EYES, INR, PROTHROMBIN = 220045, 220615, 223835, 220739, 227467, 227465
FAHRENHEIT, CELSIUS, URINE, GLUCOSE, SERUM_GLUCOSE = 223761, 223762, 226559, 225664, 220621
CUFF_SYSTOLIC, ARTERIAL_SYSTOLIC, OTHER_ARTERIAL_SYSTOLIC, CUFF_DIASTOLIC = 220179, 220050, 225309, 220180
TOTAL_PEEP, PEEP_SET, SATURATION, ACID = 224700, 220339, 220277, 223830
HEIGHT_CM, HEIGHT_INCH, WEIGHT_DAILY, WEIGHT_KG, WEIGHT_LB, WEIGHT_LOSS = 226730, 226707, 224639, 226512, 226531, 225124

UNITS = {
    HEART_RATE: "bpm",
    CREATININE: "mg/dL",
    PROTHROMBIN: "sec",
    FAHRENHEIT: "°F",
    CELSIUS: "°C",
    URINE: "ml",
    SERUM_GLUCOSE: "mg/dL",
    HEIGHT_CM: "cm",
    HEIGHT_INCH: "Inch",
    WEIGHT_DAILY: "kg",
    WEIGHT_KG: "kg",
}
"""What MIMIC-IV writes as `valueuom`; blank for every other item."""

_TABLES = {
    "hosp/patients": ("subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"),
    "hosp/admissions": (
        *("subject_id", "hadm_id", "admittime", "dischtime", "deathtime"),
        *("language", "marital_status", "race", "hospital_expire_flag"),
    ),
    "icu/icustays": (
        *("subject_id", "hadm_id", "stay_id", "first_careunit", "last_careunit"),
        *("intime", "outtime", "los"),
    ),
    "icu/chartevents": ("subject_id", "stay_id", "charttime", "itemid", "value", "valuenum", "valueuom"),
    "icu/outputevents": ("subject_id", "stay_id", "charttime", "itemid", "value", "valueuom"),
}


@dataclass
class Prepared:
    """What the tables give, values in the variables' own units."""

    stays: pd.DataFrame
    hours: pd.DataFrame
    """By (stay_id, hour): the 38 variables unscaled and their masks."""
    statistics: dict[str, Statistic]
    demographics: pd.DataFrame
    """By stay_id: the cohort's columns."""
    demographic_statistics: DemographicStatistics
    rejections: Rejections

    def column(self, variable: str, stay_id: int = 1) -> list[float]:
        return [round(value, 3) for value in self.hours.loc[stay_id, variable]]

    def mask(self, variable: str, stay_id: int = 1) -> list[bool]:
        return self.hours.loc[stay_id, f"{variable}_mask"].tolist()


@dataclass
class Hospital:
    """Rows of raw tables, to be written and prepared. Stay s belongs to patient s and admission s by default."""

    folder: Path
    rows: dict[str, list[dict[str, str]]] = field(default_factory=lambda: {name: [] for name in _TABLES})

    def stay(self, stay_id: int = 1, *, days: float = 2.5, subject: int | None = None, **changes: str) -> None:
        """One stay with its admission and patient; `changes` replace the text of any of their columns."""
        subject = stay_id if subject is None else subject
        out = ADMITTED + timedelta(days=days)
        row = {
            "subject_id": str(subject),
            "hadm_id": str(stay_id),
            "stay_id": str(stay_id),
            "gender": "F",
            "anchor_age": "60",
            "anchor_year": "2150",
            "anchor_year_group": "2014 - 2016",
            "dod": "",
            "admittime": str(ADMITTED - timedelta(hours=2)),
            "dischtime": str(out + timedelta(days=1)),
            "deathtime": "",
            "language": "ENGLISH",
            "marital_status": "MARRIED",
            "race": "WHITE",
            "hospital_expire_flag": "0",
            "first_careunit": "MICU",
            "last_careunit": "MICU",
            "intime": str(ADMITTED),
            "outtime": str(out),
            "los": str(days),
        } | changes
        for name in ("hosp/patients", "hosp/admissions", "icu/icustays"):
            known = self.rows[name]
            new = {column: row[column] for column in _TABLES[name]}
            if new not in known:
                known.append(new)

    def chart(self, hour: float, item: int, value: object, *, unit: str | None = None, stay_id: int | str = 1) -> None:
        """One charted value, `hour` hours after ADMITTED."""
        table = "icu/outputevents" if item == URINE else "icu/chartevents"
        row = {
            "subject_id": "1",
            "stay_id": str(stay_id),
            "itemid": str(item),
            "value": str(value),
            "valuenum": "",
            "charttime": str(ADMITTED + timedelta(hours=hour)),
            "valueuom": UNITS.get(item, "") if unit is None else unit,
        }
        self.rows[table].append({column: row[column] for column in _TABLES[table]})

    def write(self, *, gzipped: bool = False) -> Path:
        """The folder of the raw tables."""
        for name, columns in _TABLES.items():
            path = self.folder / "raw" / f"{name}.csv{'.gz' if gzipped else ''}"
            path.parent.mkdir(parents=True, exist_ok=True)
            opener = gzip.open if gzipped else open
            with opener(path, "wt", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(self.rows[name])
        return self.folder / "raw"

    def prepare(
        self,
        profile: str | Profile = "corrected",
        *,
        split: Sequence[str] | None = None,
        gzipped: bool = False,
        strict: bool = False,
    ) -> Prepared:
        """Write the tables and prepare stays, EHR and demographics; `split` names the split of each kept stay."""
        rules = load_profile(profile) if isinstance(profile, str) else profile
        raw, out, rejections = self.write(gzipped=gzipped), self.folder / "out", Rejections(strict)
        out.mkdir(exist_ok=True)
        with connect(self.folder, threads=1) as connection:
            stays = read_stays(connection, raw, rules.rules.stays, rejections)
            stays = stays.assign(split="train" if split is None else list(split))
            _, statistics, demographics, scale = prepare_ehr(connection, raw, stays, out, rules, rejections)
        hours = pd.read_parquet(out / "ehr_hourly.parquet").set_index(["stay_id", "hour"])
        for name in EHR_VARIABLES:
            hours[name] = hours[name].astype(float) * statistics[name].sd + statistics[name].mean
        return Prepared(
            stays=stays,
            hours=hours,
            statistics=statistics,
            demographics=demographics.set_index("stay_id"),
            demographic_statistics=scale,
            rejections=rejections,
        )
