"""Every strategy of Flower's on real messages of one flat array, against numpy and loops by hand."""

import gc
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedProx, Krum, MultiKrum
from flwr.supercore.task_identity import TaskIdentity

from federation.sections import StrategySettings
from federation.selection import Entries
from server.aggregator import Aggregator, SiteUpdate
from server.strategies import STRATEGIES, StrategyError, complete_parameters, least_replies, make_strategy

SIZE, NUM_SITES, ROUNDS = 40, 7, 4
GIVEN = {
    "fedprox": {"mu": 0.01},
    "fedtrimmedavg": {"beta": 0.2},
    "qfedavg": {"q": 0.7, "client_rate": 0.05},
    "multikrum": {"num_malicious": 1, "num_selected": 3},
}
COUNTS = np.array([3, 1, 4, 1, 5, 9, 2])
LOSSES = np.array([0.9, 0.1, 0.4, 0.3, 0.7, 0.2, 0.5])


@pytest.fixture(autouse=True)
def _task() -> None:
    """Flower creates messages for the task that its process works on; a test's process is no task."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture(autouse=True, scope="module")
def _small_heap() -> Iterator[None]:
    """QFedAvg and Bulyan collect garbage once a reply, a tenth of a second each where torch is loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


def _rounds(seed: int = 0) -> list[np.ndarray]:
    """What the sites' training adds to any model: [round, site, entry]."""
    return list(np.random.default_rng(seed).normal(scale=0.1, size=(ROUNDS, NUM_SITES, SIZE)).astype(np.float32))


def _updates(reference: np.ndarray, moves: np.ndarray) -> list[SiteUpdate]:
    return [
        SiteUpdate(site=f"site {site}", num_samples=int(count), loss=float(loss), weights=reference + move)
        for site, (count, loss, move) in enumerate(zip(COUNTS, LOSSES, moves, strict=False))
    ]


def _by_hand(name: str, start: np.ndarray) -> list[np.ndarray]:
    """The global model after every round, in double precision, from the strategies' papers and Flower's defaults."""
    model, state, models = start.astype(np.float64), {}, []
    for number, moves in enumerate(_rounds(), start=1):
        model = model + _STEPS[name](moves.astype(np.float64), state, number)
        models.append(model)
    return models


def _mean(moves, state, number):
    return sum(count * move for count, move in zip(COUNTS, moves, strict=True)) / COUNTS.sum()


def _momentum(moves, state, number):
    state["momentum"] = 0.9 * state.get("momentum", 0) + _mean(moves, state, number)
    return state["momentum"]


def _adam(moves, state, number):
    move = _mean(moves, state, number)
    state["first"] = 0.9 * state.get("first", 0) + 0.1 * move
    state["second"] = 0.99 * state.get("second", 0) + 0.01 * move**2
    rate = 0.1 * np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))  # Flower counts one round too many
    return rate * state["first"] / (np.sqrt(state["second"]) + 1e-3)


def _yogi(moves, state, number):
    move, before = _mean(moves, state, number), state.get("second", np.zeros(SIZE))
    state["first"] = 0.9 * state.get("first", 0) + 0.1 * move
    state["second"] = before - 0.01 * move**2 * np.sign(before - move**2)
    return 0.01 * state["first"] / (np.sqrt(state["second"]) + 1e-3)


def _adagrad(moves, state, number):
    move = _mean(moves, state, number)
    state["second"] = state.get("second", 0) + move**2
    return 0.1 * move / (np.sqrt(state["second"]) + 1e-3)


def _fair(moves, state, number):
    lipschitz, q, above, below = 1 / 0.05, 0.7, np.zeros(SIZE), 0.0
    for move, loss in zip(moves, LOSSES, strict=True):
        gradient = -lipschitz * move
        above = above + loss**q * gradient
        below += q * loss ** (q - 1) * (gradient**2).sum() + lipschitz * loss**q
    return -above / below


def _median(moves, state, number):
    return np.median(moves, axis=0)


def _trimmed(moves, state, number):
    return np.sort(moves, axis=0)[1:-1].mean(axis=0)  # a fifth of seven is one at either end


def _krum_order(moves, malicious):
    scores = []
    for site, move in enumerate(moves):
        distances = sorted(((move - other) ** 2).sum() for place, other in enumerate(moves) if place != site)
        scores.append(sum(distances[: len(moves) - malicious - 2]))
    return np.argsort(scores)


