"""What is charted: MIMIC's items, how each follows the patient's state, and how often it is measured.

A charted value is base + between * b + e * e(t) + q * q(t) + noise * n, with b ~ N drawn once a patient and n ~ N once
a measurement; where scale is `log` the sum of the last four terms is the logarithm of a factor on base. The effect of
one unit of state is of the size of the measurement noise, so that one hour says little and two days say much.
"""

from dataclasses import dataclass
from functools import cache

_PANELS = """
panel        every_hours  charted_share  skipped_share
vitals               1.0           1.00           0.06
pressure             1.2           1.00           0.10
temperature          4.0           1.00           0.10
oxygen               5.0           0.80           0.10
ventilator           6.0           0.50           0.10
blood gas            7.0           0.65           0.15
chemistry            9.0           1.00           0.10
fingerstick          5.0           0.75           0.20
blood count         11.0           1.00           0.10
clotting            15.0           0.80           0.20
liver               23.0           0.70           0.20
heart damage        22.0           0.35           0.20
weight              24.0           0.80           0.10
"""

_ITEMS = """
panel       | itemid | variable                           | label                                 | unit     | base | between | noise |    e  |   q  | scale | decimals | low | high
vitals      | 220045 | Heart Rate                         | Heart Rate                            | bpm      | 86   | 9       | 6     |  8    |  2   | plain | 0 | 30  | 210
vitals      | 220210 | Respiratory rate                   | Respiratory Rate                      | insp/min | 19   | 2       | 2.5   |  0.8  |  2.5 | plain | 0 | 5   | 60
vitals      | 220277 | Oxygen saturation                  | O2 saturation pulseoxymetry           | %        | 96   | 0.8     | 1.2   | -0.2  | -1.3 | plain | 0 | 60  | 100
pressure    | 220179 | Systolic blood pressure            | Non Invasive Blood Pressure systolic  | mmHg     | 118  | 10      | 9     | -8    |  0   | plain | 0 | 50  | 240
pressure    | 220180 | Diastolic blood pressure           | Non Invasive Blood Pressure diastolic | mmHg     | 61   | 6       | 6     | -4.5  |  0   | plain | 0 | 20  | 150
pressure    | 220181 | Mean blood pressure                | Non Invasive Blood Pressure mean      | mmHg     | 77   | 7       | 6     | -6    |  0   | plain | 0 | 30  | 180
temperature | 223761 | Temperature                        | Temperature Fahrenheit                | °F       | 98.6 | 0.5     | 0.6   |  0.5  |  0.2 | plain | 1 | 92  | 106
oxygen      | 223835 | Fraction inspired oxygen           | Inspired O2 Fraction                  |          | 45   | 6       | 4     |  1.5  |  8   | plain | 0 | 21  | 100
ventilator  | 224700 | Positive end-expiratory pressure   | Total PEEP Level                      | cmH2O    | 7    | 1       | 0.8   |  0    |  1.4 | plain | 0 | 4   | 22
blood gas   | 223830 | pH                                 | PH (Arterial)                         |          | 7.38 | 0.03    | 0.03  | -0.03 | -0.02| plain | 2 | 6.9 | 7.65
blood gas   | 220235 | Partial pressure of carbon dioxide | Arterial CO2 Pressure                 | mmHg     | 41   | 4       | 3     | -0.5  |  3   | plain | 0 | 18  | 110
chemistry   | 220645 | Sodium                             | Sodium (serum)                        | mEq/L    | 140  | 3       | 2     |  0    |  0   | plain | 0 | 118 | 168
chemistry   | 227442 | Potassium                          | Potassium (serum)                     | mEq/L    | 4.2  | 0.3     | 0.3   |  0.15 |  0   | plain | 1 | 2.3 | 7.5
chemistry   | 220602 | Chloride                           | Chloride (serum)                      | mEq/L    | 104  | 4       | 2     |  0.5  |  0   | plain | 0 | 80  | 130
chemistry   | 227443 | Bicarbonate                        | HCO3 (serum)                          | mEq/L    | 24   | 2       | 1.5   | -1.5  |  0   | plain | 0 | 6   | 45
chemistry   | 227073 | Anion gap                          | Anion gap                             | mEq/L    | 13   | 1.5     | 1.5   |  1.3  |  0   | plain | 0 | 3   | 40
chemistry   | 225624 | Blood urea nitrogen                | BUN                                   | mg/dL    | 24   | 0.35    | 0.08  |  0.25 |  0   | log   | 0 | 3   | 180
chemistry   | 220615 | Creatinine                         | Creatinine                            | mg/dL    | 1.1  | 0.35    | 0.08  |  0.3  |  0   | log   | 1 | 0.2 | 14
chemistry   | 220635 | Magnesium                          | Magnesium                             | mg/dL    | 2.0  | 0.2     | 0.15  |  0.03 |  0   | plain | 1 | 0.9 | 6
chemistry   | 220621 | Glucose                            | Glucose (serum)                       | mg/dL    | 132  | 0.2     | 0.12  |  0.08 |  0   | log   | 0 | 35  | 700
fingerstick | 225664 | Glucose                            | Glucose finger stick                  |          | 138  | 0.2     | 0.15  |  0.08 |  0   | log   | 0 | 35  | 700
blood count | 220546 | White blood cell count             | WBC                                   | K/uL     | 10.5 | 0.3     | 0.1   |  0.15 |  0.1 | log   | 1 | 0.3 | 90
blood count | 220228 | Hemoglobin                         | Hemoglobin                            | g/dl     | 10.2 | 1.2     | 0.4   | -0.3  |  0   | plain | 1 | 4.5 | 18
blood count | 220545 | Hematocrit                         | Hematocrit (serum)                    | %        | 31   | 3.6     | 1.2   | -0.9  |  0   | plain | 1 | 14  | 54
blood count | 227457 | Platelets                          | Platelet Count                        | K/uL     | 200  | 0.35    | 0.06  | -0.2  |  0   | log   | 0 | 8   | 900
clotting    | 227465 | Prothrombin time                   | Prothrombin time                      | sec      | 14   | 0.12    | 0.05  |  0.1  |  0   | log   | 1 | 10  | 90
clotting    | 227467 | INR                                | INR                                   |          | 1.2  | 0.12    | 0.05  |  0.1  |  0   | log   | 1 | 0.8 | 9
clotting    | 227466 | Partial thromboplastin time        | PTT                                   | sec      | 34   | 0.2     | 0.08  |  0.1  |  0   | log   | 1 | 19  | 150
liver       | 220644 | Alanine aminotransferase           | ALT                                   | IU/L     | 36   | 0.6     | 0.1   |  0.3  |  0   | log   | 0 | 4   | 6000
liver       | 220587 | Asparate aminotransferase          | AST                                   | IU/L     | 44   | 0.6     | 0.1   |  0.35 |  0   | log   | 0 | 6   | 8000
liver       | 225612 | Alkaline phosphate                 | Alkaline Phosphate                    | IU/L     | 95   | 0.4     | 0.06  |  0.1  |  0   | log   | 0 | 22  | 1500
liver       | 225690 | Bilirubin                          | Total Bilirubin                       | mg/dL    | 0.9  | 0.5     | 0.1   |  0.3  |  0   | log   | 1 | 0.1 | 40
liver       | 227456 | Albumin                            | Albumin                               | g/dL     | 3.1  | 0.4     | 0.15  | -0.25 |  0   | plain | 1 | 1.2 | 5.2
heart damage| 227429 | Troponin-T                         | Troponin-T                            | ng/mL    | 0.06 | 0.8     | 0.2   |  0.4  |  0   | log   | 2 | 0.01| 15
"""  # noqa: E501 - a table

