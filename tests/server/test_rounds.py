"""A round refuses what FedAvg would average in silence, and names the site."""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict

from client.app import _records, app
from client.cohort import Cohort, open_cohort
from client.predictions import read_predictions
from dipro_model.metrics import score
from dipro_model.vocabulary import Task
from federation.initial import initial_model
from federation.messages import ARRAYS, METRICS, RAW, TRAIN, WEIGHT_KEY, EvaluateReply, MessageError
from federation.pooled import PooledMetric, combine, pooled_metrics, summarise
from federation.results import SplitResult
from federation.run_folder import POOLED, read_history, read_run
from federation.settings import FederationSettings, RunFiles, RunSettings, StrategySettings, to_run_config
from server.app import LARGEST_ERROR, Monitor, coordinate, mean_monitor
from server.rounds import Round, participants
from server.strategies import STRATEGIES, StrategyError
from simulation.in_process import InProcessGrid
from tests.make_cohort import write_cohort
from tests.small_run import federate, last_weights, small_settings


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cohorts")
    return [write_cohort(folder / name, num_patients=16, seed=seed) for seed, name in enumerate(("north", "south"))]


SETTINGS = small_settings("federation.rounds=1")


def _tampering(change) -> dict:
    def tamper(reply: Message) -> Message:
        if reply.metadata.message_type == TRAIN and reply.content.config_records["config"]["site"] == "south":
            change(reply)
        return reply

    return {"tamper": tamper}


def _not_finite(reply: Message) -> None:
    weights = np.frombuffer(reply.content.array_records[ARRAYS]["weights"].data, np.float32).copy()
    weights[0] = np.inf
    reply.content[ARRAYS] = ArrayRecord({"weights": _raw(weights)})


def _raw(weights: np.ndarray) -> Array:
    return Array("float32", weights.shape, RAW, weights.tobytes())


def _other_shape(reply: Message) -> None:
    reply.content[ARRAYS] = ArrayRecord({"weights": _raw(np.ones(1, np.float32))})


def _other_type(reply: Message) -> None:
    reply.content[ARRAYS] = ArrayRecord({"weights": Array(np.ones(4))})


def _torn(reply: Message) -> None:
    reply.content[ARRAYS] = ArrayRecord({"weights": Array("float32", (2,), RAW, b"1234567")})


def _huge_count(reply: Message) -> None:
    reply.content.metric_records[METRICS][WEIGHT_KEY] = 10**9


