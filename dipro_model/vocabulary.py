"""The ordered names that everything agrees on: variables, regions, diseases, demographics, tasks, classes.

The order is part of the contract: released checkpoints, the cohort's columns and the tensors all follow it.
Spellings are those of the published preparation ("Glascow", "Asparate"), so that its files can be read.
"""

from enum import StrEnum

EHR_VARIABLES: tuple[str, ...] = (
    "Alanine aminotransferase",
    "Albumin",
    "Alkaline phosphate",
    "Anion gap",
    "Asparate aminotransferase",
    "Bicarbonate",
    "Bilirubin",
    "Blood urea nitrogen",
    "Chloride",
    "Creatinine",
    "Diastolic blood pressure",
    "Fraction inspired oxygen",
    "Glascow coma scale eye opening",
    "Glascow coma scale motor response",
    "Glascow coma scale verbal response",
    "Glucose",
    "Heart Rate",
    "Height",
    "Hematocrit",
    "Hemoglobin",
    "Magnesium",
    "Mean blood pressure",
    "Oxygen saturation",
    "Partial pressure of carbon dioxide",
    "Partial thromboplastin time",
    "Platelets",
    "Positive end-expiratory pressure",
    "Potassium",
    "Prothrombin time",
    "Respiratory rate",
    "Sodium",
    "Systolic blood pressure",
    "Temperature",
    "Troponin-T",
    "Urine output",
    "Weight",
    "White blood cell count",
    "pH",
)

REGIONS: tuple[str, ...] = (
    "left lung",
    "right lung",
    "left lower lung zone",
    "right lower lung zone",
    "left hilar structures",
    "right hilar structures",
    "left costophrenic angle",
    "right costophrenic angle",
    "cardiac silhouette",
    "mediastinum",
)

DISEASES: tuple[str, ...] = (
    "atelectasis",
    "enlarged cardiac silhouette",
    "consolidation",
    "pulmonary edema",
    "lung opacity",
    "pleural effusion",
    "pneumonia",
)

DEMOGRAPHICS: tuple[str, ...] = (
    "age",
    "height",
    "weight",
    "gender_F",
    "gender_M",
    "race_group_ASIAN",
    "race_group_BLACK/AFRICAN AMERICAN",
    "race_group_HISPANIC/LATINO",
    "race_group_OTHER",
    "race_group_UNKNOWN/UNABLE TO OBTAIN/PATIENT DECLINED TO ANSWER",
    "race_group_WHITE",
    "language_?",
    "language_ENGLISH",
    "marital_status_DIVORCED",
    "marital_status_MARRIED",
    "marital_status_SINGLE",
    "marital_status_WIDOWED",
)

PROGRESSIONS: tuple[str, ...] = ("worsened", "improved", "no change")
"""Classes 0, 1, 2 of a progression label."""

NOT_MENTIONED = 3
"""The progression label that says nothing; it never enters a loss or a metric."""

SPLITS: tuple[str, ...] = ("train", "val", "test")


class Task(StrEnum):
    """What a model predicts."""

    DISEASE_PROGRESSION = "disease_progression"
    MORTALITY = "mortality"
    LENGTH_OF_STAY = "length_of_stay"


TASK_CLASSES: dict[Task, tuple[str, ...]] = {
    Task.DISEASE_PROGRESSION: PROGRESSIONS,
    Task.MORTALITY: ("survived", "died"),
    Task.LENGTH_OF_STAY: ("2 to 3 days", "3 to 4 days", "4 to 6 days", "6 days and more"),
}
"""Names of the label values of each task, in label order."""
