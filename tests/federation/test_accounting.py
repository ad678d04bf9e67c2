"""Epsilon against an accountant that others wrote, and the noise that a budget asks for."""

import math

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from federation.accounting import Accountant, Answers, BudgetError, epsilon_of, noise_for

DELTA = 1e-5
SMALL = [
    [Answers(noise_multiplier=30.0, sampling_rate=0.1, count=300)],
    [Answers(noise_multiplier=12.0, sampling_rate=0.02, count=1000)],
    [
        Answers(noise_multiplier=40.0, sampling_rate=1.0, count=1),
        Answers(noise_multiplier=20.0, sampling_rate=0.1, count=60),
    ],
]
"""Epsilons from a twentieth to a quarter, where an error that is fixed would be large."""
CASES = [
    [Answers(noise_multiplier=1.0, sampling_rate=0.05, count=600)],
    [Answers(noise_multiplier=5.2, sampling_rate=1.0, count=60)],
    [Answers(noise_multiplier=1.5, sampling_rate=0.1, count=300)],
    [
        Answers(noise_multiplier=10.0, sampling_rate=1.0, count=1),
        Answers(noise_multiplier=2.0, sampling_rate=0.2, count=90),
    ],
    [
        Answers(noise_multiplier=0.8, sampling_rate=0.01, count=2000),
        Answers(noise_multiplier=3.0, sampling_rate=0.3, count=7),
    ],
]


def _independent(answers: list[Answers], accountant: Accountant) -> float:
    ours = PLDAccountant() if accountant == "prv" else RdpAccountant()
    for each in answers:
        event = PoissonSampledDpEvent(each.sampling_rate, GaussianDpEvent(each.noise_multiplier))
        ours.compose(SelfComposedDpEvent(event, each.count))
    return ours.get_epsilon(DELTA)


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize("answers", CASES)
def test_epsilon_agrees_with_an_independent_accountant(answers: list[Answers], accountant: Accountant) -> None:
    assert epsilon_of(answers, DELTA, accountant) == pytest.approx(_independent(answers, accountant), rel=0.01)


@pytest.mark.parametrize("answers", SMALL)
def test_a_small_epsilon_agrees_too(answers: list[Answers]) -> None:
    found, expected = epsilon_of(answers, DELTA), _independent(answers, "prv")
    assert 0.03 < expected < 0.3
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("noise", "count"), [(20.0, 1), (50.0, 4), (160.0, 50), (300.0, 10)])
def test_a_small_epsilon_is_that_of_the_formula_from_above(noise: float, count: int) -> None:
    """Of so many Gaussian mechanisms, together one of noise / sqrt(count) (Balle and Wang 2018, theorem 8)."""
    mu = math.sqrt(count) / noise

    def too_much(epsilon: float) -> float:
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - DELTA

    exact = float(brentq(too_much, 0, 10))
    found = epsilon_of([Answers(noise_multiplier=noise, sampling_rate=1.0, count=count)], DELTA)
    assert 0.01 < exact < 0.25
    assert exact <= found <= 1.01 * exact


def test_nothing_spends_nothing() -> None:
    assert epsilon_of([], DELTA) == 0
    assert epsilon_of([Answers(noise_multiplier=1.0, sampling_rate=0.5, count=0)], DELTA) == 0


@pytest.mark.parametrize("epsilon", [0.25, 1.0, 3.0, 8.0])
def test_the_noise_that_is_found_is_enough_and_hardly_more(epsilon: float) -> None:
    besides = (Answers(noise_multiplier=max(10.0, 40 / epsilon), sampling_rate=1.0, count=1),)
    noise = noise_for(epsilon, DELTA, sampling_rate=0.1, count=200, besides=besides)
    for factor, holds in ((1.0, True), (0.99, False)):
        answers = Answers(noise_multiplier=factor * noise, sampling_rate=0.1, count=200)
        assert (epsilon_of([*besides, answers], DELTA) <= epsilon) is holds


def test_a_budget_that_no_noise_keeps_is_refused() -> None:
    besides = (Answers(noise_multiplier=1.0, sampling_rate=1.0, count=1),)
    with pytest.raises(BudgetError, match="beside what the other answers spend; allow a larger epsilon"):
        noise_for(1.0, DELTA, sampling_rate=0.1, count=10, besides=besides)


def test_too_little_noise_is_refused_in_words() -> None:
    with pytest.raises(BudgetError, match="use more noise"):
        epsilon_of([Answers(noise_multiplier=1e-4, sampling_rate=0.5, count=100)], DELTA)
