"""Lines of a run's files as rows of the database; what a newer version wrote is kept as it is."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from federation.run_folder import POOLED, RunRecord

Row = dict[str, Any]

UNREADABLE = "unreadable line"
"""Kind of an event whose line says nothing that can be read."""
_OWN = {"number", "time", "event", "previous", "hash"}
_ROUND = re.compile(r"round (\d{1,9})\b")
_LARGEST = 2**63 - 1
_LARGEST_FLOAT = 10**308
_UNDEFINED = {
    True: "the counts that sites may disclose do not tell it closely enough, or the labels leave it undefined",
    False: "the labels there leave it undefined, or the site's policy keeps it",
}
"""Why a metric has no value, of all sites together and of one."""
_NOT_PLAIN = {ord("\x00"): "\\x00"}


def event_row(line: bytes, number: int) -> Row:
    """A line of an audit log, the `number`-th; one that cannot be read becomes an event that says so."""
    try:
        entry = json.loads(line)
        facts = {str(name): value for name, value in entry.items() if name not in _OWN}
        kind, time = entry["event"], entry["time"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        shown = line[:2000].decode(errors="backslashreplace")
        return _event(number, "", UNREADABLE, {"line": shown})
    return _event(number, str(time), str(kind), facts)


def measurement_rows(line: bytes) -> list[Row]:
    """The numbers of a line of a history, one a row. Raises ValueError for a line that is none."""
    try:
        said = json.loads(line)
        key = {"step": int(said["step"]), "site": plain(str(said["site"])), "split": plain(str(said["split"]))}
    except (KeyError, TypeError, RecursionError, OverflowError):
        raise ValueError("expected a measurement with step, site and split") from None
    if _whole(key["step"]) is None:
        raise ValueError("expected a step that can be counted")
    reason = _UNDEFINED[key["site"] == POOLED]
    return [{**key, "metric": plain(name), **_number(value, reason)} for name, value in _numbers(said)]


def run_row(record: RunRecord) -> Row:
    """What run.json says, but for the status and the times."""
    more = dict(record.more)
    return {
        "name": plain(record.name),
        "kind": plain(record.kind),
        "task": plain(str(record.task)),
        "seed": _whole(record.seed),
        "step_unit": plain(record.step_unit),
        "best_step": _whole(record.best_step),
        "monitor": plain(record.monitor),
        "sites": plain(list(record.sites)),
        "settings": plain(dict(record.settings)),
        "facts": plain(more),
    }


def is_number(value: object) -> TypeGuard[float]:
    """Whether what an event says is a finite number; of a newer version it may be anything."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any) -> Any:
    """The same in text and JSON that every database takes: no NUL, no half of a character, no infinite number."""
    if isinstance(value, str):
        return value.translate(_NOT_PLAIN).encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {plain(str(name)): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _event(number: int, time: str, kind: str, facts: dict[str, Any]) -> Row:
    site, server_round = facts.get("site"), _whole(facts.get("round"))
    if server_round is None and (found := _ROUND.match(str(facts.get("exchange", "")))):
        server_round = int(found[1])
    return {
        "number": number,
        "time": plain(time),
        "kind": plain(kind),
        "site": plain(site) if isinstance(site, str) else None,
        "round": server_round,
        "bytes": _whole(facts.get("bytes")),
        "facts": plain(facts),
    }


def _numbers(said: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every number of a line by its name; further fields of a newer version too, if they are numbers."""
    for name, value in said.items():
        if name in ("step", "site", "split"):
            continue
        if name == "metrics" and isinstance(value, dict):
            yield from value.items()
        elif name == "parts" and isinstance(value, dict):
            yield from ((f"loss/{part}", each) for part, each in value.items())
        elif value is not None and not isinstance(value, dict | list | str):
            yield name, value


def _number(value: Any, reason: str) -> Row:
    # Whole numbers in JSON have no end, and beyond these no floating point number is near.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (isinstance(value, float) or abs(value) < _LARGEST_FLOAT) and math.isfinite(value):
        return {"value": float(value), "reason": None}
    return {"value": None, "reason": reason if value is None else plain(f"no number: {str(value)[:200]}")}


def _whole(value: Any) -> int | None:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
    return value if is_whole else None
