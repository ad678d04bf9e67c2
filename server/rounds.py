"""The rounds of a federated run: wait for the sites, train, aggregate, evaluate, keep.

The loop is the project's own, over Flower's grid; Flower's FedAvg does the arithmetic on replies that were checked.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from dipro_model import DiPro
from dipro_model.vocabulary import SPLITS
from federation.code_digest import code_digest
from federation.messages import (
    EVALUATE,
    JOIN,
    TRAIN,
    WEIGHT_KEY,
    EvaluateReply,
    Instruction,
    JoinReply,
    MessageError,
    TrainReply,
    check_replies,
)
from federation.settings import RunSettings
from federation.weights import WeightsError, check_weights, flatten_weights, layout_digest, unflatten_weights

_POLL_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round brought; the weights are in the model."""

    number: int
    trained: list[TrainReply]
    """One reply a site, in the order of the sites' names, without their weights."""
    evaluated: list[EvaluateReply]
    """One reply a site, of the aggregated model."""


@dataclass(frozen=True, kw_only=True)
class Federation:
    """The sites of a run and how to reach them."""

    grid: Grid
    settings: RunSettings
    nodes: Mapping[int, str]
    """Node id to site name."""
    joined: Mapping[str, JoinReply]
    """What each site said of itself, by name, in the order of the names."""


def join_sites(grid: Grid, settings: RunSettings) -> Federation:
    """Wait for the sites and ask each who it is.

    Raises MessageError where too few sites came in time, where one cannot take part or where two have one name.
    """
    nodes = _wait_for_nodes(grid, settings)
    unnamed = {node: f"node {node}" for node in nodes}
    instruction = Instruction(
        server_round=0, code_digest=code_digest(), layout_digest="", weights=np.zeros(0, np.float32)
    )
    replies = _exchange(grid, instruction, JOIN, unnamed, settings.federation.round_seconds)
    joined = {reply.metadata.src_node_id: JoinReply.parse(reply) for reply in replies}
    names = sorted(join.site for join in joined.values())
    if len(set(names)) != len(names):
        raise MessageError(f"expected sites of different names, found {names}; give each site a name of its own")
    return Federation(
        grid=grid,
        settings=settings,
        nodes={node: join.site for node, join in joined.items()},
        joined={join.site: join for join in sorted(joined.values(), key=lambda join: join.site)},
    )


def run_rounds(federation: Federation, model: DiPro, on_round: Callable[[Round], None]) -> None:
    """All rounds; after each the model holds the aggregate and `on_round` is told.

    Every site takes part in every round: a site that fails ends the run with MessageError naming it.
    """
    strategy = FedAvg(weighted_by_key=WEIGHT_KEY)
    for number in range(1, federation.settings.federation.rounds + 1):
        messages = _ask(federation, model, TRAIN, number)
        trained = [_checked(TrainReply.parse(message), model, federation) for message in messages]
        # The messages come in the order of the sites' names, so the sum does not depend on who answered first.
        arrays, _ = strategy.aggregate_train(number, messages)
        if arrays is None:
            raise MessageError(f"round {number}: the strategy returned no weights")
        (aggregate,) = arrays.values()
        unflatten_weights(model, aggregate.numpy(), keep_frozen=True)
        evaluated = evaluate(federation, model, number, splits=("val",))
        # Nobody needs a site's own weights any more; without them a round is small.
        counted = [replace(reply, weights=np.zeros(0, np.float32)) for reply in trained]
        on_round(Round(number=number, trained=counted, evaluated=evaluated))


def evaluate(
    federation: Federation, model: DiPro, number: int, *, splits: tuple[str, ...], final: bool = False
) -> list[EvaluateReply]:
    """What each site says of the model on its own patients of these splits, in the order of the names."""
    messages = _ask(federation, model, EVALUATE, number, splits=splits, final=final)
    return [EvaluateReply.parse(message) for message in messages]


def _wait_for_nodes(grid: Grid, settings: RunSettings) -> list[int]:
    wanted, deadline = settings.federation.num_sites, time.monotonic() + settings.federation.join_seconds
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        if time.monotonic() > deadline:
            raise MessageError(
                f"expected {wanted} sites within {settings.federation.join_seconds:g} s, {len(nodes)} came; "
                "check that the sites are running, or lower federation.num_sites"
            )
        time.sleep(_POLL_SECONDS)
    if len(nodes) > wanted:
        raise MessageError(f"expected {wanted} sites, {len(nodes)} are online; set federation.num_sites={len(nodes)}")
    return nodes


def _ask(
    federation: Federation, model: DiPro, what: str, number: int, *, splits: tuple[str, ...] = (), final: bool = False
) -> list[Message]:
    instruction = Instruction(
        server_round=number,
        code_digest=code_digest(),
        layout_digest=layout_digest(model),
        weights=flatten_weights(model),
        splits=splits,
        final=final,
    )
    seconds = federation.settings.federation.round_seconds
    return _exchange(federation.grid, instruction, what, federation.nodes, seconds)


def _exchange(
    grid: Grid, instruction: Instruction, what: str, nodes: Mapping[int, str], seconds: float
) -> list[Message]:
    content = instruction.record()
    messages = [Message(content, dst_node_id=node, message_type=what) for node in nodes]
    replies = grid.send_and_receive(messages, timeout=seconds)
    return check_replies(replies, nodes, f"round {instruction.server_round}, {what}")


def _checked(reply: TrainReply, model: DiPro, federation: Federation) -> TrainReply:
    """Refuse what FedAvg would average in silence: other counts than registered, other shapes, numbers not finite."""
    registered = federation.joined[reply.site].num_samples[SPLITS[0]]
    if reply.num_samples != registered:
        raise MessageError(
            f"{reply.site}: expected {registered} training samples, as it said when it joined, got {reply.num_samples}"
        )
    try:
        check_weights(model, reply.weights)
    except WeightsError as error:
        raise MessageError(f"{reply.site}: {error}") from None
    return reply
