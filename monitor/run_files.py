"""Run folders as whoever watches finds them: files that grow, perhaps half a line ahead, perhaps of a newer version."""

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from federation.audit import AUDIT
from federation.run_folder import HISTORY, RUN, RunError, RunRecord, read_run
from monitor.times import iso

_DEEPEST = 6
"""Folders in each other, below those that are watched, in which a run is looked for."""
_TAIL = 4096
_BEGAN = "run began"


@dataclass(frozen=True)
class Position:
    """How far a file was read, in whole lines."""

    bytes: int = 0
    lines: int = 0
    tail: str = ""
    """SHA-256 of the last bytes before this, which shows whether they are still the same."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path
    uid: str
    """Stays when the run is resumed: the hash of the audit log's first line. A run without an audit log, trained in one
    place, is known by its machine and folder."""

    @property
    def kind(self) -> str:
        """Until run.json says it."""
        return "federated"

    @property
    def name(self) -> str:
        """Until run.json says it."""
        return self.path.name

    @property
    def audit(self) -> Path:
        return self.path / AUDIT

    @property
    def history(self) -> Path:
        return self.path / HISTORY

    def takes(self, line: bytes) -> bool:
        """Whether a line of the audit log is of this run."""
        return True

    def look(self) -> tuple[object, ...]:
        """What changes when one of the files does."""
        return tuple(changes(self.path / name) for name in (AUDIT, HISTORY, RUN))

    def record(self) -> tuple[RunRecord | None, str]:
        """What run.json says, None where there is none, or none that can be read: then why."""
        if not (self.path / RUN).is_file():
            return None, ""
        try:
            return read_run(self.path), ""
        except (RunError, OSError, UnicodeDecodeError) as error:
            return None, str(error)

    def changed(self) -> str:
        """When run.json was written last; of a folder without one, when it was made."""
        return time_of(self.path / RUN if (self.path / RUN).is_file() else self.path)

    def began(self, seconds: float) -> str:
        """When the run began, for a run without an audit log that says so; it has taken so many seconds."""
        return iso(datetime.fromtimestamp((self.path / RUN).stat().st_mtime - seconds, UTC))


def find_runs(folders: Sequence[Path]) -> list[RunFolder]:
    """The runs in these folders, which are runs themselves or hold some; in the order of their paths."""
    paths = sorted({each for folder in folders for each in _run_paths(folder.resolve(), _DEEPEST)})
    found = [RunFolder(path, uid) for path in paths if (uid := _uid(path)) is not None]
    return list({run.uid: run for run in found}.values())


def new_lines(path: Path, position: Position, at_most: int) -> tuple[list[bytes], Position]:
    """Whole lines after a position, about `at_most` bytes of them, and the position behind them.

    Raises ChangedError where what was read before is not in the file any more. A last line without an end is left.
    """
    with path.open("rb") as file:
        if _tail(file, position.bytes) != position.tail:
            raise ChangedError(f"{path}: its first {position.lines:,} lines are not those that were read before")
        file.seek(position.bytes)
        content = file.read(at_most)
        while content and b"\n" not in content and (more := file.read(at_most)):
            content += more
        content = content[: content.rfind(b"\n") + 1]
        lines = content.split(b"\n")[:-1]
        end = position.bytes + len(content)
        return lines, Position(bytes=end, lines=position.lines + len(lines), tail=_tail(file, end))


class ChangedError(ValueError):
    """A file that was changed in a place that was read already."""


def _tail(file: BinaryIO, end: int) -> str:
    """SHA-256 of the bytes before `end`; empty for the beginning."""
    if end == 0:
        return ""
    start = max(0, end - _TAIL)
    file.seek(start)
    content = file.read(end - start)
    return hashlib.sha256(content).hexdigest() if len(content) == end - start else "too short"


def _run_paths(folder: Path, depth: int) -> Iterator[Path]:
    """Folders with a run in them; inside a run there are sites and checkpoints, no further runs."""
    if (folder / RUN).is_file() or _begins(folder / AUDIT):
        yield folder
        return
    if depth == 0:
        return
    try:
        below = [Path(each.path) for each in os.scandir(folder) if each.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for each in below:
        yield from _run_paths(each, depth - 1)


def _begins(audit: Path) -> bool:
    """Whether this is the audit log of a run at the server, not that of a site."""
    line = first_line(audit)
    return line is not None and line.get("event") == _BEGAN


def _uid(folder: Path) -> str | None:
    """None while the first line of the audit log is still being written."""
    if (folder / AUDIT).is_file():
        line = first_line(folder / AUDIT)
        return None if line is None else str(line.get("hash"))
    place = f"{socket.gethostname()}\n{folder}"
    return f"folder-{hashlib.sha256(place.encode(errors='surrogateescape')).hexdigest()}"


def first_line(path: Path) -> dict[str, object] | None:
    """What the first line of an audit log says; None where there is none that is whole."""
    try:
        with path.open("rb") as file:
            line = file.readline()
        found = json.loads(line) if line.endswith(b"\n") else None
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def changes(path: Path) -> tuple[int, int, int] | None:
    """What is another when the file is; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def time_of(path: Path) -> str:
    """When a file was written last, in UTC."""
    return iso(datetime.fromtimestamp(path.stat().st_mtime, UTC))
