"""The server's half of the project's own strategies: SCAFFOLD's control variate, batch-norm statistics by moments.

Pure functions of flat arrays; the sites' half is `client/corrections.py`. docs/strategies.md has formulas and sources.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from federation.selection import ModelEntries


class StrategyArithmeticError(ValueError):
    """Arrays or numbers that a strategy cannot compute with; says what was expected and what came."""


@dataclass(frozen=True, kw_only=True)
class ControlChange:
    """What a site's local work changed of what the server keeps beside the model: SCAFFOLD's control variate, or the
    gradients of batch norm's parameters (`server.rounds.control_size`)."""

    share: float
    """The site's weight in the objective of all sites; the shares of all sites of the run sum to 1. SCAFFOLD's own
    objective gives each of N sites 1 / N; samples / all samples is the objective of pooled training."""
    change: np.ndarray
    """c_i(new) - c_i(old), over the parameters that have a gradient; of batch norm, share * (own - the server's)."""


def scaffold_control_step(control: np.ndarray, changes: Sequence[ControlChange]) -> np.ndarray:
    """The server's control variate c after a round (Karimireddy et al. 2020, arXiv 1910.06378, Alg. 1).

    c + sum(share * (c_i(new) - c_i(old))) over the sites that took part: with equal shares the paper's
    c + |S| / N * mean(...). The sum runs in double precision.
    """
    _check_changes(control, changes)
    drift = np.zeros(control.shape)
    for each in changes:
        drift += each.share * each.change.astype(np.float64)
    return (control + drift).astype(control.dtype)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and variance of every batch-norm channel over some samples."""

    count: float
    """How much these moments weigh, such as the number of training samples."""
    mean: np.ndarray
    variance: np.ndarray


def site_moments(weights: np.ndarray, entries: ModelEntries, count: float) -> Moments:
    """The running statistics in a site's flat weights."""
    mean, variance = entries.means.take(weights), entries.variances.take(weights)
    return Moments(count=count, mean=mean.astype(np.float64), variance=variance.astype(np.float64))


def pooled_moments(first: Moments, second: Moments) -> Moments:
    """Mean and variance of both sets of samples together (Chan, Golub and LeVeque 1983).

    Equal to mean(var + mean^2) - mean_pool^2, weighted by counts, without that formula's cancellation: never below the
    weighted mean of the variances, from which it differs by the weighted variance of the means between sites.
    """
    if first.mean.shape != second.mean.shape or first.mean.shape != second.variance.shape:
        raise StrategyArithmeticError(
            f"expected moments of {list(first.mean.shape)} channels, found means {list(second.mean.shape)} and "
            f"variances {list(second.variance.shape)}"
        )
    if not (first.count > 0 and second.count > 0):
        raise StrategyArithmeticError(f"expected counts above zero, found {first.count} and {second.count}")
    count = first.count + second.count
    share = second.count / count
    apart = second.mean - first.mean
    variance = (1 - share) * first.variance + share * second.variance + share * (1 - share) * np.square(apart)
    return Moments(count=count, mean=first.mean + share * apart, variance=variance)


def moved_moments(before: Moments, now: Moments, share: float) -> Moments:
    """Running statistics as torch's batch norm moves them: of what was, and of a round's samples with this share."""
    mean = before.mean + share * (now.mean - before.mean)
    return Moments(count=now.count, mean=mean, variance=before.variance + share * (now.variance - before.variance))


def recalibrated(weights: np.ndarray, pooled: Moments, entries: ModelEntries) -> np.ndarray:
    """The aggregated weights with running statistics of all sites' samples together in place of averaged ones."""
    written = weights.copy()
    entries.means.put(written, pooled.mean.astype(weights.dtype))
    entries.variances.put(written, pooled.variance.astype(weights.dtype))
    return written


def _check_changes(control: np.ndarray, changes: Sequence[ControlChange]) -> None:
    if not changes or not all(0 < each.share <= 1 for each in changes):
        raise StrategyArithmeticError(
            f"expected one change or more, each with a share above 0 and at most 1, found shares "
            f"{[each.share for each in changes]}"
        )
    if (total := sum(each.share for each in changes)) > 1 + 1e-6:
        raise StrategyArithmeticError(
            f"expected shares that sum to at most 1, found {total:g}; divide by all sites of the run"
        )
    for each in changes:
        if each.change.shape != control.shape:
            raise StrategyArithmeticError(f"expected arrays {list(control.shape)}, found {list(each.change.shape)}")