def _krum(moves, state, number):
    return moves[_krum_order(moves, 1)[0]]


def _multikrum(moves, state, number):
    chosen = _krum_order(moves, 1)[:3]
    return np.average(moves[chosen], axis=0, weights=COUNTS[chosen])


def _bulyan(moves, state, number):
    chosen = moves[_krum_order(moves, 1)[: NUM_SITES - 2]]
    middle, result = np.median(chosen, axis=0), np.zeros(SIZE)
    for entry in range(SIZE):
        near = sorted(chosen[:, entry], key=lambda value: abs(value - middle[entry]))
        result[entry] = np.mean(near[: NUM_SITES - 4])
    return result


_STEPS = {
    "fedavg": _mean,
    "scaffold": _mean,
    "fedprox": _mean,
    "fedavgm": _momentum,
    "fedadam": _adam,
    "fedyogi": _yogi,
    "fedadagrad": _adagrad,
    "qfedavg": _fair,
    "fedmedian": _median,
    "fedtrimmedavg": _trimmed,
    "krum": _krum,
    "multikrum": _multikrum,
    "bulyan": _bulyan,
}


def _aggregator(name: str, statistics: Entries | None = None) -> Aggregator:
    return Aggregator(name, GIVEN.get(name, {}), num_sites=NUM_SITES, statistics=statistics)


def _run(aggregator: Aggregator, start: np.ndarray, rounds: range = range(1, ROUNDS + 1)) -> list[np.ndarray]:
    model, models = start, []
    for number in rounds:
        model = aggregator.aggregate(number, model, _updates(model, _rounds()[number - 1]))
        models.append(model)
    return models


START = np.random.default_rng(9).normal(size=SIZE).astype(np.float32)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_an_adaptive_strategys_step_is_longer_where_the_rate_is(name: str) -> None:
    """One round from the same start: later ones would start from other models."""
    faster = Entries(total=SIZE, runs=((1, 3), (SIZE - 1, SIZE)))
    (plain,) = _run(_aggregator(name), START, range(1, 2))
    given = Aggregator(name, GIVEN.get(name, {}), num_sites=NUM_SITES, faster=(faster, 20.0))
    (found,) = _run(given, START, range(1, 2))
    is_adaptive = name in ("fedadam", "fedyogi", "fedadagrad")
    factors = np.where(faster.mask() & is_adaptive, 20.0, 1.0)
    np.testing.assert_allclose(found - START, factors * (plain - START), rtol=1e-3, atol=1e-6)
    assert ((found != plain) == (faster.mask() & is_adaptive)).all()


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_an_adaptive_strategys_step_shrinks_as_it_is_told(name: str) -> None:
    """Half as long in the second round, from the model that the first one left."""
    whole = _run(_aggregator(name), START, range(1, 3))
    given = Aggregator(
        name, GIVEN.get(name, {}), num_sites=NUM_SITES, factor=lambda number: 1.0 if number == 1 else 0.5
    )
    first, second = _run(given, START, range(1, 3))
    half = 0.5 if name in ("fedadam", "fedyogi", "fedadagrad") else 1.0
    np.testing.assert_array_equal(first, whole[0])
    np.testing.assert_allclose(second - first, half * (whole[1] - whole[0]), rtol=1e-3, atol=1e-6)


