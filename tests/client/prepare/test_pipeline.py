"""The whole preparation: whole or not at all, the same every time, and errors before the first long step."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from client.cohort import COHORT_FILES, FEATURE_FOLDER, MANIFEST, TABLES, CohortError, open_cohort
from client.prepare.profile import load_profile
from client.prepare.rejections import PrepareError
from client.prepare.writer import staged
from dipro_model.vocabulary import EHR_VARIABLES
from tests.client.prepare.whole_world import NUM_PATIENTS, RawFiles, write_raw_files


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> RawFiles:
    return write_raw_files(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def cohort_folder(raw: RawFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "cohort"
    raw.prepare(folder)
    return folder


def test_a_prepared_cohort_opens_and_holds_every_patient(cohort_folder: Path):
    cohort = open_cohort(cohort_folder)
    assert {path.name for path in cohort_folder.iterdir()} == {*COHORT_FILES, MANIFEST}
    assert len(cohort.stays) == NUM_PATIENTS
    assert len(cohort.pairs) == NUM_PATIENTS
    assert cohort.regions.shape == (2 * NUM_PATIENTS, 10, 224, 224)
    assert sorted(cohort.stays["split"]) == ["test"] * 2 + ["train"] * 7 + ["val"]
    assert set(cohort.statistics["ehr"]) == set(EHR_VARIABLES)


def test_the_manifest_names_what_the_cohort_was_made_with_and_no_place_or_time(cohort_folder: Path):
    manifest = json.loads((cohort_folder / MANIFEST).read_text())
    assert manifest["profile_digest"] == load_profile("corrected").digest
    assert manifest["counts"]["stays"] == NUM_PATIENTS
    assert set(manifest["software"]) >= {"dipro-fed", "duckdb", "pyarrow"}
    text = (cohort_folder / MANIFEST).read_text() + (cohort_folder / "report.json").read_text()
    assert str(cohort_folder.parent) not in text


def test_the_same_files_give_the_same_bytes(raw: RawFiles, cohort_folder: Path, tmp_path: Path):
    raw.prepare(tmp_path / "again", workers=2)
    for name in (MANIFEST, *COHORT_FILES):
        assert (tmp_path / "again" / name).read_bytes() == (cohort_folder / name).read_bytes(), name


def _prepare_until(raw: RawFiles, out: Path, step: str) -> None:
    def die(what: str, done: int, total: int) -> None:
        if what == step:
            os.kill(os.getpid(), signal.SIGKILL)

    raw.prepare(out, progress=die)


@pytest.mark.parametrize("step", ["scene graphs", "chartevents, per cent read", "hourly EHR of stays", "checksums"])
def test_a_killed_run_leaves_no_cohort_and_the_next_one_finishes(
    raw: RawFiles, cohort_folder: Path, tmp_path: Path, step: str
):
    out = tmp_path / "cohort"
    process = multiprocessing.get_context("spawn").Process(target=_prepare_until, args=(raw, out, step))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "cohort.partial").is_dir()
    for place in (out, tmp_path / "cohort.partial"):
        with pytest.raises(CohortError, match="found no manifest"):
            open_cohort(place)
    raw.prepare(out)
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]
    assert (out / MANIFEST).read_bytes() == (cohort_folder / MANIFEST).read_bytes()


def test_an_error_leaves_nothing_behind(raw: RawFiles, tmp_path: Path):
    with pytest.raises(PrepareError, match="expected the table icu/icustays"):
        RawFiles(tmp_path, raw.radiographs, raw.graphs).prepare(tmp_path / "out" / "cohort")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_existing_cohort_is_only_replaced_on_request(raw: RawFiles, tmp_path: Path):
    out = tmp_path / "cohort"
    raw.prepare(out)
    before = (out / MANIFEST).stat().st_mtime_ns
    with pytest.raises(PrepareError, match="prepared cohort already"):
        raw.prepare(out)
    assert (out / MANIFEST).stat().st_mtime_ns == before
    # What training computed from the old regions goes with them.
    (out / FEATURE_FOLDER).mkdir()
    raw.prepare(out, overwrite=True, profile="published")
    assert open_cohort(out).manifest["profile"] == "published"
    assert not (out / FEATURE_FOLDER).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]


def test_a_half_written_cohort_is_replaced_and_a_foreign_folder_is_not(raw: RawFiles, tmp_path: Path):
    half, foreign = tmp_path / "half", tmp_path / "foreign"
    for folder, name in ((half, "stays.parquet"), (foreign, "thesis.docx")):
        folder.mkdir()
        (folder / name).write_text("unfinished")
    raw.prepare(half)
    open_cohort(half)
    with pytest.raises(PrepareError, match=r"thesis\.docx"):
        raw.prepare(foreign, overwrite=True)
    assert (foreign / "thesis.docx").read_text() == "unfinished"


def _stage_twice(out: Path) -> None:
    with staged(out, overwrite=False), staged(out, overwrite=False):
        raise AssertionError("the second must not begin")


def test_two_preparations_of_one_cohort_do_not_mix(tmp_path: Path):
    with pytest.raises(PrepareError, match="another preparation"):
        _stage_twice(tmp_path / "cohort")
    # The first ended with the second's error, so it, too, left nothing.
    assert list(tmp_path.iterdir()) == []


def test_the_documented_way_to_write_a_cohort_makes_one_that_opens(
    cohort_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = (Path(__file__).parents[3] / "docs" / "cohort.md").read_text()
    example = text.split("```python\n")[1].split("```")[0]
    cohort = open_cohort(cohort_folder)
    records = {name: getattr(cohort, name) for name in TABLES}
    monkeypatch.chdir(tmp_path)
    exec(example, {"my_records": records, "my_crops": cohort.regions, "my_statistics": cohort.statistics["ehr"]})
    written = open_cohort(tmp_path / "cohort")
    for name, frame in records.items():
        pd.testing.assert_frame_equal(getattr(written, name), frame)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("imagenome/silver_dataset", "folder of scene graphs"),
        ("cxr/files", "folder of radiographs"),
        ("imagenome/gold_dataset/gold_object_comparison_with_coordinates.txt", "gold_object_comparison"),
        ("cxr/mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-2.0.0-metadata"),
        ("raw/hosp/patients.csv", "hosp/patients"),
        ("raw/icu/outputevents.csv", "icu/outputevents"),
    ],
)
def test_whatever_is_missing_is_named_before_the_first_step(raw: RawFiles, tmp_path: Path, missing: str, message: str):
    hidden = raw.tables.parent / missing
    steps: list[str] = []
    hidden.rename(tmp_path / "hidden")
    try:
        with pytest.raises(PrepareError, match=message):
            raw.prepare(tmp_path / "cohort", progress=lambda what, done, total: steps.append(what))
    finally:
        (tmp_path / "hidden").rename(hidden)
    assert steps == []


def test_the_command_prepares_and_sums_up(raw: RawFiles, tmp_path: Path):
    command = [sys.executable, "-m", "dipro_fed", "prepare", "--mimic-iv", raw.tables, "--mimic-cxr", raw.radiographs]
    command += ["--chest-imagenome", raw.graphs, "--out", tmp_path / "cohort", "--workers", "1"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "ehr_hourly" in finished.stdout
    assert "Left out, by reason" in finished.stdout
    open_cohort(tmp_path / "cohort")
    refused = subprocess.run([*command, "--profile", "best"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "one of corrected, published, or a YAML file" in " ".join(refused.stderr.split())
