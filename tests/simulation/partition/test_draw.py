"""Every scheme places every patient once, keeps the splits, repeats with its seed, and refuses what cannot be."""

from pathlib import Path

import pytest

from client.cohort import Cohort, open_cohort
from client.dataset import SampleSet, require_every_split, require_trainable
from client.gaps import Gaps
from client.records import SiteRecords
from dipro_model.vocabulary import SPLITS, TASK_CLASSES, Task
from simulation.partition.draw import MAX_DRAWS, draw_partition
from simulation.partition.manifest import Partition, PartitionError, site_specs
from simulation.partition.schemes import DEFAULT_GAPS, NATURAL, Scheme, SchemeName
from simulation.sites import split_by_patient
from tests.make_cohort import write_cohort

SCHEMES = {
    SchemeName.IID: Scheme(name=SchemeName.IID, num_sites=3),
    SchemeName.LOG_NORMAL: Scheme(name=SchemeName.LOG_NORMAL, num_sites=3, sigma=0.5),
    SchemeName.POWER_LAW: Scheme(name=SchemeName.POWER_LAW, num_sites=3, exponent=0.7),
    SchemeName.DIRICHLET: Scheme(name=SchemeName.DIRICHLET, num_sites=3, alpha=0.8),
    SchemeName.CARE_UNIT: Scheme(name=SchemeName.CARE_UNIT),
    SchemeName.ADMISSION_PERIOD: Scheme(name=SchemeName.ADMISSION_PERIOD),
    SchemeName.INSURANCE: Scheme(name=SchemeName.INSURANCE, num_sites=2),
    SchemeName.MODALITY_GAPS: Scheme(name=SchemeName.MODALITY_GAPS, num_sites=4),
}


def placed(partition: Partition) -> dict[str, dict[str, tuple[int, ...]]]:
    return {site.name: dict(site.patients) for site in partition.sites}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("task", [Task.MORTALITY, Task.DISEASE_PROGRESSION])
def test_each_patient_is_at_one_site_and_in_the_cohorts_split(cohort: Cohort, name: SchemeName, task: Task) -> None:
    partition = draw_partition([cohort], SCHEMES[name], task, seed=3)
    split_of = dict(zip(cohort.stays.subject_id, cohort.stays.split, strict=True))
    found = [(subject, split) for site in partition.sites for split in SPLITS for subject in site.patients[split]]
    assert sorted(found) == sorted(split_of.items())
    assert 1 <= partition.draw <= partition.max_draws


@pytest.mark.parametrize("name", SCHEMES)
def test_every_site_can_train_and_its_counts_are_those_of_its_samples(cohort: Cohort, name: SchemeName) -> None:
    partition = draw_partition([cohort], SCHEMES[name], Task.MORTALITY, seed=3)
    for site, spec in zip(partition.sites, site_specs(partition, [cohort], source="here"), strict=True):
        records = SiteRecords(spec, crop_pixels=16)
        require_every_split([records], Task.MORTALITY, SPLITS)
        require_trainable(SampleSet([records], Task.MORTALITY, "train"))
        for split, counts in site.counts.items():
            samples = SampleSet([records], Task.MORTALITY, split)
            stays = [stay for stay in records.stays.values() if stay.split == split]
            assert counts.samples == len(samples)
            assert counts.patients == len({stay.subject_id for stay in stays}) == len(site.patients[split])
            assert counts.images == sum(len(stay.dicom_ids) for stay in stays)
            for value, word in enumerate(TASK_CLASSES[Task.MORTALITY]):
                assert counts.labels[word] == (samples.labels == value).sum()


@pytest.mark.parametrize("name", SCHEMES)
def test_a_seed_decides_the_partition(cohort: Cohort, name: SchemeName) -> None:
    first, same, other = (draw_partition([cohort], SCHEMES[name], Task.MORTALITY, seed) for seed in (1, 1, 2))
    assert first == same
    # A natural split has nothing to draw.
    assert (placed(first) == placed(other)) == (name in NATURAL)


def test_iid_is_the_deal_of_sites_alone(cohort: Cohort) -> None:
    partition = draw_partition([cohort], SCHEMES[SchemeName.IID], Task.MORTALITY, seed=7)
    assert site_specs(partition, [cohort], source="here") == split_by_patient(cohort, 3, 7)


def test_natural_splits_have_the_patients_of_their_groups(cohort: Cohort) -> None:
    partition = draw_partition([cohort], SCHEMES[SchemeName.CARE_UNIT], Task.MORTALITY, seed=0)
    unit = dict(zip(cohort.stays.subject_id, cohort.groups.first_careunit, strict=True))
    assert {site.name for site in partition.sites} == {"MICU", "SICU", "CVICU"}
    for site in partition.sites:
        assert site.groups == (site.name,)
        assert {unit[subject] for split in SPLITS for subject in site.patients[split]} == {site.name}


def test_gaps_are_the_schemes_own_or_those_given_and_show_in_the_counts(cohort: Cohort) -> None:
    usual = draw_partition([cohort], SCHEMES[SchemeName.MODALITY_GAPS], Task.MORTALITY, seed=0)
    assert {
        number: site.gaps for number, site in enumerate(usual.sites, start=1) if site.gaps != Gaps()
    } == DEFAULT_GAPS
    assert [site.counts["train"].images / site.counts["train"].stays for site in usual.sites] == [3, 3, 2, 3]
    assert [site.counts["train"].region_pairs > 0 for site in usual.sites] == [True, True, True, False]
    lacking = DEFAULT_GAPS[2].variables
    assert {name for name, share in usual.sites[1].charted.items() if not share} == set(lacking)
    given = Scheme(name=SchemeName.DIRICHLET, num_sites=2, gaps={1: Gaps(variables=("pH",))})
    own = draw_partition([cohort], given, Task.MORTALITY, seed=0)
    assert [site.gaps for site in own.sites] == [Gaps(variables=("pH",)), Gaps()]
    beyond = Scheme(name=SchemeName.IID, num_sites=2, gaps={3: Gaps(max_images=2)})
    with pytest.raises(PartitionError, match="--gap: expected the number of a site from 1 to 2, found 3"):
        draw_partition([cohort], beyond, Task.MORTALITY, seed=0)


