"""Scene graphs: boxes, comparisons, and everything that can be wrong with a file of them."""

import json

import pytest

from client.prepare.rejections import PrepareError, Rejections
from client.prepare.scene_graphs import read_scene_graphs, scene_graph_path
from dipro_model.vocabulary import REGIONS
from tests.client.prepare.imaging_world import graph_object, relationship, write_graph


def read_boxes(folder, objects, rejections):
    write_graph(folder, "a", objects=objects)
    boxes = read_scene_graphs(["a"], folder, rejections).boxes
    assert boxes["region"].tolist() == list(REGIONS), "ten rows, in the order of the vocabulary"
    return {row[1]: tuple(row[2:]) for row in boxes.itertuples(index=False, name=None)}


def test_boxes_of_the_ten_regions_and_nothing_else(tmp_path):
    objects = [graph_object("left lung", (5, 6, 70, 80)), graph_object("trachea", (1, 2, 3, 4))]
    rejections = Rejections(strict=True)
    boxes = read_boxes(tmp_path, objects, rejections)
    assert boxes["left lung"] == (5, 6, 70, 80)
    assert all(box == (0, 0, 0, 0) for region, box in boxes.items() if region != "left lung")


def test_a_region_boxed_twice_keeps_its_first_box_and_is_counted(tmp_path):
    objects = [graph_object("left lung", (5, 6, 70, 80)), graph_object("left lung", (1, 1, 9, 9))]
    rejections = Rejections()
    assert read_boxes(tmp_path, objects, rejections)["left lung"] == (5, 6, 70, 80)
    assert rejections.count("region boxed twice, first box kept") == 1


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((70, 6, 5, 80), "box inverted or empty, region absent"),
        ((5, 6, 70, 6), "box inverted or empty, region absent"),
        ((5, 6, "seventy", 80), "box not in whole pixels of an image, region absent"),
        ((5, 6, None, 80), "box not in whole pixels of an image, region absent"),
        ((5, 6, 70.5, 80), "box not in whole pixels of an image, region absent"),
        ((5, 6, 1e9, 80), "box not in whole pixels of an image, region absent"),
        ((5, 6, float("nan"), 80), "box not in whole pixels of an image, region absent"),
    ],
)
def test_a_box_that_is_no_box_makes_its_region_absent_and_is_counted(tmp_path, box, reason):
    rejections = Rejections()
    assert read_boxes(tmp_path, [graph_object("mediastinum", box)], rejections)["mediastinum"] == (0, 0, 0, 0)
    assert rejections.count(reason) == 1


def test_comparisons_of_findings_and_diseases(tmp_path):
    said = [
        relationship(
            "old", "new", "left lung", ["worsened"], ["anatomicalfinding|yes|lung opacity", "nlp|yes|abnormal"]
        ),
        relationship("old", "new", "trachea", ["improved", "no change"], ["disease|no|pneumonia"]),
        relationship("old", "new", "right lung", [], ["disease|yes|pneumonia"]),
        relationship("old", "new", "right lung", ["worsened"], ["tubesandlines|yes|endotracheal tube"]),
    ]
    write_graph(tmp_path, "new", relationships=said)
    graphs = read_scene_graphs(["new"], tmp_path, Rejections(strict=True))
    assert graphs.comparisons.to_numpy().tolist() == [
        ["old", "new", "left lung", "lung opacity", True, ("worsened",)],
        ["old", "new", "trachea", "pneumonia", False, ("improved", "no change")],
    ]


def test_files_that_are_no_scene_graph_are_counted_and_give_no_boxes(tmp_path):
    write_graph(tmp_path, "good")
    scene_graph_path(tmp_path, "cut").write_text('{"objects": [')
    scene_graph_path(tmp_path, "list").write_text("[1, 2]")
    scene_graph_path(tmp_path, "bytes").write_bytes(b"\xff\xfe\x00")
    scene_graph_path(tmp_path, "half").write_text(json.dumps({"objects": []}))
    rejections = Rejections()
    graphs = read_scene_graphs(["good", "cut", "list", "bytes", "half", "missing"], tmp_path, rejections)
    assert set(graphs.boxes["dicom_id"]) == {"good"}
    assert rejections.count("scene graph is not JSON") == 2
    assert rejections.count("scene graph without lists `objects` and `relationships`") == 2
    assert rejections.count("image without a scene graph") == 1
    with pytest.raises(PrepareError, match="cut"):
        read_scene_graphs(["cut"], tmp_path, Rejections(strict=True))


@pytest.mark.parametrize("bad", [{}, "text", {"relationship_names": 3}, None])
def test_a_malformed_relationship_costs_only_itself(tmp_path, bad):
    good = relationship("old", "new", "left lung", ["worsened"], ["disease|yes|pneumonia"])
    write_graph(tmp_path, "new", relationships=[bad, good])
    rejections = Rejections()
    assert len(read_scene_graphs(["new"], tmp_path, rejections).comparisons) == 1
    assert rejections.count("relationship malformed") == 1


def test_many_graphs_read_in_parallel_as_in_one_process_with_progress(tmp_path):
    names = [f"image{i}" for i in range(40)]
    for name in names:
        write_graph(tmp_path, name)
    told = []
    serial = read_scene_graphs(names, tmp_path, Rejections())
    parallel = read_scene_graphs(names, tmp_path, Rejections(), workers=2, progress=lambda *step: told.append(step))
    assert serial.boxes.equals(parallel.boxes)
    assert told == [("scene graphs", done, 40) for done in range(41)]
