"""Sites share no patient, and every site gets what a small cohort has to give."""

from pathlib import Path

import pytest

from client.cohort import open_cohort
from dipro_model.vocabulary import SPLITS
from simulation.sites import choose_sites, site_names, split_by_patient
from tests.make_cohort import write_cohort


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohorts") / "whole", num_patients=40)


@pytest.mark.parametrize("num_sites", [1, 2, 3, 5])
def test_patients_are_dealt_out_whole_and_evenly(folder: Path, num_sites: int) -> None:
    cohort = open_cohort(folder)
    specs = split_by_patient(cohort, num_sites, seed=4)
    dealt = [subject for spec in specs for subject in spec.subjects or ()]
    assert sorted(dealt) == sorted(cohort.stays.subject_id)
    for split in SPLITS:
        for died in (0, 1):
            stays = cohort.stays[(cohort.stays.split == split) & (cohort.stays.mortality_inhospital == died)]
            counts = [len(set(stays.subject_id) & set(spec.subjects or ())) for spec in specs]
            assert max(counts) - min(counts) <= 1


def test_a_seed_decides_the_partition(folder: Path) -> None:
    cohort = open_cohort(folder)
    assert split_by_patient(cohort, 3, seed=4) == split_by_patient(cohort, 3, seed=4)
    assert split_by_patient(cohort, 3, seed=4) != split_by_patient(cohort, 3, seed=5)


def test_cohorts_are_sites_of_their_own_names(tmp_path: Path, folder: Path) -> None:
    other = write_cohort(tmp_path / "other", num_patients=4)
    assert [spec.name for spec in choose_sites([folder, other])] == ["whole", "other"]
    assert [spec.name for spec in choose_sites([folder], num_sites=2)] == ["site 1", "site 2"]
    with pytest.raises(ValueError, match="--sites 2 splits one cohort by patient, but 2 cohorts were given"):
        choose_sites([folder, other], num_sites=2)
    with pytest.raises(ValueError, match="expected one site or more, got 0"):
        choose_sites([folder], num_sites=0)


def test_names_that_clash_take_their_parents(tmp_path: Path) -> None:
    assert site_names([tmp_path / "a" / "cohort", tmp_path / "b" / "cohort"]) == ["a-cohort", "b-cohort"]
    with pytest.raises(ValueError, match="give each once"):
        site_names([tmp_path / "a", tmp_path / "a"])
