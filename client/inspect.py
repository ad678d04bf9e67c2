"""What a prepared cohort holds, as tables: counts by split, labels, how often each variable was measured, rejects."""

import pandas as pd
import pyarrow.parquet as pq

from client.cohort import Cohort
from dipro_model.vocabulary import DISEASES, EHR_VARIABLES, PROGRESSIONS, SPLITS, TASK_CLASSES, Task

NOT_LABELLED = "not mentioned"


def count_by_split(cohort: Cohort) -> pd.DataFrame:
    """Patients, stays, images, pairs and samples: one row a count, one column a split, and their total."""
    split = cohort.stays.set_index("stay_id")["split"]
    patients = cohort.stays.drop_duplicates("subject_id")["split"]
    with_images = split.loc[cohort.images["stay_id"].unique()]
    counted = {
        "patients": patients,
        "stays": split,
        "stays with images": with_images,
        "images": split.loc[cohort.images["stay_id"]],
        "samples of disease progression (pairs)": split.loc[cohort.pairs["stay_id"]],
        "samples of mortality": cohort.samples_mortality["split"],
        "samples of length of stay": cohort.samples_length_of_stay["split"],
    }
    rows = {name: values.value_counts().reindex(SPLITS, fill_value=0) for name, values in counted.items()}
    return _with_total(pd.DataFrame(rows).T)


def count_labels(cohort: Cohort) -> pd.DataFrame:
    """Samples by task, or disease whose progression it is, and label (the index): one column a split, and total."""
    tables = {
        Task.MORTALITY: cohort.samples_mortality,
        Task.LENGTH_OF_STAY: cohort.samples_length_of_stay,
    }
    parts = {task.value: _labels_by_split(table, "label", TASK_CLASSES[task]) for task, table in tables.items()}
    pairs = cohort.pairs.merge(cohort.stays[["stay_id", "split"]], on="stay_id")
    for disease in DISEASES:
        parts[disease] = _labels_by_split(pairs, disease, (*PROGRESSIONS, NOT_LABELLED))
    return pd.concat(parts)


def measured_rates(cohort: Cohort) -> pd.DataFrame:
    """Per variable: the share of stay-hours in which it was measured, and of stays in which it was measured at all."""
    columns = [f"{name}_mask" for name in EHR_VARIABLES]
    masks = pq.read_table(cohort.path / "ehr_hourly.parquet", columns=["stay_id", *columns]).to_pandas()
    by_stay = masks.groupby("stay_id")[columns].any()
    rates = {"of stay-hours": masks[columns].mean(), "of stays": by_stay.mean()}
    return pd.DataFrame(rates).set_axis(list(EHR_VARIABLES), axis="index")


def rejections(cohort: Cohort) -> pd.DataFrame:
    """What the preparation left out: stage, reason, count, in the order of the report; empty where none was kept."""
    rows = [
        (stage, reason, entry["count"])
        for stage, reasons in cohort.report.get("rejections", {}).items()
        for reason, entry in reasons.items()
    ]
    return pd.DataFrame(rows, columns=["stage", "reason", "count"])


def _labels_by_split(samples: pd.DataFrame, column: str, names: tuple[str, ...]) -> pd.DataFrame:
    counts = pd.crosstab(samples[column], samples["split"])
    full = counts.reindex(index=list(range(len(names))), columns=list(SPLITS), fill_value=0)
    return _with_total(full.set_axis(list(names), axis="index"))


def _with_total(counts: pd.DataFrame) -> pd.DataFrame:
    return counts.assign(total=counts.sum(axis=1))
