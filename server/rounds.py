"""The rounds of a federated run: wait for the sites, train, aggregate, evaluate, keep.

The loop is the project's own, over Flower's grid; Flower's FedAvg does the arithmetic on replies that were checked.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

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
)
from federation.seeds import derive_seed
from federation.settings import RunSettings
from federation.weights import WeightsError, check_weights, flatten_weights, layout_digest, unflatten_weights
from server.aggregation import StreamedMean
from server.exchange import ask, in_order

_POLL_SECONDS = 0.3
Reply = TypeVar("Reply", JoinReply, TrainReply, EvaluateReply)


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round brought; the weights are in the model."""

    number: int
    trained: list[TrainReply]
    """A reply of each site that took part, in the order of the sites' names, without their weights."""
    evaluated: list[EvaluateReply]
    """A reply of each site that evaluated the aggregated model."""
    refused: Mapping[str, str]
    """By site, why its reply was not used: late, failed, or not what it must be."""


@dataclass(frozen=True, kw_only=True)
class Federation:
    """The sites of a run and how to reach them."""

    grid: Grid
    settings: RunSettings
    nodes: Mapping[int, str]
    """Node id to site name, in the order of the names."""
    joined: Mapping[str, JoinReply]
    """What each site said of itself, by name, in the order of the names."""


@dataclass(frozen=True, kw_only=True)
class Refusals:
    """Sites whose replies a round goes on without."""

    what: str
    """The exchange, in words."""
    reasons: dict[str, str] = field(default_factory=dict)

    def require(self, quorum: int, num_replies: int) -> None:
        """Raises MessageError, with every reason, where fewer sites than the quorum gave a reply that can be used."""
        if num_replies < quorum:
            reasons = "; ".join(f"{site}{reason}" for site, reason in sorted(self.reasons.items()))
            raise MessageError(
                f"{self.what}: expected replies of {quorum} sites or more, {num_replies} came: {reasons}"
            )


def join_sites(grid: Grid, settings: RunSettings) -> Federation:
    """Wait for the sites and ask each who it is.

    Raises MessageError where too few sites came in time, where one cannot take part or where two have one name.
    """
    nodes = {node: f"node {node}" for node in _wait_for_nodes(grid, settings)}
    instruction = Instruction(
        server_round=0, code_digest=code_digest(), layout_digest="", weights=np.zeros(0, np.float32)
    )
    refusals = Refusals(what="joining")
    replies = ask(grid, instruction.record(), JOIN, nodes, settings.federation.round_seconds)
    joined = [(message.metadata.src_node_id, reply) for reply, message in _parsed(replies, nodes, JoinReply, refusals)]
    refusals.require(len(nodes), len(joined))
    joined.sort(key=lambda item: item[1].site)
    names = [join.site for _, join in joined]
    if len(set(names)) != len(names):
        raise MessageError(f"expected sites of different names, found {names}; give each site a name of its own")
    return Federation(
        grid=grid,
        settings=settings,
        nodes={node: join.site for node, join in joined},
        joined={join.site: join for _, join in joined},
    )


def run_rounds(federation: Federation, model: DiPro, on_round: Callable[[Round], None]) -> None:
    """All rounds; after each the model holds the aggregate and `on_round` is told.

    A site that is late, fails or sends what it must not is left out of its round, with the reason in `Round.refused`.
    Raises MessageError with all reasons where fewer sites than the quorum are left; the model is then that of the
    round before.
    """
    strategy = FedAvg(weighted_by_key=WEIGHT_KEY)
    for number in range(1, federation.settings.federation.rounds + 1):
        refusals = Refusals(what=f"round {number}, {TRAIN}")
        trained, weights = _train(federation, model, strategy, number, refusals)
        unflatten_weights(model, weights, keep_frozen=True)
        evaluated = evaluate(federation, model, number, splits=("val",))
        on_round(Round(number=number, trained=trained, evaluated=evaluated, refused=refusals.reasons))


