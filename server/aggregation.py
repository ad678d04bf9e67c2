"""The replies of one round on their way to the strategy: judged as they come, kept on disk or summed at once.

Nothing here grows in memory with the number of sites, unless the strategy needs all replies side by side.
"""

import hashlib
from dataclasses import replace
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from federation.messages import TrainReply
from federation.sections import StrategySettings
from federation.selection import ModelEntries
from server.aggregator import Aggregator, SiteUpdate
from server.arithmetic import (
    ControlChange,
    Moments,
    pooled_moments,
    recalibrated,
    scaffold_control_step,
    site_moments,
)
from server.guards import Guard, Submission, outlying_norms
from server.strategies import STRATEGIES


class Replies:
    """The replies of a round that may be aggregated, in the order in which they were added.

    With a norm guard every update's length must be known before any is judged: replies wait in files of `scratch`,
    which end with the round. Without one, a strategy that needs the mean alone gets it from a running sum.
    """

    def __init__(
        self,
        guard: Guard,
        aggregator: Aggregator,
        strategy: StrategySettings,
        entries: ModelEntries,
        control: np.ndarray,
        scratch: Path,
    ) -> None:
        """`control` is SCAFFOLD's control variate of the server, float32 [parameter]; else empty."""
        self._guard, self._aggregator, self._strategy, self._entries = guard, aggregator, strategy, entries
        self._of_mean = STRATEGIES[aggregator.name].of_mean
        self._folder = TemporaryDirectory(prefix=".replies_", dir=scratch) if strategy.norm_factor else None
        self._updates: dict[str, SiteUpdate] = {}
        self._norms: dict[str, dict[str, float]] = {}
        self._mean = RunningMean(guard.reference.size)
        self._moments: dict[str, Moments] = {}
        self._control, self._changes = control, {}

    def __enter__(self) -> "Replies":
        return self

    def __exit__(self, *error: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, reply: TrainReply) -> str | None:
        """Take a reply in, or say why it cannot be used."""
        submission = _submission(reply)
        problem = self._guard.problem(submission, self._norms)
        problem = problem or self._other_control(reply)
        if problem is not None:
            return problem
        self._norms[reply.site] = self._guard.norms(submission) if self._folder is not None else {}
        update = SiteUpdate(
            site=reply.site, num_samples=reply.num_samples, loss=reply.losses["total"], weights=reply.weights
        )
        if self._folder is None and self._of_mean:
            self._mean.add(update)
        else:
            self._updates[reply.site] = replace(update, weights=self._keep(reply.site, "weights", reply.weights))
        if self._strategy.recalibrate and self._entries.means.size:
            self._moments[reply.site] = site_moments(reply.weights, self._entries, reply.num_samples)
        if self._control.size:
            self._changes[reply.site] = self._keep(reply.site, "control", reply.control_change)
        return None

    def refuse_outliers(self) -> dict[str, str]:
        """Leave out updates far longer than the round's median; by site, why."""
        if self._folder is None:
            return {}
        reasons = outlying_norms(self._norms, self._strategy.norm_factor)
        for site in reasons:
            del self._updates[site]
            self._moments.pop(site, None)
            self._changes.pop(site, None)
        return reasons

    def aggregate(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 [number], the next global model; float32 [parameter], SCAFFOLD's next control variate, else empty.

        Raises StrategyError where the strategy makes none.
        """
        kept = (
            replace(each, weights=self._read(site, "weights", each.weights)) for site, each in self._updates.items()
        )
        if self._of_mean:
            for update in kept:
                self._mean.add(update)
            updates = [self._mean.update()]
        else:
            updates = list(kept)
        weights = self._aggregator.aggregate(self._guard.server_round, self._guard.reference, updates)
        if self._moments:
            weights = recalibrated(weights, reduce(pooled_moments, self._moments.values()), self._entries)
        return weights, self._next_control()

    def _next_control(self) -> np.ndarray:
        if not self._control.size:
            return self._control
        everyone = sum(self._guard.num_samples.values())
        changes = (
            ControlChange(share=self._guard.num_samples[site] / everyone, change=self._read(site, "control", change))
            for site, change in self._changes.items()
        )
        return scaffold_control_step(self._control, list(changes))

    def _other_control(self, reply: TrainReply) -> str | None:
        change = reply.control_change
        if change.shape != self._control.shape or change.dtype != np.float32:
            return f"expected a change of control variates [{self._control.size}], found {list(change.shape)}"
        if not np.isfinite(change).all():
            return "expected a finite change of control variates, found entries that are not"
        return None

    def _keep(self, site: str, name: str, values: np.ndarray) -> np.ndarray:
        """Put an array into a file of the round and give nothing in its place; without files, give it back."""
        if self._folder is None:
            return values
        np.save(self._file(site, name), values)
        return np.zeros(0, values.dtype)  # a slice would keep the reply in memory

    def _read(self, site: str, name: str, values: np.ndarray) -> np.ndarray:
        """What `_keep` was given, for reading; it leaves memory with whoever reads it."""
        return values if self._folder is None else np.load(self._file(site, name), mmap_mode="r")

    def _file(self, site: str, name: str) -> Path:
        assert self._folder is not None, "only a round with files asks for one"
        # Sites' names are file names, as `client.records.SiteSpec` has it; a server must not rely on it.
        return Path(self._folder.name) / f"{hashlib.sha256(site.encode()).hexdigest()[:16]}.{name}.npy"


_AT_ONCE = 1 << 20
"""Entries that are added together."""


class RunningMean:
    """The mean of updates, each counted with its training samples, in double precision."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sum: torch.Tensor | None = None
        self._samples, self._loss = 0, 0.0

    def add(self, update: SiteUpdate) -> None:
        if self._sum is None:
            self._sum = torch.zeros(self._size, dtype=torch.float64)
        weights = torch.from_dlpack(update.weights)
        # Part by part: torch adds numbers of two precisions slowly, and a double copy of all would not fit a cache.
        for total, part in zip(self._sum.split(_AT_ONCE), weights.split(_AT_ONCE), strict=True):
            total.add_(part.double(), alpha=update.num_samples)
        self._samples += update.num_samples
        self._loss += update.loss * update.num_samples

    def update(self) -> SiteUpdate:
        """The mean as the update of one site with all samples."""
        assert self._sum is not None, "a round without replies was refused before"
        weights = torch.empty(self._size)
        torch.div(self._sum, self._samples, out=weights)
        return SiteUpdate(
            site="all sites", num_samples=self._samples, loss=self._loss / self._samples, weights=weights.numpy()
        )


def _submission(reply: TrainReply) -> Submission:
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
