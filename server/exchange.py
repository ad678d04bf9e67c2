"""Asking sites and reading their replies as they come, over Flower's grid."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from federation.audit import AuditLog
from federation.freight import FreightError
from federation.messages import EvaluateReply, JoinReply, MessageError, TrainReply, described, num_bytes
from federation.secure.messages import MasksReply
from server.freight import Hold

_POLL_SECONDS = 0.1
"""Flower's own loop looks every three seconds, which a round of a small model does not take."""

_LOST = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)
"""Errors that Flower writes in place of a site; what a site itself says is final."""
_BACK_OFF, _LONGEST_BACK_OFF = 2.0, 60.0
"""Seconds before a site is asked again the first time, twice as many each time, and at most."""

Reply = TypeVar("Reply", JoinReply, TrainReply, EvaluateReply, MasksReply)


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

    def __init__(self, grid: Grid, seconds: float, audit: AuditLog | None = None, *, attempts: int = 1) -> None:
        """`seconds` is the longest wait for the replies to one question, `attempts` how often a site that is lost
        meanwhile is asked in all; `audit` is told what went and came."""
        self.grid, self.seconds, self.traffic, self.audit, self.attempts = grid, seconds, Traffic(), audit, attempts
        self.freight: Hold | None = None
        """Where large arrays travel beside the messages; None lets them travel inside."""
        self.before_asking: Callable[[], None] = lambda: None
        """What must be done before a question leaves; called when all else is."""
        self.asked: dict[str, float] = {}
        """When each site was asked last, seconds since 1970 by this machine's clock."""
        self.answered: dict[str, float] = {}
        """When the last answer of each site was there."""

    def replies(
        self,
        content: Callable[[str], RecordDict],
        what: str,
        nodes: Mapping[int, str],
        kind: type[Reply],
        refusals: Refusals,
        *,
        enough: int = 0,
    ) -> Iterator[tuple[Reply, Message]]:
        """Replies that say what they must, in the order of the sites' names, each with its message.

        `content` gives what a site is sent, by its name; sites that were lost are not waited for when `enough` have
        answered. The other replies, and once all are through the sites that did
        not answer, are noted in `refusals`.
        """
        said = {"exchange": refusals.what}
        sent = self._sent(content, said)
        asked = ask(self.grid, sent, what, nodes, self.seconds, attempts=self.attempts, enough=enough)
        try:
            yield from _parsed(self._counted(self._whole(asked), said), nodes, kind, refusals)
        finally:
            if self.freight is not None:
                self.freight.clear()

    def _sent(self, content: Callable[[str], RecordDict], said: Mapping[str, str]) -> Callable[[str], RecordDict]:
        def counted(site: str) -> RecordDict:
            record = content(site)
            size = num_bytes(record)
            self.traffic.to_sites += size
            self.note("sent", **said, site=site, bytes=size)
            record = record if self.freight is None else self.freight.send(record, site)
            self.before_asking()
            self.asked[site] = time.time()
            return record

        return counted

    def _whole(self, replies: Iterator[tuple[str, Message]]) -> Iterator[tuple[str, Message]]:
        """The replies with what travelled beside them; an error in place of one whose arrays are not what it says."""
        for site, message in replies:
            if self.freight is None or not message.has_content():
                yield site, message
                continue
            try:
                message.content = self.freight.receive(message.content, site)
            except (FreightError, TypeError) as error:
                lost = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, str(error))
                yield site, make_message(metadata=message.metadata, error=lost)
            else:
                yield site, message

    def _counted(
        self, replies: Iterator[tuple[str, Message]], said: Mapping[str, str]
    ) -> Iterator[tuple[str, Message]]:
        for site, message in replies:
            self.answered[site] = time.time()
            if message.has_content():
                self.traffic.from_sites += num_bytes(message.content)
                self.note("received", **said, site=site, **described(message.content))
            yield site, message

    def note(self, event: str, **facts: object) -> None:
        """Tell the audit log, where there is one."""
        if self.audit is not None:
            self.audit.write(event, **facts)


