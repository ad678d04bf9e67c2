"""The replies of one round on their way to the strategy: judged as they come, summed as soon as may be.

Nothing here grows in memory with the number of sites, unless the strategy needs all replies side by side.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import torch

from federation.messages import TrainReply
from federation.sections import StrategySettings
from federation.selection import ModelEntries
from federation.weights import all_finite
from server.aggregator import Aggregator, SiteUpdate
from server.arithmetic import (
    ControlChange,
    Moments,
    moved_moments,
    pooled_moments,
    recalibrated,
    scaffold_control_step,
    site_moments,
)
from server.guards import Guard, Submission, outlying_norms, surely_ordinary
from server.similarity import Similarity
from server.site_privacy import SitePrivacy
from server.strategies import STRATEGIES
from server.waiting import Waiting

_WEIGHTS, _CONTROL = "weights", "control"
_NOTHING = np.zeros(0, np.float32)


class Replies:
    """The replies of a round that may be aggregated, in the order in which they were added.

    With a norm guard a reply waits until its update is known not to be far longer than the round's median, that is
    until more than half of the sites have replied. A strategy that needs the mean alone then gets a running sum.
    """

    def __init__(
        self,
        guard: Guard,
        aggregator: Aggregator,
        strategy: StrategySettings,
        entries: ModelEntries,
        control: np.ndarray,
        scratch: Path,
        num_asked: int,
        privacy: SitePrivacy | None = None,
    ) -> None:
        """`control` is what `control_size` says, float32 [number]; replies may wait in files of `scratch`; `num_asked`
        sites may reply. With `privacy` their mean is clipped and noised."""
        self._guard, self._aggregator, self._strategy, self._entries = guard, aggregator, strategy, entries
        self._of_mean = STRATEGIES[aggregator.name].of_mean
        self._waiting, self._num_asked = Waiting(scratch), num_asked
        self._updates: dict[str, SiteUpdate] = {}
        """Of the replies that wait, without their weights."""
        self._norms: dict[str, dict[str, float]] = {}
        self.similarity = Similarity(guard.reference, entries.trained.without(entries.statistics))
        """Of the updates that were taken in, outliers' too."""
        self._is_private = privacy is not None
        self._mean = (
            RunningMean(guard.reference.size) if privacy is None else privacy.mean(guard.reference, guard.server_round)
        )
        self.far_longer: list[str] = []
        """Sites whose update `refuse_outliers` let through in spite of its length."""
        self._moments: dict[str, Moments] = {}
        self._control, self._changes = control, set[str]()

    def __enter__(self) -> "Replies":
        return self

    def __exit__(self, *error: object) -> None:
        self._waiting.close()

    def add(self, reply: TrainReply) -> str | None:
        """Take a reply in, or say why it cannot be used."""
        submission = submission_of(reply)
        problem = self._guard.problem(submission, self._norms)
        problem = problem or self._other_control(reply)
        if problem is not None:
            return problem
        self._norms[reply.site] = self._guard.norms(submission) if self._strategy.norm_factor else {}
        self._updates[reply.site] = SiteUpdate(
            site=reply.site, num_samples=reply.num_samples, loss=reply.losses.get("total", 0.0), weights=_NOTHING
        )
        self.similarity.add(reply.site, reply.weights, reply.num_samples)
        self._waiting.keep(reply.site, _WEIGHTS, reply.weights)
        if self._strategy.recalibrate and self._entries.means.size:
            self._moments[reply.site] = site_moments(reply.weights, self._entries, reply.num_samples)
        if self._control.size:
            self._changes.add(reply.site)
            self._waiting.keep(reply.site, _CONTROL, reply.control_change)
        if self._of_mean:
            self._sum(self._surely_ordinary())
        return None

    def refuse_outliers(self) -> dict[str, str]:
        """Leave out updates far longer than the round's median; by site, why.

        With site-level privacy they are only noted: the clip bounds them, and a site that is left out because of the
        others' lengths would let another one move more than its own part of the sum.
        """
        if not self._strategy.norm_factor:
            return {}
        reasons = outlying_norms(self._norms, self._strategy.norm_factor)
        if self._is_private:
            self.far_longer = sorted(reasons)
            return {}
        for site in reasons:
            del self._updates[site]
            self._moments.pop(site, None)
            self._changes.discard(site)
        return reasons

    @property
    def norms(self) -> dict[str, dict[str, float]]:
        """Lengths of the updates that were taken in, by site and group, outliers' too; empty without a norm guard."""
        return {site: each for site, each in self._norms.items() if each}

    def aggregate(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 [number], the next global model; float32 [number], the next `control`.

        Raises StrategyError where the strategy makes none.
        """
        if self._of_mean:
            self._sum(set(self._updates))
            updates = [self._mean.update()]
        else:
            updates = [self._whole(each) for each in self._updates.values()]
        weights = self._aggregator.aggregate(self._guard.server_round, self._guard.reference, updates)
        if self._moments:
            weights = recalibrated(weights, self._statistics(), self._entries)
        return weights, self._next_control()

    def _statistics(self) -> Moments:
        """Batch norm's statistics of all samples of the round, or with less weight where the settings say so."""
        pooled = reduce(pooled_moments, self._moments.values())
        share = self._strategy.statistics_share(self._guard.server_round)
        return moved_moments(site_moments(self._guard.reference, self._entries, pooled.count), pooled, share)

    def _surely_ordinary(self) -> set[str]:
        if self._is_private:
            return set(self._updates)
        return surely_ordinary(self._norms, self._num_asked, self._strategy.norm_factor)

    def _sum(self, sites: set[str]) -> None:
        """Let the replies of these sites that still wait go into the running sum."""
        for site in [each for each in self._updates if each in sites]:
            self._mean.add(self._whole(self._updates.pop(site)))

    def _whole(self, update: SiteUpdate) -> SiteUpdate:
        return replace(update, weights=self._waiting.take(update.site, _WEIGHTS))

    def _next_control(self) -> np.ndarray:
        if not self._control.size:
            return self._control
        everyone = sum(self._guard.num_samples.values())
        changes = [
            ControlChange(share=self._guard.num_samples[site] / everyone, change=self._waiting.take(site, _CONTROL))
            for site in sorted(self._changes)
        ]
        return scaffold_control_step(self._control, changes)

    def _other_control(self, reply: TrainReply) -> str | None:
        change = reply.control_change
        if change.shape != self._control.shape or change.dtype != np.float32:
            return f"expected a change of control variates [{self._control.size}], found {list(change.shape)}"
        if not all_finite(change):
            return "expected a finite change of control variates, found entries that are not"
        return None


_AT_ONCE = 1 << 20
"""Entries that are added together: torch is slow where two precisions meet, and a copy of all fits no cache."""


def _parts(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(each.split(_AT_ONCE) for each in tensors), strict=True)


class RunningMean:
    """The mean of updates, each counted with its training samples, in double precision."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sum: torch.Tensor | None = None
        self._samples, self._loss = 0, 0.0

    def add(self, update: SiteUpdate) -> None:
        if self._sum is None:
            self._sum = torch.zeros(self._size, dtype=torch.float64)
        buffer = torch.empty(min(self._size, _AT_ONCE), dtype=torch.float64)
        for total, part in _parts(self._sum, torch.from_dlpack(update.weights)):
            total.add_(buffer[: len(part)].copy_(part), alpha=update.num_samples)
        self._samples += update.num_samples
        self._loss += update.loss * update.num_samples

    def update(self) -> SiteUpdate:
        """The mean as the update of one site with all samples."""
        assert self._sum is not None, "a round without replies was refused before"
        weights = torch.empty(self._size)
        for part, total in _parts(weights, self._sum):
            part.copy_(total / self._samples)
        return SiteUpdate(
            site="all sites", num_samples=self._samples, loss=self._loss / self._samples, weights=weights.numpy()
        )


def submission_of(reply: TrainReply) -> Submission:
    """What the guard looks at in a reply."""
    return Submission(
        site=reply.site,
        server_round=reply.server_round,
        code_digest=reply.code_digest,
        layout_digest=reply.layout_digest,
        agreement_digest=reply.agreement_digest,
        num_samples=reply.num_samples,
        array_names=("weights",),
        weights=reply.weights,
    )
