"""The written folders: MIMIC's shapes, consistent with each other and with the truth, whole or absent."""

import csv
import gzip
import hashlib
import json
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from dipro_fed.main import app
from dipro_model.vocabulary import REGIONS
from simulation.synthesize import generate
from simulation.synthesize.generate import GOLD_FILE, IMAGE_TRUTH, SCENE_GRAPHS, TRUTH, synthesize

SMALL = {"hospitals": 2, "patients": 9, "seed": 5, "image_pixels": 96}
"""The run whose output the fixture `small` holds."""

# Written by hand from the public documentation of MIMIC-IV v2.2 and MIMIC-CXR-JPG v2.0.0.
HEADERS = {
    "mimiciv/hosp/patients.csv.gz": "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
    "mimiciv/hosp/admissions.csv.gz": "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,"
    "admit_provider_id,admission_location,discharge_location,insurance,language,marital_status,race,edregtime,"
    "edouttime,hospital_expire_flag",
    "mimiciv/icu/icustays.csv.gz": "subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los",
    "mimiciv/icu/chartevents.csv.gz": "subject_id,hadm_id,stay_id,caregiver_id,charttime,storetime,itemid,value,"
    "valuenum,valueuom,warning",
    "mimiciv/icu/outputevents.csv.gz": "subject_id,hadm_id,stay_id,caregiver_id,charttime,storetime,itemid,value,"
    "valueuom",
    "mimiciv/icu/d_items.csv.gz": "itemid,label,abbreviation,linksto,category,unitname,param_type,lownormalvalue,"
    "highnormalvalue",
    "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv": "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,"
    "ViewPosition,Rows,Columns,StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
    "PatientOrientationCodeSequence_CodeMeaning",
    "mimic-cxr-jpg/mimic-cxr-2.0.0-chexpert.csv": "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,"
    "Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,"
    "Pneumonia,Pneumothorax,Support Devices",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[generate.HospitalSummary]:
    """Written in this process."""
    return synthesize(tmp_path_factory.mktemp("synthetic") / "small", **SMALL)


@pytest.fixture(scope="module")
def folders(small: list[generate.HospitalSummary]) -> list[Path]:
    return [summary.folder for summary in small]


def lines(path: Path) -> list[str]:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8").splitlines()


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(lines(path)))


def moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S")


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_tables_have_the_headers_of_mimic(folders) -> None:
    for folder in folders:
        for name, header in HEADERS.items():
            first, *rest = lines(folder / name)
            assert first == header
            assert rest, name


def test_shapes_equal_those_of_the_fixture(folders, demo_linked) -> None:
    for name in HEADERS:
        assert lines(folders[0] / name)[0] == lines(demo_linked / name)[0], name
    assert lines(folders[0] / GOLD_FILE)[0] == lines(demo_linked / GOLD_FILE)[0]
    ours, theirs = (
        [json.loads(path.read_text()) for path in sorted((root / SCENE_GRAPHS).glob("*_SceneGraph.json"))]
        for root in (folders[0], demo_linked)
    )
    assert set(ours[0]) == set(theirs[0])
    assert {key for graph in ours for item in graph["objects"] for key in item} == {
        key for graph in theirs for item in graph["objects"] for key in item
    }
    for part in ("relationships", "attributes"):
        mine, real = (next(graph[part][0] for graph in graphs if graph[part]) for graphs in (ours, theirs))
        regions = {mine["bbox_name"], real["bbox_name"]}  # an attribute is also keyed by its region's name
        assert set(mine) - regions == set(real) - regions


def test_files_do_not_depend_on_the_number_of_workers(small, tmp_path) -> None:
    synthesize(tmp_path / "again", **SMALL, workers=2)
    assert digests(tmp_path / "again") == digests(small[0].folder.parent)


def test_another_seed_gives_other_patients(small, tmp_path) -> None:
    (other,) = synthesize(tmp_path / "other", **{**SMALL, "hospitals": 1, "patients": 2, "seed": 6})
    first = pq.read_table(small[0].folder / TRUTH).column("risk").to_pylist()[:2]
    assert pq.read_table(other.folder / TRUTH).column("risk").to_pylist() != first


def test_identifiers_of_hospitals_are_disjoint(folders) -> None:
    for name, column in (
        ("mimiciv/icu/icustays.csv.gz", "subject_id"),
        ("mimiciv/icu/icustays.csv.gz", "stay_id"),
        ("mimiciv/icu/icustays.csv.gz", "hadm_id"),
        ("mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv", "study_id"),
        ("mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv", "dicom_id"),
    ):
        first, second = ({row[column] for row in rows(folder / name)} for folder in folders)
        assert first
        assert not first & second, column


