"""From replies to one set of weights: the mean is summed as replies come, so that memory does not grow with sites."""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from federation.messages import ARRAYS, METRICS, WEIGHT_KEY, MessageError, TrainReply

_AT_ONCE = 2**17
"""Weights that are multiplied together: a megabyte in double precision, which stays in the processor's cache."""


class StreamedMean:
    """The mean of the sites' weights, each counted with its training samples, in double precision.

    A strategy that needs nothing of the replies but this mean is given it as the single reply of all patients.
    """

    def __init__(self) -> None:
        self._sum: np.ndarray | None = None
        self._samples = 0
        self._any: Message | None = None

    def add(self, reply: TrainReply, message: Message) -> None:
        """Count a reply that was checked; what the message carries is let go."""
        if self._sum is None:
            self._sum = np.zeros(len(reply.weights), np.float64)
        for start in range(0, len(reply.weights), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            self._sum[part] += np.multiply(reply.weights[part], reply.num_samples, dtype=np.float64)
        self._samples += reply.num_samples
        message.content = RecordDict()
        self._any = message

    def aggregate(self, strategy: Strategy, server_round: int) -> np.ndarray:
        """float32 [number]: what the strategy makes of the replies. Raises MessageError where it makes nothing."""
        if self._sum is None or self._any is None:
            raise MessageError(f"round {server_round}: expected one reply or more, got none")
        mean = (self._sum / self._samples).astype(np.float32)
        arrays = ArrayRecord({"weights": Array(mean)})
        self._any.content = RecordDict({ARRAYS: arrays, METRICS: MetricRecord({WEIGHT_KEY: self._samples})})
        aggregated, _ = strategy.aggregate_train(server_round, [self._any])
        if aggregated is None:
            raise MessageError(f"round {server_round}: the strategy returned no weights")
        (weights,) = aggregated.values()
        return weights.numpy()
