"""Processes that are kept running: started anew when they end, told when they cannot stay up, stopped as one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployment.programs import LOCK, Program
from deployment.supervision import Supervision, SupervisionError
from tests.deployment.live import free_ports, wait_for

ECHO = Program(name="echo", command=("sh", "-c", "echo 'here I am: 100%'; exec sleep 1000"))
FAILING = Program(name="failing", command=("sh", "-c", "echo 'the disk is on fire'; exit 3"))


@pytest.fixture
def supervision(tmp_path: Path) -> Iterator[Supervision]:
    # Long, as no socket's path may be.
    folder = tmp_path / ("kit" * 30)
    folder.mkdir()
    supervision = Supervision(folder=folder)
    yield supervision
    if supervision.is_running():
        supervision.stop()


def _start(supervision: Supervision, *programs: Program, **more) -> None:
    options = {"environment": dict(os.environ), "state": supervision.folder / "state", "ports": {}, **more}
    supervision.start(programs, **options)


def _number(supervision: Supervision) -> int:
    (status,) = supervision.status()
    return int(status.description.split()[1].rstrip(",")) if status.state == "RUNNING" else 0


def test_a_process_that_was_killed_is_started_again(supervision: Supervision) -> None:
    _start(supervision, ECHO)
    first = _number(supervision)
    assert supervision.log_end("echo") == "here I am: 100%"
    os.kill(first, signal.SIGKILL)
    wait_for("a new process", lambda: _number(supervision) not in (0, first), 20)
    second = _number(supervision)
    supervision.stop()
    assert supervision.status() == []
    for ended in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(ended, 0)
    with pytest.raises(SupervisionError, match="nothing runs here"):
        supervision.stop()


def test_what_cannot_stay_up_is_told_and_nothing_is_left(supervision: Supervision) -> None:
    with pytest.raises(SupervisionError, match=r"failing did not stay up, all were stopped.*\n.*the disk is on fire"):
        _start(supervision, ECHO, FAILING, seconds=5)
    assert not supervision.is_running()


def test_two_do_not_share_a_kit_a_state_or_a_port(supervision: Supervision, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    lock = supervision.folder / "state" / LOCK
    holder = Program(name="holder", command=("flock", "--nonblock", "--no-fork", str(lock), "sleep", "1000"))
    listens = f"import socket, time; taken = socket.create_server(('127.0.0.1', {port})); time.sleep(1000)"
    _start(supervision, holder, Program(name="listens", command=(sys.executable, "-c", listens)))
    with pytest.raises(SupervisionError, match="runs already"):
        _start(supervision, ECHO)
    (tmp_path / "other").mkdir()
    other = Supervision(folder=tmp_path / "other")
    with pytest.raises(SupervisionError, match="expected a state folder that no other process uses"):
        _start(other, ECHO, state=supervision.folder / "state")
    with pytest.raises(SupervisionError, match=rf"port {port} \(the port in the project file\) cannot be had"):
        _start(other, ECHO, ports={"the port": port})
    assert not other.is_running()


def test_in_the_foreground_until_it_is_asked_to_end(supervision: Supervision) -> None:
    code = (
        "import os, sys; from pathlib import Path; from deployment.supervision import Supervision; "
        "from tests.deployment.test_supervision import ECHO; folder = Path(sys.argv[1]); "
        "sys.exit(Supervision(folder=folder).run([ECHO], environment=dict(os.environ), state=folder / 'state', "
        "ports={}, once_up=lambda: print('up', flush=True)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(supervision.folder)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert supervision.is_running()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stdout.close()
    assert not supervision.is_running()
