"""What the settings of a federated run change: local work, codecs, the project's own strategies, personal models."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

import client.app
from client.app import app
from client.corrections import with_own
from client.local_work import LocalWork
from client.normalisation import agreed_records
from client.predictions import read_predictions
from client.records import SiteRecords, SiteSpec
from client.site import score_splits, to_predictions
from client.statistics import site_statistics
from dipro_model import ClassWeights, DiPro
from dipro_model.vocabulary import Task
from federation.agreement import agree
from federation.audit import verify
from federation.checkpoint import load_checkpoint, read_checkpoint
from federation.codecs import Payload, codec_of
from federation.initial import initial_model
from federation.messages import EVALUATE, MessageError
from federation.run_folder import read_history, read_run
from federation.selection import model_entries
from federation.settings import RunFiles, RunSettings, SettingsError, to_run_config
from federation.weights import flatten_weights, unflatten_weights
from server.app import coordinate
from server.broadcast import Broadcast
from simulation.in_process import InProcessGrid
from tests.make_cohort import write_cohort
from tests.small_run import federate, small_settings


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cohorts")
    return [
        write_cohort(folder / "north", num_patients=16, num_images=2),
        write_cohort(folder / "south", num_patients=24, seed=1, num_images=2, ehr_mean=12.0),
    ]


def _run(folder: Path, cohorts: list[Path], *overrides: str) -> RunSettings:
    settings = small_settings("federation.rounds=2", *overrides)
    federate(folder, cohorts, settings)
    return settings


def _last(folder: Path) -> np.ndarray:
    return flatten_weights(load_checkpoint(folder / "checkpoints" / "last.pt")[0])


def _kept(folder: Path, step: int) -> np.ndarray:
    return flatten_weights(load_checkpoint(folder / "checkpoints" / f"round_{step:05d}.pt")[0])


def test_audit_logs_say_what_went_and_what_left(tmp_path: Path, cohorts: list[Path]) -> None:
    _run(tmp_path / "run", cohorts)
    (tmp_path / "run" / "north" / "audit.jsonl").rename(tmp_path / "first.jsonl")
    server, site = tmp_path / "run" / "audit.jsonl", tmp_path / "first.jsonl"
    assert verify(server).num_entries == len(server.read_text().splitlines())
    verify(site)
    said = [json.loads(line) for line in server.read_text().splitlines()]
    assert [each["site"] for each in said if each["event"] == "joined"] == ["north", "south"]
    assert all(each["num_samples"]["train"] and each["runs_on"] for each in said if each["event"] == "joined")
    aggregated = [each for each in said if each["event"] == "aggregated"]
    assert [(each["round"], each["sites"], sorted(each["norms"])) for each in aggregated] == [
        (number, 2, ["north", "south"]) for number in (1, 2)
    ]
    assert all(norm > 0 for each in aggregated for norms in each["norms"].values() for norm in norms.values())
    assert all(-1 <= each["with_others"][site] <= 1 for each in aggregated for site in ("north", "south"))
    compared = [(each["round"], each["sites"], len(each["cosines"][1])) for each in said if each["event"] == "compared"]
    assert compared == [(number, ["north", "south"], 1) for number in (1, 2)]
    assert (said[0]["event"], said[-1]["event"], said[-1]["status"]) == ("run began", "run ended", "finished")
    left = [json.loads(line) for line in site.read_text().splitlines()]
    assert [(each["asked"], each["round"]) for each in left] == [
        ("query", 0),
        *[(what, number) for number in (1, 2) for what in ("train", "evaluate")],
        ("evaluate", read_run(tmp_path / "run").best_step),
    ]
    weights = left[1]["arrays"]["weights"]
    assert weights == {
        "type": "float32",
        "shape": [_last(tmp_path / "run").size],
        "bytes": _last(tmp_path / "run").nbytes,
    }
    came = [each for each in said if each["event"] == "received" and each["site"] == "north"]
    assert [each["bytes"] for each in came] == [each["bytes"] for each in left[1:]]
    with pytest.raises(MessageError):
        _run(tmp_path / "other", cohorts, "training.precision=bf16")  # refused at these small crops
    said = [json.loads(line) for line in (tmp_path / "other" / "audit.jsonl").read_text().splitlines()]
    assert (said[-1]["event"], said[-1]["status"]) == ("run ended", "failed")
    refused = json.loads((tmp_path / "other" / "north" / "audit.jsonl").read_text().splitlines()[-1])
    assert refused["event"] == "refused"


def test_sites_of_one_process_fill_the_network_once_to_score_it(
    tmp_path: Path, cohorts: list[Path], monkeypatch
) -> None:
    filled: list[np.ndarray] = []

    def watched(model, weights):
        filled.append(weights.copy())
        unflatten_weights(model, weights)

    monkeypatch.setattr("client.site.unflatten_weights", watched)
    _run(tmp_path, cohorts)
    # Two rounds: each site to train, the first to score; at the end once more if another round's model was chosen.
    assert len(filled) in (6, 7)
    assert (filled[0] == filled[1]).all()
    assert not (filled[1] == filled[2]).all()
    assert (filled[2] == filled[3]).all()
    assert (filled[5] == _last(tmp_path)).all()


def test_steps_and_seconds_end_a_rounds_work(tmp_path: Path, cohorts: list[Path], monkeypatch) -> None:
    works: list[LocalWork] = []
    begun = LocalWork.__dict__["run"]

    def watched(self, *arguments, **options):
        works.append(self)
        return begun(self, *arguments, **options)

    monkeypatch.setattr(LocalWork, "run", watched)
    # 8 and 12 training patients in batches of 4, two of them a step: 1 and 2 steps a pass.
    _run(tmp_path / "epochs", cohorts)
    assert [work.num_steps for work in works] == [1, 2, 1, 2]
    works.clear()
    _run(tmp_path / "steps", cohorts, "federation.local_work=steps", "federation.local_steps=3")
    assert [work.num_steps for work in works] == [3, 3, 3, 3]
    rates = [work.sum_of_rates / 3 for work in works]
    assert rates[0] == rates[1] > rates[2]
    works.clear()
    _run(tmp_path / "seconds", cohorts, "federation.local_work=seconds", "federation.local_seconds=1e-6")
    assert [work.num_steps for work in works] == [1, 1, 1, 1]


def test_a_run_stops_where_nothing_is_gained_and_keeps_the_last_models(tmp_path: Path, cohorts: list[Path]) -> None:
    still = ("training.learning_rate=1e-12", "training.batch_norm=frozen")  # statistics would move without a rate
    settings = small_settings("federation.rounds=6", "federation.patience=2", "federation.kept_rounds=2", *still)
    federate(tmp_path / "run", cohorts, settings)
    rounds = max(line.step for line in read_history(tmp_path / "run"))
    record = read_run(tmp_path / "run")
    assert record.best_step is not None
    assert rounds == min(6, record.best_step + 2) < 6
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("round_*.pt"))
    assert kept == [f"round_{rounds - 1:05d}.pt", f"round_{rounds:05d}.pt"]
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / kept[0])[1] == rounds - 1
    assert record.more["traffic"]["rounds"] == rounds


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_without_what_is_frozen_the_same_model_travels_for_fewer_bytes(tmp_path: Path, cohorts, frozen: str) -> None:
    # A model that is large beside whatever else is said.
    backbone = (f"model.freeze_backbone={frozen}", "model.backbone_channels=64")
    _run(tmp_path / "whole", cohorts, *backbone)
    _run(tmp_path / "trained", cohorts, *backbone, "communication.codec=trained")
    np.testing.assert_array_equal(_last(tmp_path / "trained"), _last(tmp_path / "whole"))
    whole, trained = (read_run(tmp_path / name).more["traffic"] for name in ("whole", "trained"))
    entries = model_entries(initial_model(small_settings(*backbone)))
    # Two sites answer two rounds of training; the rest of what they say is a few thousand bytes.
    saved = 4 * 4 * (entries.trained.total - entries.trained.size)
    assert whole["from_sites_bytes"] - trained["from_sites_bytes"] == pytest.approx(saved, abs=1000)
    # Instead of four times and at the end the model goes out at first and after each round, the second time without
    # what is frozen, and perhaps whole at the end.
    whole_model = 2 * 4 * entries.trained.total
    assert whole["to_sites_bytes"] == pytest.approx(5 * whole_model, rel=0.01)
    least = whole_model + 2 * 2 * 4 * entries.trained.size
    at_end = 0 if read_run(tmp_path / "trained").best_step == 2 else whole_model
    assert trained["to_sites_bytes"] == pytest.approx(least + at_end, rel=0.02)


@pytest.mark.parametrize(("codec", "bound"), [("bf16", 0.004), ("int8", 0.02), ("topk", 0.9)])
def test_a_codecs_model_stays_near_the_exact_one(tmp_path: Path, cohorts: list[Path], codec: str, bound: float) -> None:
    # One round: the next would begin elsewhere, and training magnifies any difference.
    quick = ("federation.rounds=1", "model.backbone_channels=64")
    settings = _run(tmp_path / "exact", cohorts, *quick)
    _run(tmp_path / codec, cohorts, *quick, f"communication.codec={codec}")
    start, exact = flatten_weights(initial_model(settings)), _last(tmp_path / "exact")
    moved, off = np.linalg.norm(exact - start), np.linalg.norm(_last(tmp_path / codec) - exact)
    assert 0 < off < bound * moved


def test_changes_add_up_to_the_model_and_a_newcomer_gets_all_of_it(cohorts: list[Path]) -> None:
    settings = small_settings("communication.codec=topk", "communication.kept_fraction=0.2")
    model = initial_model(settings)
    codec = codec_of(settings.communication, lambda: model_entries(model))
    assert codec is not None
    broadcast, random = Broadcast(codec=codec), np.random.default_rng(0)
    wanted = broadcast.publish(flatten_weights(model))
    held = wanted.copy()
    broadcast.is_held_by("north")
    far = []
    for number in range(12):
        change = random.normal(size=wanted.size).astype(np.float32) * 0.01
        codec.exact.put(change, np.zeros(codec.exact.size, np.float32))
        change *= number < 3  # then nothing is new, and what was left out comes
        wanted = wanted + change
        read = broadcast.publish(broadcast.weights + change)
        parcel = broadcast.parcel("north")
        assert (parcel.base, parcel.version) == (number + 1, number + 2)
        assert parcel.weights.dtype == np.uint8
        held = codec.decode(Payload.from_array(parcel.weights), held)
        np.testing.assert_array_equal(held, read)
        far.append(float(np.abs(read - wanted).max()))
        np.testing.assert_array_equal(broadcast.parcel("south").weights, read)
        broadcast.is_held_by("north")
        assert broadcast.parcel("north").weights.size == 0
    assert far[-1] < 1e-6 < 0.01 < far[2]


def test_scaffold_without_drift_is_fedavg_and_with_many_steps_another(tmp_path: Path, cohorts: list[Path]) -> None:
    plain = (
        "training.optimizer=sgd",
        "training.learning_rate=0.01",
        "training.schedule=constant",
        "training.batch_norm=frozen",
        "model.dropout=0.0",
    )
    one = (*plain, "federation.local_work=steps", "federation.local_steps=1", "training.batch_size=1000")
    # With one step at each site the corrections of a round sum to zero over the shares of the samples.
    _run(tmp_path / "fedavg", cohorts, *one)
    _run(tmp_path / "scaffold", cohorts, *one, "strategy.name=scaffold")
    np.testing.assert_allclose(_last(tmp_path / "scaffold"), _last(tmp_path / "fedavg"), atol=1e-6)
    many = (*plain, "federation.local_epochs=3")
    _run(tmp_path / "fedavg 3", cohorts, *many)
    _run(tmp_path / "scaffold 3", cohorts, *many, "strategy.name=scaffold")
    assert np.abs(_last(tmp_path / "scaffold 3") - _last(tmp_path / "fedavg 3")).max() > 1e-5
    assert (tmp_path / "scaffold 3" / "north" / "state").is_dir()
    with pytest.raises(SettingsError, match=r"expected training.optimizer=sgd, found adamw"):
        small_settings("strategy.name=scaffold")
    with pytest.raises(SettingsError, match=r"expected training.static_fusion_rate=1, found 20"):
        small_settings("strategy.name=scaffold", "training.optimizer=sgd", "training.static_fusion_rate=20.0")


def test_fedbn_leaves_batch_norm_at_the_sites(tmp_path: Path, cohorts: list[Path]) -> None:
    settings = _run(tmp_path / "run", cohorts, "personal.method=fedbn", "model.crop_pixels=32")
    record = read_run(tmp_path / "run")
    assert record.more["personal"] is True
    chosen, _ = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    entries, common = model_entries(chosen), flatten_weights(chosen)
    own = {}
    for cohort in cohorts:
        (file,) = (tmp_path / "run" / cohort.name / "state").glob(f"*/personal-{record.best_step}.npy")
        own[cohort.name] = np.load(file)
        assert own[cohort.name].shape == (entries.batch_norm.size,)
    assert np.abs(own["north"] - own["south"]).max() > 1e-4
    # What the sites scored is the common model with their own batch norm.
    for cohort in cohorts:
        scored = read_predictions(tmp_path / "run" / cohort.name / "chosen", Task.MORTALITY, [cohort.name])
        expected = _scores(chosen, with_own(common, own[cohort.name], entries.batch_norm), cohorts, cohort, settings)
        np.testing.assert_allclose(scored.probabilities, expected, atol=1e-6)
    with pytest.raises(SettingsError, match="fedbn keeps batch norm at the sites, but without radiographs"):
        small_settings("personal.method=fedbn", "parts.radiographs=false")


def _scores(model, weights: np.ndarray, cohorts: list[Path], cohort: Path, settings: RunSettings) -> np.ndarray:
    records = [SiteRecords(SiteSpec(name=each.name, cohort=each), crop_pixels=32) for each in cohorts]
    agreement = agree([site_statistics(each, settings.task, minimum_cell=1) for each in records])
    (mine,) = (each for each in records if each.name == cohort.name)
    unflatten_weights(model, weights)
    return to_predictions(
        score_splits(model, [agreed_records(mine, agreement)], settings, ClassWeights())
    ).probabilities


def test_ditto_leaves_the_common_model_alone_and_keeps_another(tmp_path: Path, cohorts: list[Path]) -> None:
    _run(tmp_path / "common", cohorts)
    _run(tmp_path / "ditto", cohorts, "personal.method=ditto", "personal.strength=0.0")
    np.testing.assert_array_equal(_last(tmp_path / "ditto"), _last(tmp_path / "common"))
    for cohort in cohorts:
        common = read_predictions(tmp_path / "common" / cohort.name / "round_0002", Task.MORTALITY, [cohort.name])
        own = read_predictions(tmp_path / "ditto" / cohort.name / "round_0002", Task.MORTALITY, [cohort.name])
        assert np.abs(own.probabilities - common.probabilities).max() > 1e-4


def test_fine_tuning_changes_the_last_scores_alone(tmp_path: Path, cohorts: list[Path]) -> None:
    _run(tmp_path / "common", cohorts)
    _run(tmp_path / "tuned", cohorts, "personal.method=finetune", "personal.rate_factor=0.5")
    np.testing.assert_array_equal(_last(tmp_path / "tuned"), _last(tmp_path / "common"))
    for cohort in cohorts:
        for folder, differs in (("round_0002", False), ("chosen", True)):
            common, own = (
                read_predictions(tmp_path / run / cohort.name / folder, Task.MORTALITY, [cohort.name]).probabilities
                for run in ("common", "tuned")
            )
            assert bool(np.abs(own - common).max() > 1e-5) is differs


@pytest.mark.parametrize(
    "overrides",
    [(), ("personal.method=fedbn", "model.crop_pixels=32"), ("personal.method=ditto",), ("communication.codec=int8",)],
)
def test_a_site_reads_nothing_of_a_network_before_it_is_filled(
    tmp_path: Path, cohorts: list[Path], monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    def undefined(make: Callable[[], DiPro]) -> DiPro:
        blank = make()
        with torch.no_grad():
            for tensor in blank.state_dict().values():
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)
        return blank

    _run(tmp_path / "run", cohorts, *overrides)
    monkeypatch.setattr("client.app.blank_model", undefined)
    client.app._network.cache_clear()
    client.app._layout.cache_clear()
    _run(tmp_path / "undefined", cohorts, *overrides)
    client.app._network.cache_clear()
    np.testing.assert_array_equal(_last(tmp_path / "undefined"), _last(tmp_path / "run"))
    for step, other in zip(read_history(tmp_path / "undefined"), read_history(tmp_path / "run"), strict=True):
        assert (step.loss, step.metrics) == (other.loss, other.metrics)


def test_recalibration_widens_variances_by_what_the_sites_differ_in(tmp_path: Path, cohorts: list[Path]) -> None:
    settings = _run(tmp_path / "mean", cohorts, "federation.rounds=1", "federation.patience=1")
    _run(tmp_path / "pooled", cohorts, "federation.rounds=1", "strategy.recalibrate=true")
    entries = model_entries(initial_model(settings))
    mean, pooled = _last(tmp_path / "mean"), _last(tmp_path / "pooled")
    wider = entries.variances.take(pooled) - entries.variances.take(mean)
    assert wider.min() > -1e-6
    assert wider.max() > 1e-6
    others = entries.trained.without(entries.variances)
    np.testing.assert_allclose(others.take(pooled), others.take(mean), atol=1e-6)


def test_statistics_of_few_samples_move_as_torch_moves_them(tmp_path: Path, cohorts: list[Path]) -> None:
    """From the second round on; the first has no statistics before it."""
    rounds = ("strategy.recalibrate=true", "federation.rounds=2", "federation.patience=2", "federation.kept_rounds=2")
    nothing = ("training.learning_rate=1e-12", "training.final_learning_rate=1e-12", "model.dropout=0.3")
    settings = _run(tmp_path / "all", cohorts, *rounds, *nothing)
    _run(tmp_path / "some", cohorts, *rounds, *nothing, "strategy.statistics_momentum=0.25")
    statistics = model_entries(initial_model(settings)).statistics
    first, both = (statistics.take(_kept(tmp_path / name, 1)) for name in ("some", "all"))
    np.testing.assert_array_equal(first, both)
    second, whole = (statistics.take(_kept(tmp_path / name, 2)) for name in ("some", "all"))
    np.testing.assert_allclose(second, (first + whole) / 2, rtol=1e-5, atol=1e-6)
    assert not np.allclose(first, whole, atol=1e-4)
    with pytest.raises(SettingsError, match="expected recalibrate=true, found false"):
        small_settings("strategy.statistics_momentum=0.5")


def test_received_batch_norm_has_the_gradients_of_all_sites(tmp_path: Path, cohorts: list[Path]) -> None:
    """Those of batch norm's own parameters: with one plain step a site, what the mean model moved by, over the rate."""
    rate = 0.001
    settings = _run(
        tmp_path / "run",
        cohorts,
        "model.freeze_backbone=true",
        "training.batch_norm=received",
        "strategy.recalibrate=true",
        "strategy.statistics_momentum=0.25",
        "training.optimizer=sgd",
        f"training.learning_rate={rate}",
        "training.schedule=constant",
        "training.weight_decay=0.0",
        "training.batch_size=1000",
        "federation.local_work=steps",
        "federation.local_steps=1",
        "federation.rounds=3",
        "federation.kept_rounds=3",
    )
    entries = model_entries(initial_model(settings))
    of_norms = entries.batch_norm.both(entries.parameters)
    models = [of_norms.take(_kept(tmp_path / "run", number)) for number in (1, 2, 3)]
    gradients = [(before - after) / rate for before, after in pairwise(models)]
    progress = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt").progress
    assert progress is not None
    # The first round does not count; of the next two each has half, though the momentum says a quarter.
    kept = progress.training["server"]["control"].numpy()
    np.testing.assert_allclose(kept, (gradients[0] + gradients[1]) / 2, atol=2e-4)
    assert np.abs(kept).max() > 0.01


