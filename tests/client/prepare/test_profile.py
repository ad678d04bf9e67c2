"""Profiles: what comes with the project is sound, and a faulty one is refused by file and key."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import client.prepare
from client.prepare.profile import PROFILES, load_profile
from client.prepare.rejections import PrepareError
from dipro_model.vocabulary import EHR_VARIABLES

FOLDER = Path(client.prepare.__path__[0]) / "profiles"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy of the corrected profile with its tables, to be changed."""
    for path in FOLDER.glob("*corrected*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "corrected.yaml"


def change(path: Path, edit: Callable[[dict], object]) -> Path:
    content = yaml.safe_load(path.read_text())
    edit(content)
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", PROFILES)
def test_each_profile_has_the_38_variables_in_order_with_sound_bounds(name: str):
    variables = load_profile(name).variables
    assert tuple(variable.name for variable in variables) == EHR_VARIABLES
    assert all(variable.low <= variable.fill <= variable.high for variable in variables)


@pytest.mark.parametrize("name", PROFILES)
def test_an_item_measures_one_variable_only(name: str):
    items = [item.item for variable in load_profile(name).variables for item in variable.items]
    assert len(items) == len(set(items))


def test_published_variables_equal_the_reference_table(shared_folder: Path):
    import pandas as pd

    reference = pd.read_csv(shared_folder / "data" / "ehr_variables.csv").set_index("variable")
    for variable in load_profile("published").variables:
        row = reference.loc[variable.name]
        (item,) = variable.items
        assert (item.item, item.source) == (row["itemid"], row["source_table"])
        assert (variable.low, variable.high, variable.fill) == tuple(
            row[["outlier_low", "outlier_high", "impute"]].astype(float)
        )


def test_a_copy_has_the_same_digest_and_a_change_another(own: Path):
    same = load_profile(own).digest
    assert same == load_profile("corrected").digest
    assert load_profile(change(own, lambda content: content["stays"].update(min_age=21))).digest != same


def test_a_file_may_hold_only_what_differs_from_a_profile(tmp_path: Path):
    path = tmp_path / "more_tests.yaml"
    path.write_text("based_on: corrected\nsplit: {test_share: 0.6}\n")
    ours, base = load_profile(path), load_profile("corrected")
    assert ours.rules.split == replace(base.rules.split, test_share=0.6)
    assert replace(ours.rules, split=base.rules.split) == base.rules
    assert (ours.variables, ours.units, ours.name) == (base.variables, base.units, "more_tests")
    path.write_text("based_on: corrected\nsplit: {test_shares: 0.6}\n")
    with pytest.raises(PrepareError, match=r"more_tests\.yaml: split\.test_shares: unexpected"):
        load_profile(path)
    path.write_text("based_on: newest\n")
    with pytest.raises(PrepareError, match="based_on: expected one of corrected, published, found 'newest'"):
        load_profile(path)


def test_a_changed_table_changes_the_digest(own: Path):
    table = own.parent / "variables_corrected.csv"
    table.write_text(table.read_text().replace("0,390,86,last", "0,390,87,last"))
    assert load_profile(own).digest != load_profile("corrected").digest


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content["ehr"].update(colour="red"), r"corrected\.yaml: ehr\.colour: unexpected"),
        (lambda content: content.update(audio={}), r"corrected\.yaml: audio: unexpected"),
        (lambda content: content["stays"].update(min_age="eighteen"), r"stays\.min_age: .*number"),
        (lambda content: content["stays"].update(age="at birth"), r"stays\.age: .*'at admission' or 'anchor'"),
        (lambda content: content["ehr"].pop("late_hours"), r"ehr\.late_hours: .*(required|missing)"),
        (lambda content: content.pop("split"), r"split: .*(required|missing)"),
        (lambda content: content["ehr"].update(variables="nowhere.csv"), r"nowhere\.csv: expected a table"),
        (lambda content: content["demographics"]["height"][0].update(unit="cubit"), "the units cubit of Height"),
    ],
)
def test_a_faulty_profile_is_refused_by_file_and_key(own: Path, edit: Callable[[dict], object], message: str):
    with pytest.raises(PrepareError, match=message):
        load_profile(change(own, edit))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Heart Rate", "Pulse", "missing Heart Rate; unknown Pulse"),
        ("0,390,86,last", "0,many,86,last", r"line \d+: expected a number in high"),
        ("220045,chartevents", "220045,labevents", "expected source to be one of chartevents, outputevents"),
        ("bpm,number,number", "bpm,guess,number", "expected cleaning to be one of"),
        ("variable,item", "name,item", "expected the columns variable, item"),
        ("0,390,86,last", "0,390,86,last,1", "expected 10 fields"),
        (
            "220621,chartevents,mg/dL,plain number,number,0,2200",
            "220621,chartevents,mg/dL,plain number,number,0,99",
            "equal",
        ),
    ],
)
def test_a_faulty_variable_table_is_refused_by_line(own: Path, old: str, new: str, message: str):
    table = own.parent / "variables_corrected.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))
    with pytest.raises(PrepareError, match=message):
        load_profile(own)


@pytest.mark.parametrize("content", ["stays: [", "just words", "- a\n- b\n"])
def test_what_is_no_profile_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(PrepareError, match=r"mine\.yaml: expected"):
        load_profile(path)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(PrepareError, match="corrected, published"):
        load_profile("best")
