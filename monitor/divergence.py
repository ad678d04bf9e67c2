"""Whether a loss has left where it was: a rule that noise, slow learning and overfitting do not set off."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from monitor.limits import Divergence

_REMEMBERED = 50
"""Steps that the noise is taken from, the last ones."""
_TO_SD = 1.4826 / math.sqrt(2)
"""From the median of differences of neighbours to the standard deviation of one, where it is normal."""


@dataclass(frozen=True, kw_only=True)
class Rise:
    """Steps in a row in which a loss is where it should not be."""

    first: int
    """The step that it began with."""
    step: int
    """The step that makes it sure."""
    loss: float | None
    """In that step; None where it is no finite number."""
    best: float | None
    """Before the first; None where there was none yet."""


def rises(curve: Sequence[tuple[int, float | None]], limits: Divergence) -> Iterator[Rise]:
    """Every time that a curve of (step, loss) left its best, once each.

    A step is above when its loss exceeds the best so far by more than `rise` of it and by more than `noise` standard
    deviations of the curve's own noise; `rounds` of them in a row are a rise, and as many below end it. A loss that is
    no finite number is one at once. The best is the lowest median of `rounds` steps in a row, so that one lucky step is
    no best; the noise is the median of the differences between neighbours, so that few jumps do not widen it. Both are
    of the steps before, and need `2 * rounds` of them at least.
    """
    calm: list[float] = []
    odd: list[tuple[int, float]] = []
    """Steps since the first of a rise, or of what may become one."""
    best, num_above, num_below, is_told = None, 0, 0, False
    for step, loss in curve:
        is_above = loss is None or (best is not None and loss > _bound(best, calm, limits))
        num_above, num_below = (num_above + 1, 0) if is_above else (0, num_below + 1)
        if is_above and not is_told and (loss is None or num_above >= limits.rounds):
            is_told = True
            yield Rise(first=odd[0][0] if odd else step, step=step, loss=loss, best=best)
        if loss is not None:
            odd.append((step, loss))
        if not is_above and (not is_told or num_below >= limits.rounds):
            calm += [each for _, each in odd]
            odd, is_told = [], False
            best = _best(calm, best, limits.rounds)


def _best(calm: Sequence[float], best: float | None, rounds: int) -> float | None:
    """The lowest median so far of `rounds` neighbours; None for too short a curve."""
    if len(calm) < 2 * rounds:
        return None
    if best is None:
        return min(median(calm[start : start + rounds]) for start in range(len(calm) - rounds + 1))
    return min(best, median(calm[-rounds:]))


def _bound(best: float, calm: Sequence[float], limits: Divergence) -> float:
    last = calm[-_REMEMBERED:]
    noise = _TO_SD * median(abs(after - before) for before, after in pairwise(last))
    return best + max(limits.rise * abs(best), limits.noise * noise)