class Asking:
    """One question to some sites, asked again where a process or a link was lost."""

    def __init__(self, grid: Grid, content: Callable[[str], RecordDict], what: str, nodes: Mapping[int, str]) -> None:
        """`nodes` maps node ids to sites' names; `content` gives what a site is sent, by its name."""
        self._grid, self._content, self._what, self._nodes = grid, content, what, nodes
        self._asked: dict[str, int] = {}
        """Nodes that have not answered, by the id of the message that was sent last."""
        self._times = dict.fromkeys(nodes, 0)
        self._again: dict[int, float] = {}
        """When a node that was lost is asked again, if it is online by then."""
        self._errors: dict[int, Message] = {}
        """What Flower last wrote in the place of a node that was lost."""
        self._send(list(nodes))

    @property
    def is_over(self) -> bool:
        """Whether nobody is at work and nobody is to be asked again."""
        return not self._asked and not self._again

    @property
    def is_idle(self) -> bool:
        """Whether nobody is at work."""
        return not self._asked

    def pull(self, attempts: int) -> tuple[list[tuple[str, Message]], bool]:
        """Replies that came, by site, and whether any message came at all.

        Whoever was lost before its `attempts` are used up is noted, to be asked again. Replies are matched by the
        message they answer: one that Flower writes in place of a site that was lost comes from another node.
        """
        replies, came = [], list(self._grid.pull_messages(list(self._asked))) if self._asked else []
        for reply in came:
            # Neither a second reply to the same question nor one to an earlier question counts.
            node = self._asked.pop(reply.metadata.reply_to_message_id, None)
            if node is None:
                continue
            if reply.has_error() and reply.error.code in _LOST and self._times[node] < attempts:
                wait = min(_LONGEST_BACK_OFF, _BACK_OFF * 2 ** (self._times[node] - 1))
                self._again[node], self._errors[node] = time.monotonic() + wait, reply
                continue
            replies.append((self._nodes[node], reply))
        return replies, bool(came)

    def lost(self) -> list[tuple[str, Message]]:
        """Sites that would have been asked again, each with the error in its place."""
        return [(self._nodes[node], self._errors[node]) for node in self._again]

    def ask_again(self) -> None:
        """Ask those whose time has come and who are online."""
        due = [node for node, when in self._again.items() if time.monotonic() >= when]
        if due:
            online = set(self._grid.get_node_ids())
            self._send([node for node in due if node in online])

    def _send(self, nodes: list[int]) -> None:
        messages = [
            Message(self._content(self._nodes[node]), dst_node_id=node, message_type=self._what) for node in nodes
        ]
        ids = self._grid.push_messages(messages) if messages else []
        for node, each in zip(nodes, ids, strict=False):
            self._times[node] += 1
            self._again.pop(node, None)
            if each:
                self._asked[each] = node


def ask(
    grid: Grid,
    content: Callable[[str], RecordDict],
    what: str,
    nodes: Mapping[int, str],
    seconds: float,
    *,
    attempts: int = 1,
    enough: int = 0,
) -> Iterator[tuple[str, Message]]:
    """Send each of these nodes its content and yield site and reply, errors too, as they arrive.

    A site whose process or link was lost is asked again, once it is online, up to `attempts` times in all; but not
    waited for where `enough` sites have answered. Ends when all have answered or after `seconds`, whichever is first;
    who did not answer is for the caller to see.
    """
    deadline, answered = time.monotonic() + seconds, 0
    asking = Asking(grid, content, what, nodes)
    while not asking.is_over:
        replies, came = asking.pull(attempts)
        for site, reply in replies:
            answered += not reply.has_error()
            yield site, reply
        if time.monotonic() >= deadline or (asking.is_idle and 0 < enough <= answered):
            yield from asking.lost()
            return
        asking.ask_again()
        if not asking.is_over and not came:
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
