"""Flower's `flower-supernode` at a site, which is prompt and never waits for a process that is gone.

Flower's node waits for the reply to a message without end. It answers itself for a process that stopped, but only
between that process's taking the message and the first word of its reply: killed before or after, it leaves a node that
is online and does nothing more. Here a reply goes out once its process is through; where it is not whole by then, or
not there, the server is told that the process was lost. Flower's node also gives a whole reply up for one part that
the server has already, where the link broke off before the server's answer; and it looks for messages every three
seconds, which costs every exchange half of that.
"""

import time
from collections.abc import Callable
from contextlib import suppress

from flwr.app import Error, Message
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode, Status
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store import ObjectStore
from flwr.supernode.nodestate import NodeState

from federation.prompt_pulls import pull_promptly

Send = Callable[[Message, ObjectTree, float], tuple[set[str], str]]
PushObject = Callable[[int, str, str, bytes], None]
_LEFT = (Status.PENDING, Status.STARTING, Status.RUNNING)
_LOST = Error(ErrorCode.CLIENT_APP_CRASHED, "the site's process ended before its reply was whole")
_POLL_SECONDS = 0.05
_PULL_SECONDS = 0.2


def whole_replies(push_messages: Callable[..., None]) -> Callable[..., None]:
    """Flower's function that waits for the reply to a message and sends it, without its endless waits."""

    def push_whole(state: NodeState, object_store: ObjectStore, send: Send, push_object: PushObject) -> None:
        def send_whole(message: Message, tree: ObjectTree, seconds: float) -> tuple[set[str], str]:
            if all(object_store.get(part.object_id) for part in iterate_object_tree(tree)):
                return send(message, tree, seconds)
            error = _lost(message)
            wanted, session = send(error, get_object_tree(error), seconds)
            for number, part in get_all_nested_objects(error).items():
                if number in wanted:
                    push_object(message.metadata.run_id, session, number, part.deflate())
            return set(), session

        def push_part(run: int, session: str, number: str, content: bytes) -> None:
            # A part that came, but whose answer was lost on the way, is refused when it is sent again. Where one was
            # refused for another reason, the server misses it and asks the site again.
            with suppress(ObjectPushError):
                push_object(run, session, number, content)

        _await_process(state)
        push_messages(state=state, object_store=object_store, send=send_whole, push_object=push_part)

    return push_whole


def prompt(pull_message: Callable[..., int | None]) -> Callable[..., int]:
    """Flower's function that looks for a message, asked until there is one; it gives the number of the run."""

    def pull_promptly(**options: object) -> int:
        while (run := pull_message(**options)) is None:
            time.sleep(_PULL_SECONDS)
        return run

    return pull_promptly


def _await_process(state: NodeState) -> None:
    """Wait until no task is left to do, and answer for what then has no reply.

    Flower gives up a task whose process has not been heard of for a while, or lets another process begin it.
    """
    while state.get_tasks(statuses=_LEFT):
        time.sleep(_POLL_SECONDS)
    state.get_messages_legacy(is_reply=False)  # nobody takes them any more
    runs = {task.run_id for task in state.get_tasks()}
    state._store_error_replies(runs, _LOST)  # pyright: ignore


def _lost(reply: Message) -> Message:
    """What the server is told in place of a reply that is not whole."""
    metadata = reply.metadata
    error = make_message(
        metadata=Metadata(
            run_id=metadata.run_id,
            message_id="",
            src_node_id=metadata.src_node_id,
            dst_node_id=metadata.dst_node_id,
            reply_to_message_id=metadata.reply_to_message_id,
            group_id=metadata.group_id,
            created_at=metadata.created_at,
            ttl=metadata.ttl,
            message_type=metadata.message_type,
        ),
        error=_LOST,
    )
    error.metadata.__dict__["_message_id"] = error.object_id  # as Flower does with every message that it makes
    return error


def main() -> None:
    """Run Flower's command."""
    from flwr.supernode import start_client_internal as node
    from flwr.supernode.cli import flower_supernode

    pull_promptly()
    node._push_messages = whole_replies(node._push_messages)  # pyright: ignore
    node._pull_and_store_message = prompt(node._pull_and_store_message)  # pyright: ignore
    flower_supernode()


if __name__ == "__main__":
    main()
