"""A process that is killed while it hands over its reply, and an nginx that is killed above its workers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _push_messages

from deployment.guarded_node import prompt, whole_replies
from deployment.proxy_process import end_orphans
from deployment.work import at_work, is_at_work
from tests.deployment.live import free_ports, wait_for

RUN = 7


class _Node:
    """Flower's node with one message that a process works on, and what its server was sent."""

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
        self.question = make_message(metadata=asked, content=RecordDict())
        task = self.state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash="")
        assert task is not None
        self.task = task
        self.state.store_message(self.question)
        self.token = self.state.claim_task(task)
        assert self.state.activate_task(task)
        self.sent: list[Message] = []
        self.pushed: dict[str, bytes] = {}

    def take(self) -> None:
        """What a process does first."""
        assert self.state.get_messages_legacy(run_ids=[RUN], is_reply=False, limit=1)

    def reply(self, *, whole: bool) -> None:
        reply = Message(RecordDict({"numbers": ConfigRecord({"a": 1})}), reply_to=self.question)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self.state.store_message(reply)
        self.store.preregister(RUN, get_object_tree(reply))
        parts = list(get_all_nested_objects(reply).items())
        for number, part in parts if whole else parts[:-1]:
            self.store.put(number, part.deflate())

    def finish(self) -> None:
        """What a process does last."""
        assert self.state.finish_task(self.task, sub_status=SubStatus.COMPLETED, details="")

    def lose(self) -> None:
        """Nothing was heard of the process for so long that Flower gives it up."""
        record = self.state.task_token_store[self.task]
        record.active_until = datetime.now(UTC) - timedelta(seconds=1)

    def push(self) -> Message:
        """What the server is sent."""
        whole_replies(_push_messages)(
            state=self.state, object_store=self.store, send=self._send, push_object=self._push_object
        )
        (message,) = self.sent
        assert message.metadata.reply_to_message_id == "question"
        assert message.metadata.dst_node_id == 1
        assert message.metadata.message_id in self.pushed
        assert self.state.get_messages_legacy() == []
        return message

    def _send(self, message: Message, tree: ObjectTree, seconds: float) -> tuple[set[str], str]:
        self.sent.append(message)
        return {part.object_id for part in iterate_object_tree(tree)}, "session"

    def _push_object(self, run: int, session: str, number: str, content: bytes) -> None:
        assert (run, session) == (RUN, "session")
        self.pushed[number] = content


def test_a_reply_goes_out_once_its_process_is_through() -> None:
    node = _Node()
    node.take()
    node.reply(whole=True)
    thread = threading.Timer(0.3, node.finish)
    thread.start()
    assert not node.push().has_error()
    assert not thread.is_alive()


@pytest.mark.parametrize("moment", ["before it took the message", "at work", "in the middle of its reply"])
def test_the_server_is_told_of_a_process_that_was_killed(moment: str) -> None:
    """Flower alone would wait for ever in the first and the last case."""
    node = _Node()
    if moment != "before it took the message":
        node.take()
    if moment == "in the middle of its reply":
        node.reply(whole=False)
    node.lose()
    message = node.push()
    assert message.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert Message.inflate(node.pushed[message.metadata.message_id]).error.code == ErrorCode.CLIENT_APP_CRASHED


def test_a_part_that_the_server_has_already_does_not_cost_the_reply(caplog: pytest.LogCaptureFixture) -> None:
    """Flower's server refuses what it has: sent again, because a link broke off before the answer."""
    node = _Node()
    node.take()
    node.reply(whole=True)
    node.finish()
    store, refused = node._push_object, []

    def push_object(run: int, session: str, number: str, content: bytes) -> None:
        store(run, session, number, content)
        if not refused:
            refused.append(number)
            raise ObjectPushError(number, run, session)

    node._push_object = push_object
    assert not node.push().has_error()
    assert refused
    assert "Sent successfully" in caplog.text


def test_a_process_that_ends_without_a_reply_is_not_waited_for() -> None:
    node = _Node()
    node.take()
    node.finish()
    assert node.push().error.code == ErrorCode.CLIENT_APP_CRASHED


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


def test_the_node_asks_until_there_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([None, None, 7])
    waits: list[float] = []
    monkeypatch.setattr("deployment.guarded_node.time.sleep", waits.append)
    assert prompt(lambda **options: next(found))() == 7
    assert len(waits) == 2
    assert max(waits) <= 1
