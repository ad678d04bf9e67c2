"""The replies of one round on their way to the strategy: judged as they come, kept on disk or summed at once.

Nothing here grows in memory with the number of sites, unless the strategy needs all replies side by side.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from federation.messages import TrainReply
from server.aggregator import Aggregator, SiteUpdate
from server.guards import Guard, Submission, outlying_norms
from server.strategies import STRATEGIES

_AT_ONCE = 2**17
"""Weights that are multiplied together: a megabyte in double precision, which stays in the processor's cache."""


class Replies:
    """The replies of a round that may be aggregated, in the order in which they were added.

    With a norm guard every update's length must be known before any is judged: replies wait in files of `scratch`,
    which end with the round. Without one, a strategy that needs the mean alone gets it from a running sum.
    """

    def __init__(self, guard: Guard, aggregator: Aggregator, *, norm_factor: float, scratch: Path) -> None:
        self._guard, self._aggregator, self._norm_factor = guard, aggregator, norm_factor
        self._of_mean = STRATEGIES[aggregator.name].of_mean
        self._folder = TemporaryDirectory(prefix=".replies_", dir=scratch) if norm_factor else None
        self._updates: dict[str, SiteUpdate] = {}
        self._norms: dict[str, dict[str, float]] = {}
        self._mean = RunningMean(guard.reference.size)

    def __enter__(self) -> "Replies":
        return self

    def __exit__(self, *error: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, reply: TrainReply) -> str | None:
        """Take a reply in, or say why it cannot be used."""
        submission = _submission(reply)
        problem = self._guard.problem(submission, self._norms)
        if problem is not None:
            return problem
        self._norms[reply.site] = self._guard.norms(submission) if self._folder is not None else {}
        update = SiteUpdate(
            site=reply.site, num_samples=reply.num_samples, loss=reply.losses["total"], weights=reply.weights
        )
        if self._folder is None and self._of_mean:
            self._mean.add(update)
        else:
            self._updates[reply.site] = self._kept(update)
        return None

    def refuse_outliers(self) -> dict[str, str]:
        """Leave out updates far longer than the round's median; by site, why."""
        if self._folder is None:
            return {}
        reasons = outlying_norms(self._norms, self._norm_factor)
        for site in reasons:
            del self._updates[site]
        return reasons

    def aggregate(self) -> np.ndarray:
        """float32 [number]: the next global model. Raises StrategyError where the strategy makes none."""
        updates = list(self._updates.values())
        if self._of_mean:
            for update in updates:
                self._mean.add(update)
            updates = [self._mean.update()]
        return self._aggregator.aggregate(self._guard.server_round, self._guard.reference, updates)

    def _kept(self, update: SiteUpdate) -> SiteUpdate:
        if self._folder is None:
            return update
        path = Path(self._folder.name) / f"{len(self._updates)}.npy"
        np.save(path, update.weights)
        return SiteUpdate(
            site=update.site,
            num_samples=update.num_samples,
            loss=update.loss,
            weights=np.load(path, mmap_mode="r"),
        )


class RunningMean:
    """The mean of updates, each counted with its training samples, in double precision."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sum: np.ndarray | None = None
        self._samples, self._loss = 0, 0.0

    def add(self, update: SiteUpdate) -> None:
        if self._sum is None:
            self._sum = np.zeros(self._size)
        for start in range(0, self._size, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            self._sum[part] += np.multiply(update.weights[part], update.num_samples, dtype=np.float64)
        self._samples += update.num_samples
        self._loss += update.loss * update.num_samples

    def update(self) -> SiteUpdate:
        """The mean as the update of one site with all samples."""
        assert self._sum is not None, "a round without replies was refused before"
        return SiteUpdate(
            site="all sites",
            num_samples=self._samples,
            loss=self._loss / self._samples,
            weights=(self._sum / self._samples).astype(np.float32),
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
