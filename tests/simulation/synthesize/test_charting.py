"""Charted values: the hospital's items and units, and that they follow the patient's state."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from dipro_model.vocabulary import EHR_VARIABLES
from simulation.synthesize.charting import EYE, MOTOR, VERBAL, VERBAL_INTUBATED, chart_events, draw_body, urine_events
from simulation.synthesize.items import OTHER_LABELS, panels
from simulation.synthesize.settings import HospitalSettings

PLAIN = HospitalSettings(name="plain")


@pytest.fixture(scope="module")
def charts(courses, world):
    """Function from a hospital to {itemid: [one array of numbers a patient]} of 150 patients."""

    def chart(hospital: HospitalSettings, count: int = 150):
        found: dict[int, list] = {}
        for index, (_, patient) in enumerate(courses[:count]):
            rng = np.random.default_rng(index)
            for events in chart_events(rng, world, hospital, patient, draw_body(rng)):
                found.setdefault(events.itemid, []).append((patient, np.array(events.numbers, dtype=float), events))
        return found

    return chart


def test_all_variables_of_the_model_are_charted() -> None:
    items = {item.variable for panel in panels().values() for item in panel.items}
    elsewhere = {
        "Glascow coma scale eye opening",
        "Glascow coma scale motor response",
        "Glascow coma scale verbal response",
        "Height",
        "Weight",
        "Urine output",
    }
    assert set(EHR_VARIABLES) <= items | elsewhere


def test_items_labels_and_units_are_those_of_the_variable_table(shared_folder) -> None:
    with (shared_folder / "data" / "ehr_variables.csv").open() as file:
        table = {int(row["itemid"]): row for row in csv.DictReader(file)}
    ours = {item.itemid: item for panel in panels().values() for item in panel.items}
    assert set(table) <= set(ours) | set(OTHER_LABELS)
    for itemid in set(table) & set(ours):
        assert ours[itemid].label == table[itemid]["item_label"]
        names = {ours[itemid].variable, table[itemid]["variable"]}
        # The published table takes INR for the prothrombin time; here INR keeps its own name.
        assert len(names) == 1 or names == {"INR", "Prothrombin time"}
        low, high = float(table[itemid]["outlier_low"]), float(table[itemid]["outlier_high"])
        if ours[itemid].variable not in ("Temperature", "Fraction inspired oxygen"):  # other units there
            assert low <= ours[itemid].low < ours[itemid].high <= high


def test_values_follow_the_state(charts) -> None:
    found = charts(PLAIN)
    for itemid, state, sign in ((220045, "physiology", 1), (220179, "physiology", -1), (220277, "respiratory", -1)):
        means = [np.median(numbers) for _, numbers, _ in found[itemid]]
        states = [getattr(p.latents, state) + getattr(p.latents, f"{state}_trend") for p, _, _ in found[itemid]]
        assert sign * np.corrcoef(means, states)[0, 1] > 0.4, itemid


def test_sampling_is_irregular_and_incomplete(charts) -> None:
    found = charts(PLAIN)
    gaps = np.concatenate([np.diff(events.minutes) for _, _, events in found[220045]])
    assert gaps.min() > 0.0
    assert len(np.unique(gaps)) > 20
    assert len(found[227429]) < 100 < len(found[220045])  # troponin is sparse, heart rate is not


def test_few_values_are_absurd(charts) -> None:
    rates = np.concatenate([numbers for _, numbers, _ in charts(PLAIN)[220045]])
    assert 0.0 < (rates > 1000.0).mean() < 0.002
    assert np.abs(np.median(rates) - 86.0) < 10.0


def test_units_and_items_of_hospitals(charts) -> None:
    fahrenheit, celsius = charts(PLAIN, 20), charts(replace(PLAIN, celsius=True, imperial=True), 20)
    assert 223762 not in fahrenheit
    assert 223761 not in celsius
    for (_, hot, _), (_, cold, _) in zip(fahrenheit[223761], celsius[223762], strict=True):
        assert np.allclose((hot - 32.0) * 5.0 / 9.0, cold, atol=0.09)
    for (_, cm, _), (_, inches, _) in zip(fahrenheit[226730], celsius[226707], strict=True):
        assert abs(cm[0] - 2.54 * inches[0]) <= 1.28
    for (_, kg, _), (_, pounds, _) in zip(fahrenheit[226512], celsius[226531], strict=True):
        assert abs(kg[0] - 0.453592 * pounds[0]) < 0.1


def test_what_a_hospital_leaves_out_changes_nothing_else(charts) -> None:
    whole, less = charts(PLAIN, 20), charts(replace(PLAIN, missing_variables=frozenset({"Albumin", "Heart Rate"})), 20)
    assert set(whole) - set(less) == {227456, 220045}
    for itemid in less:
        assert [e.texts for _, _, e in whole[itemid]] == [e.texts for _, _, e in less[itemid]]


def test_oxygen_as_fraction_and_arterial_pressure(charts) -> None:
    found = charts(replace(PLAIN, oxygen_as_fraction=True, arterial_pressure=True), 60)
    fractions = np.concatenate([numbers for _, numbers, _ in found[223835]])
    assert np.median(fractions) < 1.0
    assert len(found[220050]) == len(found[220051]) == len(found[220052]) > len(found[220179]) > 0


def test_coma_scale_is_charted_in_words_with_their_scores(charts) -> None:
    found = charts(PLAIN)
    for itemid, words in ((220739, EYE), (223901, MOTOR), (223900, VERBAL)):
        for _, numbers, events in found[itemid]:
            for text, number in zip(events.texts, numbers, strict=True):
                assert number == 1 if text == VERBAL_INTUBATED else text == words[int(number) - 1]
    assert any(VERBAL_INTUBATED in events.texts for _, _, events in found[223900])


def test_urine_falls_with_physiology(courses, world) -> None:
    flows, states = [], []
    for index, (_, patient) in enumerate(courses[:150]):
        for events in urine_events(np.random.default_rng(index), world, patient):
            flows.append(np.sum(np.array(events.numbers, dtype=float)) / patient.stay_hours)
            states.append(patient.latents.physiology)
    assert 100 < len(flows) < 145
    assert np.corrcoef(flows, states)[0, 1] < -0.4
