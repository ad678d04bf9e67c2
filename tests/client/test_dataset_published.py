"""The published cohort's samples equal what the published dataset class returns, on real records.

Where the two differ on purpose: the published time axis is rebuilt by counting, ours comes from the data.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from client.dataset import SampleSet
from client.records import SiteRecords, SiteSpec
from dipro_model.vocabulary import SPLITS, Task


@pytest.fixture(scope="module")
def expected(demo_linked: Path) -> dict[tuple[str, str], dict]:
    lines = (demo_linked / "expected" / "samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        (row["task"], row["cxr"][1] if row["task"] == "disease_progression" else str(row["stay_id"])): row
        for row in rows
    }


@pytest.fixture(scope="module")
def site(published_cohort: Path) -> SiteRecords:
    return SiteRecords(SiteSpec(name="published", cohort=published_cohort))


@pytest.mark.parametrize("task", list(Task))
def test_samples_equal_the_published_ones(expected, site: SiteRecords, task: Task) -> None:
    seen = 0
    for split in SPLITS:
        samples = SampleSet([site], task, split)
        for index, sample in enumerate(samples.samples):
            row = expected.get((str(task), sample.sample_id))
            if row is None:  # the other half of the stays is not in the reference
                assert sample.stay.stay_id % 2
                continue
            seen += 1
            stay, label = samples[index], row["y"]
            assert row["split"] == split
            assert list(sample.stay.dicom_ids[sample.frames]) == row["cxr"]
            assert stay.ehr.shape[0] == row["ehr_rows"]
            assert (int(stay.ehr_hours[0]), int(stay.ehr_hours[-1])) == (row["ehr_first_hour"], row["ehr_last_hour"])
            assert float(stay.ehr.sum()) == pytest.approx(row["ehr_sum"], rel=1e-4, abs=2e-3)
            np.testing.assert_allclose(stay.intervals.numpy(), row["interval_times"], atol=1e-4)
            np.testing.assert_allclose(stay.demographics.numpy(), row["demographic"], atol=1e-5)
            assert stay.label is not None
            assert stay.label.tolist() == label
            assert stay.region_progression is not None
            np.testing.assert_array_equal(stay.region_progression.numpy(), row["y_aux"])
    # A stay beyond the last published class stopped the published run; its label is -1.
    assert seen == sum(row["task"] == str(task) and row["y"] != -1 for row in expected.values())
