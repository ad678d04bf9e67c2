"""A process that is killed while it hands over its reply, and an nginx that is killed above its workers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _push_messages

from deployment.guarded_node import whole_replies
from deployment.proxy_process import end_orphans
from deployment.work import at_work, is_at_work
from tests.deployment.live import free_ports, wait_for

RUN = 7


class _Node:
    """Flower's node with one reply, of which the last part is missing, and what its server was sent."""

    def __init__(self) -> None:
        self.state = NodeStateFactory(ObjectStoreFactory()).state()
        self.store = self.state.object_store
        asked = Metadata(
            run_id=RUN,
            message_id="question",
            src_node_id=1,
            dst_node_id=5,
            reply_to_message_id="",
            group_id="",
            created_at=time.time(),
            ttl=100.0,
            message_type="train",
        )
        question = make_message(metadata=asked, content=RecordDict())
        self.reply = Message(RecordDict({"numbers": ConfigRecord({"a": 1})}), reply_to=question)
        self.reply.metadata.__dict__["_message_id"] = self.reply.object_id
        self.parts = get_all_nested_objects(self.reply)
        self.state.store_message(self.reply)
        self.store.preregister(RUN, get_object_tree(self.reply))
        *first, (self.last, _) = self.parts.items()
        for number, part in first:
            self.store.put(number, part.deflate())
        self.sent: list[Message] = []
        self.pushed: dict[str, bytes] = {}

    def put_last(self) -> None:
        self.store.put(self.last, self.parts[self.last].deflate())

    def send(self, message: Message, tree: ObjectTree, seconds: float) -> tuple[set[str], str]:
        self.sent.append(message)
        return {tree.object_id, *(child.object_id for child in tree.children)}, "session"

    def push_object(self, run: int, session: str, number: str, content: bytes) -> None:
        assert (run, session) == (RUN, "session")
        self.pushed[number] = content

    def push(self, at_work) -> None:
        whole_replies(_push_messages, at_work)(
            state=self.state, object_store=self.store, send=self.send, push_object=self.push_object
        )


def test_a_reply_goes_out_once_it_is_whole() -> None:
    node, looks = _Node(), []

    def is_there() -> bool:
        looks.append(len(node.sent))
        if len(looks) == 3:
            node.put_last()
        return len(looks) < 4

    node.push(is_there)
    assert looks == [0, 0, 0]
    assert [each.has_error() for each in node.sent] == [False]
    assert node.last in node.pushed


def test_the_last_part_counts_if_the_process_ended_right_after_it() -> None:
    node = _Node()
    node.put_last()
    node.push(lambda: False)
    assert [each.has_error() for each in node.sent] == [False]


def test_a_reply_that_is_never_whole_is_told_as_lost() -> None:
    """Flower alone would wait for ever; what it sends instead answers the same question, and can be read."""
    node = _Node()
    node.push(lambda: False)
    (error,) = node.sent
    assert error.has_error()
    assert error.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert error.metadata.reply_to_message_id == "question"
    assert error.metadata.dst_node_id == node.reply.metadata.dst_node_id
    assert list(node.pushed) == [error.metadata.message_id]
    assert Message.inflate(node.pushed[error.metadata.message_id]).error.code == ErrorCode.CLIENT_APP_CRASHED
    assert node.state.get_messages_legacy() == []


def test_work_is_seen_from_other_processes(tmp_path: Path) -> None:
    assert not is_at_work(tmp_path)
    with at_work(tmp_path):
        assert is_at_work(tmp_path)
    assert not is_at_work(tmp_path)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed (apt-get install nginx-light)")
def test_nginx_starts_in_place_of_one_that_was_killed(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    for name in ("run", "logs"):
        (tmp_path / name).mkdir()
    temporary = " ".join(
        f"{kind}_temp_path run/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        "worker_processes 2; daemon off; pid run/nginx.pid; error_log logs/error.log; events {}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; }} }}\n"
    )
    command = [sys.executable, "-m", "deployment.proxy_process", shutil.which("nginx") or "", str(tmp_path)]

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, process_group=0)
        wait_for(
            "nginx", lambda: _listens(port) and (tmp_path / "run" / "nginx.pid").read_text().strip() == str(process.pid)
        )
        return process

    first = start()
    assert end_orphans(tmp_path) == 0  # it runs
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert _listens(port)  # its workers do, for nobody
    second = start()
    try:
        assert _listens(port)
    finally:
        second.terminate()
        second.wait()
    assert not _listens(port)
    assert end_orphans(tmp_path) == 0


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
