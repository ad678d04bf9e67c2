"""On real files: the published profile equals the published preparation cell by cell, and what `corrected` changes."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from client.prepare.images import METADATA_COLUMNS, METADATA_TABLE
from client.prepare.imaging import Imaging, ImagingSources, prepare_imaging
from client.prepare.labels import build_pairs, read_gold
from client.prepare.raw import connect, find_table, read_table
from client.prepare.rejections import Rejections
from client.prepare.samples import build_samples
from client.prepare.stays import read_stays
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, PROGRESSIONS, REGIONS
from tests.client.prepare.imaging_world import rules_of

PAIR = ["first_dicom_id", "second_dicom_id"]


@dataclass(frozen=True)
class Prepared:
    """The imaging half of a cohort of the fixture."""

    stays: pd.DataFrame
    imaging: Imaging
    regions: np.ndarray
    pairs: pd.DataFrame
    mortality: pd.DataFrame
    length_of_stay: pd.DataFrame
    rejections: Rejections


def prepare(root: Path, folder: Path, profile: str) -> Prepared:
    rules, rejections = rules_of(profile), Rejections()
    with connect(folder) as connection:
        stays = read_stays(connection, root / "mimiciv", rules.stays, rejections)
        table = find_table(root / "mimic-cxr-jpg", METADATA_TABLE)
        metadata = read_table(connection, table, METADATA_COLUMNS, rejections)
        gold = read_gold(connection, root / "chest-imagenome", rejections)
    sources = ImagingSources(
        metadata=metadata,
        gold=gold,
        radiographs=root / "mimic-cxr-jpg" / "files",
        scene_graphs=root / "chest-imagenome" / "silver_dataset" / "scene_graph",
    )
    out = folder / f"{profile}.npy"
    imaging = prepare_imaging(sources, stays, out, rules.images, rules.split, rejections)
    stays = stays.assign(split=stays["subject_id"].map(imaging.split))
    pairs = build_pairs(imaging.images, imaging.comparisons, gold, rules.labels, rejections)
    samples = build_samples(stays, imaging.images, rules.samples, rejections)
    return Prepared(stays, imaging, np.load(out, mmap_mode="r"), pairs, *samples, rejections)


@pytest.fixture(scope="module")
def published(demo_linked, tmp_path_factory) -> Prepared:
    return prepare(demo_linked, tmp_path_factory.mktemp("published"), "published")


@pytest.fixture(scope="module")
def corrected(demo_linked, tmp_path_factory) -> Prepared:
    return prepare(demo_linked, tmp_path_factory.mktemp("corrected"), "corrected")


@pytest.fixture(scope="module")
def expected(demo_linked) -> Path:
    """Results for stays with an even stay_id only."""
    return demo_linked / "expected"


def visible(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["stay_id"] % 2 == 0]


def test_images_and_hours(published, expected):
    found = visible(published.imaging.images).set_index("dicom_id")
    want = pd.read_csv(expected / "cxr_stay.csv").set_index("dicom_id")
    assert set(found.index) == set(want.index)
    want = want.loc[found.index]
    assert (found[["stay_id", "study_id"]] == want[["stay_id", "study_id"]]).all(axis=None)
    assert np.allclose(found["hours"], want["CXRRelTime"], rtol=0, atol=1e-12)


def test_boxes(published, expected):
    found = published.imaging.boxes.set_index(["dicom_id", "region"])
    for row in pd.read_csv(expected / "cxr_bbox.csv").to_dict("records"):
        for region in REGIONS:
            assert found.loc[(row["cxr_id"], region)].tolist() == ast.literal_eval(row[region])


def test_region_crops(published, expected):
    place = {name: row for row, name in enumerate(published.imaging.images["dicom_id"])}
    want = pd.read_csv(expected / "region_crops.csv")
    want = want[want["region"].isin(REGIONS)]
    assert len(want) == len(REGIONS) * 44
    for row in want.to_dict("records"):
        crop = published.regions[place[row["dicom_id"]], REGIONS.index(row["region"])] / 255
        assert crop.mean() == pytest.approx(row["mean"], abs=1e-6)
        assert crop.std() == pytest.approx(row["std"], abs=1e-6)


def test_split(published, expected):
    want = pd.read_csv(expected / "split_subjects.csv").set_index("subject_id")["split"]
    subjects = published.imaging.images.merge(published.stays, on="stay_id")["subject_id"]
    assert set(want.index) == set(subjects)
    assert published.imaging.split[want.index].equals(want)
    assert set(published.imaging.split.index) == set(published.stays["subject_id"])


def test_pairs_and_their_labels(published, expected):
    found = visible(published.pairs).set_index(PAIR)
    want = pd.read_csv(expected / "labels_disease_progression.csv").set_index(["cxr1_dicom_id", "cxr2_dicom_id"])
    assert set(found.index) == set(want.index)
    want = want.loc[found.index]
    assert np.array_equal(found[list(DISEASES)], want[list(DISEASES)])
    assert np.allclose(found[["first_hour", "second_hour"]], want[["cxr1_hour", "cxr2_hour"]], rtol=0, atol=1e-5)


def test_region_labels(published, expected):
    found = published.pairs.set_index(PAIR)["region_progression"]
    samples = [json.loads(line) for line in (expected / "samples.jsonl").read_text().splitlines()]
    samples = [sample for sample in samples if sample["task"] == "disease_progression"]
    assert len(samples) == 23
    for sample in samples:
        assert np.array_equal(found[tuple(sample["cxr"])], np.ravel(sample["y_aux"]))


@pytest.mark.parametrize(("task", "column"), [("mortality", "mortality_inhospital"), ("length_of_stay", "los_bin")])
def test_samples(published, expected, task, column):
    found = visible(getattr(published, task)).set_index("stay_id")
    # A length of stay beyond the last class stops the published run; such stays are no sample.
    want = pd.read_csv(expected / f"labels_{task}.csv").dropna(subset=[column]).set_index("stay_id")
    assert set(found.index) == set(want.index)
    want = want.loc[found.index]
    assert np.array_equal(found["label"], want[column])
    assert np.array_equal(found["split"], want["split"])


def test_samples_see_the_published_hours(published, expected):
    """First and last hour of the EHR rows that each sample of the published dataset class holds."""
    windows = rules_of("published").samples.windows
    for line in (expected / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        if sample["task"] == "disease_progression":
            first, second = sample["interval_times"][0]
            hours = [
                h for h in range(400) if first - windows.pair_hours_before <= h <= second + windows.pair_hours_after
            ]
            assert (hours[0], hours[-1]) == (sample["ehr_first_hour"], sample["ehr_last_hour"])
        else:
            assert sample["ehr_rows"] == windows.stay_hours


def word(code: int) -> str:
    return "not mentioned" if code == NOT_MENTIONED else PROGRESSIONS[code]


def test_corrected_labels_differ_exactly_where_they_should(published, corrected, expected):
    known = pd.read_csv(expected / "known_differences.csv")
    want = set()
    for row in known[known["file"].str.startswith(("golden_", "split/"))].itertuples():
        column = row.column.replace("/hazy opacity", "")
        want.add((*row.key.split(" > "), column, row.official.replace("(absent)", "not mentioned"), row.corrected))
    before, after = (visible(each.pairs).set_index(PAIR) for each in (published, corrected))
    assert set(before.index) == set(after.index)
    found = set()
    for key in before.index:
        old, new = before.loc[key], after.loc[key]
        cells = [(disease, old[disease], new[disease]) for disease in DISEASES]
        names = [f"{region}_progression: {disease}" for region in REGIONS for disease in DISEASES]
        cells += zip(names, old["region_progression"], new["region_progression"], strict=True)
        found |= {(*key, name, word(a), word(b)) for name, a, b in cells if a != b}
    assert len(want) == 22
    assert found == want


def test_corrected_lengths_of_stay_gain_only_the_open_class(published, corrected, expected):
    known = pd.read_csv(expected / "known_differences.csv")
    beyond = set(known.loc[known["file"] == "labels_length_of_stay.csv", "stay_id"])
    before, after = (visible(each.length_of_stay).set_index("stay_id")["label"] for each in (published, corrected))
    # A stay without a sample in either profile (a single image is left) cannot gain one.
    gained = beyond & set(corrected.mortality["stay_id"])
    assert gained
    assert set(after.index) == set(before.index) | gained
    assert after[before.index].equals(before)
    assert (after[list(gained)] == 3).all()


def test_corrected_images_differ_only_by_the_stays_that_the_corrected_rules_leave_out(published, corrected):
    before, after = (each.imaging.images.set_index("dicom_id")["stay_id"] for each in (published, corrected))
    assert not set(after.index) - set(before.index)
    lost = set(before[~before.index.isin(after.index)])
    # Stays of an admission with several, one of which was transferred; and a stay that the 8 h rule left one image.
    no_stays = lost - set(corrected.stays["stay_id"])
    assert lost - no_stays == {stay for stay in before if (before == stay).sum() == 1}
    assert len(no_stays) == 1
    assert len(lost) == 2


def test_corrected_split_is_7_to_1_to_2(corrected):
    images = corrected.imaging.images.merge(corrected.stays, on="stay_id").drop_duplicates("subject_id")
    assert images["split"].value_counts().to_dict() == {"train": 23, "test": 7, "val": 3}


def test_nothing_is_left_out_in_silence(published, demo_linked):
    """Every image of the fixture is kept or counted under one reason."""
    report = published.rejections.to_report()
    by_image = ("view position blank", "view position not AP", "not the latest view of its study")
    by_image += ("outside every eligible stay", "less than 8 h after the image before")
    counted = sum(report["images"][reason]["count"] for reason in by_image)
    counted += report["scene graphs"]["image without a scene graph"]["count"]
    # The rest goes with whole stays: images of stays with one image, a gap of 96 h, or an unusual length.
    cases = pd.read_csv(demo_linked / "images.csv")
    left = cases[~cases["dicom_id"].isin(published.imaging.images["dicom_id"])]
    whole_stays = left["case"].isin(["one_image_only", "gap_over_96h", "los_outlier_by_iqr"]).sum()
    assert counted + whole_stays == len(left)
