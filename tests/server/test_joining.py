"""Before the first round: what sites disclose becomes one agreement, and patients at two sites are found."""

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from client.app import app
from client.normalisation import agreed_records
from client.records import SiteRecords, SiteSpec
from client.statistics import site_statistics
from dipro_model.vocabulary import EHR_VARIABLES, Task
from federation.agreement import Agreement, agree
from federation.audit import AUDIT
from federation.checkpoint import read_checkpoint
from federation.duplicates import DuplicatePatientsError
from federation.messages import JOIN, TRAIN, JoinReply
from federation.run_folder import read_run
from federation.settings import RunFiles, to_run_config
from federation.site_statistics import AgreementError
from federation.trained import load_trained
from server.app import coordinate
from server.joining import clock_ahead
from simulation.evaluate import predict
from simulation.in_process import InProcessGrid
from tests.federation.test_agreement import raw_values
from tests.federation.test_agreement import site as disclosing
from tests.make_cohort import reseal, write_cohort
from tests.small_run import federate, small_settings

SETTINGS = small_settings("federation.rounds=1")


@pytest.fixture
def cohorts(tmp_path: Path) -> list[Path]:
    return [
        write_cohort(tmp_path / "north", num_patients=16),
        write_cohort(tmp_path / "south", num_patients=16, seed=1, first_subject=500, ehr_mean=14.0),
    ]


def test_patients_at_two_sites_are_refused_before_anything_is_trained(tmp_path: Path, cohorts: list[Path]) -> None:
    settings = small_settings("federation.rounds=1", "federation.check_duplicates=true")
    shared = write_cohort(tmp_path / "west", num_patients=16, first_subject=510, seed=2)
    with pytest.raises(DuplicatePatientsError, match=r"found some at two: south and west share 6\."):
        federate(tmp_path / "run", [*cohorts, shared], settings.model_copy(update={"federation": _sites(settings, 3)}))
    assert {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()} == {"audit.jsonl"}
    federate(tmp_path / "run", cohorts, settings)
    assert read_run(tmp_path / "run").status == "finished"


def _sites(settings, number: int):
    return settings.federation.model_copy(update={"num_sites": number})


def test_a_model_carries_the_agreement_and_is_scored_with_it(tmp_path: Path, cohorts: list[Path]) -> None:
    federate(tmp_path / "run", cohorts, SETTINGS)
    specs = [SiteSpec(name=cohort.name, cohort=cohort) for cohort in cohorts]
    records = [SiteRecords(spec, crop_pixels=16) for spec in specs]
    expected = agree([site_statistics(each, Task.MORTALITY, minimum_cell=1) for each in records])
    # Of two sites with 100 values each, sd 2 and means 10 and 14.
    assert expected.ehr["Heart Rate"].mean == pytest.approx(12.0)
    assert expected.ehr["Heart Rate"].sd == pytest.approx(np.sqrt(8.0))
    kept = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt").agreement
    assert kept is not None
    assert Agreement.from_json(kept) == expected
    assert read_run(tmp_path / "run").more["agreement"] == {"digest": expected.digest, "notes": []}

    # A new hospital's values are read as the model learned to read them.
    trained = load_trained(tmp_path / "run")
    newcomer = write_cohort(tmp_path / "east", num_patients=16, seed=4, first_subject=900, ehr_mean=20.0)
    spec = SiteSpec(name="east", cohort=newcomer)
    agreed, raw = predict([spec], trained), predict([spec], replace(trained, agreement=None))
    assert np.abs(agreed.probabilities - raw.probabilities).max() > 1e-4
    stays = agreed_records(SiteRecords(spec, crop_pixels=16), expected, guest=True).stays
    number, stay = next(iter(SiteRecords(spec, crop_pixels=16).stays.items()))
    values = stay.ehr * 2.0 + 20.0
    np.testing.assert_allclose(stays[number].ehr, (values - 12.0) / np.sqrt(8.0), atol=1e-5)


