"""Progression labels of image pairs: what scene graphs (silver) and the gold file say, per disease and per region."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import numpy as np
import pandas as pd

from client.prepare.images import identifiers
from client.prepare.raw import find_table, read_header, read_table
from client.prepare.rejections import Rejections
from client.prepare.scene_graphs import COMPARISON_COLUMNS
from dipro_model.vocabulary import DISEASES, NOT_MENTIONED, PROGRESSIONS, REGIONS

GOLD_TABLE = "gold_dataset/gold_object_comparison_with_coordinates.txt"
GOLD_COLUMNS = ("patient_id", "current_image_id", "previous_image_id", "label_name", "comparison", "bbox")
WHERE = "labels"
"""The stage under which rejections are counted."""

_EDEMA = "pulmonary edema"
_PAIR = ["first_dicom_id", "second_dicom_id"]
_CODES = {word: code for code, word in enumerate(PROGRESSIONS)}


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """How comparisons become labels. Every rule that is not the default is a fault of the published preparation."""

    pair_edema_finding: str = "pulmonary edema/hazy opacity"
    """The finding that gives a pair its label for pulmonary edema; the other diseases are named like their finding."""
    region_edema_finding: str = "pulmonary edema/hazy opacity"
    """The same for the label of a region. Scene graphs know no finding "pulmonary edema"."""
    absent_findings: Literal["ignored", "counted"] = "ignored"
    """Whether a comparison of a finding that the graph marks as not there is taken for a comparison of the finding."""
    region_conflicts: Literal["dropped", "last wins"] = "dropped"
    """What becomes of a region for which a disease is compared twice, with different words."""
    gold_matching: Literal["disease", "first row of the pair"] = "disease"
    """Which gold rows correct a pair's label of a disease: those of the disease, or the first of all its rows."""
    gold_only_diseases: Literal["added", "left out"] = "added"
    """Whether gold rows label a disease of a pair for which the scene graph gives no label."""


def read_gold(connection: duckdb.DuckDBPyConnection, folder: Path, rejections: Rejections) -> pd.DataFrame:
    """The gold comparisons below `folder`, in file order: subject_id and the columns of comparisons.

    Rows that name no patient, image pair or finding are rejected and counted; so is a comparison that is none of
    PROGRESSIONS, whose row stays with no words, because its patient is a gold patient all the same. The column
    `attribute` (anatomicalfinding|no|...) is optional; without it every finding counts as present.
    """
    path = find_table(folder, GOLD_TABLE)
    optional = [column for column in ("attribute",) if column in read_header(path)]
    rows = read_table(connection, path, [*GOLD_COLUMNS, *optional], rejections)
    subject = identifiers(rows.loc[:, "patient_id"])
    nameless = subject.isna() | rows[["current_image_id", "previous_image_id", "label_name"]].isna().any(axis=1)
    wordless = ~nameless & ~rows["comparison"].isin(PROGRESSIONS)
    for reason, bad in {
        "gold row without patient, image pair or label": nameless,
        "gold comparison is not worsened, improved or no change": wordless,
    }.items():
        examples = [f"row {row + 1}" for row in rows.index[bad]]
        rejections.add(reason, int(bad.sum()), where=path.name, examples=examples)
    words = [(word,) if word in PROGRESSIONS else () for word in rows["comparison"]]
    attributes = rows["attribute"].fillna("") if optional else pd.Series("", index=rows.index)
    frame = pd.DataFrame(
        {
            "subject_id": subject,
            "first_dicom_id": rows["previous_image_id"],
            "second_dicom_id": rows["current_image_id"],
            "region": rows["bbox"],
            "finding": rows["label_name"],
            "present": ~attributes.str.contains("|no|", regex=False),
            "words": pd.Series(words, index=rows.index, dtype=object),
        }
    )
    return frame.loc[~nameless].astype({"subject_id": "int64"}).reset_index(drop=True)


def build_pairs(
    images: pd.DataFrame, comparisons: pd.DataFrame, gold: pd.DataFrame, rules: LabelRules, rejections: Rejections
) -> pd.DataFrame:
    """The consecutive kept images of each stay that have a label for at least one disease, in the pairs' columns.

    `images` are the kept images (dicom_id, stay_id, hours); `comparisons` come from `read_scene_graphs`, `gold` from
    `read_gold`. A disease is labelled where all regions that mention it agree, and gold then corrects; a region's
    label counts for itself (region_progression: 70 values, region-major). 3 means not mentioned.
    """
    pairs = neighbouring_pairs(images)
    silver = _usable(comparisons, pairs, rules, rejections)
    golden = _usable(gold.loc[:, COMPARISON_COLUMNS], pairs, rules, rejections)
    diseases = _pair_labels(silver, golden, pairs, rules, rejections)
    regions = _region_labels(silver, golden, pairs, rules, rejections)
    labels = pd.DataFrame(diseases, columns=list(DISEASES), dtype="int8", index=pairs.index)
    pairs = pairs.join(labels).assign(region_progression=list(regions))
    labelled = (labels != NOT_MENTIONED).any(axis=1)
    rejections.exclude("pair of images without a label", int((~labelled).sum()), where=WHERE)
    return pairs.loc[labelled].reset_index(drop=True)


