"""Flower's `flower-supernode` at a site, which notices when the process at work ends before its reply is whole.

Flower's node begins to send a reply once it knows the reply's parts, and waits for parts that do not come without end:
a process that is killed in that moment leaves a node that is online and does nothing more. Here a reply goes out once
it is whole; if the process ended before, the server is told so at once, as of any other process that was lost.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import Error, Message
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.object_store import ObjectStore
from flwr.supernode.nodestate import NodeState

from deployment.programs import KIT
from deployment.work import is_at_work

Send = Callable[[Message, ObjectTree, float], tuple[set[str], str]]
PushObject = Callable[[int, str, str, bytes], None]
_POLL_SECONDS = 0.05


def whole_replies(push_messages: Callable[..., None], at_work: Callable[[], bool]) -> Callable[..., None]:
    """Flower's function that sends the replies that wait at a node, behind a look at whether each is whole.

    `at_work` says whether a process that could still hand over parts is there.
    """

    def push_whole(state: NodeState, object_store: ObjectStore, send: Send, push_object: PushObject) -> None:
        def send_whole(message: Message, tree: ObjectTree, seconds: float) -> tuple[set[str], str]:
            if _becomes_whole(object_store, tree, at_work):
                return send(message, tree, seconds)
            error = _lost(message)
            wanted, session = send(error, get_object_tree(error), seconds)
            for number, part in get_all_nested_objects(error).items():
                if number in wanted:
                    push_object(message.metadata.run_id, session, number, part.deflate())
            return set(), session

        push_messages(state=state, object_store=object_store, send=send_whole, push_object=push_object)

    return push_whole


def _becomes_whole(store: ObjectStore, tree: ObjectTree, at_work: Callable[[], bool]) -> bool:
    """Wait until all parts are there, or nobody is who could bring them."""
    parts = [part.object_id for part in iterate_object_tree(tree)]
    while True:
        may_come = at_work()  # asked first: what it brought before it ended counts
        if all(store.get(part) for part in parts):
            return True
        if not may_come:
            return False
        time.sleep(_POLL_SECONDS)


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
        error=Error(ErrorCode.CLIENT_APP_CRASHED, "the site's process ended while it handed over its reply"),
    )
    error.metadata.__dict__["_message_id"] = error.object_id  # as Flower does with every message that it makes
    return error


def main() -> None:
    """Run Flower's command for the kit that the environment names."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    kit = Path(os.environ[KIT])
    push_messages = start_client_internal._push_messages  # pyright: ignore[reportPrivateUsage]
    start_client_internal._push_messages = whole_replies(push_messages, lambda: is_at_work(kit))  # pyright: ignore
    flower_supernode()


if __name__ == "__main__":
    main()