def test_another_draw_is_counted_and_none_is_made_beyond_the_bound(cohort: Cohort) -> None:
    scheme = Scheme(name=SchemeName.DIRICHLET, num_sites=3, alpha=0.5)
    draws = {draw_partition([cohort], scheme, Task.MORTALITY, seed).draw for seed in range(8)}
    assert max(draws) > 1
    hopeless = Scheme(name=SchemeName.DIRICHLET, num_sites=4, alpha=0.001)
    words = rf"in none of {MAX_DRAWS} draws .* use fewer --sites, a larger --alpha, another --partition-seed"
    with pytest.raises(PartitionError, match=words):
        draw_partition([cohort], hopeless, Task.MORTALITY, seed=0)


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (Scheme(num_sites=13), "site 13 has no sample for mortality in val and test, .*; use fewer --sites"),
        (Scheme(num_sites=30), "site 25 has no patient, site 26 has no patient, .* and 39 more; use fewer --sites"),
        (Scheme(num_sites=None), "expected --sites, the number of sites, found none"),
        (Scheme(name=SchemeName.POWER_LAW, num_sites=3, exponent=5.0), "use fewer --sites, a smaller --exponent"),
        (Scheme(name=SchemeName.LOG_NORMAL, num_sites=8, sigma=9.0), "a smaller --sigma, another --partition-seed"),
        (Scheme(num_sites=3, min_patients=9), "has fewer than 9 training patients.*or fewer --min-patients"),
        (Scheme(name=SchemeName.CARE_UNIT, num_sites=4), "the cohort has 3 groups .CVICU, MICU, SICU.*use --sites 3"),
        (Scheme(name=SchemeName.RACE_GROUP, num_sites=2), "the cohort has 1 groups"),
    ],
)
def test_a_partition_that_cannot_be_says_what_to_change(cohort: Cohort, scheme: Scheme, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw_partition([cohort], scheme, Task.MORTALITY, seed=0)


def test_a_group_of_one_class_is_refused_with_the_number_of_sites_that_works(tmp_path: Path) -> None:
    # Every second round of patients died, so that each of four care units has one outcome, and two of two have.
    four = open_cohort(write_cohort(tmp_path / "four", num_patients=32, num_images=2, careunits=tuple("ABCD")))
    with pytest.raises(PartitionError, match=r"A has one class only among its training samples.*use --sites 2, which"):
        draw_partition([four], Scheme(name=SchemeName.CARE_UNIT), Task.MORTALITY, seed=0)
    merged = draw_partition([four], Scheme(name=SchemeName.CARE_UNIT, num_sites=2), Task.MORTALITY, seed=0)
    assert [site.groups for site in merged.sites] == [("A", "B"), ("C", "D")]
    two = open_cohort(write_cohort(tmp_path / "two", num_patients=16, num_images=2, careunits=tuple("AB")))
    with pytest.raises(PartitionError, match=r"one class only.*use another --scheme"):
        draw_partition([two], Scheme(name=SchemeName.CARE_UNIT), Task.MORTALITY, seed=0)


def test_cohorts_are_a_site_each_unless_they_share_patients(tmp_path: Path) -> None:
    def cohort(name: str, first: int, **options) -> Cohort:
        return open_cohort(write_cohort(tmp_path / name, num_patients=16, num_images=2, first_subject=first, **options))

    north, south, again = cohort("north", 100), cohort("south", 500, seed=1), cohort("again", 110, seed=2)
    scheme = Scheme(name=SchemeName.COHORTS)
    partition = draw_partition([north, south], scheme, Task.MORTALITY, seed=0)
    assert [(site.name, site.whole_cohort) for site in partition.sites] == [("north", True), ("south", True)]
    assert [spec.subjects for spec in site_specs(partition, [south, north], source="here")] == [None, None]
    with pytest.raises(PartitionError, match="again and north share 6"):
        draw_partition([north, again], scheme, Task.MORTALITY, seed=0)
    with pytest.raises(PartitionError, match="leave --sites 3 out"):
        draw_partition([north, south], Scheme(name=SchemeName.COHORTS, num_sites=3), Task.MORTALITY, seed=0)
    with pytest.raises(PartitionError, match="iid splits one cohort, but 2 were given; --scheme cohorts"):
        draw_partition([north, south], Scheme(num_sites=2), Task.MORTALITY, seed=0)
    survivors = cohort("survivors", 900, deaths=False)
    with pytest.raises(PartitionError, match="survivors has one class only among its training samples"):
        draw_partition([north, survivors], scheme, Task.MORTALITY, seed=0)


def test_a_natural_split_of_an_old_cohort_says_what_to_do(cohort: Cohort) -> None:
    old = Cohort(path=cohort.path, manifest={**cohort.manifest, "schema_version": 1})
    with pytest.raises(ValueError, match="prepare it again with this version"):
        draw_partition([old], Scheme(name=SchemeName.CARE_UNIT), Task.MORTALITY, seed=0)
    assert draw_partition([old], Scheme(num_sites=2), Task.MORTALITY, seed=0).sites