def neighbouring_pairs(images: pd.DataFrame) -> pd.DataFrame:
    """Consecutive images of each stay: stay_id, first_dicom_id, second_dicom_id, first_hour, second_hour."""
    ordered = images.sort_values(["stay_id", "hours", "dicom_id"], ignore_index=True)
    following = ordered.shift(-1)
    same_stay = ordered["stay_id"] == following["stay_id"]
    first, second = ordered.loc[same_stay], following.loc[same_stay]
    return pd.DataFrame(
        {
            "stay_id": first["stay_id"],
            "first_dicom_id": first["dicom_id"],
            "second_dicom_id": second["dicom_id"],
            "first_hour": first["hours"],
            "second_hour": second["hours"],
        }
    ).reset_index(drop=True)


def _usable(comparisons: pd.DataFrame, pairs: pd.DataFrame, rules: LabelRules, rejections: Rejections) -> pd.DataFrame:
    """Comparisons of the pairs at hand with a single word, in the order given: pair (row of `pairs`), region, finding,
    code."""
    rows = comparisons.merge(pairs.loc[:, _PAIR].assign(pair=pairs.index), on=_PAIR, how="inner")
    reason = "comparison of images that are no neighbouring kept ones"
    rejections.exclude(reason, len(comparisons) - len(rows), where=WHERE)
    rows = rows.loc[rows["words"].str.len() > 0]
    ambiguous = rows["words"].str.len() > 1
    reason = "comparison with more than one word"
    rejections.exclude(reason, int(ambiguous.sum()), where=WHERE, examples=_names(rows.loc[ambiguous]))
    rows = rows.loc[~ambiguous]
    if rules.absent_findings == "ignored":
        absent = ~rows["present"].astype(bool)
        reason = "comparison of a finding marked as absent"
        rejections.exclude(reason, int(absent.sum()), where=WHERE, examples=_names(rows.loc[absent]))
        rows = rows.loc[~absent]
    codes = rows["words"].str[0].map(_CODES)
    return rows.assign(code=codes.astype("int8"))[["pair", "region", "finding", "code"]]


def _pair_labels(
    silver: pd.DataFrame, gold: pd.DataFrame, pairs: pd.DataFrame, rules: LabelRules, rejections: Rejections
) -> np.ndarray:
    """Labels [pair, disease] of a pair as a whole."""
    diseases = _disease_of_finding(rules.pair_edema_finding)
    labels = np.full((len(pairs), len(DISEASES)), NOT_MENTIONED, np.int8)
    for (pair, disease), codes in _codes_by(silver, ["finding"], [diseases]):
        if len(set(codes)) == 1:
            labels[pair, disease] = codes[0]
        else:
            rejections.exclude("disease whose regions disagree", where=WHERE, examples=_names(pairs.iloc[[pair]]))
    if rules.gold_matching == "first row of the pair":
        for (pair,), codes in _codes_by(gold, [], []):
            labels[pair, labels[pair] != NOT_MENTIONED] = codes[0]
        return labels
    for (pair, disease), codes in _codes_by(gold, ["finding"], [diseases]):
        if labels[pair, disease] != NOT_MENTIONED or rules.gold_only_diseases == "added":
            labels[pair, disease] = codes[0] if len(set(codes)) == 1 else NOT_MENTIONED
    return labels


def _region_labels(
    silver: pd.DataFrame, gold: pd.DataFrame, pairs: pd.DataFrame, rules: LabelRules, rejections: Rejections
) -> np.ndarray:
    """Labels [pair, region x disease] of the regions, region-major; gold replaces silver cell by cell."""
    known = [{region: i for i, region in enumerate(REGIONS)}, _disease_of_finding(rules.region_edema_finding)]
    labels = np.full((len(pairs), len(REGIONS), len(DISEASES)), NOT_MENTIONED, np.int8)
    for source in (silver, gold):
        for (pair, region, disease), codes in _codes_by(source, ["region", "finding"], known):
            conflict = len(set(codes)) > 1
            if conflict:
                reason = "region compared twice, differently"
                rejections.exclude(reason, where=WHERE, examples=_names(pairs.iloc[[pair]]))
            dropped = conflict and rules.region_conflicts == "dropped"
            labels[pair, region, disease] = NOT_MENTIONED if dropped else codes[-1]
    return labels.reshape(len(pairs), -1)


def _disease_of_finding(edema_finding: str) -> dict[str, int]:
    """The number of the disease that a finding compares, by the finding's name."""
    return {edema_finding if disease == _EDEMA else disease: i for i, disease in enumerate(DISEASES)}


def _codes_by(
    comparisons: pd.DataFrame, columns: Sequence[str], numbers: Sequence[Mapping[str, int]]
) -> list[tuple[tuple[int, ...], list[int]]]:
    """((pair, a number for each of `columns`), codes in order); rows with a value that has no number are left out."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for pair, code, *values in comparisons[["pair", "code", *columns]].itertuples(index=False, name=None):
        if all(value in number for value, number in zip(values, numbers, strict=True)):
            key = (pair, *(number[value] for value, number in zip(values, numbers, strict=True)))
            groups[key].append(code)
    return list(groups.items())


def _names(rows: pd.DataFrame) -> list[str]:
    return [f"second dicom_id {name}" for name in rows["second_dicom_id"].head()]
