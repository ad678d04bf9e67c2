"""Runs with site-level privacy: what the model got, what it cost, when it ended, what a crash cannot undo."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from scipy import stats

from federation.accounting import BudgetError
from federation.initial import initial_model
from federation.messages import ARRAYS, TRAIN, TrainReply
from federation.run_folder import RunError, read_history, read_run
from federation.selection import Entries, model_entries
from federation.settings import SettingsError, load_settings
from federation.weights import flatten_weights
from server.aggregator import SiteUpdate
from server.privacy_ledger import LEDGER, Ledger, spent
from server.site_privacy import PrivateMean, SitePrivacy, noise_of
from tests.killed_training import federated, run
from tests.make_cohort import write_two_cohorts
from tests.small_run import SMALL, federate, small_settings

PRIVATE = ("training.batch_norm=frozen", "site_privacy.enabled=true")
QUICK = (*PRIVATE, "parts.radiographs=false", "model.freeze_backbone=true", "training.batch_size=2")


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_two_cohorts(tmp_path_factory.mktemp("cohorts"))


def _flat(weights: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([each.numpy().ravel() for each in weights.values()])


def _kept(
    sent: dict[str, np.ndarray], change: Callable[[str, np.ndarray], np.ndarray] = lambda site, weights: weights
) -> Callable[[Message], Message]:
    """Notes what each site sends in training, perhaps changed on its way."""

    def tamper(message: Message) -> Message:
        if message.metadata.message_type == TRAIN:
            reply = TrainReply.parse(message)
            sent[reply.site] = change(reply.site, reply.weights)
            message.content[ARRAYS] = replace(reply, weights=sent[reply.site]).record()[ARRAYS]
        return message

    return tamper


@pytest.mark.parametrize("visits", ["one", "two"])
def test_the_model_is_the_clipped_mean_with_noise_of_the_stated_size(
    tmp_path: Path, cohorts: list[Path], visits: str
) -> None:
    clip, noise = 0.05, 0.1
    settings = small_settings(
        *PRIVATE,
        "federation.rounds=1",
        f"federation.visits={visits}",
        f"site_privacy.clip={clip}",
        f"site_privacy.noise_multiplier={noise}",
        "site_privacy.epsilon=200",
    )
    sent: dict[str, np.ndarray] = {}
    after = _flat(federate(tmp_path / "run", cohorts, settings, tamper=_kept(sent)))
    model = initial_model(settings)
    start, entries = flatten_weights(model).astype(np.float64), model_entries(model)
    inside = entries.trained.without(entries.statistics).mask()
    mean = np.zeros(start.size)
    for weights in sent.values():
        moved = np.where(inside, weights - start, 0)
        length = float(np.linalg.norm(moved))
        assert length > clip, "the clip shortens something"
        mean += moved * (clip / length) / 2
    found = (after - start - mean)[inside] / (noise * clip / 2)
    assert stats.kstest(found, "norm").pvalue > 1e-6
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], found.size) / found.size
    assert low < np.mean(np.square(found)) < high
    # The mean is there, not the noise alone: in its direction the noise is small.
    assert np.linalg.norm(mean) > clip / 2
    along = float((after - start) @ mean / np.linalg.norm(mean))
    assert abs(along - np.linalg.norm(mean)) < 6 * noise * clip / 2
    assert (after == flatten_weights(model))[~inside].all()


def test_an_update_of_any_length_moves_the_model_no_further_and_is_named(tmp_path: Path, cohorts: list[Path]) -> None:
    settings = small_settings(
        *QUICK, "federation.rounds=1", "federation.num_sites=3", "site_privacy.noise_multiplier=10.0"
    )
    start = flatten_weights(initial_model(settings))

    def enlarged(site: str, weights: np.ndarray) -> np.ndarray:
        return (start + 1e5 * (weights - start)).astype(np.float32) if site == "west" else weights

    three = [*cohorts, tmp_path / "west"]
    three[2].symlink_to(cohorts[0])
    sent: dict[str, np.ndarray] = {}
    after = _flat(federate(tmp_path / "run", three, settings, tamper=_kept(sent, enlarged)))
    update = (sent["west"] - start).astype(np.float64)
    assert np.linalg.norm(update) > 1e3
    # In the direction of that update there is a third of the clip and noise of 10 / 3, and not 1e3 / 3.
    assert abs(float((after - start) @ update / np.linalg.norm(update))) < 6 * 10 / 3 + 1
    (charged,) = _events(tmp_path / "run", "charged")
    assert charged["far_longer"] == ["west"]
    (aggregated,) = _events(tmp_path / "run", "aggregated")
    assert set(aggregated["norms"]) == set(aggregated["with_others"]) == {"north", "south", "west"}
    assert aggregated["left_out"] == {}


def _events(folder: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


BUDGET = ("federation.rounds=5", "site_privacy.noise_multiplier=4.0", "site_privacy.epsilon=2.0")
"""Two rounds of noise 4 spend 1.57, three 1.97, four 2.32."""


@pytest.mark.parametrize("more", [(), ("federation.visits=one",), ("federation.score_every=5",)])
def test_a_budget_that_is_spent_ends_the_run_with_the_model_so_far(
    tmp_path: Path, cohorts: list[Path], more: tuple[str, ...]
) -> None:
    federate(tmp_path, cohorts, small_settings(*QUICK, *BUDGET, *more))
    record, history = read_run(tmp_path), read_history(tmp_path)
    account = record.more["site_privacy"]
    assert record.status == "finished"
    assert "error" not in record.more
    assert account["ended"].startswith("after round 3 of 5: another one would spend more")
    assert {line.step for line in history} == {1, 2, 3}
    # The last one is scored though five was the round to be scored.
    assert 3 in {line.step for line in history if line.split == "val"}
    assert [each[0] for each in account["by_round"]] == [1, 2, 3]
    epsilons = [each[1] for each in account["by_round"]]
    assert epsilons == sorted(epsilons)
    assert account["epsilon"] == epsilons[-1] <= account["budget"] == 2.0
    assert [each["epsilon"] for each in _events(tmp_path, "charged")] == epsilons
    assert [each["said"] for each in _events(tmp_path, "budget spent")] == [account["ended"]]
    assert set(record.more["results"]) == {"north", "south"}


class Stopped(BaseException):
    """Ends a run from outside."""


def _stop() -> None:
    raise Stopped


def test_a_round_that_is_computed_again_is_charged_again(
    tmp_path: Path, cohorts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends when the second mean was made and before anything else is kept of it."""
    settings = small_settings(*QUICK, *BUDGET, "site_privacy.clipping=adaptive")
    release = SitePrivacy.release

    def then_stop(privacy: SitePrivacy, *given) -> SiteUpdate:
        update = release(privacy, *given)
        if len(privacy.report()["by_round"]) == 2:
            raise Stopped
        return update

    monkeypatch.setattr(SitePrivacy, "release", then_stop)
    with pytest.raises(Stopped):
        federate(tmp_path, cohorts, settings)
    monkeypatch.undo()
    federate(tmp_path, cohorts, settings)
    account = read_run(tmp_path).more["site_privacy"]
    # The third of the three that the budget pays for is the second round once more.
    assert [each[0] for each in account["by_round"]] == [1, 2, 2]
    assert account["ended"].startswith("after round 2 of 5")
    assert {line.step for line in read_history(tmp_path)} == {1, 2}
    # What was learned of the clip in the round that was lost is lost with it.
    clips = [each[2] for each in account["by_round"]]
    assert clips[0] == 1.0
    assert clips[1] == clips[2] != 1.0


