"""One round's checked replies through a Flower strategy: the door between flat arrays and Flower's arithmetic.

The strategy is given updates, reply minus reference, with zeros as its current model; what it returns is added to the
reference. For every strategy this is the same as giving it weights, but for rounding and for two faults: Krum's
distances between float32 weights are mostly rounding, and FedAvgM would step from a model of its own where the server
changed the aggregate. Running statistics of batch norm never take part in a strategy's arithmetic.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvgM, QFedAvg
from flwr.serverapp.strategy.fedopt import FedOpt

from federation.messages import ARRAYS, METRICS, TRAIN, WEIGHT_KEY, raw_record
from federation.selection import Entries
from federation.weights import all_finite
from server.strategies import LOSS_KEY, STRATEGIES, Parameters, StrategyError, least_replies, make_strategy

_FLAT = "weights"
_NOBODY = 1
"""Node that the strategy's messages name; no strategy looks at it."""


@dataclass(frozen=True, kw_only=True)
class SiteUpdate:
    """What a site's checked reply brings to the aggregation."""

    site: str
    num_samples: int
    loss: float
    """Mean training loss; only QFedAvg uses it."""
    weights: np.ndarray
    """float32 [number]."""


class Aggregator:
    """A strategy with its state over the rounds of a run."""

    def __init__(
        self,
        name: str,
        parameters: Parameters,
        *,
        num_sites: int,
        statistics: Entries | None = None,
        faster: tuple[Entries, float] | None = None,
        factor: Callable[[int], float] = lambda server_round: 1.0,
    ) -> None:
        """`statistics` are the entries that running means and variances take; None where the model has none.

        `faster` are entries with a learning rate of their own, as a multiple of the others': an adaptive strategy
        divides out how much longer the sites' steps were there, so its own are made longer instead. All its steps of a
        round are multiplied by `factor`. Raises StrategyError where the settings make no sense for so many sites.
        """
        self.name = name
        self.flower = make_strategy(name, parameters, num_sites=num_sites)
        self.least_replies = least_replies(name, parameters)
        is_adaptive = isinstance(self.flower, FedOpt)
        self._statistics, self._faster = statistics, faster if is_adaptive else None
        self._factor = factor if is_adaptive else lambda server_round: 1.0

    def aggregate(self, server_round: int, reference: np.ndarray, updates: Sequence[SiteUpdate]) -> np.ndarray:
        """float32 [number]: the next global model; `reference` is the one that the round began with.

        Where the strategy is `of_mean`, the weighted mean of the replies may come as a single update. The order of the
        updates should be that of the sites' names, so that rounding does not depend on who answered first. Raises
        StrategyError where the updates are too few or the strategy makes nothing finite of them.
        """
        self._check(server_round, reference, updates)
        if STRATEGIES[self.name].is_mean and len(updates) == 1:
            return self._finite(server_round, updates[0].weights)  # Flower's arithmetic would copy it five times
        through = self._through(reference.size)
        self._begin(server_round, through.size)
        before = through.take(reference)
        messages = [self._message(each, _less(through.take(each.weights), before)) for each in updates]
        # FedAdam and QFedAvg return double precision.
        after = before + self._factor(server_round) * self._step(server_round, messages)
        weights = reference.copy()
        through.put(weights, after.astype(np.float32, copy=False))
        if self._faster is not None:
            entries, factor = self._faster
            start = entries.take(reference)
            entries.put(weights, start + np.float32(factor) * (entries.take(weights) - start))
        if self._statistics is not None:
            self._statistics.put(weights, self._middle([(self._statistics.take(e.weights), e) for e in updates]))
        return self._finite(server_round, weights)

    def _finite(self, server_round: int, weights: np.ndarray) -> np.ndarray:
        if not all_finite(weights):
            raise StrategyError(f"round {server_round}: {self.name} made weights that are not finite; lower its rates")
        return weights

    def state(self) -> dict[str, np.ndarray]:
        """What the strategy remembers from round to round, by name; empty where it remembers nothing (yet)."""
        if isinstance(self.flower, FedAvgM):
            found = {"momentum": self.flower.momentum_vector[0]} if self.flower.momentum_vector else {}
        elif isinstance(self.flower, FedOpt):
            moments = {"first": self.flower.m_t, "second": self.flower.v_t}
            found = {name: moment[_FLAT] for name, moment in moments.items() if moment}
        else:
            found = {}
        return {name: np.array(value) for name, value in found.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave. Raises StrategyError where it is another strategy's."""
        names = {FedAvgM: {"momentum"}, FedOpt: {"first", "second"}}
        wanted = next((each for kind, each in names.items() if isinstance(self.flower, kind)), set())
        if state and set(state) != wanted:
            raise StrategyError(f"{self.name}: expected a state of {sorted(wanted)}, found {sorted(state)}")
        kept = {name: np.array(value) for name, value in state.items()}
        if isinstance(self.flower, FedAvgM):
            self.flower.momentum_vector = [kept["momentum"]] if kept else None
        elif isinstance(self.flower, FedOpt):
            self.flower.m_t = {_FLAT: kept["first"]} if kept else None
            self.flower.v_t = {_FLAT: kept["second"]} if kept else None

    def _check(self, server_round: int, reference: np.ndarray, updates: Sequence[SiteUpdate]) -> None:
        least = 1 if STRATEGIES[self.name].of_mean else self.least_replies
        if len(updates) < least:
            raise StrategyError(
                f"round {server_round}: {self.name} needs {least} replies or more, {len(updates)} can be used; "
                "raise the quorum, or choose another strategy"
            )
        for each in updates:
            if each.weights.shape != reference.shape:
                raise StrategyError(
                    f"{each.site}: expected weights {list(reference.shape)}, found {list(each.weights.shape)}"
                )
            if each.num_samples < 1:
                raise StrategyError(f"{each.site}: expected one training sample or more, found {each.num_samples}")
            if self.name == "qfedavg" and not (np.isfinite(each.loss) and each.loss >= 0):
                raise StrategyError(f"{each.site}: qfedavg needs a training loss of zero or more, found {each.loss}")

    def _through(self, total: int) -> Entries:
        """What goes through the strategy."""
        everything = Entries(total=total, runs=((0, total),))
        return everything if self._statistics is None else everything.without(self._statistics)

    def _begin(self, server_round: int, size: int) -> None:
        """Tell the strategy that it steps from zero; FedAvgM would otherwise go on from its own last result."""
        if isinstance(self.flower, FedAvgM | FedOpt | QFedAvg):
            self.flower.current_arrays = None
            current = ArrayRecord({_FLAT: Array(np.zeros(size, np.float32))})
            # With a fraction of zero no node is sampled, and the grid is not looked at.
            self.flower.configure_train(server_round, current, ConfigRecord(), cast(Grid, None))

    def _message(self, update: SiteUpdate, difference: np.ndarray) -> Message:
        arrays = raw_record({_FLAT: difference})
        metrics = MetricRecord({WEIGHT_KEY: update.num_samples, LOSS_KEY: update.loss})
        return Message(RecordDict({ARRAYS: arrays, METRICS: metrics}), dst_node_id=_NOBODY, message_type=TRAIN)

    def _step(self, server_round: int, messages: list[Message]) -> np.ndarray:
        try:
            arrays, _ = self.flower.aggregate_train(server_round, messages)
        except AppExitException as error:
            raise StrategyError(f"round {server_round}: {self.name} could not aggregate: {error}") from None
        if arrays is None:
            raise StrategyError(f"round {server_round}: {self.name} returned no weights for {len(messages)} replies")
        return arrays[_FLAT].numpy()

    def _middle(self, values: Sequence[tuple[np.ndarray, SiteUpdate]]) -> np.ndarray:
        """Statistics of the sites: their median where the strategy bears malicious sites, else their weighted mean."""
        stacked = np.stack([value for value, _ in values])
        if STRATEGIES[self.name].robust:
            return np.median(stacked, axis=0)
        return np.average(stacked, axis=0, weights=[update.num_samples for _, update in values])


def _less(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The difference, in the place of `values`: new arrays of a large model cost as much as the arithmetic."""
    return np.subtract(values, others, out=values)