def test_a_site_may_keep_an_item_to_itself_and_the_run_says_so(tmp_path: Path, cohorts: list[Path]) -> None:
    nodes = [
        {"site": "north", "cohort": str(cohorts[0]), "withhold": f"ehr/{EHR_VARIABLES[0]}, labels"},
        {"site": "south", "cohort": str(cohorts[1])},
    ]
    coordinate(_grid(tmp_path, nodes), SETTINGS, tmp_path / "run")
    (note,) = read_run(tmp_path / "run").more["agreement"]["notes"]
    assert note == f"north does not disclose ehr/{EHR_VARIABLES[0]}, labels/mortality: the site refuses"


def test_weights_learned_under_another_agreement_are_refused(tmp_path: Path, cohorts: list[Path]) -> None:
    def tamper(reply: Message) -> Message:
        if reply.metadata.message_type == TRAIN and reply.content.config_records["config"]["site"] == "south":
            reply.content.config_records["config"]["agreement-digest"] = "0" * 64
        return reply

    settings = small_settings("federation.rounds=1", "federation.quorum=1")
    federate(tmp_path / "run", cohorts, settings, tamper=tamper)
    (refused,) = read_run(tmp_path / "run").more["refused"]
    assert refused["site"] == "south"
    assert "expected the normalisation and class weights of agreement" in refused["reason"]


def test_sites_whose_values_mean_something_else_are_refused(tmp_path: Path, cohorts: list[Path]) -> None:
    fahrenheit = write_cohort(tmp_path / "west", num_patients=16, seed=2, first_subject=900)
    statistics = fahrenheit / "statistics.json"
    statistics.write_text(statistics.read_text().replace('"fill": 8.0', '"fill": 98.6', 1))
    reseal(fahrenheit)
    with pytest.raises(AgreementError, match="north and west cannot train one model: fill value"):
        federate(tmp_path / "run", [cohorts[0], fahrenheit], SETTINGS)


def _grid(folder: Path, nodes: list[dict[str, str]]) -> InProcessGrid:
    return InProcessGrid(app, to_run_config(SETTINGS, RunFiles(folder=str(folder / "run"))), nodes)


def test_the_log_says_how_far_a_sites_clock_is_off(tmp_path: Path, cohorts: list[Path]) -> None:
    def tamper(reply: Message) -> Message:
        if reply.metadata.message_type == JOIN and reply.content.config_records["config"]["site"] == "south":
            numbers = reply.content.metric_records["metrics"]
            numbers["clock"] = cast(float, numbers["clock"]) - 90
        return reply

    federate(tmp_path / "run", cohorts, SETTINGS, tamper=tamper)
    lines = [json.loads(line) for line in (tmp_path / "run" / AUDIT).read_text().splitlines()]
    ahead = {line["site"]: line["clock_ahead_seconds"] for line in lines if line["event"] == "joined"}
    # Both are this machine's clock, which is as far from itself as the bounds say at most.
    for site, off in (("north", 0), ("south", -90)):
        assert ahead[site]["least"] <= off <= ahead[site]["most"]
        assert ahead[site]["most"] - ahead[site]["least"] < 20


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    off=st.floats(-1e5, 1e5),
    waits=st.tuples(*[st.floats(0, 1e4)] * 3),
    asked=st.floats(1.6e9, 2e9),
)
def test_the_bounds_hold_the_clock_however_long_the_ways_are(off: float, waits: tuple, asked: float) -> None:
    out, work, back = waits
    reply = _said(clock=asked + out + work + off, seconds=work)
    ahead = clock_ahead(reply, asked, asked + out + work + back)
    assert ahead["least"] - 0.002 <= off <= ahead["most"] + 0.002
    assert ahead["most"] - ahead["least"] == pytest.approx(out + back, abs=0.003)
    # Who claims more work than there was time for gets no bounds that contradict each other.
    false = clock_ahead(_said(clock=asked, seconds=1e9), asked, asked + out)
    assert false["least"] <= false["most"] + 0.002


def _said(**clock: float) -> JoinReply:
    return JoinReply(site="north", num_samples={}, statistics=disclosing("north", raw_values(1)), **clock)