def _two_arrays(reply: Message) -> None:
    reply.content[ARRAYS] = ArrayRecord({"weights": Array(np.ones(1)), "more": Array(np.ones(1))})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_not_finite, "south: expected finite weights, found 1 that are not"),
        (_other_shape, r"south: expected weights of shape \[\d+\], found \[1\]"),
        (_other_type, "south: expected raw float32 or uint8, found float64 as 'numpy.ndarray'"),
        (_torn, "south: expected a reply to train, found a message of another form"),
        (_huge_count, "south: expected 8 training samples, as registered, found 1000000000"),
        (_two_arrays, "expected the array `weights`, perhaps `control`, found 2 arrays"),
    ],
)
def test_a_reply_that_cannot_be_averaged_ends_the_run(tmp_path: Path, cohorts: list[Path], change, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        federate(tmp_path / "run", cohorts, SETTINGS, **_tampering(change))
    record = read_run(tmp_path / "run")
    assert record.status == "failed"
    assert "south" in record.more["error"] or "array" in record.more["error"]


@pytest.mark.usefixtures("nobody_waits")
@pytest.mark.parametrize(
    ("tampering", "reason"),
    [
        (lambda reply: None, "did not answer in time"),
        (lambda reply: Message(Error(code=8, reason="no space left"), reply_to=_question(reply)), "no space left"),
        (lambda reply: _changed(reply, _not_finite), "expected finite weights, found 1 that are not"),
        (lambda reply: _changed(reply, _another_name), "its reply is signed 'north'"),
        (lambda reply: _changed(reply, _empty), "expected a reply to train, found a message of another form"),
    ],
)
def test_a_round_with_its_quorum_goes_on_without_a_site(tmp_path: Path, cohorts: list[Path], tampering, reason) -> None:
    def tamper(reply: Message) -> Message | None:
        content = reply.content if reply.has_content() else None
        is_south = content is not None and content.config_records["config"]["site"] == "south"
        return tampering(reply) if is_south and reply.metadata.message_type == TRAIN else reply

    settings = small_settings("federation.rounds=1", "federation.quorum=1", "federation.round_seconds=60")
    federate(tmp_path / "run", cohorts, settings, tamper=tamper)
    record = read_run(tmp_path / "run")
    (refused,) = record.more["refused"]
    assert (record.status, refused["round"], refused["site"]) == ("finished", 1, "south")
    assert reason in refused["reason"]
    alone = federate(tmp_path / "alone", cohorts[:1], small_settings("federation.rounds=1", "federation.num_sites=1"))
    for name, tensor in last_weights(tmp_path / "run").items():
        assert torch.equal(tensor, alone[name]), name


def _question(reply: Message) -> Message:
    question = Message(RecordDict(), dst_node_id=reply.metadata.src_node_id, message_type=TRAIN)
    question.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
    return question


def _changed(reply: Message, change) -> Message:
    change(reply)
    return reply


def _another_name(reply: Message) -> None:
    reply.content.config_records["config"]["site"] = "north"


def _empty(reply: Message) -> None:
    reply.content = RecordDict()


@pytest.mark.usefixtures("nobody_waits")
def test_a_quorum_that_never_comes_ends_the_run_with_the_last_round_kept(tmp_path: Path, cohorts: list[Path]) -> None:
    rounds = {"north": 0, "south": 0}

    def tamper(reply: Message) -> Message | None:
        site = str(reply.content.config_records["config"]["site"])
        rounds[site] += reply.metadata.message_type == TRAIN
        return None if site == "south" and rounds[site] > 1 else reply

    settings = small_settings("federation.rounds=3", "federation.quorum=2", "federation.round_seconds=60")
    words = "round 2, train: expected replies of 2 sites or more, 1 came: south did not answer in time"
    with pytest.raises(MessageError, match=words):
        federate(tmp_path / "run", cohorts, settings, tamper=tamper)
    assert read_run(tmp_path / "run").status == "failed"
    assert {line.step for line in read_history(tmp_path / "run")} == {1}
    first = federate(tmp_path / "first", cohorts, settings.model_copy(update={"federation": _rounds(settings, 1)}))
    kept = last_weights(tmp_path / "run")
    # One round of one has another place on the schedule's cosine, but the first epoch of either has the full rate.
    assert all(torch.equal(kept[name], tensor) for name, tensor in first.items())


def _rounds(settings: RunSettings, rounds: int) -> FederationSettings:
    return settings.federation.model_copy(update={"rounds": rounds})


def test_a_share_of_the_sites_is_drawn_anew_for_every_round() -> None:
    def drawn(server_round: int, *overrides: str) -> list[str]:
        settings = small_settings("federation.num_sites=6", *overrides)
        nodes = {1000 + number: f"site {number}" for number in range(6)}
        return list(participants(nodes, settings, server_round).values())

    assert drawn(1) == [f"site {number}" for number in range(6)]
    half = [drawn(number, "federation.fraction=0.5") for number in range(1, 40)]
    assert all(len(sites) == 3 and sites == sorted(sites) for sites in half)
    assert {site for sites in half for site in sites} == set(drawn(1))
    assert len({tuple(sites) for sites in half}) > 10
    assert drawn(7, "federation.fraction=0.5") == half[6]
    assert drawn(7, "federation.fraction=0.5", "seed=29") != half[6] or drawn(8, "seed=29") != half[7]
    assert len(drawn(1, "federation.fraction=0.1", "federation.quorum=4")) == 4


def test_a_site_that_cannot_take_part_is_named(tmp_path: Path, cohorts: list[Path]) -> None:
    one_class = write_cohort(tmp_path / "west", num_patients=16, deaths=False)
    with pytest.raises(MessageError, match="all 8 samples for mortality in the train split carry the same label"):
        federate(tmp_path / "run", [cohorts[0], one_class], SETTINGS)
    no_test = write_cohort(tmp_path / "east", num_patients=16, splits=("train", "train", "val"))
    with pytest.raises(MessageError, match="east: no patient with a sample for mortality in the test split"):
        federate(tmp_path / "run", [cohorts[0], no_test], SETTINGS)
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left == {"audit.jsonl"}


def test_the_number_of_sites_must_be_met(tmp_path: Path, cohorts: list[Path]) -> None:
    settings = small_settings("federation.num_sites=3", "federation.join_seconds=0.01")
    with pytest.raises(MessageError, match=r"expected 3 sites within 0.01 s, 2 came"):
        federate(tmp_path / "run", cohorts, settings)
    with pytest.raises(MessageError, match=r"expected 1 sites, 2 are online; set federation.num_sites=2"):
        federate(tmp_path / "run", cohorts, small_settings("federation.num_sites=1"))


def test_two_sites_of_one_name_are_refused(tmp_path: Path, cohorts: list[Path]) -> None:
    nodes = [{"site": "north", "cohort": str(cohort)} for cohort in cohorts]
    grid = InProcessGrid(app, to_run_config(SETTINGS, RunFiles(folder=str(tmp_path / "run"))), nodes)
    with pytest.raises(MessageError, match=r"expected sites of different names, found \['north', 'north'\]"):
        coordinate(grid, SETTINGS, tmp_path / "run")


def test_other_code_and_a_missing_configuration_are_refused(tmp_path: Path, cohorts, monkeypatch) -> None:
    monkeypatch.setattr("server.rounds.code_digest", lambda: "another")
    with pytest.raises(MessageError, match="the server and this site run different code"):
        federate(tmp_path / "run", cohorts, SETTINGS)
    monkeypatch.undo()
    grid = InProcessGrid(app, to_run_config(SETTINGS, RunFiles()), [{"site": "north"}, {}])
    with pytest.raises(MessageError, match="this node's configuration lacks cohort"):
        coordinate(grid, SETTINGS, tmp_path / "run")


def test_a_run_leaves_its_history_results_and_the_sites_own_predictions(tmp_path: Path, cohorts: list[Path]) -> None:
    federate(tmp_path / "run", cohorts, small_settings("federation.rounds=2"))
    record, history = read_run(tmp_path / "run"), read_history(tmp_path / "run")
    assert (record.status, record.sites, record.kind) == ("finished", ("north", "south"), "federated")
    assert {(line.step, line.site, line.split) for line in history} == {
        (step, site, split) for step in (1, 2) for site in ("north", "south", POOLED) for split in ("train", "val")
    }
    assert set(record.more["results"]) == {"north", "south"}
    assert set(record.more["results"]["north"]) == {"train", "val", "test"}
    assert record.best_step in (1, 2)
    for site in ("north", "south"):
        kept = sorted(path.name for path in (tmp_path / "run" / site).iterdir())
        assert kept == ["audit.jsonl", "chosen", "round_0001", "round_0002", "rounds"]


def test_a_site_opens_only_its_own_cohort(tmp_path: Path, cohorts: list[Path], monkeypatch) -> None:
    opened: list[tuple[str, str]] = []

    def watched(message: Message, context: Context) -> Message:
        own = str(context.node_config["cohort"])
        monkeypatch.setattr("client.records.open_cohort", lambda path, **how: _note(opened, own, path, how))
        return app(message, context)

    _records.cache_clear()
    nodes = [{"site": cohort.name, "cohort": str(cohort)} for cohort in cohorts]
    config = to_run_config(SETTINGS, RunFiles(folder=str(tmp_path / "run")))
    coordinate(InProcessGrid(watched, config, nodes), SETTINGS, tmp_path / "run")
    assert sorted(set(opened)) == sorted((str(cohort), str(cohort)) for cohort in cohorts)


def _note(opened: list[tuple[str, str]], own: str, path: Path, how: dict) -> Cohort:
    opened.append((own, str(path)))
    return open_cohort(path, **how)


def test_the_pooled_validation_metric_is_that_of_the_union(tmp_path: Path, cohorts: list[Path]) -> None:
    federate(tmp_path / "run", cohorts, small_settings("federation.rounds=2"))
    for step in (1, 2):
        folders = [tmp_path / "run" / site / f"round_{step:04d}" for site in ("north", "south")]
        north, south = (read_predictions(each, Task.MORTALITY, [each.parent.name]) for each in folders)
        union = north.join([south])
        expected = score(Task.MORTALITY, union.labels.astype(np.int64), union.probabilities)
        (line,) = [
            each
            for each in read_history(tmp_path / "run")
            if (each.step, each.site, each.split) == (step, POOLED, "val")
        ]
        assert line.num_samples == len(union)
        counts = [
            summarise(Task.MORTALITY, each.labels.astype(np.int64), each.probabilities, minimum_cell=1)
            for each in (north, south)
        ]
        for name, metric in pooled_metrics(combine(counts)).items():
            assert line.metrics[name] == (pytest.approx(metric.value) if metric.error <= LARGEST_ERROR else None)
            assert metric.lower - 1e-9 <= expected[name].value <= metric.upper + 1e-9, name


def test_the_sites_mean_chooses_where_too_few_patients_may_be_counted(tmp_path: Path, cohorts: list[Path]) -> None:
    federate(tmp_path / "run", cohorts, small_settings("federation.rounds=2", "federation.minimum_cell=10"))
    record, history = read_run(tmp_path / "run"), read_history(tmp_path / "run")
    assert "mean of the sites' own: " in record.more["monitored"]
    assert "without 2 of 2 sites, which withhold it" in record.more["monitored"]
    sites: dict[int, list[float]] = {1: [], 2: []}
    for line in history:
        if line.split == "val" and line.site == POOLED:
            assert set(line.metrics.values()) == {None}
        elif line.split == "val":
            sites[line.step].append(line.metrics["auprc"])
    assert record.best_step == max(sites, key=lambda step: (sum(sites[step]), -step))


def test_a_mean_leaves_out_sites_where_the_monitor_is_undefined() -> None:
    def reply(value: float | None, count: int) -> EvaluateReply:
        return EvaluateReply(
            site="any", splits={"val": SplitResult(num_samples=count, losses={}, metrics={"auprc": value})}, seconds=0.0
        )

    assert mean_monitor("auprc", [reply(0.5, 10), reply(1.0, 30), reply(None, 1000)]) == pytest.approx(0.875)
    assert mean_monitor("auprc", [reply(None, 5)]) is None


def test_the_pooled_metric_is_monitored_from_the_first_round_that_knows_it() -> None:
    def metric(half_width: float) -> PooledMetric:
        return PooledMetric(value=0.6, lower=0.6 - half_width, upper=0.6 + half_width, reason=None)

    result = SplitResult(num_samples=9, losses={}, metrics={"auprc": 0.8})
    evaluated = [EvaluateReply(site="a", splits={"val": result}, seconds=0.0)]
    monitor, seen = Monitor(name="auprc"), []
    for number, half_width in enumerate((0.2, 0.3, 0.04, 0.0, 0.3), start=1):
        finished = Round(number=number, trained=[], evaluated=evaluated, refused={}, state={})
        monitor.watch(finished, {"auprc": metric(half_width)})
        seen.append((monitor.value, monitor.has_changed, monitor.words))
    mean, pooled = "mean of the sites' own: the one of all patients is known to ±", "all validation patients together"
    assert seen == [
        (0.8, False, f"{mean} 0.20 only"),
        (0.8, False, f"{mean} 0.30 only"),
        (0.6, True, f"{pooled}, from round 3 on"),
        (0.6, False, f"{pooled}, from round 3 on"),
        (None, False, f"{pooled}, from round 3 on"),
    ]


def test_strategies_of_the_settings_run_and_change_the_model(tmp_path: Path) -> None:
    cohorts = [write_cohort(tmp_path / name, num_patients=16, seed=seed) for seed, name in enumerate("abc")]

    def flat(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([each.flatten() for name, each in weights.items() if "running" not in name])

    def run(name: str, *overrides: str) -> torch.Tensor:
        # Plain gradient steps: Adam would make steps of the same size of a stronger pull.
        settings = small_settings(
            "federation.rounds=1",
            "federation.num_sites=3",
            "training.optimizer=sgd",
            "training.batch_size=2",
            "training.accumulated_batches=1",
            f"strategy.name={name}",
            *overrides,
        )
        return flat(federate(tmp_path / " ".join([name, *overrides]), cohorts, settings))

    mean = run("fedavg")
    assert torch.equal(run("fedavg", "strategy.norm_factor=0"), mean)
    assert torch.allclose(run("fedavgm", "strategy.momentum=0"), mean, atol=1e-6)
    start = flat({name: each for name, each in initial_model(small_settings()).state_dict().items() if each.ndim})
    assert torch.allclose(run("fedprox", "strategy.mu=1e-9"), mean, atol=1e-5)
    pulled = run("fedprox", "strategy.mu=500")
    assert float((pulled - start).norm()) < 0.8 * float((mean - start).norm())
    assert not torch.allclose(run("fedmedian"), mean, atol=1e-6)


def test_a_strategy_that_the_sites_cannot_serve_is_refused(tmp_path: Path, cohorts: list[Path]) -> None:
    settings = small_settings("strategy.name=krum")
    with pytest.raises(StrategyError, match="krum with num_malicious=1 needs 5 sites or more, the federation has 2"):
        federate(tmp_path / "run", cohorts, settings)
    assert read_run(tmp_path / "run").status == "failed"
    settings = small_settings("strategy.name=fedprox")
    with pytest.raises(StrategyError, match="fedprox: expected a value for mu, found none"):
        federate(tmp_path / "prox", cohorts, settings)


def test_the_settings_name_the_strategies_that_there_are() -> None:
    names = StrategySettings.model_fields["name"].annotation
    assert set(get_args(names)) == set(STRATEGIES)
    known = {key for kind in STRATEGIES.values() for key in kind.parameters}
    others = {"name", "norm_factor", "recalibrate", "statistics_momentum", "server_schedule"}
    assert set(StrategySettings.model_fields) - others == known
