"""The imaging half as a whole: bad files undo what was selected with them, and the split comes before the quartiles."""

import numpy as np
import pandas as pd
import pytest

from client.prepare.imaging import ImagingSources, prepare_imaging
from client.prepare.regions import radiograph_path
from client.prepare.rejections import PrepareError, Rejections
from client.prepare.scene_graphs import scene_graph_path
from dipro_model.vocabulary import REGIONS
from tests.client.prepare.imaging_world import (
    metadata,
    metadata_row,
    rules_of,
    stays_table,
    truncate,
    write_graph,
    write_radiograph,
)


class World:
    """Images by stay (which is also the patient), all readable at first."""

    def __init__(self, folder, hours_by_stay, *, lengths=None, gold=()):
        self.folder = folder
        self.stays = stays_table(lengths or dict.fromkeys(hours_by_stay, 5.0))
        self.rows = [
            metadata_row(f"{stay}-{hour:g}", hour, subject=stay, study=1000 * stay + int(10 * hour))
            for stay, hours in hours_by_stay.items()
            for hour in hours
        ]
        self.pixels = {row[0]: write_radiograph(folder / "files", row) for row in self.rows}
        for row in self.rows:
            write_graph(folder / "graphs", row[0])
        self.gold = pd.DataFrame({"subject_id": list(gold)})

    def radiograph(self, dicom_id):
        row = next(row for row in self.rows if row[0] == dicom_id)
        return radiograph_path(self.folder / "files", int(row[1]), int(row[2]), dicom_id)

    def prepare(self, profile="corrected", rejections=None, **changes):
        rules = rules_of(profile)
        sources = ImagingSources(
            metadata=metadata(self.rows),
            gold=self.gold,
            radiographs=changes.pop("radiographs", self.folder / "files"),
            scene_graphs=changes.pop("scene_graphs", self.folder / "graphs"),
        )
        out = self.folder / "regions.npy"
        found = prepare_imaging(
            sources, self.stays, out, rules.images, rules.split, rejections or Rejections(strict=True), **changes
        )
        return found, np.load(out, mmap_mode="r")

    def check(self, found, regions):
        """Rows of crops and boxes belong to the images, in their order."""
        assert len(regions) == len(found.images)
        assert found.boxes["dicom_id"].tolist() == found.images["dicom_id"].repeat(len(REGIONS)).tolist()
        for row, dicom_id in enumerate(found.images["dicom_id"]):
            assert np.array_equal(np.unique(regions[row, 2]), np.unique(self.pixels[dicom_id][2:32, 2:22]))


@pytest.mark.parametrize("profile", ["published", "corrected"])
def test_everything_readable_is_kept(tmp_path, profile):
    world = World(tmp_path, {1: [1, 20], 2: [5, 30, 60]})
    found, regions = world.prepare(profile)
    assert found.images["dicom_id"].tolist() == ["1-1", "1-20", "2-5", "2-30", "2-60"]
    assert found.images["hours"].tolist() == [1, 20, 5, 30, 60]
    world.check(found, regions)


def test_a_truncated_radiograph_is_no_image_and_the_selection_is_made_without_it(tmp_path):
    # In stay 1, 12 takes the place of 10 (which crowded it out); stay 2 is left with one image and falls.
    world = World(tmp_path, {1: [1, 10, 12, 30], 2: [5, 30], 3: [2, 40]})
    for dicom_id in ("1-10", "2-30"):
        truncate(world.radiograph(dicom_id))
    rejections = Rejections()
    found, regions = world.prepare(rejections=rejections)
    assert found.images["dicom_id"].tolist() == ["1-1", "1-12", "1-30", "3-2", "3-40"]
    world.check(found, regions)
    assert rejections.count("radiograph damaged or truncated") == 2
    assert rejections.count("stay with fewer than 2 images") == 1
    assert rejections.count("less than 8 h after the image before") == 0, "12 stands in the final selection"
    with pytest.raises(PrepareError, match="damaged or truncated"):
        world.prepare()


def test_an_image_that_comes_in_later_may_be_unreadable_too(tmp_path):
    world = World(tmp_path, {1: [1, 10, 12, 14, 30]})
    for dicom_id in ("1-10", "1-12"):
        truncate(world.radiograph(dicom_id))
    rejections = Rejections()
    found, regions = world.prepare(rejections=rejections)
    assert found.images["dicom_id"].tolist() == ["1-1", "1-14", "1-30"]
    world.check(found, regions)
    assert rejections.count("radiograph damaged or truncated") == 2


def test_a_broken_scene_graph_is_no_image(tmp_path):
    world = World(tmp_path, {1: [1, 20, 40], 2: [5, 30]})
    scene_graph_path(tmp_path / "graphs", "1-20").write_text("{")
    scene_graph_path(tmp_path / "graphs", "2-30").unlink()
    rejections = Rejections()
    found, regions = world.prepare(rejections=rejections)
    assert found.images["dicom_id"].tolist() == ["1-1", "1-40"]
    world.check(found, regions)


def test_no_image_at_all_is_an_empty_cohort_and_no_crash(tmp_path):
    world = World(tmp_path, {1: [1]})
    found, regions = world.prepare()
    assert found.images.empty
    assert found.boxes.empty
    assert len(regions) == 0
    assert set(found.split.index) == {1}


def test_a_missing_folder_is_named(tmp_path):
    world = World(tmp_path, {1: [1, 20]})
    for name in ("radiographs", "scene_graphs"):
        with pytest.raises(PrepareError, match=r"nowhere: expected the folder"):
            world.prepare(**{name: tmp_path / "nowhere"})


def test_outliers_of_length_are_those_of_all_stays_or_of_training_stays(tmp_path):
    # Twenty long stays of patients with gold labels, who are tested on, widen the quartiles of all stays only.
    lengths = {stay: 3.0 + 0.01 * stay for stay in range(1, 31)} | dict.fromkeys(range(31, 51), 9.0) | {51: 5.0}
    world = World(tmp_path, {1: [1, 20], 51: [1, 20]}, lengths=lengths, gold=range(31, 51))
    published, _ = world.prepare("published")
    corrected, _ = world.prepare("corrected")
    assert set(published.images["stay_id"]) == {1, 51}
    assert set(corrected.images["stay_id"]) == {1}
