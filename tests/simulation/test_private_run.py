"""Federated runs with patient-level privacy from end to end: what leaves, what is written down, who refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from client.app import app
from client.privacy_ledger import LEDGER, STATISTICS, STEPS, PrivacyLedger, patients_digest
from client.records import SiteRecords, SiteSpec
from client.site_state import SiteState
from federation.accounting import epsilon_of
from federation.audit import AUDIT
from federation.messages import EVALUATE, JOIN, TRAIN, EvaluateReply, JoinReply, MessageError, TrainReply
from federation.run_folder import read_history, read_run
from federation.settings import RunFiles, RunSettings, SettingsError, load_settings, to_run_config
from federation.site_statistics import SiteStatistics
from server.app import coordinate
from simulation.in_process import InProcessGrid
from tests.make_cohort import write_cohort
from tests.small_run import SMALL

PRIVATE = (
    "patient_privacy.enabled=true",
    "patient_privacy.sampling_rate=0.5",
    "training.batch_norm=frozen",
    "training.accumulated_batches=1",
    "federation.minimum_cell=10",
    "federation.rounds=2",
    "federation.local_work=steps",
    "federation.local_steps=2",
)


def _settings(*overrides: str) -> RunSettings:
    kept = [each for each in SMALL if not each.startswith(("federation.minimum_cell", "training.accumulated"))]
    return load_settings(overrides=[*kept, *PRIVATE, *overrides])


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cohorts")
    return [
        write_cohort(folder / name, num_patients=60, seed=seed, first_subject=100 + 1000 * seed)
        for seed, name in enumerate(("north", "south"))
    ]


def _run(folder: Path, cohorts: list[Path], settings: RunSettings, policy: str = "", **grid_options) -> list[Message]:
    """Run it; everything that came to the server. `policy` is the one of the site `south`."""
    came: list[Message] = []
    nodes = [{"site": each.name, "cohort": str(each), "folder": str(folder / each.name)} for each in cohorts]
    if policy:
        path = folder.parent / f"{folder.name}_policy.yaml"
        path.write_text(policy)
        nodes[1]["policy"] = str(path)

    def note(reply: Message) -> Message:
        came.append(reply)
        return reply

    config = to_run_config(settings, RunFiles(folder=str(folder)))
    coordinate(InProcessGrid(app, config, nodes, tamper=note, **grid_options), settings, folder)
    return came


def _ledger(folder: Path, cohort: Path) -> PrivacyLedger:
    stays = SiteRecords(SiteSpec(name=cohort.name, cohort=cohort), crop_pixels=16).stays.values()
    patients = patients_digest({stay.subject_id for stay in stays if stay.split == "train"})
    return PrivacyLedger(folder=folder / cohort.name, patients=patients)


def test_a_private_run_from_end_to_end(tmp_path: Path, cohorts: list[Path]) -> None:
    settings, folder = _settings(), tmp_path / "run"
    came = _run(folder, cohorts, settings)
    record = read_run(folder)
    assert record.status == "finished"
    # What was spent is in each site's ledger, and what the run says follows from it.
    for cohort in cohorts:
        entries = _ledger(folder, cohort).entries()
        assert [(each.what, each.server_round, each.answers.count) for each in entries] == [
            (STATISTICS, 0, 1),
            (STEPS, 1, 2),
            (STEPS, 2, 2),
        ]
        told = record.more["privacy"]["sites"][cohort.name]
        assert told["steps"] == 4
        assert told["epsilon"] == pytest.approx(epsilon_of([each.answers for each in entries], 1e-5), abs=1e-3)
        assert told["epsilon"] <= settings.patient_privacy.epsilon
    # Nothing of training patients but noised weights left.
    for message in came:
        kind = message.metadata.message_type
        if kind == TRAIN:
            assert TrainReply.parse(message).losses == {}
        if kind == EVALUATE:
            assert "train" not in EvaluateReply.parse(message).splits
    trained = [line for line in read_history(folder) if line.split == "train"]
    assert len(trained) == 6
    assert {line.loss for line in trained} == {None}
    audit = [json.loads(line) for line in (folder / AUDIT).read_text().splitlines()]
    assert [each["round"] for each in audit if each["event"] == "privacy"] == [1, 2]


def test_statistics_are_noised_and_told_once(tmp_path: Path, cohorts: list[Path]) -> None:
    settings = _settings("federation.rounds=1", "patient_privacy.statistics_noise=5.0")
    came = _run(tmp_path / "one", cohorts, settings)
    plain = _run(tmp_path / "two", cohorts, _settings("federation.rounds=1", "patient_privacy.statistics=public"))
    noised, exact = (
        {
            reply.site: reply.statistics
            for each in messages
            if each.metadata.message_type == JOIN
            for reply in [JoinReply.parse(each)]
        }
        for messages in (came, plain)
    )
    for site, statistics in noised.items():
        assert statistics.source != exact[site].source, "a hash of the exact statistics tells of them"
        assert statistics.categories == {}
        assert all(
            each.mean != exact[site].ehr[name].mean for name, each in statistics.ehr.items() if name in exact[site].ehr
        )
    state = SiteState(site="north", folder=tmp_path / "one" / "north", run=_run_name(tmp_path / "one"))
    kept = state.find("statistics")
    assert kept is not None
    assert SiteStatistics.from_json(kept.tobytes().decode()) == noised["north"]


def _run_name(folder: Path) -> str:
    return next((folder / "north" / "state").iterdir()).name


def test_a_site_past_its_budget_refuses_and_the_server_learns_no_more(tmp_path: Path, cohorts: list[Path]) -> None:
    settings, folder = _settings("federation.quorum=1", "patient_privacy.noise_multiplier=2.0"), tmp_path / "run"
    spent = epsilon_of([*settings.patient_privacy.statistics_answers(), settings.patient_privacy.answers(2.0, 2)], 1e-5)
    _run(folder, cohorts, settings, policy=f"largest_epsilon: {spent + 1e-3}\nminimum_cell: 1\n")
    refused = read_run(folder).more["refused"]
    assert [(each["round"], each["site"]) for each in refused] == [(2, "south")]
    assert "its own audit log says why" in refused[0]["reason"]
    assert "epsilon" not in refused[0]["reason"]
    assert "this would make it" in (folder / "south" / AUDIT).read_text()
    assert _ledger(folder, cohorts[1]).steps_of(_run_name(folder)) == 2
    assert _ledger(folder, cohorts[0]).steps_of(_run_name(folder)) == 4


@pytest.mark.parametrize(
    ("policy", "overrides", "words"),
    [
        ("largest_epsilon: 8.0", ("patient_privacy.enabled=false",), "asks for patient_privacy.enabled=true"),
        ("least_noise: 50", ("patient_privacy.noise_multiplier=2.0",), "noise multiplier of 50 or more, found 2"),
        ("largest_epsilon: 8.0", ("patient_privacy.statistics=public",), "statistics=noised, found public"),
        ("minimum_cell: 10", ("patient_privacy.delta=0.04",), "too many training patients for this delta"),
    ],
)
def test_a_policy_that_asks_for_privacy(
    tmp_path: Path, cohorts: list[Path], policy: str, overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(MessageError, match=words):
        _run(tmp_path / "run", cohorts, _settings(*overrides), policy=policy)


def test_a_ledger_that_is_gone_stops_the_site(tmp_path: Path, cohorts: list[Path]) -> None:
    folder = tmp_path / "run"

    def lose(reply: Message) -> Message:
        (folder / "south" / LEDGER).unlink(missing_ok=True)
        return reply

    nodes = [{"site": each.name, "cohort": str(each), "folder": str(folder / each.name)} for each in cohorts]
    settings = _settings()
    grid = InProcessGrid(app, to_run_config(settings, RunFiles(folder=str(folder))), nodes, tamper=lose)
    with pytest.raises(MessageError, match=r"south failed: .*its own audit log says why"):
        coordinate(grid, settings, folder)
    assert "put it back from a backup" in (folder / "south" / AUDIT).read_text()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.batch_norm=train", "batch norm in training mode mixes patients.*found training.batch_norm=train"),
        ("federation.local_work=seconds", "depends on the patients"),
        ("strategy.name=qfedavg", "takes nothing of the sites but weights"),
        ("strategy.recalibrate=true", "statistics would leave without noise"),
        ("personal.method=finetune", "personal model's scores"),
        ("federation.minimum_cell=9", "smaller counts tell of single patients"),
        ("federation.check_duplicates=true", "hashes of identifiers"),
        ("federation.common_batch=true", "guarantee is for Poisson samples.*found federation.common_batch=true"),
        ("training.accumulated_batches=2", "guarantee is for Poisson samples.*found training.accumulated_batches=2"),
        ("training.batch_norm=received", "batch norm in training mode.*found training.batch_norm=received"),
        ("patient_privacy.noise_multiplier=0", "patient_privacy.noise_multiplier"),
        ("patient_privacy.statistics_noise=0", "patient_privacy.statistics_noise: .*greater than 0"),
        ("patient_privacy.clip=0", "patient_privacy.clip: .*greater than 0"),
        ("patient_privacy.epsilon=0", "patient_privacy.epsilon: .*greater than 0"),
        ("patient_privacy.sampling_rate=0", "patient_privacy.sampling_rate"),
        ("strategy.name=scaffold", "because scaffold sends control variates beside the weights"),
        ("patient_privacy.delta=1", "patient_privacy.delta"),
    ],
)
def test_settings_that_give_no_guarantee_are_refused(override: str, words: str) -> None:
    needed = {"qfedavg": ("strategy.client_rate=0.1",), "scaffold": ("training.optimizer=sgd",)}
    more = needed.get(override.removeprefix("strategy.name="), ())
    with pytest.raises(SettingsError, match=words):
        _settings(override, *more)


def test_private_weights_reach_the_server_as_the_site_made_them(tmp_path: Path, cohorts: list[Path]) -> None:
    # One patient more or less must not be seen in anything but the noised weights: counts are public by statement.
    came = _run(tmp_path / "run", cohorts, _settings("federation.rounds=1"))
    for message in came:
        if message.metadata.message_type == TRAIN:
            reply = TrainReply.parse(message)
            assert reply.private_steps == 2
            assert reply.control_change.size == 0
            assert np.isfinite(reply.weights).all()
