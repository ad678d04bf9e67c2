"""Region crops: against a slow loop, and what becomes of radiographs that cannot be read."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from client.prepare.regions import crop_regions, cut_regions, radiograph_path
from client.prepare.rejections import PrepareError, Rejections
from client.prepare.scene_graphs import read_scene_graphs
from dipro_model.vocabulary import REGIONS
from tests.client.prepare.imaging_world import metadata_row, truncate, write_graph, write_radiograph


@pytest.fixture
def images(tmp_path):
    """Twenty readable radiographs below tmp_path/files, with boxes: (images, boxes, pixels by dicom_id)."""
    rows = [metadata_row(f"image{i}", i) for i in range(20)]
    pixels = {row[0]: write_radiograph(tmp_path / "files", row) for row in rows}
    for row in rows:
        write_graph(tmp_path / "graphs", row[0])
    table = pd.DataFrame(
        [(row[0], int(row[1]), int(row[2])) for row in rows], columns=["dicom_id", "subject_id", "study_id"]
    )
    boxes = read_scene_graphs(table["dicom_id"].tolist(), tmp_path / "graphs", Rejections()).boxes
    return table, boxes, pixels


def nearest(pixels: np.ndarray, box) -> np.ndarray:
    """A crop by the definition: the pixel whose square holds the centre of each target pixel, black outside."""
    x1, y1, x2, y2 = box
    crop = np.zeros((224, 224), np.uint8)
    for i in range(224):
        for j in range(224):
            y, x = y1 + int((i + 0.5) * (y2 - y1) / 224), x1 + int((j + 0.5) * (x2 - x1) / 224)
            if 0 <= y < pixels.shape[0] and 0 <= x < pixels.shape[1]:
                crop[i, j] = pixels[y, x]
    return crop


def test_crops_equal_a_slow_loop_inside_and_across_the_border():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)
    boxes = [(3, 4, 60, 80), (0, 0, 70, 90), (50, 60, 90, 100), (-10, -5, 20, 30), (200, 200, 300, 300), (0, 0, 0, 0)]
    crops = crop_regions(Image.fromarray(pixels), boxes)
    for crop, box in zip(crops[:-1], boxes[:-1], strict=True):
        assert np.array_equal(crop, nearest(pixels, box)), box
    assert not crops[-2].any(), "a box beyond the image is black"
    assert not crops[-1].any(), "an absent region is zero"


def test_an_absurd_box_takes_no_memory():
    crops = crop_regions(Image.fromarray(np.full((10, 10), 200, np.uint8)), [(-60000, -60000, 60000, 60000)])
    assert crops.shape == (1, 224, 224)


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_follow_images_whatever_the_number_of_workers(tmp_path, images, workers):
    table, boxes, pixels = images
    table = table.sample(frac=1, random_state=3, ignore_index=True)
    out = tmp_path / "regions.npy"
    assert cut_regions(table, boxes, tmp_path / "files", out, Rejections(strict=True), workers=workers) == set()
    stored = np.load(out, mmap_mode="r")
    assert (stored.shape, stored.dtype) == ((20, len(REGIONS), 224, 224), np.uint8)
    for row, name in enumerate(table["dicom_id"]):
        assert np.array_equal(stored[row, 4], nearest(pixels[name], (4, 4, 24, 34)))


def test_radiographs_that_cannot_be_read_are_named_and_counted(tmp_path, images):
    table, boxes, _ = images
    paths = [
        radiograph_path(tmp_path / "files", *table.loc[i, ["subject_id", "study_id", "dicom_id"]]) for i in range(3)
    ]
    truncate(paths[0])
    paths[1].unlink()
    paths[2].write_text("no image")
    rejections = Rejections()
    bad = cut_regions(table, boxes, tmp_path / "files", tmp_path / "regions.npy", rejections)
    assert bad == {"image0", "image1", "image2"}
    assert rejections.count("radiograph damaged or truncated") == 1
    assert rejections.count("radiograph missing") == 1
    assert rejections.count("radiograph is not an image") == 1
    with pytest.raises(PrepareError, match="image0"):
        cut_regions(table, boxes, tmp_path / "files", tmp_path / "again.npy", Rejections(strict=True))


def test_crops_cut_before_are_moved_and_not_cut_again(tmp_path, images):
    table, boxes, _ = images
    out = tmp_path / "regions.npy"
    cut_regions(table, boxes, tmp_path / "files", out, Rejections())
    before = np.load(out)
    fewer = table.iloc[[7, 3, 11]].reset_index(drop=True)
    reuse = pd.Series(table.index, index=table["dicom_id"]).drop("image3")
    radiograph_path(tmp_path / "files", 1, int(table.loc[7, "study_id"]), "image7").unlink()
    assert cut_regions(fewer, boxes, tmp_path / "files", out, Rejections(strict=True), reuse=reuse) == set()
    assert np.array_equal(np.load(out), before[[7, 3, 11]])
    assert [path.name for path in tmp_path.glob("*.npy")] == ["regions.npy"]


def test_a_missing_folder_and_a_cohort_without_images(tmp_path, images):
    table, boxes, _ = images
    with pytest.raises(PrepareError, match=r"nowhere.*expected the folder of radiographs"):
        cut_regions(table, boxes, tmp_path / "nowhere", tmp_path / "r.npy", Rejections())
    assert cut_regions(table.iloc[:0], boxes, tmp_path / "files", tmp_path / "r.npy", Rejections()) == set()
    assert np.load(tmp_path / "r.npy").shape == (0, len(REGIONS), 224, 224)


def test_a_disk_without_room_for_the_crops_is_found_before_the_first(tmp_path, small_disk, images):
    table, boxes, _ = images
    out = small_disk / "regions.npy"
    with pytest.raises(PrepareError, match=r"expected room for 0\.1 GB of region crops .*No space left on device"):
        cut_regions(pd.concat([table] * 7), boxes, tmp_path / "files", out, Rejections())
    assert not list(small_disk.iterdir())
