"""What a partition knows of patients, against loops over the tables and against the samples that training is given."""

import numpy as np
import pandas as pd
import pytest

from client.cohort import Cohort
from client.dataset import SampleSet
from client.gaps import NO_GAPS, Gaps
from client.records import SiteRecords, SiteSpec
from dipro_model.vocabulary import DISEASES, EHR_VARIABLES, NOT_MENTIONED, SPLITS, TASK_CLASSES, Task
from simulation.partition.patients import (
    NO_SAMPLE,
    charted_by_stay,
    patient_class,
    patient_groups,
    read_patients,
)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("gaps", [NO_GAPS, Gaps(max_images=2), Gaps(no_region_labels=True)], ids=str)
def test_counts_are_those_of_the_samples_that_a_site_with_these_gaps_trains_on(
    cohort: Cohort, task: Task, gaps: Gaps
) -> None:
    table = read_patients(cohort, task, gaps)
    site = SiteRecords(SiteSpec(name="site", cohort=cohort.path, gaps=gaps), crop_pixels=16)
    assert table.images.sum() == sum(len(stay.dicom_ids) for stay in site.stays.values())
    assert table.stays.sum() == len(site.stays)
    compared = sum((labels != NOT_MENTIONED).any() for labels in site.region_progression.values())
    assert (table.pairs.sum(), table.region_pairs.sum()) == (len(site.pairs), compared)
    for split in SPLITS:
        samples, own = SampleSet([site], task, split), table[table.split == split]
        assert own.samples.sum() == len(samples)
        assert set(own.index[own.samples > 0]) == {subject for _, subject in samples.patients}
        for value in range(len(TASK_CLASSES[task])):
            assert own[f"label_{value}"].sum() == (samples.labels == value).sum()


def test_the_class_of_a_patient_is_the_worst_outcome_or_the_more_frequent_direction() -> None:
    def classes(rows: list[tuple[int, ...]], task: Task) -> list[int]:
        labels = pd.DataFrame(rows)
        return patient_class(labels, labels.sum(axis=1), task).tolist()

    assert classes([(2, 0), (1, 1), (0, 1), (0, 0)], Task.MORTALITY) == [0, 1, 1, NO_SAMPLE]
    assert classes([(1, 0, 0, 0), (1, 0, 1, 0), (0, 0, 0, 2)], Task.LENGTH_OF_STAY) == [0, 2, 3]
    rows = [(3, 2, 9), (2, 3, 0), (2, 2, 5), (0, 0, 7), (0, 0, 0)]
    assert classes(rows, Task.DISEASE_PROGRESSION) == [0, 1, 0, 2, NO_SAMPLE]


def test_classes_of_progression_follow_a_loop_over_the_pairs(cohort: Cohort) -> None:
    table = read_patients(cohort, Task.DISEASE_PROGRESSION)
    subject_of = dict(zip(cohort.stays.stay_id, cohort.stays.subject_id, strict=True))
    for subject, row in table.iterrows():
        words = [
            label
            for pair in cohort.pairs.to_dict("records")
            if subject_of[pair["stay_id"]] == subject
            for label in (pair[disease] for disease in DISEASES)
        ]
        worsened, improved = words.count(0), words.count(1)
        assert row["class"] == (2 if not worsened + improved else int(improved > worsened))


def test_the_group_is_that_of_the_first_stay_with_radiographs(cohort: Cohort) -> None:
    groups = patient_groups(cohort, "first_careunit")
    assert groups.index.tolist() == sorted(cohort.stays.subject_id)
    stays = cohort.stays.copy()
    # The second patient's stay becomes a later, the third's an earlier stay of the first patient.
    stays.loc[4, ["subject_id", "intime"]] = [stays.subject_id[0], pd.Timestamp("2151-01-01")]
    stays.loc[8, ["subject_id", "intime"]] = [stays.subject_id[0], pd.Timestamp("2149-01-01")]
    changed = Cohort(path=cohort.path, manifest=cohort.manifest)
    changed.__dict__["stays"] = stays
    found = patient_groups(changed, "first_careunit")
    assert (groups.iloc[0], groups.iloc[4], groups.iloc[8]) == ("MICU", "SICU", "CVICU")
    assert len(found) == len(groups) - 2
    assert found.iloc[0] == "CVICU"


def test_a_variable_counts_as_charted_where_one_hour_of_the_stay_was_measured(cohort: Cohort) -> None:
    charted = charted_by_stay(cohort)
    rows = cohort.ehr_hourly[cohort.ehr_hourly.stay_id == charted.index[3]]
    for name in EHR_VARIABLES:
        assert charted.loc[charted.index[3], name] == any(rows[f"{name}_mask"])
    assert np.array_equal(charted.subject_id, cohort.stays.set_index("stay_id").subject_id[charted.index])
