"""The server's side of what travels beside messages: a folder that the proxy hands out and takes in.

    FREIGHT/HOLD/sent/SHA256           what messages name, for every site that was told both names
    FREIGHT/HOLD/docks/SITE/DOCK/00    what that site alone may put there, part by part

A hold lasts as long as its run is at work, what is in it as long as a question is open. What a process that was killed
has left is removed by the next run.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from federation.files import make_room_error
from federation.freight import (
    PART_BYTES,
    Dock,
    FreightError,
    Item,
    digest_of,
    loaded,
    packed,
    places,
    unloaded,
    unpacked,
)

_SENT, _DOCKS, _LOCK = "sent", "docks", ".lock"
_SITE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Hold:
    """Where one run keeps what it sends and finds what it is sent."""

    def __init__(self, folder: Path) -> None:
        """`folder` is new, and this run's alone."""
        self._folder = folder
        self._docks: dict[str, Dock] = {}
        """By site, where its reply to the last question lies."""
        self._digests: dict[tuple[int, int], tuple[np.ndarray, str]] = {}
        """Of arrays that were written, by where they lie in memory: sites that are sent the same share one file."""
        for name in (_SENT, _DOCKS):
            (folder / name).mkdir(parents=True)

    def send(self, content: RecordDict, site: str) -> RecordDict:
        """What goes to a site in a message in place of this. Raises StorageError where the disk is full."""
        if not _SITE.fullmatch(site):
            raise FreightError(f"expected a site's name as the project file has it, found {site!r}")
        dock = Dock(hold=self._folder.name, name=secrets.token_hex(16))
        (self._docks_of(site) / dock.name).mkdir(parents=True)
        self._docks[site] = dock
        return packed(unloaded(content, self._keep), dock)

    def receive(self, content: RecordDict, site: str) -> RecordDict:
        """What a site meant by its reply. Raises FreightError where it is not packed, or lacks a part."""
        if site not in self._docks:
            return content
        folder, names = self._docks_of(site) / self._docks[site].name, places()
        return loaded(unpacked(content), lambda item: _taken(folder, names, item))

    def clear(self) -> None:
        """Forget a question: whoever is late finds nothing, and can leave nothing."""
        self._docks.clear()
        self._digests.clear()
        for name in (_SENT, _DOCKS):
            for path in (self._folder / name).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _docks_of(self, site: str) -> Path:
        return self._folder / _DOCKS / site

    def _keep(self, content: np.ndarray) -> str:
        place = content.ctypes.data, content.nbytes
        if place not in self._digests:
            digest = digest_of(content)
            _write(self._folder / _SENT / digest, content)
            self._digests[place] = content, digest
        return self._digests[place][1]


@contextmanager
def hold(freight: Path) -> Iterator[Hold]:
    """A new hold below a server's folder for them, until the end; those that nobody uses any more are removed."""
    freight.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sweep(freight)
    name = secrets.token_hex(16)
    lock = freight / f"{name}{_LOCK}"
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # before the folder is there, which else might be swept
        try:
            yield Hold(freight / name)
        finally:
            shutil.rmtree(freight / name, ignore_errors=True)
            lock.unlink()


def _sweep(freight: Path) -> None:
    """Remove the holds of processes that ended without doing so."""
    for path in freight.glob(f"*{_LOCK}"):
        with suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(freight / path.name.removesuffix(_LOCK), ignore_errors=True)
            path.unlink()


def _write(path: Path, content: np.ndarray) -> None:
    """Write a file that nobody reads before it is whole; a crash needs nothing of it, so no disk is waited for."""
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            file.write(content.data)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise make_room_error(path, content.nbytes, error) from error


def _taken(folder: Path, names: Iterator[str], item: Item) -> np.ndarray:
    """uint8 [byte]: an item from the next places of a dock."""
    content = np.empty(item.num_bytes, np.uint8)
    for start in range(0, item.num_bytes, PART_BYTES):
        part = content[start : start + PART_BYTES]
        path = folder / next(names, "")
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                read = file.readinto(part.data) if found == len(part) else 0
        except OSError:
            found, read = 0, 0
        if read != len(part):
            raise FreightError(f"expected {len(part):,} bytes in part {path.name} of the reply, found {found:,}")
    item.check(content)
    return content
