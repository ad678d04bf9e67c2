"""From replies to the next model: the same mean whether summed at once or kept on disk, and outliers left out."""

from pathlib import Path

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity

from federation.messages import TrainReply
from federation.sections import StrategySettings
from federation.selection import Entries, ModelEntries
from server.aggregation import Replies
from server.aggregator import Aggregator
from server.guards import Guard
from server.waiting import Waiting

SIZE = 300_000
"""More than are multiplied together at a time."""


@pytest.fixture(autouse=True)
def _task() -> None:
    """Flower creates messages for the task that its process works on; a test's process is no task."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def _weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)


def _reply(site: str, weights: np.ndarray, num_samples: int = 5) -> TrainReply:
    return TrainReply(
        site=site,
        num_samples=num_samples,
        weights=weights,
        losses={"total": 1.0},
        seconds=0.0,
        server_round=1,
        code_digest="code",
        layout_digest="layout",
        agreement_digest="agreement",
    )


def _replies(counts: dict[str, int], scratch: Path, *, norm_factor: float, name: str = "fedavg") -> Replies:
    guard = Guard(
        server_round=1,
        code_digest="code",
        layout_digest="layout",
        agreement_digest="agreement",
        num_samples=counts,
        reference=_weights(0),
        groups={"parameters": Entries(total=SIZE, runs=((0, SIZE),))},
    )
    aggregator = Aggregator(name, {}, num_sites=len(counts), statistics=None)
    strategy = StrategySettings(norm_factor=norm_factor)
    nothing = Entries(total=SIZE, runs=())
    entries = ModelEntries(trained=nothing, parameters=nothing, means=nothing, variances=nothing, batch_norm=nothing)
    return Replies(guard, aggregator, strategy, entries, np.zeros(0, np.float32), scratch, len(counts))


@pytest.mark.parametrize("norm_factor", [0.0, 10.0])
def test_the_mean_counts_samples_and_nothing_is_left_on_disk(tmp_path: Path, norm_factor: float) -> None:
    counts = {"north": 3, "south": 7, "west": 90}
    sent = {site: _weights(seed) for seed, site in enumerate(counts, start=1)}
    with _replies(counts, tmp_path, norm_factor=norm_factor) as replies:
        assert [replies.add(_reply(site, sent[site], count)) for site, count in counts.items()] == [None] * 3
        assert replies.refuse_outliers() == {}
        found, _ = replies.aggregate()
    expected = sum(sent[site].astype(np.float64) * count for site, count in counts.items()) / 100
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not list(tmp_path.iterdir())


def test_a_far_longer_update_and_a_wrong_reply_are_left_out(tmp_path: Path) -> None:
    counts = dict.fromkeys(("east", "north", "south", "west"), 5)
    start = _weights(0)
    with _replies(counts, tmp_path, norm_factor=10.0) as replies:
        for seed, site in enumerate(("north", "south", "west"), start=1):
            assert replies.add(_reply(site, start + (100 if site == "west" else 1) * _weights(seed))) is None
        assert "expected 5 training samples, as registered, found 6" in (replies.add(_reply("east", start, 6)) or "")
        (refused,) = replies.refuse_outliers().items()
        assert refused[0] == "west"
        assert "of at most 10 times the round's median norm" in refused[1]
        found, _ = replies.aggregate()
    np.testing.assert_allclose(found, start + (_weights(1) + _weights(2)) / 2, atol=1e-6)


@pytest.mark.parametrize(("norm_factor", "most"), [(0.0, 0), (10.0, 3)])
def test_replies_wait_only_until_more_than_half_of_the_sites_have_replied(
    tmp_path: Path, monkeypatch, norm_factor: float, most: int
) -> None:
    monkeypatch.setattr(Waiting.__init__, "__defaults__", (0,))
    counts = dict.fromkeys("abcdefg", 5)
    on_disk = []
    with _replies(counts, tmp_path, norm_factor=norm_factor) as replies:
        for seed, site in enumerate(counts, start=1):
            # The last one is an outlier.
            assert replies.add(_reply(site, _weights(0) + (100 if site == "g" else 1) * _weights(seed))) is None
            on_disk.append(len(list(tmp_path.glob(".replies_*/*.npy"))))
        assert on_disk == ([1, 2, 3, 0, 0, 0, 1] if most else [0] * 7)
        assert list(replies.refuse_outliers()) == (["g"] if most else [])
        found, _ = replies.aggregate()
    if most:
        expected = _weights(0) + np.mean([_weights(seed) for seed in range(1, 7)], axis=0)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_arrays_wait_in_memory_and_what_it_does_not_hold_in_files(tmp_path: Path) -> None:
    waiting, values = Waiting(tmp_path, memory_bytes=1000), np.arange(200, dtype=np.float32)
    for site in ("north", "../south"):
        waiting.keep(site, "weights", values + len(site))
    assert len(list(tmp_path.glob(".replies_*/*.npy"))) == 1
    assert (waiting.take("north", "weights") == values + 5).all()
    waiting.keep("west", "weights", values)
    assert len(list(tmp_path.glob(".replies_*/*.npy"))) == 1, "memory that was given back serves again"
    south = waiting.take("../south", "weights")
    assert not list(tmp_path.glob(".replies_*/*.npy"))
    waiting.close()
    assert (south == values + 8).all()
    assert not list(tmp_path.iterdir())


def test_a_strategy_of_all_replies_gets_them_all(tmp_path: Path) -> None:
    counts = dict.fromkeys(("north", "south", "west"), 5)
    for norm_factor in (0.0, 10.0):
        with _replies(counts, tmp_path, norm_factor=norm_factor, name="fedmedian") as replies:
            for seed, site in enumerate(counts, start=1):
                assert replies.add(_reply(site, _weights(seed))) is None
            found, _ = replies.aggregate()
        expected = np.median([_weights(seed) for seed in (1, 2, 3)], axis=0)
        np.testing.assert_allclose(found, expected, atol=1e-6)