def participants(federation: Federation, server_round: int) -> dict[int, str]:
    """Nodes and sites that are asked to train in a round, in the order of the names; the run's seed decides."""
    nodes, wanted = list(federation.nodes), federation.settings.federation.sites_a_round
    seed = derive_seed(federation.settings.seed, "participants", server_round)
    drawn = np.random.default_rng(seed).permutation(len(nodes))[:wanted]
    return {nodes[place]: federation.nodes[nodes[place]] for place in sorted(drawn.tolist())}


def evaluate(
    federation: Federation, model: DiPro, number: int, *, splits: tuple[str, ...], final: bool = False
) -> list[EvaluateReply]:
    """What each site says of the model on its own patients of these splits, in the order of the names.

    Raises MessageError where fewer than the quorum answered; the scores of the final model are wanted of every site.
    """
    refusals = Refusals(what=f"round {number}, {EVALUATE}")
    instruction = _instruction(model, number, splits=splits, final=final)
    replies = _replies(federation, instruction, EVALUATE, federation.nodes)
    evaluated = [reply for reply, _ in _parsed(replies, federation.nodes, EvaluateReply, refusals)]
    refusals.require(len(federation.nodes) if final else _quorum(federation, federation.nodes), len(evaluated))
    return evaluated


def _train(
    federation: Federation, model: DiPro, strategy: FedAvg, number: int, refusals: Refusals
) -> tuple[list[TrainReply], np.ndarray]:
    """The replies of a round, without their weights, and what the strategy makes of them."""
    asked, mean, trained = participants(federation, number), StreamedMean(), []
    replies = _replies(federation, _instruction(model, number), TRAIN, asked)
    # The messages come in the order of the sites' names, so the sum does not depend on who answered first.
    for reply, message in _parsed(replies, asked, TrainReply, refusals):
        problem = _problem(reply, model, federation)
        if problem is not None:
            refusals.reasons[reply.site] = f": {problem}"
            continue
        mean.add(reply, message)
        trained.append(replace(reply, weights=np.zeros(0, np.float32)))
    refusals.require(_quorum(federation, asked), len(trained))
    return trained, mean.aggregate(strategy, number)


def _quorum(federation: Federation, asked: Mapping[int, str]) -> int:
    quorum = federation.settings.federation.quorum
    return len(asked) if quorum == "all" else quorum


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


def _instruction(model: DiPro, number: int, *, splits: tuple[str, ...] = (), final: bool = False) -> Instruction:
    return Instruction(
        server_round=number,
        code_digest=code_digest(),
        layout_digest=layout_digest(model),
        weights=flatten_weights(model),
        splits=splits,
        final=final,
    )


def _replies(
    federation: Federation, instruction: Instruction, what: str, nodes: Mapping[int, str]
) -> Iterator[tuple[str, Message]]:
    return ask(federation.grid, instruction.record(), what, nodes, federation.settings.federation.round_seconds)


def _parsed(
    replies: Iterator[tuple[str, Message]], nodes: Mapping[int, str], kind: type[Reply], refusals: Refusals
) -> Iterator[tuple[Reply, Message]]:
    """Replies that say what they must, in the order of the sites' names, each with its message; the others are noted.

    Once all replies are through, the sites that did not answer are noted too.
    """
    sites = list(nodes.values())
    silent = set(sites)
    for site, message in in_order(replies, sites):
        silent.discard(site)
        if message.has_error():
            refusals.reasons[site] = f" failed: {message.error.reason}"
            continue
        try:
            reply = kind.parse(message)
        except MessageError as error:
            refusals.reasons[site] = f": {error}"
            continue
        if not isinstance(reply, JoinReply) and reply.site != site:
            refusals.reasons[site] = f": its reply is signed {reply.site!r}"
            continue
        yield reply, message
    refusals.reasons.update(dict.fromkeys(silent, " did not answer in time"))


def _problem(reply: TrainReply, model: DiPro, federation: Federation) -> str | None:
    """What FedAvg would average in silence: other counts than registered, other shapes, numbers not finite."""
    registered = federation.joined[reply.site].num_samples[SPLITS[0]]
    if reply.num_samples != registered:
        return f"expected {registered} training samples, as it said when it joined, got {reply.num_samples}"
    try:
        check_weights(model, reply.weights)
    except WeightsError as error:
        return str(error)
    return None