def test_killed_again_and_again_it_forgets_no_charge(tmp_path: Path, cohorts: list[Path]) -> None:
    """Each process is killed some writes later than the one before; what was charged before is charged after."""
    settings = (*SMALL, *QUICK, "federation.rounds=3", "site_privacy.noise_multiplier=20.0")
    folder, kill_at, before = tmp_path / "run", 20, 0
    while not ((folder / "run.json").is_file() and read_run(folder).status == "finished"):
        run(folder, cohorts, settings, kill_at=kill_at, work=federated)
        kill_at += 61
        charges = Ledger(folder).charges if (folder / LEDGER).is_file() else []
        assert len(charges) >= before
        before = len(charges)
    rounds = [each.round for each in charges]
    assert sorted(set(rounds)) == [1, 2, 3]
    assert len(rounds) > 3, "a kill between a charge and its checkpoint costs a charge"
    assert rounds == sorted(rounds)
    assert [each[0] for each in read_run(folder).more["site_privacy"]["by_round"]] == rounds
    assert charges[-1].epsilon == pytest.approx(spent([20.0] * len(rounds), 1e-5, "prv"))


def test_nothing_is_left_to_end_with_where_all_was_lost(
    tmp_path: Path, cohorts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(*QUICK, "federation.rounds=1")
    monkeypatch.setattr(PrivateMean, "update", lambda mean: (mean._privacy.release(mean._mean, 1), _stop()))
    with pytest.raises(Stopped):
        federate(tmp_path, cohorts, settings)
    monkeypatch.undo()
    with pytest.raises(BudgetError, match="was spent by rounds that were lost before the first was kept"):
        federate(tmp_path, cohorts, settings)


def test_a_run_that_goes_on_remembers_and_one_without_its_ledger_does_not_go_on(
    tmp_path: Path, cohorts: list[Path]
) -> None:
    settings = small_settings(*QUICK, "federation.rounds=3", "site_privacy.clipping=adaptive")
    with pytest.raises(Stopped):
        federate(tmp_path, cohorts, settings, after_round=_stop)
    ledger = (tmp_path / LEDGER).read_bytes()
    (tmp_path / LEDGER).unlink()
    with pytest.raises(RunError, match=r"site_privacy.jsonl: expected 1 charges or more.*found 0; restore the file"):
        federate(tmp_path, cohorts, settings)
    (tmp_path / LEDGER).write_bytes(ledger)
    federate(tmp_path, cohorts, settings)
    account = read_run(tmp_path).more["site_privacy"]
    assert [each[0] for each in account["by_round"]] == [1, 2, 3]
    assert "ended" not in account
    assert 7.9 < account["epsilon"] <= 8.0
    # The clip goes on from where it was: no step is longer than the rate times the quantile.
    steps = np.abs(np.diff(np.log([each[2] for each in account["by_round"]])))
    assert (steps > 0).all()
    assert (steps <= 0.2 * 0.5 + 1e-6).all()


@pytest.mark.parametrize(
    "strategy", [("fedavgm",), ("fedadam", "communication.codec=topk"), ("fedprox", "strategy.mu=1")]
)
def test_server_optimizers_and_codecs_work_on_what_is_noised(
    tmp_path: Path, cohorts: list[Path], strategy: tuple[str, ...]
) -> None:
    name, *more = strategy
    settings = small_settings(*QUICK, "federation.rounds=2", f"strategy.name={name}", *more)
    federate(tmp_path, cohorts, settings)
    assert read_run(tmp_path).more["site_privacy"]["epsilon"] == pytest.approx(8.0, rel=0.01)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("strategy.name=krum",), "a strategy of the mean, because krum needs every site's own update; found"),
        (("strategy.name=fedmedian",), "fedmedian needs every site's own update"),
        (("strategy.name=qfedavg", "strategy.client_rate=1"), "qfedavg weighs sites by their losses"),
        (("strategy.name=scaffold", "training.optimizer=sgd"), "scaffold sends control variates"),
        (("training.batch_norm=train",), "training.batch_norm=frozen, because nothing bounds the running statistics"),
        (("strategy.recalibrate=true",), "strategy.recalibrate=false"),
        (("personal.method=ditto",), "personal.method=none, because a personal model is trained without noise"),
        (("site_privacy.delta=0.01",), r"delta x federation.num_sites of at most 0.01.*found 0.01 x 2"),
        (("federation.num_sites=2000",), r"found 1e-05 x 2000"),
        (("site_privacy.noise_multiplier=0.0",), "site_privacy.noise_multiplier: .*found 0.0"),
        (("site_privacy.clip=0.0",), "site_privacy.clip: .*greater than 0"),
        (("site_privacy.epsilon=0.0",), "site_privacy.epsilon: .*greater than 0"),
    ],
)
def test_settings_without_a_guarantee_are_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_settings(overrides=[*PRIVATE, *overrides])
    load_settings(overrides=list(PRIVATE))


