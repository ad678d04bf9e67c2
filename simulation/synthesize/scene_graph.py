"""One image's Chest ImaGenome scene graph and the rows of the gold file: boxes, findings and comparisons.

The shapes are those of Chest ImaGenome v1.0.0: a silver JSON per image whose relationships compare it (`subject_id`)
with an earlier image (`object_id`), and a tab-separated gold file with one comparison a row.
"""

from typing import Any

from simulation.synthesize.progression import Comparison

PIXELS_224 = 224
NO_TEXT = "[synthetic, no report text]"

GOLD_COLUMNS: tuple[str, ...] = (
    "patient_id",
    "relationship_id",
    "subject_id",
    "object_id",
    "bbox",
    "comparison",
    "attribute",
    "sentence",
    "bbox_coord_224_subject",
    "bbox_coord_224_object",
    "bbox_coord_original_subject",
    "bbox_coord_original_object",
    "label_name",
    "current_image_id",
    "previous_image_id",
)

PixelBoxes = dict[str, tuple[int, int, int, int]]


def finding_name(disease: str) -> tuple[str, str]:
    """Chest ImaGenome's kind and spelling of one of the vocabulary's diseases."""
    kind = "disease" if disease == "pneumonia" else "anatomicalfinding"
    return kind, "pulmonary edema/hazy opacity" if disease == "pulmonary edema" else disease


def scene_graph(
    header: dict[str, Any],
    boxes: PixelBoxes,
    size: tuple[int, int],
    previous_image_id: str | None,
    comparisons: list[Comparison],
) -> dict[str, Any]:
    """The JSON of one image; `header` holds the keys before `objects`, `size` is width and height in pixels."""
    image_id = header["image_id"]
    relationships = []
    for number, comparison in enumerate(comparisons if previous_image_id else [], start=1):
        relationships.append(_relationship(image_id, str(previous_image_id), number, comparison))
    return {
        **header,
        "objects": [_object(image_id, region, box, size) for region, box in boxes.items()],
        "attributes": [
            _attribute(image_id, region, [r for r in relationships if r["bbox_name"] == region])
            for region in boxes
            if any(r["bbox_name"] == region for r in relationships)
        ],
        "relationships": relationships,
    }


def gold_row(
    patient_id: int,
    number: int,
    comparison: Comparison,
    current: tuple[str, PixelBoxes, tuple[int, int]],
    previous: tuple[str, PixelBoxes, tuple[int, int]],
) -> tuple[str, ...]:
    """One row of the gold file; `current` and `previous` are image id, boxes and size of the two images."""
    kind, name = finding_name(comparison.disease)
    region = comparison.region
    row = {
        "patient_id": str(patient_id),
        "relationship_id": f"{current[0]}|g{number}",
        "subject_id": f"{current[0]}_{region}",
        "object_id": f"{previous[0]}_{region}",
        "bbox": region,
        "comparison": comparison.word,
        "attribute": f"{kind}|yes|{name}",
        "sentence": NO_TEXT,
        "bbox_coord_224_subject": str(list(box_224(current[1][region], current[2]))),
        "bbox_coord_224_object": str(list(box_224(previous[1][region], previous[2]))),
        "bbox_coord_original_subject": str(list(current[1][region])),
        "bbox_coord_original_object": str(list(previous[1][region])),
        "label_name": name,
        "current_image_id": current[0],
        "previous_image_id": previous[0],
    }
    return tuple(row[column] for column in GOLD_COLUMNS)


def box_224(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in the image resized to 224 pixels on its long side and padded to a square."""
    width, height = size
    scale = PIXELS_224 / max(width, height)
    pad_x, pad_y = (PIXELS_224 - width * scale) / 2, (PIXELS_224 - height * scale) / 2
    x1, y1, x2, y2 = box
    return (
        round(x1 * scale + pad_x),
        round(y1 * scale + pad_y),
        round(x2 * scale + pad_x),
        round(y2 * scale + pad_y),
    )


def _corners(prefix: str, box: tuple[int, int, int, int]) -> dict[str, int]:
    x1, y1, x2, y2 = box
    values = {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "width": x2 - x1, "height": y2 - y1}
    return {prefix + key: value for key, value in values.items()}


def _object(image_id: str, region: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> dict[str, Any]:
    return {
        "object_id": f"{image_id}_{region}",
        **_corners("", box_224(box, size)),
        "bbox_name": region,
        "synsets": [],
        "name": region.capitalize(),
        **_corners("original_", box),
    }


def _relationship(image_id: str, previous_id: str, number: int, comparison: Comparison) -> dict[str, Any]:
    kind, name = finding_name(comparison.disease)
    return {
        "relationship_id": f"{image_id}|{number}",
        "predicate": f"['{comparison.word.capitalize()}']",
        "synsets": [],
        "relationship_names": [f"comparison|yes|{comparison.word}"],
        "relationship_contexts": [1.0],
        "phrase": NO_TEXT,
        "attributes": [f"{kind}|yes|{name}", "nlp|yes|abnormal"],
        "bbox_name": comparison.region,
        "subject_id": f"{image_id}_{comparison.region}",
        "object_id": f"{previous_id}_{comparison.region}",
    }


def _attribute(image_id: str, region: str, relationships: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of `attributes` that repeats a region's relationships, one phrase each."""
    count = len(relationships)
    return {
        region: True,
        "bbox_name": region,
        "synsets": [],
        "name": region.capitalize(),
        "attributes": [r["attributes"] for r in relationships],
        "attributes_ids": [["", ""] for _ in range(count)],
        "phrases": [NO_TEXT] * count,
        "phrase_IDs": [r["relationship_id"] for r in relationships],
        "sections": ["finalreport"] * count,
        "comparison_cues": [r["relationship_names"] for r in relationships],
        "temporal_cues": [[] for _ in range(count)],
        "severity_cues": [[] for _ in range(count)],
        "texture_cues": [[] for _ in range(count)],
        "object_id": f"{image_id}_{region}",
    }