def test_every_image_of_the_metadata_is_there_in_its_size(folders) -> None:
    for folder in folders:
        images = rows(folder / "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv")
        for row in images:
            subject = row["subject_id"]
            path = folder / "mimic-cxr-jpg" / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{row['study_id']}"
            with Image.open(path / f"{row['dicom_id']}.jpg") as image:
                assert image.mode == "L"
                assert image.size == (int(row["Columns"]), int(row["Rows"]))
        assert len(list((folder / "mimic-cxr-jpg" / "files").rglob("*.jpg"))) == len(images)


def test_deaths_lie_inside_the_admission_and_equal_the_truth(folders) -> None:
    for folder in folders:
        truth = {row["subject_id"]: row["died"] for row in pq.read_table(folder / TRUTH).to_pylist()}
        for row in rows(folder / "mimiciv/hosp/admissions.csv.gz"):
            assert truth[int(row["subject_id"])] == bool(row["deathtime"]) == (row["hospital_expire_flag"] == "1")
            if row["deathtime"]:
                assert moment(row["admittime"]) < moment(row["deathtime"]) <= moment(row["dischtime"])


def test_scene_graphs_box_the_regions_and_compare_with_an_earlier_image(folders) -> None:
    for folder in folders:
        hours = {row["dicom_id"]: row for row in pq.read_table(folder / IMAGE_TRUTH).to_pylist()}
        boxed = total = 0
        for path in (folder / SCENE_GRAPHS).glob("*_SceneGraph.json"):
            graph = json.loads(path.read_text())
            names = [item["bbox_name"] for item in graph["objects"]]
            assert set(names) <= set(REGIONS)
            boxed, total = boxed + len(names), total + len(REGIONS)
            for said in graph["relationships"]:
                current, previous = said["subject_id"].split("_")[0], said["object_id"].split("_")[0]
                assert current == graph["image_id"]
                assert hours[current]["stay_id"] == hours[previous]["stay_id"]
                assert hours[current]["hours"] > hours[previous]["hours"]
                assert said["bbox_name"] in names
        assert 0.95 < boxed / total <= 1.0


def test_gold_rows_are_of_known_patients_and_images(folders) -> None:
    for folder in folders:
        gold = list(csv.DictReader(lines(folder / GOLD_FILE), delimiter="\t"))
        metadata = rows(folder / "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv")
        images = {row["dicom_id"]: row["subject_id"] for row in metadata}
        assert gold
        for row in gold:
            assert images[row["current_image_id"]] == images[row["previous_image_id"]] == row["patient_id"]


def test_charted_times_lie_about_the_stay(folders) -> None:
    stays = {row["stay_id"]: row for row in rows(folders[0] / "mimiciv/icu/icustays.csv.gz")}
    charted = rows(folders[0] / "mimiciv/icu/chartevents.csv.gz")
    for row in charted + rows(folders[0] / "mimiciv/icu/outputevents.csv.gz"):
        time, stay = moment(row["charttime"]), stays[row["stay_id"]]
        assert (moment(stay["intime"]) - time).total_seconds() <= 3600.0
        assert time <= moment(stay["outtime"])


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or an empty folder"):
        synthesize(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_run_leaves_no_hospital(tmp_path, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "_describe", broken)
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "out", **{**SMALL, "patients": 1})
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"), [("patients", 0), ("hospitals", 99), ("seed", -1), ("workers", 0), ("image_pixels", 8)]
)
def test_numbers_out_of_range_are_refused_by_name(tmp_path, name, value) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}: expected"):
        synthesize(tmp_path / "out", **{**SMALL, name: value})
    assert not (tmp_path / "out").exists()


def test_command_line_writes_and_tells_the_best_reachable_auroc(tmp_path) -> None:
    words = ["synthesize", "--out", str(tmp_path / "out"), "--hospitals", "1", "--patients", "8", "--workers", "1"]
    result = CliRunner().invoke(app, [*words, "--image-pixels", "64", "--seed", "5"])
    assert result.exit_code == 0, result.output
    assert "university, 8 patients" in result.output
    assert "images and ehr" in result.output
    assert (tmp_path / "out" / "hospital_1" / TRUTH).is_file()