def test_the_schedule_goes_from_all_to_a_twentieth() -> None:
    constant, cosine = StrategySettings(), StrategySettings(server_schedule="cosine")
    assert {constant.server_factor(number, 10) for number in range(1, 11)} == {1.0}
    factors = [cosine.server_factor(number, 10) for number in range(1, 12)]
    assert (factors[0], factors[5], factors[10]) == pytest.approx((1.0, 0.525, 0.05))
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("name", STRATEGIES)
def test_rounds_are_those_computed_by_hand(name: str) -> None:
    for got, expected in zip(_run(_aggregator(name), START), _by_hand(name, START), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_flowers_own_aggregation_of_weights_says_the_same(name: str) -> None:
    """`aggregate_train` on replies that carry weights as one flat array, as Flower means it to be used."""
    strategy = make_strategy(name, GIVEN.get(name, {}), num_sites=NUM_SITES)
    model = START
    for number, moves in enumerate(_rounds(), start=1):
        current = ArrayRecord({"weights": Array(model)})
        assert list(strategy.configure_train(number, current, ConfigRecord(), None)) == []
        arrays, _ = strategy.aggregate_train(number, [_reply(each) for each in _updates(model, moves)])
        assert list(arrays) == ["weights"]
        model = arrays["weights"].numpy().astype(np.float32)
        np.testing.assert_allclose(model, _by_hand(name, START)[number - 1], rtol=2e-4, atol=2e-5)


def _reply(update: SiteUpdate) -> Message:
    arrays = ArrayRecord({"weights": Array(update.weights)})
    metrics = MetricRecord({"num-examples": update.num_samples, "loss/total": update.loss, "seconds": 1.0})
    asked = Message(RecordDict(), dst_node_id=5, message_type="train")
    content = RecordDict({"arrays": arrays, "metrics": metrics, "config": ConfigRecord({"site": update.site})})
    return Message(content, reply_to=asked)


@pytest.mark.parametrize("name", [name for name, kind in STRATEGIES.items() if kind.of_mean])
def test_the_mean_alone_is_enough_where_the_table_says_so(name: str) -> None:
    streamed, model = _aggregator(name), START
    for number, (moves, expected) in enumerate(zip(_rounds(), _by_hand(name, START), strict=True), start=1):
        mean = np.average(model + moves, axis=0, weights=COUNTS).astype(np.float32)
        one = SiteUpdate(site="all", num_samples=int(COUNTS.sum()), loss=0.0, weights=mean)
        model = streamed.aggregate(number, model, [one])
        np.testing.assert_allclose(model, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_goes_on_from_its_state(name: str) -> None:
    whole = _run(_aggregator(name), START)
    first = _aggregator(name)
    assert first.state() == {}
    half = _run(first, START, range(1, 3))
    second = _aggregator(name)
    second.restore(first.state())
    rest = _run(second, half[-1], range(3, ROUNDS + 1))
    for got, expected in zip(half + rest, whole, strict=True):
        assert got.tobytes() == expected.tobytes()
    assert set(second.state()) == {
        "fedavgm": {"momentum"},
        "fedadam": {"first", "second"},
        "fedyogi": {"first", "second"},
        "fedadagrad": {"first", "second"},
    }.get(name, set())
    with pytest.raises(StrategyError, match="expected a state of"):
        second.restore({"other": START})


@pytest.mark.parametrize("name", STRATEGIES)
def test_running_statistics_stay_out_of_the_arithmetic_and_positive(name: str) -> None:
    statistics = Entries(total=SIZE, runs=((10, 14), (30, 32)))
    mask = statistics.mask()
    aggregator, start = _aggregator(name, statistics), START.copy()
    start[mask] = 1e-4
    random, model = np.random.default_rng(3), start
    for number, moves in enumerate(_rounds(), start=1):
        updates = _updates(model, moves)
        for each in updates:  # variances fall fast: a step beyond them would be negative
            each.weights[mask] = model[mask] * random.uniform(0.01, 0.1, size=mask.sum())
        before, model = model, aggregator.aggregate(number, model, updates)
        values = np.array([each.weights[mask] for each in updates], np.float64)
        middle = np.median(values, axis=0) if STRATEGIES[name].robust else np.average(values, axis=0, weights=COUNTS)
        np.testing.assert_allclose(model[mask], middle, rtol=1e-6)
        assert (model[mask] > 0).all()
        assert not np.array_equal(model[~mask], before[~mask])


def test_without_it_a_server_optimizer_makes_variances_negative() -> None:
    for name in ("fedadam", "fedavgm"):
        aggregator, model, seen = _aggregator(name), np.full(1, 1e-2, np.float32), []
        for number in range(1, 7):  # every site finds half the variance, round after round
            update = SiteUpdate(site="all", num_samples=1, loss=0.0, weights=np.abs(model) / 2)
            model = aggregator.aggregate(number, model, [update])
            seen.append(float(model[0]))
        assert min(seen) < 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_no_site_changes_stays_bit_for_bit(name: str) -> None:
    moves = _rounds()[0].copy()
    moves[:, :15] = 0  # a frozen backbone
    got = _aggregator(name).aggregate(1, START, _updates(START, moves))
    assert got[:15].tobytes() == START[:15].tobytes()


@pytest.mark.parametrize("name", [name for name, kind in STRATEGIES.items() if kind.robust])
@pytest.mark.parametrize("attack", ["scaled", "flipped", "random"])
def test_one_malicious_site_of_seven_moves_a_robust_strategy_little(name: str, attack: str) -> None:
    random = np.random.default_rng(11)
    honest = 0.1 + random.normal(scale=0.01, size=(NUM_SITES, SIZE)).astype(np.float32)
    moves = honest.copy()
    moves[3] = {"scaled": 100 * honest[3], "flipped": -10 * honest[3], "random": random.normal(size=SIZE)}[attack]
    expected = np.delete(honest, 3, axis=0).mean(axis=0)
    robust = _aggregator(name).aggregate(1, START, _updates(START, moves)) - START
    plain = _aggregator("fedavg").aggregate(1, START, _updates(START, moves)) - START
    assert np.abs(robust - expected).max() < 0.04
    assert np.abs(plain - expected).max() > 0.04


def test_krum_on_updates_chooses_rightly_where_flower_on_weights_does_not() -> None:
    """Distances by |x|^2 + |y|^2 - 2xy of float32 weights lose updates that are a thousandth of them."""
    random, size, wrong = np.random.default_rng(0), 200_000, 0
    for trial in range(5):
        reference = random.normal(size=size).astype(np.float32)
        direction = random.normal(size=size)
        scales = np.array([1.0, 1.1, 1.2, 5.0, 0.9])  # the fourth is far from all others
        moves = [direction * scale * 1e-5 for scale in scales]
        updates = [
            SiteUpdate(site=str(place), num_samples=1, loss=0, weights=reference + move.astype(np.float32))
            for place, move in enumerate(moves)
        ]
        best = _krum_order(np.array([each.weights.astype(np.float64) - reference for each in updates]), 1)[0]
        got = Aggregator("krum", {}, num_sites=5).aggregate(1, reference, updates)
        assert np.abs(got - updates[best].weights).max() <= 2e-7, trial
        plain, _ = Krum(num_malicious_nodes=1).aggregate_train(1, [_reply(each) for each in updates])
        wrong += not np.array_equal(plain["weights"].numpy(), updates[best].weights)
    assert wrong > 0


def test_strategies_are_made_of_flowers_classes_with_the_parameters_given() -> None:
    strategy = make_strategy("fedavgm", {"momentum": 0.5, "server_rate": 0.3}, num_sites=2)
    assert isinstance(strategy, FedAvgM)
    assert (strategy.server_momentum, strategy.server_learning_rate) == (0.5, 0.3)
    prox = make_strategy("fedprox", {"mu": 0.2}, num_sites=1)
    assert isinstance(prox, FedProx)
    assert prox.proximal_mu == 0.2
    krum = make_strategy("multikrum", {"num_malicious": 2, "num_selected": 3}, num_sites=9)
    assert isinstance(krum, MultiKrum)
    assert (krum.num_malicious_nodes, krum.num_nodes_to_select) == (2, 3)
    assert all(issubclass(kind.flower, FedAvg) for kind in STRATEGIES.values())


@pytest.mark.parametrize(
    ("name", "parameters", "num_sites", "words"),
    [
        ("fedsgd", {}, 5, "expected a strategy of fedavg, fedprox, .*, found 'fedsgd'"),
        ("fedavg", {"mu": 1}, 5, r"fedavg: expected parameters of \[\], found \['mu'\]"),
        ("fedprox", {}, 5, "fedprox: expected a value for mu, found none; it has no default"),
        ("fedprox", {"mu": 0}, 5, "fedprox, mu: expected a number above 0, found 0"),
        ("fedprox", {"mu": float("nan")}, 5, "fedprox, mu: expected a number above 0, found nan"),
        ("fedprox", {"mu": float("inf")}, 5, "fedprox, mu: expected a number above 0, found inf"),
        ("fedavgm", {"momentum": 1}, 5, "fedavgm, momentum: expected a number at least 0 and below 1, found 1"),
        ("fedavgm", {"server_rate": -1}, 5, "fedavgm, server_rate: expected a number above 0, found -1"),
        ("fedadam", {"tau": 0}, 5, "fedadam, tau: expected a number above 0, found 0"),
        ("fedyogi", {"beta_2": 1.5}, 5, "fedyogi, beta_2: expected a number at least 0 and below 1, found 1.5"),
        ("fedadagrad", {"beta_1": 0.5}, 5, r"expected parameters of \['server_rate', 'tau'\], found \['beta_1'\]"),
        ("qfedavg", {"q": -0.1, "client_rate": 1}, 5, "qfedavg, q: expected a number at least 0, found -0.1"),
        ("qfedavg", {"q": 0.1}, 5, "qfedavg: expected a value for client_rate"),
        ("fedmedian", {}, 2, "fedmedian with any settings needs 3 sites or more, the federation has 2"),
        ("fedtrimmedavg", {"beta": 0.5}, 9, "fedtrimmedavg, beta: expected a number above 0 and below 0.5, found 0.5"),
        ("fedtrimmedavg", {"beta": 0}, 9, "fedtrimmedavg, beta: expected a number above 0 and below 0.5, found 0"),
        ("fedtrimmedavg", {"beta": 0.2}, 4, "fedtrimmedavg with beta=0.2 needs 5 sites or more"),
        ("krum", {}, 4, "krum with num_malicious=1 needs 5 sites or more, the federation has 4"),
        ("krum", {"num_malicious": 2}, 6, "krum with num_malicious=2 needs 7 sites or more"),
        ("krum", {"num_malicious": 1.5}, 9, "krum, num_malicious: expected a whole number at least 0, found 1.5"),
        ("krum", {"num_malicious": -1}, 9, "krum, num_malicious: expected a whole number at least 0, found -1"),
        ("multikrum", {"num_selected": 5}, 5, "multikrum with num_malicious=1, num_selected=5 needs 6 sites or more"),
        ("multikrum", {"num_selected": 0}, 5, "multikrum, num_selected: expected a whole number at least 1, found 0"),
        ("bulyan", {}, 6, "bulyan with num_malicious=1 needs 7 sites or more, the federation has 6"),
    ],
)
def test_settings_without_sense_are_refused(name: str, parameters: dict, num_sites: int, words: str) -> None:
    with pytest.raises(StrategyError, match=words):
        make_strategy(name, parameters, num_sites=num_sites)


@pytest.mark.parametrize("malicious", [0, 1, 2, 3])
def test_the_least_number_of_sites_is_accepted(malicious: int) -> None:
    for name, least in (("krum", 2 * malicious + 3), ("bulyan", 4 * malicious + 3)):
        make_strategy(name, {"num_malicious": malicious}, num_sites=least)
        assert least_replies(name, {"num_malicious": malicious}) == least


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.15, 0.2, 0.29, 0.3, 1 / 3, 0.4, 0.49])
def test_trimming_needs_as_many_as_flower_trims_one_of(beta: float) -> None:
    least = next(number for number in itertools.count(1) if int(beta * number) >= 1)
    assert least_replies("fedtrimmedavg", {"beta": beta}) == least


