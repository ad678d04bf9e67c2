"""Step 1, the stays: adults with one ICU stay in one unit per admission, their age and in-hospital mortality."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import pandas as pd

from client.prepare.raw import find_table, read_table
from client.prepare.rejections import Rejections

PATIENT_COLUMNS = ("subject_id", "gender", "anchor_age", "anchor_year", "dod")
ADMISSION_COLUMNS = (
    "subject_id",
    "hadm_id",
    "admittime",
    "dischtime",
    "deathtime",
    "race",
    "language",
    "marital_status",
)
PATIENT_GROUPS = ("anchor_year_group",)
ADMISSION_GROUPS = ("insurance",)
"""Read where the tables have them: other hospitals may not, and nothing but the table of groups needs them."""
STAY_COLUMNS = ("subject_id", "hadm_id", "stay_id", "first_careunit", "last_careunit", "intime", "outtime")
WHERE = "stays"
"""The stage under which rejections are counted."""

_KEPT_COLUMNS = [
    *("stay_id", "subject_id", "hadm_id", "intime", "outtime", "los_days", "age", "mortality_inhospital"),
    *("gender", "race", "language", "marital_status"),
    *("first_careunit", *PATIENT_GROUPS, *ADMISSION_GROUPS),
]


@dataclass(frozen=True, kw_only=True)
class StayRules:
    """Which ICU stays enter a cohort."""

    min_age: float = 18.0
    """Youngest age kept, in years."""
    max_age: float = 150.0
    """An age above this, in years, or below 0 is taken for a fault of the record."""
    age: Literal["at admission", "anchor"] = "at admission"
    """ "at admission": anchor_age + year of admission - anchor_year. "anchor": anchor_age, off by up to some years."""
    single_stay_counted: Literal["before transfers", "after transfers"] = "before transfers"
    """Whether "one ICU stay per admission" counts all stays, or only those left once transfers are dropped."""


def read_stays(
    connection: duckdb.DuckDBPyConnection, mimic_iv: Path, rules: StayRules, rejections: Rejections
) -> pd.DataFrame:
    """The stays of a hospital that pass the stay filters, one row each, sorted by stay_id.

    Columns: stay_id, subject_id, hadm_id (int64), intime, outtime, los_days, age (years), mortality_inhospital (0 or
    1), gender, race, language, marital_status, first_careunit, anchor_year_group, insurance (text or None).
    """
    stays, admissions, patients = (
        read_table(connection, find_table(mimic_iv, name), columns, rejections, optional)
        for name, columns, optional in (
            ("icu/icustays", STAY_COLUMNS, ()),
            ("hosp/admissions", ADMISSION_COLUMNS, ADMISSION_GROUPS),
            ("hosp/patients", PATIENT_COLUMNS, PATIENT_GROUPS),
        )
    )
    return select_stays(stays, admissions, patients, rules, rejections)


def select_stays(
    stays: pd.DataFrame, admissions: pd.DataFrame, patients: pd.DataFrame, rules: StayRules, rejections: Rejections
) -> pd.DataFrame:
    """`read_stays` on tables that were read already: STAY_COLUMNS, ADMISSION_COLUMNS, PATIENT_COLUMNS, all text.

    The optional columns ADMISSION_GROUPS and PATIENT_GROUPS are None where the tables do not have them.
    """
    stays = _identified(stays, ["stay_id", "hadm_id", "subject_id"], "icustays", rejections)
    admissions = _identified(admissions, ["hadm_id", "subject_id"], "admissions", rejections)
    patients = _identified(patients, ["subject_id"], "patients", rejections)
    stays = _with_length(stays, rejections)
    stays = _one_unit_one_stay(stays, rules, rejections)
    stays = _joined(stays, admissions, ["subject_id", "hadm_id"], "stay without a row in admissions", rejections)
    stays = _joined(stays, patients, ["subject_id"], "stay without a row in patients", rejections)
    stays = _adults(stays.assign(age=_age(stays, rules)), rules, rejections)
    stays = stays.assign(mortality_inhospital=_died_in_hospital(stays))
    for name in (*PATIENT_GROUPS, *ADMISSION_GROUPS):
        stays = stays if name in stays else stays.assign(**{name: None})
    return stays.loc[:, _KEPT_COLUMNS].sort_values("stay_id", ignore_index=True)


def _identified(frame: pd.DataFrame, keys: list[str], table: str, rejections: Rejections) -> pd.DataFrame:
    """Rows whose identifiers are whole numbers, the first row of each; `keys[0]` is the table's own identifier."""
    numbers = pd.DataFrame({key: pd.to_numeric(frame.loc[:, key], errors="coerce") for key in keys})
    whole = pd.Series((numbers.notna() & (numbers % 1 == 0)).all(axis=1))
    rejections.add(f"identifier of {table} is no whole number", int((~whole).sum()), where=WHERE)
    frame = frame.loc[whole].assign(**{key: numbers.loc[whole, key].astype("int64") for key in keys})
    repeated = frame.duplicated(keys[0])
    _reject(frame.loc[repeated], f"row of {table} repeated", rejections, key=keys[0])
    return frame.loc[~repeated]