ARTERIAL: dict[int, tuple[int, str]] = {
    220179: (220050, "Arterial Blood Pressure systolic"),
    220180: (220051, "Arterial Blood Pressure diastolic"),
    220181: (220052, "Arterial Blood Pressure mean"),
}
"""Items of an arterial line that stand for those of the cuff."""

OTHER_LABELS: dict[int, tuple[str, str, str]] = {
    220050: ("Arterial Blood Pressure systolic", "chartevents", "mmHg"),
    220051: ("Arterial Blood Pressure diastolic", "chartevents", "mmHg"),
    220052: ("Arterial Blood Pressure mean", "chartevents", "mmHg"),
    220739: ("GCS - Eye Opening", "chartevents", ""),
    223900: ("GCS - Verbal Response", "chartevents", ""),
    223901: ("GCS - Motor Response", "chartevents", ""),
    223762: ("Temperature Celsius", "chartevents", "°C"),
    224639: ("Daily Weight", "chartevents", "kg"),
    226512: ("Admission Weight (Kg)", "chartevents", "kg"),
    226531: ("Admission Weight (lbs.)", "chartevents", ""),
    226559: ("Foley", "outputevents", "mL"),
    226707: ("Height", "chartevents", "Inch"),
    226730: ("Height (cm)", "chartevents", "cm"),
}
"""Label, table and unit of the items that do not follow the table of linear effects."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One charted item; the module's docstring gives the equation."""

    variable: str
    """Name in the vocabulary, or the item's own where it is no input of the model."""
    itemid: int
    label: str
    unit: str
    base: float
    between: float
    noise: float
    e: float
    q: float
    log: bool
    decimals: int
    low: float
    high: float
    """Values are clipped to low and high."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Items measured together."""

    name: str
    every_hours: float
    """Usual time between measurements."""
    charted_share: float
    """Share of patients in whom it is measured at all."""
    skipped_share: float
    """Share of planned measurements that are left out."""
    items: tuple[Item, ...]


@cache
def panels() -> dict[str, Panel]:
    """All panels by name, in the order in which they are charted."""
    rows = [[cell.strip() for cell in line.split("|")] for line in _ITEMS.strip().splitlines()]
    items = [(row[0], _item(dict(zip(rows[0], row, strict=True)))) for row in rows[1:]]
    found: dict[str, Panel] = {}
    for line in _PANELS.strip().splitlines()[1:]:
        name, every, charted, skipped = line.rsplit(maxsplit=3)
        found[name] = Panel(
            name=name,
            every_hours=float(every),
            charted_share=float(charted),
            skipped_share=float(skipped),
            items=tuple(item for panel, item in items if panel == name),
        )
    return found


def _item(row: dict[str, str]) -> Item:
    numbers = {key: float(row[key]) for key in ("base", "between", "noise", "e", "q", "low", "high")}
    return Item(
        variable=row["variable"],
        itemid=int(row["itemid"]),
        label=row["label"],
        unit=row["unit"],
        log=row["scale"] == "log",
        decimals=int(row["decimals"]),
        **numbers,
    )
