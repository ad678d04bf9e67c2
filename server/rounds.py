"""The rounds of a federated run: wait for the sites, train, aggregate, evaluate, keep.

The loop is the project's own, over Flower's grid; Flower's strategies do the arithmetic on replies that were checked.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from dipro_model import DiPro
from dipro_model.vocabulary import SPLITS
from federation.agreement import Agreement, agree
from federation.code_digest import code_digest
from federation.duplicates import draw_salt, require_no_duplicates
from federation.messages import (
    EVALUATE,
    JOIN,
    TRAIN,
    EvaluateReply,
    Instruction,
    JoinReply,
    MessageError,
    TrainReply,
)
from federation.seeds import derive_seed
from federation.selection import ModelEntries, model_entries
from federation.settings import RunSettings
from federation.weights import flatten_weights, layout_digest, unflatten_weights
from server.aggregation import Replies
from server.aggregator import Aggregator
from server.exchange import ask, in_order
from server.guards import Guard, norm_groups
from server.strategies import StrategyError

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
    agreement: Agreement
    """What the sites' values and class weights mean in this run."""


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
    """Wait for the sites, ask each who it is and what its training part is like, and make their agreement.

    Raises MessageError where too few sites came in time, where one cannot take part or where two have one name,
    AgreementError where they cannot train one model, DuplicatePatientsError where a patient is at two sites.
    """
    nodes = {node: f"node {node}" for node in _wait_for_nodes(grid, settings)}
    instruction = Instruction(
        server_round=0,
        code_digest=code_digest(),
        layout_digest="",
        weights=np.zeros(0, np.float32),
        salt=draw_salt() if settings.federation.check_duplicates else b"",
    )
    refusals = Refusals(what="joining")
    replies = ask(grid, instruction.record(), JOIN, nodes, settings.federation.round_seconds)
    joined = [(message.metadata.src_node_id, reply) for reply, message in _parsed(replies, nodes, JoinReply, refusals)]
    refusals.require(len(nodes), len(joined))
    joined.sort(key=lambda item: item[1].site)
    names = [join.site for _, join in joined]
    if len(set(names)) != len(names):
        raise MessageError(f"expected sites of different names, found {names}; give each site a name of its own")
    if settings.federation.check_duplicates:
        require_no_duplicates({join.site: join.patients for _, join in joined})
    return Federation(
        grid=grid,
        settings=settings,
        nodes={node: join.site for node, join in joined},
        # The hashes are to be compared and thrown away.
        joined={join.site: replace(join, patients=()) for _, join in joined},
        agreement=agree([join.statistics for _, join in joined]),
    )


def run_rounds(federation: Federation, model: DiPro, folder: Path, on_round: Callable[[Round], None]) -> None:
    """All rounds; after each the model holds the aggregate and `on_round` is told. Replies may wait in `folder`.

    A site that is late, fails or sends what it must not is left out of its round, with the reason in `Round.refused`.
    Raises StrategyError for a strategy that these sites cannot serve, and MessageError with all reasons where fewer
    sites than the quorum are left; the model is then that of the round before.
    """
    entries = model_entries(model)
    aggregator = make_aggregator(federation.settings, entries)
    for number in range(1, federation.settings.federation.rounds + 1):
        refusals = Refusals(what=f"round {number}, {TRAIN}")
        guard = _guard(federation, model, entries, number)
        factor = federation.settings.strategy.norm_factor
        with Replies(guard, aggregator, norm_factor=factor, scratch=folder) as replies:
            trained = _train(federation, model, replies, number, refusals)
            weights = replies.aggregate()
        unflatten_weights(model, weights, keep_frozen=True)
        evaluated = evaluate(federation, model, number, splits=("val",))
        on_round(Round(number=number, trained=trained, evaluated=evaluated, refused=refusals.reasons))


def participants(nodes: Mapping[int, str], settings: RunSettings, server_round: int) -> dict[int, str]:
    """Nodes and sites that are asked to train in a round, in the order of the names; the run's seed decides."""
    seed = derive_seed(settings.seed, "participants", server_round)
    drawn = np.random.default_rng(seed).permutation(len(nodes))[: settings.federation.sites_a_round]
    chosen = set(drawn.tolist())
    return {node: site for place, (node, site) in enumerate(nodes.items()) if place in chosen}


def evaluate(
    federation: Federation, model: DiPro, number: int, *, splits: tuple[str, ...], final: bool = False
) -> list[EvaluateReply]:
    """What each site says of the model on its own patients of these splits, in the order of the names.

    Raises MessageError where fewer than the quorum answered; the scores of the final model are wanted of every site.
    """
    refusals = Refusals(what=f"round {number}, {EVALUATE}")
    instruction = _instruction(federation, model, number, splits=splits, final=final)
    replies = _replies(federation, instruction, EVALUATE, federation.nodes)
    evaluated = [reply for reply, _ in _parsed(replies, federation.nodes, EvaluateReply, refusals)]
    refusals.require(len(federation.nodes) if final else _quorum(federation, federation.nodes), len(evaluated))
    return evaluated


def make_aggregator(settings: RunSettings, entries: ModelEntries) -> Aggregator:
    """The strategy of the settings. Raises StrategyError where it makes no sense for the sites of a round."""
    strategy, federation = settings.strategy, settings.federation
    statistics = entries.trained.both(entries.statistics)
    aggregator = Aggregator(
        strategy.name,
        strategy.parameters(),
        num_sites=federation.sites_a_round,
        statistics=statistics if statistics.size else None,
    )
    if federation.quorum != "all" and federation.quorum < aggregator.least_replies:
        raise StrategyError(
            f"federation.quorum: expected {aggregator.least_replies} or more for {strategy.name}, which needs so many "
            f"replies, found {federation.quorum}"
        )
    return aggregator


def _guard(federation: Federation, model: DiPro, entries: ModelEntries, number: int) -> Guard:
    return Guard(
        server_round=number,
        code_digest=code_digest(),
        layout_digest=layout_digest(model),
        agreement_digest=federation.agreement.digest,
        num_samples={site: joined.num_samples[SPLITS[0]] for site, joined in federation.joined.items()},
        reference=flatten_weights(model),
        groups=norm_groups(entries),
        variances=entries.variances,
    )


def _train(federation: Federation, model: DiPro, replies: Replies, number: int, refusals: Refusals) -> list[TrainReply]:
    """Let the sites of a round train and take their replies in; what each says comes back, without its weights."""
    asked, trained = participants(federation.nodes, federation.settings, number), {}
    # They come in the order of the sites' names, so that sums do not depend on who answered first.
    for reply, _ in _parsed(
        _replies(federation, _instruction(federation, model, number), TRAIN, asked), asked, TrainReply, refusals
    ):
        problem = replies.add(reply)
        if problem is None:
            trained[reply.site] = replace(reply, weights=np.zeros(0, np.float32))
        else:
            refusals.reasons[reply.site] = f": {problem}"
    for site, problem in replies.refuse_outliers().items():
        del trained[site]
        refusals.reasons[site] = f": {problem}"
    refusals.require(_quorum(federation, asked), len(trained))
    return list(trained.values())


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


def _instruction(
    federation: Federation, model: DiPro, number: int, *, splits: tuple[str, ...] = (), final: bool = False
) -> Instruction:
    return Instruction(
        server_round=number,
        code_digest=code_digest(),
        layout_digest=layout_digest(model),
        weights=flatten_weights(model),
        splits=splits,
        final=final,
        agreement=federation.agreement.to_json(),
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
