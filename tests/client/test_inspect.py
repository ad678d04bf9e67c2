"""What is said of a cohort: its tables against counts by hand, its picture against what it is put together from."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from PIL import Image

from client.cohort import open_cohort
from client.inspect import count_by_split, count_labels, measured_rates, rejections
from client.pictures.radiograph import compose_radiograph
from client.pictures.stays import choose_stays, draw_stays
from dipro_model.vocabulary import DISEASES, EHR_VARIABLES, REGIONS
from tests.make_cohort import reseal, write_cohort, write_table


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = write_cohort(tmp_path_factory.mktemp("cohort") / "north", num_patients=6)
    report = {"rejections": {"images": {"view position not AP": {"count": 3, "examples": ["dicom_id x"]}}}}
    (folder / "report.json").write_text(json.dumps(report))
    reseal(folder)
    return open_cohort(folder)


def test_counts_by_split(cohort):
    counts = count_by_split(cohort)
    split = dict(zip(cohort.stays["stay_id"], cohort.stays["split"], strict=True))
    assert counts.loc["stays"].to_dict() == {"train": 4, "val": 1, "test": 1, "total": 6}
    for name in ("train", "val", "test"):
        assert counts.loc["images", name] == sum(split[stay] == name for stay in cohort.images["stay_id"])
        pairs = sum(split[stay] == name for stay in cohort.pairs["stay_id"])
        assert counts.loc["samples of disease progression (pairs)", name] == pairs
    assert counts.loc["patients", "total"] == counts.loc["stays with images", "total"] == 6


def test_label_counts(cohort):
    counts = count_labels(cohort)
    labels = cohort.samples_mortality["label"]
    assert counts.loc[("mortality", "died"), "total"] == (labels == 1).sum()
    assert counts.loc["length_of_stay", "total"].tolist() == np.bincount(np.arange(6) % 4, minlength=4).tolist()
    for disease in DISEASES:
        found = counts.loc[disease, "total"]
        assert found.tolist() == np.bincount(cohort.pairs[disease], minlength=4).tolist()
        assert found.index.tolist() == ["worsened", "improved", "no change", "not mentioned"]


def test_measured_rates(cohort):
    rates, hourly = measured_rates(cohort), cohort.ehr_hourly
    assert rates.index.tolist() == list(EHR_VARIABLES)
    for name in EHR_VARIABLES[:3]:
        assert rates.loc[name, "of stay-hours"] == pytest.approx(hourly[f"{name}_mask"].mean())
        by_stay = [hourly.loc[hourly["stay_id"] == stay, f"{name}_mask"].any() for stay in cohort.stays["stay_id"]]
        assert rates.loc[name, "of stays"] == pytest.approx(np.mean(by_stay))


def test_rejections(cohort, tmp_path):
    assert rejections(cohort).to_numpy().tolist() == [["images", "view position not AP", 3]]
    by_hand = open_cohort(write_cohort(tmp_path / "south", num_patients=4))
    assert rejections(by_hand).empty


def test_an_empty_cohort_is_counted_and_not_drawn(tmp_path):
    folder = write_cohort(tmp_path / "empty", num_patients=4)
    for name in ("images", "boxes", "pairs", "samples_mortality", "samples_length_of_stay"):
        table = pq.read_table(folder / f"{name}.parquet")
        pq.write_table(table.slice(0, 0), folder / f"{name}.parquet")
    np.save(folder / "regions.npy", np.zeros((0, len(REGIONS), 224, 224), np.uint8))
    reseal(folder)
    cohort = open_cohort(folder)
    assert count_by_split(cohort).loc["images", "total"] == 0
    assert count_labels(cohort)["total"].sum() == 0
    assert choose_stays(cohort, 3) == []


def test_a_radiograph_is_put_together_from_its_crops_small_regions_on_top():
    crops = np.stack([np.full((224, 224), shade, np.uint8) for shade in (50, 100, 200)])
    boxes = np.array([[110, 20, 210, 120], [160, 20, 185, 45], [0, 0, 0, 0]])
    made = compose_radiograph(crops, boxes)
    assert made.extent == (110, 20, 210, 120)
    assert made.present == [0, 1]
    want = np.full((100, 100), 50)
    want[:25, 50:75] = 100
    assert np.array_equal(made.picture, want)
    assert np.array_equal(made.top_region, want // 50 - 1)
    assert np.array_equal(compose_radiograph(crops[::-1], boxes[::-1]).picture, want), "whatever their order"


def test_large_radiographs_are_scaled_and_absent_ones_black():
    crops = np.full((1, 224, 224), 77, np.uint8)
    made = compose_radiograph(crops, np.array([[0, 0, 4200, 2100]]))
    assert (made.picture.shape, made.extent) == ((210, 420), (0, 0, 4200, 2100))
    assert (made.picture == 77).all()
    absent = compose_radiograph(crops, np.zeros((1, 4), int))
    assert not absent.picture.any()
    assert (absent.top_region == -1).all()
    assert absent.present == []


def test_a_tint_is_that_of_the_region_on_top_and_black_stays_black():
    crops = np.stack([np.full((224, 224), shade, np.uint8) for shade in (0, 255)])
    made = compose_radiograph(crops, np.array([[0, 0, 20, 10], [15, 5, 25, 15]]))
    axes = Figure().add_subplot()
    made.draw_tinted(axes, np.array([[1.0, 0, 0], [0, 1.0, 0]]))
    shown = np.asarray(axes.images[0].get_array())
    assert np.array_equal(shown[14, 0], [0, 0, 0]), "no region lies there"
    red, green = shown[2, 2], shown[7, 17]
    assert red[0] > 0
    assert red[1] == red[2] == 0
    assert green[1] == 1.0
    assert green[0] == green[2] < 1


def test_stays_with_most_images_are_drawn(cohort, tmp_path):
    counts = cohort.images["stay_id"].value_counts()
    chosen = choose_stays(cohort, 2)
    assert counts[chosen].tolist() == sorted(counts, reverse=True)[:2]
    out = tmp_path / "stays.png"
    draw_stays(cohort, chosen, out)
    with Image.open(out) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 1000
    assert pixels.shape[1] > 1000
    # Boxes are drawn in ten colours, and more than a tenth of the picture is no background.
    assert (pixels != 255).any(axis=-1).mean() > 0.1


def test_a_stay_with_many_images_and_absent_regions_is_drawn(tmp_path):
    folder = write_cohort(tmp_path / "many", num_patients=4, num_images=9)
    boxes = pd.read_parquet(folder / "boxes.parquet")
    boxes.loc[boxes["region"] == "mediastinum", ["x1", "y1", "x2", "y2"]] = 0
    boxes.loc[boxes["dicom_id"] == boxes["dicom_id"].iloc[0], ["x1", "y1", "x2", "y2"]] = 0
    write_table(folder, "boxes", boxes)
    reseal(folder)
    cohort = open_cohort(folder)
    draw_stays(cohort, cohort.stays["stay_id"].tolist()[:1], tmp_path / "stays.png")
    assert (tmp_path / "stays.png").stat().st_size > 10_000
