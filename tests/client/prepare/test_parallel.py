"""Work spread over processes: order, errors, and no process that outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.prepare.parallel import map_files
from client.prepare.rejections import PrepareError

NUMBERS = list(range(40))


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    raise ValueError(f"cannot do {number}")


def die(number: int) -> int:
    os._exit(9)


def note_and_wait(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_progress_counts_them(workers):
    told = []
    results = map_files(square, NUMBERS, what="squares", workers=workers, progress=lambda *step: told.append(step))
    assert list(results) == [number * number for number in NUMBERS]
    assert told == [("squares", done, 40) for done in range(41)]


def test_an_error_in_a_process_arrives_here():
    with pytest.raises(ValueError, match="cannot do 0"):
        list(map_files(fail, NUMBERS, what="errors", workers=2))


def test_a_killed_process_is_an_error_for_people():
    with pytest.raises(PrepareError, match=r"one of 2 processes was killed.*use fewer workers"):
        list(map_files(die, NUMBERS, what="deaths", workers=2))


def test_no_process_outlives_a_killed_parent(tmp_path):
    script = (
        "from client.prepare.parallel import map_files\n"
        "from tests.client.prepare.test_parallel import note_and_wait\n"
        f"list(map_files(note_and_wait, [{str(tmp_path)!r}] * 40, what='waiting', workers=2))\n"
    )
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    children = [int(path.name) for path in tmp_path.iterdir()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(is_running(child) for child in children))


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        # A process that has ended but that nobody has asked about yet is listed as Z.
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