def test_a_budget_of_less_than_a_round_is_refused_before_the_sites_are_asked(
    tmp_path: Path, cohorts: list[Path]
) -> None:
    settings = small_settings(*QUICK, "site_privacy.noise_multiplier=0.5")
    with pytest.raises(BudgetError, match=r"noise_multiplier=0.5 spends \d+\.\d+ in the first round; expected at most"):
        federate(tmp_path, cohorts, settings)
    assert {path.name for path in tmp_path.iterdir()} == {"audit.jsonl"}


def test_sites_beyond_the_settings_are_counted_too() -> None:
    """A simulation sets the number of sites without checking the settings anew."""
    settings = load_settings(overrides=[*PRIVATE, "site_privacy.delta=0.005"])
    more = settings.federation.model_copy(update={"num_sites": 3})
    with pytest.raises(ValueError, match=r"found 0.005 x 3"):
        noise_of(settings.model_copy(update={"federation": more}))


EVERYTHING = Entries(total=40, runs=((0, 40),))


def _privacy(folder: Path, num_samples: dict[str, int], noise: float, *overrides: str) -> SitePrivacy:
    settings = load_settings(overrides=[*PRIVATE, f"federation.num_sites={len(num_samples)}", *overrides])
    return SitePrivacy(settings, noise, num_samples, EVERYTHING, folder)


