"""Samples are cut as the cohort's windows say, and records that cannot serve are refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from client.cohort import CohortError, open_cohort
from client.dataset import DataError, Inputs, SampleSet, require_every_split, require_trainable
from client.records import SiteRecords, SiteSpec
from client.training import class_weights, predict
from dipro_model.vocabulary import DISEASES, EHR_VARIABLES, NOT_MENTIONED, REGIONS, SPLITS, Task
from federation.initial import initial_model
from tests.make_cohort import WINDOWS, reseal, write_cohort, write_table
from tests.small_run import small_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohorts") / "north", num_patients=16)


@pytest.fixture(scope="module")
def site(folder: Path) -> SiteRecords:
    return SiteRecords(SiteSpec(name="north", cohort=folder))


def test_a_stay_sample_holds_the_first_hours_and_images(folder: Path, site: SiteRecords) -> None:
    cohort, samples = open_cohort(folder), SampleSet([site], Task.MORTALITY, "train")
    assert len(samples) == sum(cohort.samples_mortality.split == "train")
    for index, sample in enumerate(samples.samples):
        stay, images = samples[index], cohort.images[cohort.images.stay_id == sample.stay.stay_id]
        rows = cohort.ehr_hourly[(cohort.ehr_hourly.stay_id == sample.stay.stay_id) & (cohort.ehr_hourly.hour < 48)]
        np.testing.assert_array_equal(stay.ehr_hours.numpy(), rows.hour)
        np.testing.assert_allclose(stay.ehr.numpy(), rows[list(EHR_VARIABLES)], rtol=1e-6)
        np.testing.assert_allclose(stay.intervals.numpy()[:, 0], images.hours[:-1], rtol=1e-6)
        np.testing.assert_allclose(stay.intervals.numpy()[:, 1], images.hours[1:], rtol=1e-6)
        np.testing.assert_array_equal(stay.regions.numpy()[:, :, 0], cohort.regions[images.index])
        label = cohort.samples_mortality.set_index("stay_id").label[sample.stay.stay_id]
        assert stay.label is not None
        assert int(stay.label) == label == sample.label[0]


def test_a_pair_sample_holds_two_frames_and_the_hours_between(folder: Path, site: SiteRecords) -> None:
    cohort, samples = open_cohort(folder), SampleSet([site], Task.DISEASE_PROGRESSION, "train")
    pairs = cohort.pairs.set_index("second_dicom_id")
    assert {sample.sample_id for sample in samples.samples} <= set(pairs.index)
    for index, sample in enumerate(samples.samples):
        pair, stay = pairs.loc[sample.sample_id], samples[index]
        hours = stay.ehr_hours.numpy()
        assert stay.regions.shape[:3] == (2, 10, 1)
        assert hours.min() >= pair.first_hour - WINDOWS["pair_hours_before"] > hours.min() - 1
        assert hours.max() <= pair.second_hour + WINDOWS["pair_hours_after"] < hours.max() + 1
        assert stay.label is not None
        assert stay.region_progression is not None
        assert stay.label.tolist() == [pair[disease] for disease in DISEASES]
        np.testing.assert_array_equal(stay.region_progression.numpy().reshape(-1), pair.region_progression)


def test_the_last_radiograph_alone_is_a_pair_with_itself(site: SiteRecords) -> None:
    for task in Task:
        whole, last = (SampleSet([site], task, "train", Inputs(sequence=sequence)) for sequence in (True, False))
        for index in range(len(whole)):
            full, short = whole[index], last[index]
            assert torch.equal(short.regions, full.regions[[-1, -1]])
            assert short.intervals.tolist() == [[0.0, float(full.intervals[-1, 1])]]
            assert short.region_progression is not None
            assert (short.region_progression == NOT_MENTIONED).all()
            assert torch.equal(short.ehr, full.ehr)


def test_features_take_the_place_of_crops(site: SiteRecords) -> None:
    rows = 1 + max(int(stay.image_rows.max()) for stay in site.stays.values())
    table = np.random.default_rng(0).normal(size=(rows, len(REGIONS), 5)).astype(np.float32)
    samples = SampleSet([site], Task.MORTALITY, "train", Inputs(features={"north": table}))
    for index, sample in enumerate(samples.samples):
        np.testing.assert_array_equal(samples[index].regions, table[sample.stay.image_rows[sample.frames]])
    blind = SampleSet([site], Task.MORTALITY, "train", Inputs(radiographs=False, features={"north": table}))
    assert blind[0].regions.shape[1:] == (len(REGIONS), 0)


def test_an_image_after_the_window_is_left_out(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "late", num_patients=4, num_images=3)
    images = open_cohort(folder).images
    images.loc[images.groupby("stay_id").tail(1).index, "hours"] = 48.0  # the window ends before hour 48
    write_table(folder, "images", images)
    reseal(folder)
    samples = SampleSet([SiteRecords(SiteSpec(name="late", cohort=folder))], Task.MORTALITY, "train")
    assert {samples[index].regions.shape[0] for index in range(len(samples))} == {2}


def test_a_pair_without_labels_is_not_mentioned(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "silent", num_patients=4)
    write_table(folder, "pairs", open_cohort(folder).pairs.head(0))
    reseal(folder)
    site = SiteRecords(SiteSpec(name="silent", cohort=folder))
    sample = SampleSet([site], Task.MORTALITY, "train")[0]
    assert sample.region_progression is not None
    assert bool((sample.region_progression == NOT_MENTIONED).all())
    with pytest.raises(DataError, match="silent: no sample for disease_progression in the train split"):
        require_trainable(SampleSet([site], Task.DISEASE_PROGRESSION, "train"))


def test_small_crops_are_means_over_squares(folder: Path, site: SiteRecords) -> None:
    small = SiteRecords(SiteSpec(name="north", cohort=folder), crop_pixels=32)
    full, reduced = site.crops([3, 0]), small.crops([3, 0])
    assert reduced.shape == (2, 10, 1, 32, 32)
    expected = full.float().unfold(3, 7, 7).unfold(4, 7, 7).mean(dim=(5, 6))  # 224 = 32 x 7
    assert float((reduced.float() - expected).abs().max()) <= 0.5 + 1e-4


def test_crops_are_those_of_their_rows_in_any_order(folder: Path, site: SiteRecords) -> None:
    regions = np.load(folder / "regions.npy")
    small = SiteRecords(SiteSpec(name="north", cohort=folder), crop_pixels=32)
    everything = small.crops(range(len(regions)))
    for rows in ([2, 3, 4], np.array([5]), [4, 3], [0, 2], [7, 7]):
        np.testing.assert_array_equal(site.crops(rows)[:, :, 0], regions[rows])
        assert torch.equal(small.crops(rows), everything[list(rows)])
    site.crops([8, 9])[:] = 0  # nobody should; if somebody does, the cohort on disk stays as it is
    np.testing.assert_array_equal(np.load(folder / "regions.npy"), regions)
    site.crops([8, 9])[:] = torch.from_numpy(regions[8:10]).unsqueeze(2)


def test_a_site_of_some_patients_sees_only_them(folder: Path) -> None:
    everyone = open_cohort(folder).stays
    chosen = tuple(everyone.subject_id[:5].tolist())
    site = SiteRecords(SiteSpec(name="part", cohort=folder, subjects=chosen))
    assert {stay.subject_id for stay in site.stays.values()} == set(chosen)
    assert set(site.pairs.stay_id) <= set(site.stays)
    for split in SPLITS:
        for _, subject in SampleSet([site], Task.LENGTH_OF_STAY, split).patients:
            assert subject in chosen


def test_labels_are_counted_from_this_split_alone(folder: Path, site: SiteRecords) -> None:
    cohort = open_cohort(folder)
    inside = cohort.pairs[cohort.pairs.stay_id.isin(cohort.stays.stay_id[cohort.stays.split == "train"])]
    counts = SampleSet([site], Task.MORTALITY, "train").progression_counts()
    for row, disease in zip(counts, DISEASES, strict=True):
        assert row.tolist() == [int((inside[disease] == value).sum()) for value in range(3)]


def test_sites_that_cannot_serve_are_named(tmp_path: Path, folder: Path, site: SiteRecords) -> None:
    survivors = SiteRecords(SiteSpec(name="south", cohort=write_cohort(tmp_path / "s", num_patients=8, deaths=False)))
    with pytest.raises(DataError, match="south: all 4 samples for mortality in the train split carry the same label"):
        require_trainable(SampleSet([survivors], Task.MORTALITY, "train"))
    require_trainable(SampleSet([survivors, site], Task.MORTALITY, "train"))
    no_val = SiteRecords(SiteSpec(name="west", cohort=write_cohort(tmp_path / "w", splits=("train", "test"))))
    with pytest.raises(DataError, match="west: no patient with a sample for mortality in the val split"):
        require_every_split([site, no_val], Task.MORTALITY, SPLITS)
    with pytest.raises(CohortError, match="nobody: none of its stays"):
        SiteRecords(SiteSpec(name="nobody", cohort=folder, subjects=()))
    for name in ("../up", "", "pooled", "a/b"):
        with pytest.raises(ValueError, match="cannot be a site's name"):
            SiteSpec(name=name, cohort=folder)


def test_a_stay_in_which_nothing_was_charted_is_a_sample(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "gap", num_patients=8)
    cohort = open_cohort(folder)
    silent = int(cohort.stays.stay_id[0])
    write_table(folder, "ehr_hourly", cohort.ehr_hourly[cohort.ehr_hourly.stay_id != silent])
    reseal(folder)
    site = SiteRecords(SiteSpec(name="gap", cohort=folder), crop_pixels=16)
    samples, settings = SampleSet([site], Task.MORTALITY, "train"), small_settings()
    (place,) = [place for place, sample in enumerate(samples.samples) if sample.stay.stay_id == silent]
    assert samples[place].ehr.shape == (0, len(EHR_VARIABLES))
    scores = predict(initial_model(settings), samples, settings, class_weights(samples, settings))
    assert np.isfinite(scores.probabilities).all()


def test_a_stay_without_demographics_is_refused(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "gap", num_patients=4)
    cohort = open_cohort(folder)
    write_table(folder, "demographics", cohort.demographics.iloc[1:])
    reseal(folder)
    with pytest.raises(CohortError, match=f"stay {cohort.stays.stay_id[0]} has images but no row in demographics"):
        SiteRecords(SiteSpec(name="gap", cohort=folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "found no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "expected JSON"),
        (lambda folder: (folder / "pairs.parquet").unlink(), "pairs.parquet: the manifest lists this file"),
        (lambda folder: (folder / "report.json").write_text("{ }"), "report.json: expected 2 bytes, found 3"),
        (lambda folder: (folder / "report.json").write_text("[]"), "report.json: its checksum differs"),
    ],
)
def test_a_cohort_that_is_not_whole_is_refused(tmp_path: Path, change, words: str) -> None:
    folder = write_cohort(tmp_path / "broken", num_patients=2)
    change(folder)
    with pytest.raises(CohortError, match=words):
        open_cohort(folder)


def test_a_cohort_of_another_version_or_shape_is_refused(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "other", num_patients=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    for change, words in (
        ({"schema_version": 3}, "expected schema version 1 or 2, found 3"),
        ({"windows": {}}, "`windows`"),
    ):
        (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(CohortError, match=words):
            open_cohort(folder)
    stays = open_cohort_frame(folder, manifest)
    stays.drop(columns="age").to_parquet(folder / "stays.parquet")
    reseal(folder)
    with pytest.raises(CohortError, match=r"stays\.parquet: expected a column `age` of type double, found none"):
        open_cohort(folder)


def test_a_cohort_of_version_1_opens_and_says_what_it_lacks(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "old", num_patients=2)
    assert open_cohort(folder).groups.first_careunit.tolist() == ["MICU", "MICU"]
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["groups.parquet"]
    (folder / "groups.parquet").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CohortError, match=r"expected `files` to give sha256 and bytes of groups\.parquet"):
        open_cohort(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 1}))
    cohort = open_cohort(folder)
    assert len(cohort.stays) == 2
    with pytest.raises(CohortError, match=r"schema version 1, which has none; prepare it again"):
        _ = cohort.groups


def open_cohort_frame(folder: Path, manifest: dict):
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_cohort(folder).stays


def test_changed_pixels_are_noticed_unless_asked_not_to_look(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "pixels", num_patients=2)
    regions = np.load(folder / "regions.npy", mmap_mode="r+")
    regions[0, 0, 0, 0] ^= 1
    regions.flush()
    with pytest.raises(CohortError, match=r"regions\.npy: its checksum differs"):
        open_cohort(folder)
    open_cohort(folder, verify_regions=False)
    np.save(folder / "regions.npy", np.zeros((1, 10, 224, 224), np.uint8))
    reseal(folder)
    with pytest.raises(CohortError, match=r"one row for each row of images\.parquet"):
        open_cohort(folder, verify_regions=False)


def test_tensors_do_not_share_memory_with_the_records(site: SiteRecords) -> None:
    samples = SampleSet([site], Task.MORTALITY, "train")
    before = samples[0].ehr.clone()
    samples[0].ehr.add_(0.0)
    assert torch.equal(samples[0].ehr, before)
