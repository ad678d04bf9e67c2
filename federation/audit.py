"""An append-only log of what happened and what left, JSON lines chained by hashes.

Every line names the SHA-256 of the line before it, so that a line that is changed, taken out or put in breaks the chain
from there on. Who can write the file can also write a whole new one: a hash noted elsewhere (`AuditTrail.head`) shows
that. Lines hold names, shapes, bytes and reasons, never values.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

AUDIT = "audit.jsonl"
"""Name of the log in a run's folder at the server, and in a site's own."""
_START = "0" * 64
"""What the first line names in place of a line before it."""
_OWN = ("number", "time", "event", "previous", "hash")


class AuditError(ValueError):
    """A log that is not whole; says from which line on."""


@dataclass(frozen=True, kw_only=True)
class AuditTrail:
    """A log that was found whole."""

    num_entries: int
    head: str
    """Hash of the last line, which stands for all before it."""


@dataclass(frozen=True, kw_only=True)
class AuditLog:
    """The log in one file; several processes may write to it, one after the other."""

    path: Path

    def write(self, event: str, **facts: object) -> None:
        """Add a line, on the disk when this returns. Raises AuditError where the last line is not as it was written."""
        if taken := sorted(set(facts) & set(_OWN)):
            raise ValueError(f"audit: expected other names than {', '.join(taken)}, which every line has")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # released when the file is closed
            last, unfinished = _last_line(file)
            number, previous = (0, _START) if last is None else _checked(self.path, last)
            if unfinished:
                # A process that ended within a line: cut it off, and say so.
                file.truncate(file.seek(0, os.SEEK_END) - unfinished)
                line, previous = _line(number + 1, previous, "unfinished line removed", {"bytes": unfinished})
                file.write(line)
                number += 1
            line, _ = _line(number + 1, previous, event, facts)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def verify(path: Path, *, head: str | None = None) -> AuditTrail:
    """Check a whole log. Raises AuditError at the first line that does not follow from the one before it.

    With `head`, a hash noted earlier, the log must hold the line that it is of: what came before it is then what was
    there when it was noted.
    """
    previous, number, found = _START, 0, head is None or head == _START
    try:
        lines = list(_lines(path))
    except OSError as error:
        raise AuditError(f"{path}: cannot be read ({error.strerror})") from None
    for line in lines:
        if not line.endswith(b"\n"):
            raise AuditError(f"{path}, line {number + 1}: expected a whole line, found the beginning of one")
        entry = _parsed(path, line, number + 1)
        if entry["number"] != number + 1 or entry["previous"] != previous:
            raise AuditError(
                f"{path}, line {number + 1}: expected the line after {previous[:12]}, found number {entry['number']} "
                f"after {str(entry['previous'])[:12]}; lines were changed, removed or added here"
            )
        number, previous = number + 1, str(entry["hash"])
        found = found or previous == head
    if not found:
        raise AuditError(f"{path}: expected the line of hash {head}, found none; lines up to it are not as they were")
    return AuditTrail(num_entries=number, head=previous)


def _line(number: int, previous: str, event: str, facts: dict[str, object]) -> tuple[bytes, str]:
    """A line and its hash."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = {"number": number, "time": time, "event": event, **facts, "previous": previous}
    own = _hash(entry)
    return json.dumps({**entry, "hash": own}, ensure_ascii=False).encode() + b"\n", own


def _hash(entry: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _checked(path: Path, line: bytes) -> tuple[int, str]:
    entry = _parsed(path, line, None)
    return int(str(entry["number"])), str(entry["hash"])


def _parsed(path: Path, line: bytes, number: int | None) -> dict[str, object]:
    """A line whose hash is its own."""
    where = f"{path}, {'last line' if number is None else f'line {number}'}"
    try:
        entry = json.loads(line)
        own = entry.pop("hash")
        whole = all(name in entry for name in _OWN[:-1])
    except (ValueError, KeyError, AttributeError, TypeError):
        raise AuditError(f"{where}: expected an entry of an audit log, found something else") from None
    if not whole or own != _hash(entry):
        raise AuditError(f"{where}: expected hash {_hash(entry)[:12]}, found {str(own)[:12]}; the line was changed")
    return {**entry, "hash": own}


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _last_line(file: IO[bytes]) -> tuple[bytes | None, int]:
    """The last whole line, None where there is none, and the bytes of an unfinished one behind it."""
    size = file.seek(0, os.SEEK_END)
    tail, start = b"", size
    while start > 0 and tail.count(b"\n") < 2:
        start = max(0, start - 65536)
        file.seek(start)
        tail = file.read(size - start)
    whole, end, rest = tail.rpartition(b"\n")
    if not end:
        return None, len(tail)
    return whole.rpartition(b"\n")[2] + b"\n", len(rest)