def _along(axis: int, length: float) -> np.ndarray:
    weights = np.zeros(40, np.float32)
    weights[axis] = length
    return weights


@pytest.mark.parametrize(
    ("weights", "expected"), [("equal", [1 / 3, 1 / 3, 1 / 3]), ("capped", [0.0625, 0.3125, 0.625])]
)
def test_sites_weigh_the_same_or_by_their_samples_up_to_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, expected: list[float]
) -> None:
    monkeypatch.setattr("server.site_privacy.spent", lambda *given: 0.0)  # next to no noise, for the sum to be seen
    counts = {"small": 10, "middle": 50, "large": 4000}
    privacy = _privacy(tmp_path, counts, 1e-9, f"site_privacy.weights={weights}", "site_privacy.samples_cap=100")
    mean = privacy.mean(np.zeros(40, np.float32), 1)
    for axis, (site, samples) in enumerate(counts.items()):
        mean.add(SiteUpdate(site=site, num_samples=samples, loss=0.0, weights=_along(axis, 77.0)))
    assert mean.update().weights[:3] == pytest.approx(expected, abs=1e-6)


def test_the_clip_finds_the_quantile_of_the_lengths(tmp_path: Path) -> None:
    """Two hundred sites whose updates are 3 long in the middle; the clip begins thirty times too small."""
    counts = {f"site {number}": 5 for number in range(200)}
    privacy = _privacy(tmp_path, counts, 5.0, "site_privacy.clipping=adaptive", "site_privacy.clip=0.1")
    draw, reference = np.random.default_rng(0), np.zeros(40, np.float32)
    clips = []
    for number in range(1, 81):
        mean = privacy.mean(reference, number)
        for site, length in zip(counts, 3 * np.exp(draw.normal(0, 0.5, 200)), strict=True):
            mean.add(SiteUpdate(site=site, num_samples=5, loss=0.0, weights=_along(number % 40, length)))
        mean.update()
        clips.append(privacy.clip)
    assert clips[0] < 0.15
    assert 2.4 < float(np.median(clips[50:])) < 3.7
