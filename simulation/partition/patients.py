"""The patients of a cohort as a partition sees them: split, class for the task, group, and what each brings along."""

import numpy as np
import pandas as pd

from client.cohort import Cohort
from client.gaps import NO_GAPS, Gaps, images_taken, pairs_seen
from dipro_model.vocabulary import DISEASES, EHR_VARIABLES, NOT_MENTIONED, PROGRESSIONS, TASK_CLASSES, Task

NO_SAMPLE = -1
"""The class of a patient who has radiographs but no sample of the task."""

COUNTED = ("stays", "samples", "images", "pairs", "region_pairs")
"""What is counted of each patient: stays with radiographs, samples of the task, radiographs, labelled pairs, and pairs
with a label of at least one region."""


def read_patients(cohort: Cohort, task: Task, gaps: Gaps = NO_GAPS) -> pd.DataFrame:
    """One row a patient with radiographs, by subject_id in ascending order, as seen by a site with these gaps.

    Columns: split; class (`patient_class`); those of COUNTED; and label_0, label_1, ...: how many labels of each class
    of the task the patient has, for progression over all pairs and diseases.
    """
    images = images_taken(cohort.images, gaps)
    pairs = pairs_seen(cohort.pairs, images)
    stays = cohort.stays.loc[cohort.stays.stay_id.isin(images.stay_id), ["stay_id", "subject_id", "split"]]
    subject_of = stays.set_index("stay_id").subject_id
    table = stays.groupby("subject_id").agg(split=("split", "first"), stays=("stay_id", "size")).sort_index()
    labels = _labels(cohort, pairs, task)
    labels = labels.loc[labels.index.isin(subject_of.index)]
    no_region_labels = gaps.no_region_labels or not len(pairs)
    compared = [] if no_region_labels else np.stack(list(pairs.region_progression)).min(axis=1) < NOT_MENTIONED
    with_region = pairs.iloc[:0] if no_region_labels else pairs.loc[compared]
    counted = {
        "samples": labels.index,
        "images": images.stay_id,
        "pairs": pairs.stay_id,
        "region_pairs": with_region.stay_id,
    }
    for name, stay_ids in counted.items():
        table[name] = _count(subject_of, stay_ids, table.index)
    of_patient = labels.groupby(subject_of.loc[labels.index].to_numpy()).sum().reindex(table.index, fill_value=0)
    return table.join(of_patient).assign(**{"class": patient_class(of_patient, table.samples, task)})


def patient_class(labels: pd.DataFrame, samples: pd.Series, task: Task) -> pd.Series:
    """One class of the task for each patient, for label skew; NO_SAMPLE without a sample.

    Mortality and length of stay: the highest label of the patient's stays (died once counts as died). Progression: of
    worsened and improved the more frequent one over all labels of the patient's pairs, worsened where both are equal;
    `no change` for a patient with neither.
    """
    counts = labels.to_numpy()
    if task is Task.DISEASE_PROGRESSION:
        worsened, improved, no_change = range(len(PROGRESSIONS))
        chosen = np.where(counts[:, worsened] >= counts[:, improved], worsened, improved)
        chosen = np.where(counts[:, [worsened, improved]].sum(axis=1) > 0, chosen, no_change)
    else:
        chosen = counts.shape[1] - 1 - (counts[:, ::-1] > 0).argmax(axis=1)
    return pd.Series(np.where(samples > 0, chosen, NO_SAMPLE), index=labels.index)


def patient_groups(cohort: Cohort, column: str) -> pd.Series:
    """The group of each patient with radiographs, by subject_id: that of the patient's first stay that has some.

    Raises CohortError for a cohort of schema version 1.
    """
    groups = cohort.groups
    stays = cohort.stays.loc[cohort.stays.stay_id.isin(cohort.images.stay_id)]
    first = stays.sort_values(["intime", "stay_id"]).drop_duplicates("subject_id")
    words = groups.set_index("stay_id")[column].loc[first.stay_id].to_numpy()
    return pd.Series(words, index=pd.Index(first.subject_id, name="subject_id"), name=column).sort_index()


def charted_by_stay(cohort: Cohort) -> pd.DataFrame:
    """bool [stay with radiographs, variable]: whether it was measured at all; the column subject_id says whose."""
    stays = cohort.stays.loc[cohort.stays.stay_id.isin(cohort.images.stay_id)].set_index("stay_id")
    masks = cohort.ehr_hourly[["stay_id", *(f"{name}_mask" for name in EHR_VARIABLES)]]
    charted = masks.groupby("stay_id").any().reindex(stays.index, fill_value=False)
    return charted.set_axis(list(EHR_VARIABLES), axis="columns").assign(subject_id=stays.subject_id)


def _labels(cohort: Cohort, pairs: pd.DataFrame, task: Task) -> pd.DataFrame:
    """int [sample, class], by stay_id: how many labels of each class a sample has."""
    classes = np.arange(len(TASK_CLASSES[task]))
    if task is Task.DISEASE_PROGRESSION:
        frame, labels = pairs, pairs[list(DISEASES)].to_numpy()
    else:
        frame = cohort.samples_mortality if task is Task.MORTALITY else cohort.samples_length_of_stay
        labels = frame[["label"]].to_numpy()
    counts = (labels[:, :, None] == classes).sum(axis=1)
    return pd.DataFrame(counts, index=frame.stay_id, columns=[f"label_{value}" for value in classes])


def _count(subject_of: pd.Series, stay_ids: pd.Index | pd.Series, subjects: pd.Index) -> np.ndarray:
    """How many of these rows, each of a stay, belong to each subject."""
    return subject_of.loc[stay_ids].value_counts().reindex(subjects, fill_value=0).to_numpy()
