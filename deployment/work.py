"""Whether a site is at work: the guard in front of Flower's client process says so while one runs."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KIT = "DIPRO_FED_KIT"
"""Variable of the environment that names a site's kit to the site's own processes."""
_MARK = "run/at_work.lock"
_REPLY_SECONDS = 5.0
"""Flower throws a finished reply away when its node is stopped right after."""


@contextmanager
def at_work(kit: Path) -> Iterator[None]:
    """Tell others that this process works on a message, until it ends, however it ends."""
    path = kit / _MARK
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def is_at_work(kit: Path) -> bool:
    """Whether a process works on a message right now."""
    path = kit / _MARK
    if not path.exists():
        return False
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def await_no_work(kit: Path, seconds: float) -> bool:
    """Wait until no process works on a message and a reply has had time to leave; whether that came in time."""
    end, waited = time.monotonic() + seconds, False
    while is_at_work(kit):
        waited = True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    if waited:
        time.sleep(_REPLY_SECONDS)
    return True
