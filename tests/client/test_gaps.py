"""A site that lacks something has the records that a hospital without it would have, and the others are untouched."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from client.cohort import CohortError, open_cohort
from client.dataset import SampleSet
from client.gaps import Gaps, read_gaps
from client.records import SiteRecords, SiteSpec
from dipro_model.vocabulary import EHR_VARIABLES, NOT_MENTIONED, Task
from simulation.train import data_digest
from tests.make_cohort import reseal, write_cohort


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohorts") / "north", num_patients=16, seed=3)


def site(folder: Path, **gaps) -> SiteRecords:
    return SiteRecords(SiteSpec(name="north", cohort=folder, gaps=Gaps(**gaps)), crop_pixels=16)


def test_variables_that_are_never_charted_hold_their_fill_value_and_the_others_their_own(folder: Path) -> None:
    lacking = ("Albumin", "pH")
    whole, part = site(folder), site(folder, variables=lacking)
    for stay_id, stay in whole.stays.items():
        for place, name in enumerate(EHR_VARIABLES):
            found = part.stays[stay_id].ehr[:, place]
            # Fill 8, mean 10, sd 2: one deviation below the mean.
            expected = np.full_like(found, -1.0) if name in lacking else stay.ehr[:, place]
            np.testing.assert_array_equal(found, expected)


def test_the_first_images_of_a_stay_are_left_and_the_pairs_among_them(folder: Path) -> None:
    cohort, part = open_cohort(folder), site(folder, max_images=2)
    assert cohort.images.groupby("stay_id").size().max() > 2
    expected_pairs = set()
    for stay_id, stay in part.stays.items():
        images = cohort.images[cohort.images.stay_id == stay_id].sort_values("hours").head(2)
        assert stay.dicom_ids == tuple(images.dicom_id)
        assert stay.image_rows.tolist() == images.index.tolist()
        np.testing.assert_allclose(stay.image_hours, images.hours, rtol=1e-6)
        expected_pairs.add(stay.dicom_ids)
    found = set(zip(part.pairs.first_dicom_id, part.pairs.second_dicom_id, strict=True))
    assert found == expected_pairs
    assert set(part.region_progression) == expected_pairs
    samples = SampleSet([part], Task.MORTALITY, "train")
    assert len(samples) == len(SampleSet([site(folder)], Task.MORTALITY, "train"))
    assert {samples[index].regions.shape[0] for index in range(len(samples))} == {2}


def test_without_region_labels_no_region_is_compared_and_the_pairs_keep_their_labels(folder: Path) -> None:
    whole, part = (
        SampleSet([site(folder, **gaps)], Task.DISEASE_PROGRESSION, "train")
        for gaps in ({}, {"no_region_labels": True})
    )
    assert np.array_equal(whole.labels, part.labels)
    compared = [bool((samples[0].region_progression != NOT_MENTIONED).any()) for samples in (whole, part)]
    assert compared == [True, False]


def test_what_a_site_lacks_is_part_of_what_its_data_are_and_travels_as_json(folder: Path) -> None:
    digests = {
        data_digest(SiteSpec(name="north", cohort=folder, gaps=Gaps(**gaps)))
        for gaps in ({}, {"variables": ("pH",)}, {"max_images": 2}, {"no_region_labels": True})
    }
    assert len(digests) == 4
    gaps = Gaps(variables=("pH", "Albumin"), max_images=3, no_region_labels=True)
    assert read_gaps(json.loads(json.dumps(asdict(gaps)))) == gaps


def test_gaps_that_make_no_sense_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found acid; choose among Alanine"):
        Gaps(variables=("pH", "acid"))
    with pytest.raises(ValueError, match="found pH, pH"):
        Gaps(variables=("pH", "pH"))
    with pytest.raises(ValueError, match="2 or more images of a stay"):
        Gaps(max_images=1)
    silent = write_cohort(tmp_path / "silent", num_patients=2)
    (silent / "statistics.json").write_text("{}")
    reseal(silent)
    site(silent, max_images=2)
    with pytest.raises(CohortError, match=r"expected mean, sd and fill of pH.*found none"):
        site(silent, variables=("pH",))
