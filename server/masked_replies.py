"""The replies of a round whose updates are masked: judged by what is around them, added, and unmasked together.

What `server.aggregation.Replies` looks at in single updates, lengths, finiteness, directions, nobody can look at here.
A site checks its own before it masks; the server checks that the sum is one of such updates (`UpdateForm.read`).
"""

from collections.abc import Callable, Mapping

import numpy as np

from federation.messages import TrainReply
from federation.sections import StrategySettings
from federation.secure.errors import SecureError
from federation.secure.update_form import Summed, UpdateForm
from server.aggregation import submission_of
from server.aggregator import Aggregator, SiteUpdate
from server.arithmetic import Moments, moved_moments, recalibrated, site_moments
from server.guards import Guard
from server.masked_rounds import MaskedRounds

_ROUNDING = 1e-6


class NothingCompared:
    """In the place of `server.similarity.Similarity`: directions of single updates are hidden."""

    def matrix(self) -> tuple[list[str], list[list[float]]]:
        return [], []

    def with_others(self) -> dict[str, float]:
        return {}


class MaskedReplies:
    """The replies of a round, of which the sum alone is learned."""

    norms: Mapping[str, Mapping[str, float]] = {}
    similarity = NothingCompared()

    def __init__(
        self,
        guard: Guard,
        aggregator: Aggregator,
        strategy: StrategySettings,
        form: UpdateForm,
        control: np.ndarray,
        rounds: MaskedRounds,
        terms: Callable[[int], str],
        following: Mapping[int, str],
    ) -> None:
        """`control` is what `control_size` says, float32 [number]; `terms` gives the digest of what the sites worked
        on, of the number of all samples; `following` are the sites of the next round."""
        self._guard, self._aggregator, self._strategy, self._form = guard, aggregator, strategy, form
        self._control, self._rounds, self._terms, self._following = control, rounds, terms, following
        self._losses: dict[str, float] = {}

    def __enter__(self) -> "MaskedReplies":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing waits."""

    def add(self, reply: TrainReply) -> str | None:
        """Take a reply in, or say why it cannot be used."""
        problem = self._guard.problem_around(submission_of(reply), self._losses)
        if problem is None and reply.control_change.size:
            problem = (
                f"expected nothing in the clear beside the masked update, found {reply.control_change.size} numbers"
            )
        if problem is not None:
            return problem
        try:
            words = self._form.blank(reply.weights)
        except SecureError as error:
            return str(error)
        self._rounds.ceremony.take_masked(reply.site, words)
        self._losses[reply.site] = reply.losses.get("total", 0.0)  # none of a private run
        return None

    def refuse_outliers(self) -> dict[str, str]:
        """Nobody can: lengths of single updates are hidden."""
        return {}

    def aggregate(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 [number], the next global model; float32 [number], the next `control`.

        Raises MessageError or SecureError where the sum cannot be unmasked, StrategyError where the strategy makes no
        model of it.
        """
        counts = {site: self._guard.num_samples[site] for site in self._losses}
        samples, everyone = sum(counts.values()), sum(self._guard.num_samples.values())
        summed = self._form.read(
            self._rounds.finish(self._terms(everyone), self._following),
            num_sites=len(counts),
            num_samples=samples,
            share=samples / everyone,
        )
        loss = sum(count * self._losses[site] for site, count in counts.items()) / samples
        mean = SiteUpdate(
            site="all sites", num_samples=samples, loss=loss, weights=self._guard.reference + summed.change
        )
        self._require_variances(mean.weights)
        weights = self._aggregator.aggregate(self._guard.server_round, self._guard.reference, [mean])
        if summed.moments is not None and self._form.entries.means.size:
            weights = recalibrated(weights, self._statistics(summed, samples), self._form.entries)
        return weights, (self._control + summed.control).astype(np.float32)

    def _require_variances(self, weights: np.ndarray) -> None:
        """Rounding may leave a variance of zero a little below it, which is set right; what is further below is not."""
        variances = self._form.entries.variances
        found = variances.take(weights)
        if (found < -_ROUNDING).any():
            raise SecureError(
                f"expected running variances of zero or more, found {int((found < -_ROUNDING).sum())} below"
            )
        variances.put(weights, np.maximum(found, 0))

    def _statistics(self, summed: Summed, samples: int) -> Moments:
        """Batch norm's statistics of all samples of the round, or with less weight where the settings say so."""
        assert summed.moments is not None, "asked for where they are"
        before = site_moments(self._guard.reference, self._form.entries, samples)
        pooled = Moments(count=samples, mean=before.mean + summed.moments[0], variance=np.maximum(summed.moments[1], 0))
        return moved_moments(before, pooled, self._strategy.statistics_share(self._guard.server_round))