def test_defaults_are_flowers_or_stated() -> None:
    assert complete_parameters("fedadam", {}) == {"server_rate": 0.1, "tau": 1e-3, "beta_1": 0.9, "beta_2": 0.99}
    assert complete_parameters("fedadam", {"tau": 0.1})["tau"] == 0.1


def test_rounds_that_cannot_be_aggregated_are_refused() -> None:
    updates = _updates(START, _rounds()[0])
    with pytest.raises(StrategyError, match="round 3: krum needs 5 replies or more, 4 can be used; raise the quorum"):
        _aggregator("krum").aggregate(3, START, updates[:4])
    with pytest.raises(StrategyError, match="round 3: bulyan needs 7 replies or more, 6 can be used"):
        _aggregator("bulyan").aggregate(3, START, updates[:6])
    with pytest.raises(StrategyError, match="round 1: fedavg needs 1 replies or more, 0 can be used"):
        _aggregator("fedavg").aggregate(1, START, [])
    short = [*updates[1:], SiteUpdate(site="west", num_samples=1, loss=0, weights=START[:1])]
    with pytest.raises(StrategyError, match=r"west: expected weights \[40\], found \[1\]"):
        _aggregator("fedavg").aggregate(1, START, short)
    none = [*updates[1:], SiteUpdate(site="west", num_samples=0, loss=0, weights=START)]
    with pytest.raises(StrategyError, match="west: expected one training sample or more, found 0"):
        _aggregator("fedavg").aggregate(1, START, none)
    for loss in (-0.1, float("nan")):
        bad = [*updates[1:], SiteUpdate(site="west", num_samples=1, loss=loss, weights=START)]
        with pytest.raises(StrategyError, match="west: qfedavg needs a training loss of zero or more"):
            _aggregator("qfedavg").aggregate(1, START, bad)
    broken = [SiteUpdate(site="west", num_samples=1, loss=0, weights=START * np.float32(np.nan))]
    with pytest.raises(StrategyError, match="round 1: fedavg made weights that are not finite"):
        _aggregator("fedavg").aggregate(1, START, broken)
