"""What a series of noised answers has spent of a privacy budget, and how much noise a budget asks for.

Opacus' accountants compose; each answer is the Gaussian mechanism on a Poisson sample of the units (patients or sites),
whose neighbours differ in one unit that is there or not.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Accountant = Literal["prv", "rdp"]
"""prv: numerical composition (Gopi et al. 2021), tight; rdp: Renyi divergences (Mironov 2017), fast and looser."""

_ERROR = 0.01
"""Of an epsilon that is composed numerically: the upper end of it is given."""
_RATIO = 1.002
"""How near the noise that is found lies to the least that is enough."""
_LEAST_NOISE, _MOST_NOISE = 0.05, 1e5


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

    Raises BudgetError where there is too little noise for the accountant to say anything.
    """
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
                else found.get_epsilon(delta, eps_error=_ERROR, delta_error=delta / 1000)
            )
    except (ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise BudgetError(
            f"the {accountant} accountant finds no epsilon for noise {min(each.noise_multiplier for each in spent):g} "
            f"at delta {delta:g} ({type(error).__name__}); use more noise"
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

    def is_enough(noise: float) -> bool:
        answers = Answers(noise_multiplier=noise, sampling_rate=sampling_rate, count=count)
        try:
            return epsilon_of([*besides, answers], delta, accountant) <= epsilon
        except BudgetError:
            return False

    low, high = _LEAST_NOISE, 1.0
    while not is_enough(high):
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            raise BudgetError(
                f"no noise keeps {count} answers within epsilon {epsilon:g} at delta {delta:g}"
                + (", beside what the other answers spend" if besides else "")
                + "; allow a larger epsilon"
            )
    while high / low > _RATIO:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
