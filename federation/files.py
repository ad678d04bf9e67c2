"""Files that are written whole or not at all, whatever happens to the process or the disk meanwhile; and folder locks.

A process that is killed leaves at most a `.partial` beside the old file; a disk that is full leaves not even that.
"""

import fcntl
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

PARTIAL = ".partial"
LOCK = "run.lock"


class StorageError(ValueError):
    """A file that could not be written; says which, how much room it needs, how much there is, and what to do."""


def write_whole(path: Path, content: bytes | memoryview, *, is_private: bool = False) -> None:
    """Replace a file so that a reader, or a crash at any moment, sees the old content or the new and nothing between.

    On return the new content is on the disk, as far as the file system keeps its word about fsync. A private file is
    readable by its owner alone, from its first byte on. Raises StorageError where it cannot be written, a full disk for
    one; the old file is then as it was.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        _make_folder(path.parent)
        if is_private:
            partial.unlink(missing_ok=True)
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise make_room_error(path, len(content), error) from error


def append_whole(path: Path, content: bytes, *, durably: bool = True) -> None:
    """Add to the end of a file, durably unless told otherwise. Raises StorageError where that fails; the file is then
    as it was.

    A process that is killed meanwhile may leave a part of the content: whoever reads on must know how far to trust.
    """
    size = path.stat().st_size if path.exists() else None
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            if durably:
                os.fsync(file.fileno())
        if size is None and durably:
            _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, size or 0)
        raise make_room_error(path, len(content), error) from error


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder and those below it."""
    for partial in folder.rglob(f"*{PARTIAL}"):
        partial.unlink()


def lock_folder(folder: Path) -> IO[bytes]:
    """Keep other processes from a folder while the returned file is open; however this process ends, the lock does too.

    The lock is this process's alone: loader processes that outlive it by seconds do not hold it. Raises StorageError
    where another process holds it. A file system without locks is used with a warning.
    """
    _make_folder(folder)
    file = (folder / LOCK).open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise StorageError(
            f"{folder}: another process is training into this folder; wait until it ends, or choose another one"
        ) from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): let no second process train into it", folder, error.strerror)
    return file


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each name on the disk before anything is put into it."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk, a replaced file's among them."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_room_error(path: Path, num_bytes: int, error: OSError) -> StorageError:
    try:
        free = f"{shutil.disk_usage(path.parent).free:,} are free"
    except OSError:
        free = "how many are free is unknown"
    return StorageError(
        f"{path}: could not be written ({error.strerror or error}): it needs {num_bytes:,} bytes, {free}; "
        "what was saved before is whole. Make room, or check quota and permissions, then start again"
    )
