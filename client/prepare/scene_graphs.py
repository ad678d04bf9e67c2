"""Scene graphs of radiographs: where each region lies, and how each finding compares with the image before.

One JSON file an image, in the shape of Chest ImaGenome (silver_dataset/scene_graph/<dicom_id>_SceneGraph.json).
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from client.prepare.parallel import Progress, map_files, silent
from client.prepare.rejections import Rejections
from dipro_model.vocabulary import PROGRESSIONS, REGIONS

WHERE = "scene graphs"
"""The stage under which rejections are counted."""
MAX_SIDE = 65535
"""Pixels; the longest side that a JPEG can have. A box that reaches further than one image's length is no box."""
ABSENT = (0, 0, 0, 0)
"""The box of a region that is not in the image."""

_SUFFIX = "_SceneGraph.json"
_COMPARISON = {f"comparison|yes|{word}": word for word in PROGRESSIONS}
_KINDS = ("anatomicalfinding", "disease")
_BOX_COLUMNS = ["dicom_id", "region", "x1", "y1", "x2", "y2"]
COMPARISON_COLUMNS = ["first_dicom_id", "second_dicom_id", "region", "finding", "present", "words"]


@dataclass(frozen=True, kw_only=True)
class SceneGraphs:
    """What the scene graphs of a set of images say."""

    boxes: pd.DataFrame
    """dicom_id, region, x1, y1, x2, y2: ten rows an image, in pixels of its JPEG, 0, 0, 0, 0 where absent."""
    comparisons: pd.DataFrame
    """One row a relationship and finding: first_dicom_id (the earlier image), second_dicom_id, region, finding, present
    (False where the graph says that the finding is not there), words (a tuple of PROGRESSIONS, as written)."""


@dataclass(kw_only=True)
class _Graph:
    dicom_id: str
    boxes: list[tuple[str, str, int, int, int, int]] = field(default_factory=list)
    comparisons: list[tuple[str, str, str, str, bool, tuple[str, ...]]] = field(default_factory=list)
    broken: str | None = None
    """Why the whole file is unusable."""
    faults: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Parts that were left out, by reason."""


def scene_graph_path(folder: Path, dicom_id: str) -> Path:
    """Where the scene graph of an image lies below the folder of scene graphs."""
    return folder / f"{dicom_id}{_SUFFIX}"


def read_scene_graphs(
    dicom_ids: Sequence[str],
    folder: Path,
    rejections: Rejections,
    *,
    workers: int = 1,
    progress: Progress = silent,
) -> SceneGraphs:
    """Boxes and comparisons of every image whose scene graph can be read; images without one are counted.

    A region boxed twice keeps its first box. A box that is inverted, empty, not in whole pixels or larger than any
    image makes its region absent. Each such part is counted by reason, as are files that are not a scene graph.
    """
    paths = [scene_graph_path(folder, dicom_id) for dicom_id in dicom_ids]
    present = [path for path in paths if path.is_file()]
    missing = [f"dicom_id {name}" for name, path in zip(dicom_ids, paths, strict=True) if not path.is_file()]
    rejections.exclude("image without a scene graph", len(missing), where=WHERE, examples=missing)
    boxes, comparisons = [], []
    for graph in map_files(read_graph, present, what="scene graphs", workers=workers, progress=progress):
        _count(graph, rejections)
        boxes += graph.boxes
        comparisons += graph.comparisons
    return SceneGraphs(
        boxes=pd.DataFrame(boxes, columns=_BOX_COLUMNS).astype(dict.fromkeys(_BOX_COLUMNS[2:], "int32")),
        comparisons=pd.DataFrame(comparisons, columns=COMPARISON_COLUMNS).astype({"present": bool}),
    )


def read_graph(path: Path) -> _Graph:
    """One scene graph. A file that is no scene graph gives a graph that says why, with nothing else in it."""
    graph = _Graph(dicom_id=path.name.removesuffix(_SUFFIX))
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        graph.broken = "scene graph is not JSON"
        return graph
    except OSError:
        graph.broken = "scene graph cannot be read"
        return graph
    objects, relationships = (
        content.get(name) if isinstance(content, dict) else None for name in ("objects", "relationships")
    )
    if not isinstance(objects, list) or not isinstance(relationships, list):
        graph.broken = "scene graph without lists `objects` and `relationships`"
        return graph
    _read_boxes(objects, graph)
    for relationship in relationships:
        _read_relationship(relationship, graph)
    return graph


def _read_boxes(objects: list[Any], graph: _Graph) -> None:
    boxes: dict[str, tuple[int, int, int, int]] = {}
    for entry in objects:
        region = entry.get("bbox_name") if isinstance(entry, dict) else None
        if region not in REGIONS:
            continue
        if region in boxes:
            graph.faults["region boxed twice, first box kept"] += 1
            continue
        corners = [entry.get(f"original_{side}") for side in ("x1", "y1", "x2", "y2")]
        boxes[region] = _checked_box(corners, graph)
    graph.boxes = [(graph.dicom_id, region, *boxes.get(region, ABSENT)) for region in REGIONS]


def _checked_box(corners: list[Any], graph: _Graph) -> tuple[int, int, int, int]:
    if tuple(corners) == ABSENT:
        return ABSENT
    # bool is an int in Python, but true is no pixel.
    if not all(isinstance(corner, int | float) and not isinstance(corner, bool) for corner in corners) or any(
        corner != corner or abs(corner) > MAX_SIDE or corner != int(corner) for corner in corners
    ):
        graph.faults["box not in whole pixels of an image, region absent"] += 1
        return ABSENT
    x1, y1, x2, y2 = (int(corner) for corner in corners)
    if x2 <= x1 or y2 <= y1:
        graph.faults["box inverted or empty, region absent"] += 1
        return ABSENT
    return x1, y1, x2, y2


def _read_relationship(relationship: Any, graph: _Graph) -> None:
    try:
        words = tuple(_COMPARISON[name] for name in relationship["relationship_names"] if name in _COMPARISON)
        second, first = (relationship[side].split("_")[0] for side in ("subject_id", "object_id"))
        region = relationship["bbox_name"].strip()
        attributes = [attribute.split("|") for attribute in relationship["attributes"]]
    except (KeyError, TypeError, AttributeError):
        graph.faults["relationship malformed"] += 1
        return
    if words:
        graph.comparisons += [
            (first, second, region, attribute[-1], attribute[1:-1] != ["no"], words)
            for attribute in attributes
            if attribute[0] in _KINDS
        ]


def _count(graph: _Graph, rejections: Rejections) -> None:
    example = [f"dicom_id {graph.dicom_id}"]
    if graph.broken:
        rejections.add(graph.broken, where=WHERE, examples=example)
    for reason, count in sorted(graph.faults.items()):
        rejections.add(reason, count, where=WHERE, examples=example)