def _with_length(stays: pd.DataFrame, rejections: Rejections) -> pd.DataFrame:
    stays = stays.assign(intime=_instants(stays, "intime"), outtime=_instants(stays, "outtime"))
    timeless = stays[["intime", "outtime"]].isna().any(axis=1)
    _reject(stays.loc[timeless], "intime or outtime is no time", rejections)
    backwards = stays["outtime"] < stays["intime"]
    _reject(stays.loc[backwards], "stay ends before it starts", rejections)
    stays = stays.loc[~timeless & ~backwards]
    return stays.assign(los_days=(stays["outtime"] - stays["intime"]) / pd.Timedelta(days=1))


def _one_unit_one_stay(stays: pd.DataFrame, rules: StayRules, rejections: Rejections) -> pd.DataFrame:
    num_stays = _stays_of_admission(stays)
    transferred = stays["first_careunit"] != stays["last_careunit"]
    _exclude(stays.loc[transferred], "care unit changed during the stay", rejections)
    stays = stays.loc[~transferred]
    if rules.single_stay_counted == "after transfers":
        num_stays = _stays_of_admission(stays)
    several = num_stays.loc[stays.index] > 1
    _exclude(stays.loc[several], "several ICU stays in one admission", rejections)
    return stays.loc[~several]


def _stays_of_admission(stays: pd.DataFrame) -> pd.Series:
    number = stays["hadm_id"].value_counts()
    return pd.Series(number.loc[stays["hadm_id"]].to_numpy(), index=stays.index)


def _joined(
    stays: pd.DataFrame, table: pd.DataFrame, keys: list[str], reason: str, rejections: Rejections
) -> pd.DataFrame:
    merged = stays.merge(table, on=keys, how="left", indicator=True)
    alone = merged["_merge"] == "left_only"
    _reject(merged.loc[alone], reason, rejections)
    return merged.loc[~alone].drop(columns="_merge")


def _age(stays: pd.DataFrame, rules: StayRules) -> pd.Series:
    anchor_age = pd.Series(pd.to_numeric(stays.loc[:, "anchor_age"], errors="coerce"))
    if rules.age == "anchor":
        return anchor_age
    anchor_year = pd.Series(pd.to_numeric(stays.loc[:, "anchor_year"], errors="coerce"))
    return anchor_age + _instants(stays, "admittime").dt.year - anchor_year


def _adults(stays: pd.DataFrame, rules: StayRules, rejections: Rejections) -> pd.DataFrame:
    believable = stays["age"].between(0, rules.max_age)
    _reject(stays.loc[~believable], f"age unknown or not in 0 to {rules.max_age:g} years", rejections)
    young = believable & (stays["age"] < rules.min_age)
    _exclude(stays.loc[young], f"younger than {rules.min_age:g} years", rejections)
    return stays.loc[believable & ~young].astype({"age": "float64"})


def _died_in_hospital(stays: pd.DataFrame) -> pd.Series:
    """1 where the date or the time of death lies inside the admission. A date counts as its midnight."""
    admitted, discharged = _instants(stays, "admittime"), _instants(stays, "dischtime")
    inside = [_instants(stays, column).between(admitted, discharged) for column in ("dod", "deathtime")]
    return (inside[0] | inside[1]).astype("int8")


def _instants(frame: pd.DataFrame, column: str) -> pd.Series:
    # Years far from now are how records are de-identified; nanoseconds would end in the year 2262.
    return pd.to_datetime(frame.loc[:, column], errors="coerce", format="ISO8601").astype("datetime64[us]")


def _reject(rows: pd.DataFrame, reason: str, rejections: Rejections, key: str = "stay_id") -> None:
    rejections.add(reason, len(rows), where=WHERE, examples=[f"{key} {name}" for name in rows[key].head()])


def _exclude(rows: pd.DataFrame, reason: str, rejections: Rejections) -> None:
    examples = [f"stay_id {name}" for name in rows["stay_id"].head()]
    rejections.exclude(reason, len(rows), where=WHERE, examples=examples)
