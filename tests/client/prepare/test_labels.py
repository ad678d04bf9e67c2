"""Progression labels: agreement, gold, and each fault of the published preparation beside its correction."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from client.prepare.labels import GOLD_COLUMNS, GOLD_TABLE, build_pairs, neighbouring_pairs, read_gold
from client.prepare.raw import connect
from client.prepare.rejections import PrepareError, Rejections
from client.prepare.scene_graphs import COMPARISON_COLUMNS
from dipro_model.vocabulary import DISEASES, PROGRESSIONS, REGIONS
from tests.client.prepare.imaging_world import rules_of

PUBLISHED, CORRECTED = rules_of("published").labels, rules_of("corrected").labels
WORSENED, IMPROVED, NO_CHANGE, NOT_MENTIONED = range(4)
EDEMA = "pulmonary edema/hazy opacity"


def said(region, finding, *words, present=True, pair=("a", "b")) -> tuple:
    return (*pair, region, finding, present, words)


def comparisons(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def pairs_of(silver, gold=(), rules=CORRECTED, rejections=None, hours=(1.0, 20.0)) -> pd.DataFrame:
    images = pd.DataFrame({"dicom_id": ["a", "b", "c"][: len(hours)], "stay_id": 5, "hours": hours})
    return build_pairs(images, comparisons(silver), comparisons(list(gold)), rules, rejections or Rejections())


def label(pairs: pd.DataFrame, disease: str) -> int:
    return pairs[disease].iloc[0] if len(pairs) else NOT_MENTIONED


def region_label(pairs: pd.DataFrame, region: str, disease: str) -> int:
    values = np.asarray(pairs["region_progression"].iloc[0]).reshape(len(REGIONS), len(DISEASES))
    return values[REGIONS.index(region), DISEASES.index(disease)]


BOTH = pytest.mark.parametrize("rules", [PUBLISHED, CORRECTED])


def test_neighbours_are_consecutive_images_of_one_stay():
    images = pd.DataFrame({"dicom_id": list("dcab"), "stay_id": [2, 1, 1, 1], "hours": [0.0, 30.0, 1.0, 9.0]})
    found = neighbouring_pairs(images).to_numpy().tolist()
    assert found == [[1, "a", "b", 1.0, 9.0], [1, "b", "c", 9.0, 30.0]]


@BOTH
def test_a_disease_is_labelled_where_all_regions_agree(rules):
    silver = [
        said("left lung", "pneumonia", "worsened"),
        said("trachea", "pneumonia", "worsened"),
        said("left lung", "lung opacity", "improved"),
        said("right lung", "lung opacity", "no change"),
    ]
    rejections = Rejections()
    pairs = pairs_of(silver, rules=rules, rejections=rejections)
    assert label(pairs, "pneumonia") == WORSENED
    assert label(pairs, "lung opacity") == NOT_MENTIONED
    assert rejections.count("disease whose regions disagree") == 1
    assert region_label(pairs, "left lung", "lung opacity") == IMPROVED
    assert region_label(pairs, "right lung", "lung opacity") == NO_CHANGE
    assert pairs.loc[0, ["first_hour", "second_hour"]].tolist() == [1.0, 20.0]


@BOTH
def test_two_words_in_one_relationship_say_nothing(rules):
    silver = [
        said("left lung", "pneumonia", "worsened", "improved"),
        said("right lung", "pneumonia", "improved"),
    ]
    rejections = Rejections()
    pairs = pairs_of(silver, rules=rules, rejections=rejections)
    assert label(pairs, "pneumonia") == IMPROVED
    assert region_label(pairs, "left lung", "pneumonia") == NOT_MENTIONED
    assert rejections.count("comparison with more than one word") == 1


@BOTH
def test_only_labelled_neighbours_are_pairs(rules):
    silver = [
        said("left lung", "pneumonia", "worsened", pair=("a", "c")),  # not neighbours
        said("left lung", "pneumothorax", "worsened", pair=("a", "b")),  # none of the seven diseases
        said("left lung", "pneumonia", "no change", pair=("b", "c")),
    ]
    rejections = Rejections()
    pairs = pairs_of(silver, rules=rules, rejections=rejections, hours=(1.0, 20.0, 40.0))
    assert pairs[["first_dicom_id", "second_dicom_id"]].to_numpy().tolist() == [["b", "c"]]
    assert rejections.count("pair of images without a label") == 1
    assert rejections.count("comparison of images that are no neighbouring kept ones") == 1


@BOTH
def test_gold_corrects_a_region(rules):
    silver = [said("left lung", "pneumonia", "worsened"), said("right lung", "pneumonia", "worsened")]
    pairs = pairs_of(silver, [said("left lung", "pneumonia", "improved")], rules)
    assert label(pairs, "pneumonia") == IMPROVED
    assert region_label(pairs, "left lung", "pneumonia") == IMPROVED
    assert region_label(pairs, "right lung", "pneumonia") == WORSENED


def test_gold_is_matched_per_disease():
    silver = [said("left lung", "pneumonia", "worsened"), said("left lung", "lung opacity", "worsened")]
    gold = [said("left lung", "lung opacity", "no change"), said("left lung", "pneumonia", "worsened")]
    published, corrected = pairs_of(silver, gold, PUBLISHED), pairs_of(silver, gold)
    assert label(published, "pneumonia") == NO_CHANGE, "the first gold row of a pair overrides every disease"
    assert label(corrected, "pneumonia") == WORSENED
    assert label(published, "lung opacity") == label(corrected, "lung opacity") == NO_CHANGE


def test_diseases_that_only_gold_mentions_are_added():
    silver, gold = [said("left lung", "pneumonia", "worsened")], [said("left lung", "atelectasis", "improved")]
    assert label(pairs_of(silver, gold, PUBLISHED), "atelectasis") == NOT_MENTIONED
    assert label(pairs_of(silver, gold), "atelectasis") == IMPROVED
    assert len(pairs_of([], gold, PUBLISHED)) == 0
    assert label(pairs_of([], gold), "atelectasis") == IMPROVED, "gold alone labels a pair"


def test_gold_rows_of_a_disease_that_disagree_leave_no_label():
    silver = [said("left lung", "pneumonia", "worsened"), said("left lung", "lung opacity", "worsened")]
    gold = [said("left lung", "pneumonia", "improved"), said("right lung", "pneumonia", "no change")]
    assert label(pairs_of(silver, gold), "pneumonia") == NOT_MENTIONED


def test_edema_reaches_the_region_labels():
    silver = [said("left lung", EDEMA, "worsened")]
    published, corrected = pairs_of(silver, rules=PUBLISHED), pairs_of(silver)
    assert label(published, "pulmonary edema") == label(corrected, "pulmonary edema") == WORSENED
    assert region_label(published, "left lung", "pulmonary edema") == NOT_MENTIONED
    assert region_label(corrected, "left lung", "pulmonary edema") == WORSENED


def test_a_finding_marked_absent_is_no_comparison_of_the_finding():
    silver = [
        said("left lung", "pneumonia", "worsened", present=False),
        said("left lung", "lung opacity", "worsened"),
    ]
    gold = [said("left lung", "consolidation", "improved", present=False)]
    rejections = Rejections()
    published, corrected = (
        pairs_of(silver, gold, replace(PUBLISHED, gold_only_diseases="added")),
        pairs_of(silver, gold, rejections=rejections),
    )
    assert region_label(published, "left lung", "pneumonia") == WORSENED
    assert region_label(published, "left lung", "consolidation") == IMPROVED
    for disease in ("pneumonia", "consolidation"):
        assert region_label(corrected, "left lung", disease) == NOT_MENTIONED
        assert label(corrected, disease) == NOT_MENTIONED
    assert rejections.count("comparison of a finding marked as absent") == 2


def test_a_region_with_two_labels_for_a_disease_has_none():
    silver = [
        said("left lung", "pneumonia", "improved"),
        said("left lung", "pneumonia", "worsened"),
        said("left lung", "lung opacity", "worsened"),
    ]
    rejections = Rejections()
    assert region_label(pairs_of(silver, rules=PUBLISHED), "left lung", "pneumonia") == WORSENED, "the last wins"
    assert region_label(pairs_of(silver, rejections=rejections), "left lung", "pneumonia") == NOT_MENTIONED
    assert rejections.count("region compared twice, differently") == 1


def test_random_comparisons_equal_a_slow_loop():
    rng = np.random.default_rng(2)
    findings = [EDEMA if disease == "pulmonary edema" else disease for disease in DISEASES]
    for _ in range(20):
        silver = [
            said(
                rng.choice(REGIONS), rng.choice(findings), *rng.choice(PROGRESSIONS, rng.integers(1, 3), replace=False)
            )
            for _ in range(12)
        ]
        pairs = pairs_of(silver)
        for disease, finding in zip(DISEASES, findings, strict=True):
            words = [row[5][0] for row in silver if row[3] == finding and len(row[5]) == 1]
            agreed = PROGRESSIONS.index(words[0]) if len(set(words)) == 1 else NOT_MENTIONED
            assert label(pairs, disease) == agreed
            for region in REGIONS if len(pairs) else ():
                words = [row[5][0] for row in silver if row[2:4] == (region, finding) and len(row[5]) == 1]
                agreed = PROGRESSIONS.index(words[0]) if len(set(words)) == 1 else NOT_MENTIONED
                assert region_label(pairs, region, disease) == agreed


def read(folder, rows, columns=(*GOLD_COLUMNS, "attribute")):
    path = folder / GOLD_TABLE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join("\t".join(row) for row in [columns, *rows]) + "\n")
    rejections = Rejections()
    with connect(folder) as connection:
        return read_gold(connection, folder, rejections), rejections


def test_the_gold_file_is_read_with_its_faulty_rows_counted(tmp_path):
    rows = [
        ("7", "b", "a", "pneumonia", "worsened", "left lung", "disease|yes|pneumonia"),
        ("8", "d", "c", "pneumonia", "unclear", "left lung", "disease|no|pneumonia"),
        ("nine", "f", "e", "pneumonia", "worsened", "left lung", "disease|yes|pneumonia"),
        ("9", "", "e", "pneumonia", "worsened", "left lung", "disease|yes|pneumonia"),
    ]
    gold, rejections = read(tmp_path, rows)
    assert gold["subject_id"].tolist() == [7, 8], "a patient of a row without a usable word is a gold patient too"
    assert gold[COMPARISON_COLUMNS].to_numpy().tolist() == [
        ["a", "b", "left lung", "pneumonia", True, ("worsened",)],
        ["c", "d", "left lung", "pneumonia", False, ()],
    ]
    assert rejections.count("gold comparison is not worsened, improved or no change") == 1
    assert rejections.count("gold row without patient, image pair or label") == 2


def test_a_gold_file_without_attributes_is_read_and_one_without_a_needed_column_is_named(tmp_path):
    rows = [("7", "b", "a", "pneumonia", "worsened", "left lung")]
    gold, _ = read(tmp_path, rows, GOLD_COLUMNS)
    assert gold["present"].all()
    with pytest.raises(PrepareError, match=r"gold_object_comparison.*missing bbox"):
        read(tmp_path, [row[:-1] for row in rows], GOLD_COLUMNS[:-1])