def test_state_is_needed_where_the_settings_keep_some(tmp_path: Path, cohorts: list[Path]) -> None:
    settings = small_settings("federation.rounds=1", "communication.codec=int8")
    nodes = [{"site": cohort.name, "cohort": str(cohort)} for cohort in cohorts]
    grid = InProcessGrid(app, to_run_config(settings, RunFiles(folder=str(tmp_path / "run"))), nodes)
    with pytest.raises(MessageError, match="north: expected a folder of the site"):
        coordinate(grid, settings, tmp_path / "run")


def test_weights_are_tensors_of_the_checkpoint(tmp_path: Path, cohorts: list[Path]) -> None:
    _run(tmp_path / "run", cohorts, "strategy.name=fedavgm")
    progress = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt").progress
    assert progress is not None
    momentum = progress.training["server"]["strategy/momentum"]
    assert isinstance(momentum, torch.Tensor)
    assert float(momentum.abs().max()) > 0


@pytest.mark.usefixtures("nobody_waits")
def test_the_audit_log_says_who_did_not_score(tmp_path: Path, cohorts: list[Path]) -> None:
    def lost_once(reply: Message) -> Message | None:
        is_south = reply.content.config_records["config"]["site"] == "south"
        counts = any(name.startswith("counts/") for name in reply.content)  # not of the last, which needs all sites
        return None if is_south and counts and reply.metadata.message_type == EVALUATE else reply

    settings = small_settings("federation.rounds=1", "federation.quorum=1", "federation.round_seconds=60")
    federate(tmp_path / "run", cohorts, settings, tamper=lost_once)
    said = [json.loads(line) for line in (tmp_path / "run" / "audit.jsonl").read_text().splitlines()]
    found = [(each["round"], each["site"], each["reason"]) for each in said if each["event"] == "not scored"]
    assert found == [(1, "south", "did not answer in time")]
