"""What a series of noised answers has spent of a privacy budget, and how much noise a budget asks for.

Opacus' accountants compose; each answer is the Gaussian mechanism on a Poisson sample of the units (patients or sites),
whose neighbours differ in one unit that is there or not.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Accountant = Literal["prv", "rdp"]
"""prv: numerical composition (Gopi et al. 2021), tight; rdp: Renyi divergences (Mironov 2017), fast and looser."""

_ERROR = 0.01
"""Of an epsilon that is composed numerically, at most: the upper end of it is given."""
_SHARE = 0.004
"""Of a small epsilon the error is this share of it, but no less than `_MOST_POINTS` of the composition tell."""
_MOST_POINTS = 1 << 22
"""More take seconds and gigabytes."""
_MARGIN = 1.25
"""How much larger the error is where noise is sought: so that what is found keeps the budget when it is told finely."""
_RATIO = 1.002
"""How near the noise that is found lies to the least that is enough."""
_LEAST_NOISE, _MOST_NOISE = 0.05, 1e5
_NEAR = 1.1
"""How far what a rough error finds lies from what a fine one does, about."""


class BudgetError(ValueError):
    """A budget that cannot be kept; says what was asked."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Noised answers of one kind: each the sum over a sample of the units, every unit's part at most 1 long."""

    noise_multiplier: float
    """Standard deviation of the noise over the longest part of a unit."""
    sampling_rate: float
    """Chance of a unit to be in a sample, drawn anew for each answer; 1 takes all."""
    count: int


def epsilon_of(answers: Sequence[Answers], delta: float, accountant: Accountant = "prv") -> float:
    """The epsilon at `delta` that all these answers together keep, from above; 0 of none.

    With prv it is less than 1 % too large, down to epsilons of some hundredths and some ten thousand answers. Raises
    BudgetError where there is too little noise for the accountant to say anything.
    """
    rough = _composed(answers, delta, accountant, _ERROR)
    error = _error_at(rough - _ERROR, answers, delta)
    if accountant == "rdp" or rough == 0 or error >= _ERROR:
        return rough
    try:
        return min(rough, _composed(answers, delta, accountant, error))
    except BudgetError:  # a delta that is too small for so many steps of the composition; both are upper ends
        return rough


def _error_at(epsilon: float, answers: Sequence[Answers], delta: float) -> float:
    """How finely an epsilon of about this size is told: Opacus' domain reaches some 3 beyond it to either side."""
    steps_to_error = math.sqrt(sum(each.count for each in answers) * math.log(12_000 / delta) / 2)
    finest = 2 * (4 + epsilon) * steps_to_error / _MOST_POINTS
    return min(_ERROR, max(finest, _SHARE * epsilon))


def _composed(answers: Sequence[Answers], delta: float, accountant: Accountant, error: float) -> float:
    """Epsilon from above, with prv by up to about `error` too large."""
    spent = [each for each in answers if each.count]
    if not spent:
        return 0.0
    # Opacus takes a second to import, which a run without privacy need not wait for.
    from opacus.accountants import PRVAccountant, RDPAccountant

    found = RDPAccountant() if accountant == "rdp" else PRVAccountant()
    found.history = [(each.noise_multiplier, each.sampling_rate, each.count) for each in spent]
    try:
        # They warn of log(0) where all units are taken, which is meant, and of orders that could be tighter.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            epsilon = (
                found.get_epsilon(delta)
                if isinstance(found, RDPAccountant)
                else found.get_epsilon(delta, eps_error=error, delta_error=delta / 1000)
            )
    except (ValueError, RuntimeError, OverflowError, MemoryError) as wrong:
        raise BudgetError(
            f"the {accountant} accountant finds no epsilon for noise {min(each.noise_multiplier for each in spent):g} "
            f"at delta {delta:g} ({type(wrong).__name__}); use more noise"
        ) from None
    if not math.isfinite(epsilon):
        raise BudgetError(f"the {accountant} accountant finds no finite epsilon at delta {delta:g}; use more noise")
    return float(epsilon)


@lru_cache(maxsize=64)
def noise_for(
    epsilon: float,
    delta: float,
    *,
    sampling_rate: float,
    count: int,
    besides: tuple[Answers, ...] = (),
    accountant: Accountant = "prv",
) -> float:
    """The least noise multiplier, to 0.2 %, with which `count` answers and those `besides` keep epsilon at delta.

    Raises BudgetError where no noise is enough, as where the answers besides have spent the budget.
    """

    def is_enough(noise: float, error: float) -> bool:
        together = [*besides, Answers(noise_multiplier=noise, sampling_rate=sampling_rate, count=count)]
        try:
            return _composed(together, delta, accountant, error) <= epsilon
        except BudgetError:
            return False

    alone = Answers(noise_multiplier=1.0, sampling_rate=sampling_rate, count=count)
    if besides and _spends_more(besides, delta, accountant, epsilon):
        raise _unkept(epsilon, delta, count, besides)
    rough, fine = min(_ERROR, epsilon / 8), min(_ERROR, _MARGIN * _error_at(epsilon, [*besides, alone], delta))
    low, high = _LEAST_NOISE, 1.0
    while not is_enough(high, rough):
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise _unkept(epsilon, delta, count, besides)
    high = _narrowed(lambda noise: is_enough(noise, rough), low, high)
    if fine >= rough:
        return high
    # What is told finely needs a little less noise; finding that from the beginning would take twice as long.
    low = high / _NEAR
    while is_enough(low, fine):
        low, high = low / _NEAR, low
    return _narrowed(lambda noise: is_enough(noise, fine), low, high)


def _spends_more(answers: Sequence[Answers], delta: float, accountant: Accountant, epsilon: float) -> bool:
    try:
        return _composed(answers, delta, accountant, min(_ERROR, epsilon / 8)) > epsilon
    except BudgetError:
        return True


def _unkept(epsilon: float, delta: float, count: int, besides: Sequence[Answers]) -> BudgetError:
    return BudgetError(
        f"no noise keeps {count} answers within epsilon {epsilon:g} at delta {delta:g}"
        + (", beside what the other answers spend" if besides else "")
        + "; allow a larger epsilon"
    )


def _narrowed(is_enough: Callable[[float], bool], low: float, high: float) -> float:
    """The least noise that is enough, to `_RATIO`, between one that is not and one that is."""
    while high / low > _RATIO:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
