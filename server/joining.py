"""The beginning of a run: wait for the sites, ask each who it is, and make what they agree on."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from flwr.serverapp import Grid

from federation.agreement import Agreement, agree
from federation.audit import AuditLog
from federation.code_digest import code_digest
from federation.duplicates import draw_salt, require_no_duplicates
from federation.initial import start_agreement
from federation.messages import JOIN, Instruction, JoinReply, MessageError
from federation.settings import RunSettings
from federation.site_statistics import SiteStatistics
from server.exchange import Exchange, Refusals
from server.freight import Hold

_POLL_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class Federation:
    """The sites of a run, how to reach them and what they agreed on."""

    exchange: Exchange
    settings: RunSettings
    nodes: Mapping[int, str]
    """Node id to site name, in the order of the names."""
    joined: Mapping[str, JoinReply]
    """What each site said of itself, by name, in the order of the names."""
    agreement: Agreement
    """What the sites' values and class weights mean in this run."""


def join_sites(
    grid: Grid,
    settings: RunSettings,
    audit: AuditLog | None = None,
    *,
    run: str = "",
    freight: Hold | None = None,
) -> Federation:
    """Wait for the sites, ask each who it is and what its training part is like, and make their agreement.

    Sites forget what runs of another name than `run` left there. What follows may use `freight`, once sites have names.

    Raises MessageError where too few sites came in time, where one cannot take part or where two have one name,
    AgreementError where they cannot train one model, or not from the run's start, DuplicatePatientsError where a
    patient is at two sites.
    """
    nodes = {node: f"node {node}" for node in _wait_for_nodes(grid, settings)}
    instruction = Instruction(
        server_round=0,
        code_digest=code_digest(),
        layout_digest="",
        weights=np.zeros(0, np.float32),
        run=run,
        salt=draw_salt() if settings.federation.check_duplicates else b"",
    )
    exchange = Exchange(grid, settings.federation.round_seconds, audit, attempts=settings.federation.attempts)
    refusals = Refusals(what="joining")
    record = instruction.record()
    replies = exchange.replies(lambda site: record, JOIN, nodes, JoinReply, refusals)
    joined = [(message.metadata.src_node_id, reply) for reply, message in replies]
    refusals.require(len(nodes), len(joined))
    joined.sort(key=lambda item: item[1].site)
    names = [join.site for _, join in joined]
    if len(set(names)) != len(names):
        raise MessageError(f"expected sites of different names, found {names}; give each site a name of its own")
    if audit is not None:
        for node, reply in joined:
            # Without a comparison of patients the server does not know how many there are.
            patients = {"patients": len(reply.patients)} if reply.patients else {}
            ahead = clock_ahead(reply, exchange.asked[nodes[node]], exchange.answered[nodes[node]])
            said = {"num_samples": dict(reply.num_samples), **patients, "runs_on": list(reply.runs_on)}
            audit.write("joined", site=reply.site, node=node, **said, clock_ahead_seconds=ahead)
    if settings.federation.check_duplicates:
        require_no_duplicates({join.site: join.patients for _, join in joined})
    exchange.freight = freight
    return Federation(
        exchange=exchange,
        settings=settings,
        nodes={node: join.site for node, join in joined},
        # The hashes are to be compared and thrown away.
        joined={join.site: replace(join, patients=()) for _, join in joined},
        agreement=_agreement(settings, [join.statistics for _, join in joined]),
    )


def _agreement(settings: RunSettings, statistics: Sequence[SiteStatistics]) -> Agreement:
    """What the sites tell, pooled; where they tell nothing, how the run's start reads values."""
    agreement = agree(statistics)
    if settings.patient_privacy.told_statistics == "start":
        return agreement.reading_as(start_agreement(settings))
    return agreement


def clock_ahead(reply: JoinReply, asked: float, answered: float) -> dict[str, float]:
    """How far a site's clock is before the server's, in seconds: `least` and `most`, negative where it is behind.

    The site read the question after it was asked and spoke before its answer was here; when between is not known, so
    the two are as far from each other as question and answer took without the site's work (as in RFC 5905). A site
    that claims more work than there was time for leaves no room between them.
    """
    work = min(max(reply.seconds, 0.0), answered - asked)
    return {"least": round(reply.clock - answered, 3), "most": round(reply.clock - work - asked, 3)}


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
