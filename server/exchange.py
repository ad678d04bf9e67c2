"""Asking sites and reading their replies as they come, over Flower's grid."""

import time
from collections.abc import Iterator, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

_POLL_SECONDS = 0.3
"""Flower's own loop looks every three seconds, which a round of a small model does not take."""


def ask(
    grid: Grid, content: RecordDict, what: str, nodes: Mapping[int, str], seconds: float
) -> Iterator[tuple[str, Message]]:
    """Send the same content to these nodes and yield site and reply, errors too, as they arrive.

    `nodes` maps node ids to sites' names. Ends when all have answered or after `seconds`, whichever is first; who did
    not answer is for the caller to see. Replies are matched by the message they answer: one that Flower writes in
    place of a site that was lost comes from another node.
    """
    deadline = time.monotonic() + seconds
    messages = [Message(content, dst_node_id=node, message_type=what) for node in nodes]
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
