"""Asking sites and reading their replies as they come, over Flower's grid."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from federation.audit import AuditLog
from federation.messages import EvaluateReply, JoinReply, MessageError, TrainReply, described, num_bytes

_POLL_SECONDS = 0.3
"""Flower's own loop looks every three seconds, which a round of a small model does not take."""

Reply = TypeVar("Reply", JoinReply, TrainReply, EvaluateReply)


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


@dataclass(kw_only=True)
class Traffic:
    """Bytes that a run has cost, without Flower's frame around the messages."""

    to_sites: int = 0
    from_sites: int = 0

    def add(self, earlier: Mapping[str, int]) -> None:
        """Count what the run cost before it was interrupted, as run.json has it."""
        self.to_sites += earlier.get("to_sites_bytes", 0)
        self.from_sites += earlier.get("from_sites_bytes", 0)


class Exchange:
    """Questions to sites and their replies, and how many bytes both took."""

    def __init__(self, grid: Grid, seconds: float, audit: AuditLog | None = None) -> None:
        """`seconds` is the longest wait for the replies to one question; `audit` is told what went and came."""
        self.grid, self.seconds, self.traffic, self.audit = grid, seconds, Traffic(), audit

    def replies(
        self,
        content: Callable[[str], RecordDict],
        what: str,
        nodes: Mapping[int, str],
        kind: type[Reply],
        refusals: Refusals,
    ) -> Iterator[tuple[Reply, Message]]:
        """Replies that say what they must, in the order of the sites' names, each with its message.

        `content` gives what a site is sent, by its name. The other replies, and once all are through the sites that did
        not answer, are noted in `refusals`.
        """
        said = {"exchange": refusals.what}
        asked = ask(self.grid, self._sent(content, said), what, nodes, self.seconds)
        yield from _parsed(self._counted(asked, said), nodes, kind, refusals)

    def _sent(self, content: Callable[[str], RecordDict], said: Mapping[str, str]) -> Callable[[str], RecordDict]:
        def counted(site: str) -> RecordDict:
            record = content(site)
            size = num_bytes(record)
            self.traffic.to_sites += size
            self._note("sent", **said, site=site, bytes=size)
            return record

        return counted

    def _counted(
        self, replies: Iterator[tuple[str, Message]], said: Mapping[str, str]
    ) -> Iterator[tuple[str, Message]]:
        for site, message in replies:
            if message.has_content():
                self.traffic.from_sites += num_bytes(message.content)
                self._note("received", **said, site=site, **described(message.content))
            yield site, message

    def _note(self, event: str, **facts: object) -> None:
        if self.audit is not None:
            self.audit.write(event, **facts)


def ask(
    grid: Grid, content: Callable[[str], RecordDict], what: str, nodes: Mapping[int, str], seconds: float
) -> Iterator[tuple[str, Message]]:
    """Send each of these nodes its content and yield site and reply, errors too, as they arrive.

    `nodes` maps node ids to sites' names. Ends when all have answered or after `seconds`, whichever is first; who did
    not answer is for the caller to see. Replies are matched by the message they answer: one that Flower writes in
    place of a site that was lost comes from another node.
    """
    deadline = time.monotonic() + seconds
    messages = [Message(content(site), dst_node_id=node, message_type=what) for node, site in nodes.items()]
    ids = grid.push_messages(messages)
    waiting = {each: site for each, site in zip(ids, nodes.values(), strict=False) if each}
    del messages  # the content must not outlive the exchange
    while waiting:
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            # Neither a second reply to the same question nor one to an earlier question counts.
            site = waiting.pop(reply.metadata.reply_to_message_id, None)
            if site is not None:
                yield site, reply
        if time.monotonic() >= deadline:
            return
        if waiting and not replies:
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def in_order(replies: Iterator[tuple[str, Message]], sites: list[str]) -> Iterator[tuple[str, Message]]:
    """The replies in the order of `sites`, each as soon as all before it have come.

    Sums over sites then do not depend on who answers first. A reply waits in memory only while an earlier site is
    still at work; those behind a site that never answers come at the end.
    """
    waiting: dict[str, Message] = {}
    place = 0
    for site, reply in replies:
        waiting[site] = reply
        while place < len(sites) and sites[place] in waiting:
            yield sites[place], waiting.pop(sites[place])
            place += 1
    for site in sites[place:]:
        if site in waiting:
            yield site, waiting.pop(site)


def _parsed(
    replies: Iterator[tuple[str, Message]], nodes: Mapping[int, str], kind: type[Reply], refusals: Refusals
) -> Iterator[tuple[Reply, Message]]:
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
