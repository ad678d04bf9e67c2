"""A run's folder: what was run (`run.json`) and what was measured at each step (`history.jsonl`).

Centralized, local-only and federated training write the same two files, so that one reader compares them. Scores of
the chosen model lie beside them in `predictions/`, which only those who hold patients can write.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from dipro_model.vocabulary import SPLITS, Task
from federation.files import append_whole, write_whole

SCHEMA_VERSION = 1
RUN = "run.json"
HISTORY = "history.jsonl"
OWN_ROUNDS = "rounds"
"""Folder, in a site's own, with what it measured itself: a folder with a history for each run."""

KINDS = ("centralized", "local", "federated", "evaluated")
STATUSES = ("running", "finished", "failed")
STEP_UNITS = ("epoch", "round")
POOLED = "pooled"
"""The `site` of a measurement over the patients of all sites; no site may have this name."""
PATIENTS, SITES, UPDATES = "patient_privacy", "site_privacy", "secure_aggregation"
"""Sections of a run's settings that hide something, by what they hide: single patients, whole sites, single updates."""


class RunError(ValueError):
    """A folder is not a run that this version can read or write; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What was run and how it ended."""

    kind: str
    """centralized (patients of all sites pooled), local (one site alone) or federated; evaluated: a finished model,
    scored on one split without training."""
    name: str
    """What a reader calls the model."""
    task: Task
    seed: int
    step_unit: str
    """What a step of the history is: epoch or round."""
    sites: tuple[str, ...]
    """Sites whose patients the model is scored on, in order."""
    trained_on: tuple[str, ...]
    """Sites whose patients it learned from; of an evaluated model those that are known, perhaps none."""
    settings: Mapping[str, Any]
    """Every setting of the run, as JSON objects in each other."""
    status: str
    """running, finished or failed."""
    best_step: int | None
    """Step of the chosen model; None before the first validation, or where no step was chosen."""
    monitor: str
    """Validation metric by which it was chosen."""
    seconds: float
    """Wall time so far."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further facts, written beside the others at the top of run.json."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("kind", self.kind, KINDS),
            ("status", self.status, STATUSES),
            ("step_unit", self.step_unit, STEP_UNITS),
        ):
            if value not in allowed:
                raise RunError(f"`{name}`: expected one of {', '.join(allowed)}, found {value!r}")
        if not self.sites or len(set(self.sites)) < len(self.sites) or {POOLED, ""} & set(self.sites):
            raise RunError(f"`sites`: expected different names, none empty or {POOLED!r}, found {list(self.sites)}")
        known_here = bool(self.trained_on) and set(self.trained_on) <= set(self.sites)
        if self.kind != "evaluated" and not known_here:
            raise RunError(f"`trained_on`: expected some of {list(self.sites)}, found {list(self.trained_on)}")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One model at one step on one split of one site, or of all sites together."""

    step: int
    """From 1; 0 is the model before any training."""
    site: str
    """A site's name, or `pooled`."""
    split: str
    """train, val or test."""
    loss: float | None
    """Total objective, the mean over the samples; None where it was not computed."""
    parts: Mapping[str, float]
    """Terms of the objective by name, unweighted."""
    metrics: Mapping[str, float | None]
    """Metrics by name; None where undefined."""
    num_samples: int
    seconds: float
    """Wall time of the step at this site."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise RunError(f"`split`: expected one of {', '.join(SPLITS)}, found {self.split!r}")


def write_run(folder: Path, record: RunRecord) -> None:
    """Write run.json so that a reader, or a crash, sees the old file or the new one and nothing between."""
    facts = asdict(record)
    more = facts.pop("more")
    clash = sorted({"schema_version", *facts} & set(more))
    if clash:
        raise RunError(f"`more` repeats {', '.join(clash)}, which run.json holds already; name the facts otherwise")
    text = json.dumps({"schema_version": SCHEMA_VERSION, **facts, **more}, indent=2, allow_nan=False) + "\n"
    write_whole(folder / RUN, text.encode())


def read_run(folder: Path) -> RunRecord:
    """Read run.json. Raises RunError naming the file, what was expected, and what to do."""
    path = folder / RUN
    if not path.is_file():
        raise RunError(f"{folder}: expected a run's folder, found no {RUN} in it; check the path, or train first")
    facts = _object(path.read_text(encoding="utf-8"), path)
    if facts.get("schema_version") != SCHEMA_VERSION:
        raise RunError(
            f"{path}: expected schema version {SCHEMA_VERSION}, found {facts.get('schema_version')!r}; "
            "run the training again with this version of dipro-fed"
        )
    known = {name: _field(facts, name, kind, path) for name, kind in _RUN_FIELDS.items()}
    more = {name: value for name, value in facts.items() if name not in _RUN_FIELDS and name != "schema_version"}
    try:
        known["task"] = Task(known["task"])
    except ValueError:
        raise RunError(f"{path}: `task`: expected one of {', '.join(Task)}, found {known['task']!r}") from None
    try:
        return RunRecord(**known, more=more)
    except RunError as error:
        raise RunError(f"{path}: {error}") from None


def append_history(folder: Path, measurements: Iterable[Measurement], *, durably: bool = True) -> None:
    """Add lines to history.jsonl in one write; what is there already is never changed."""
    append_whole(
        folder / HISTORY, "".join(history_line(each) + "\n" for each in measurements).encode(), durably=durably
    )


def history_line(measurement: Measurement) -> str:
    """A measurement as JSON on one line, which `parse_measurement` reads."""
    return json.dumps(asdict(measurement), allow_nan=False)


def cut_history(folder: Path, num_lines: int) -> None:
    """Keep the first lines of history.jsonl: what follows is of a step that will be made again, its end perhaps torn.

    Raises RunError where there are fewer.
    """
    path = folder / HISTORY
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    num_whole = sum(line.endswith(b"\n") for line in lines)
    if num_whole < num_lines:
        raise RunError(
            f"{path}: expected the {num_lines} lines that the last checkpoint knows of, found {num_whole}; "
            "restore the file, or train again into another folder"
        )
    if len(lines) > num_lines:
        write_whole(path, b"".join(lines[:num_lines]))


def read_history(folder: Path, *, is_growing: bool = False) -> list[Measurement]:
    """Read history.jsonl in the order of writing. Raises RunError naming the line that cannot be read.

    Of a run that is at work, `is_growing` leaves out a last line that its writer is not through with.
    """
    path = folder / HISTORY
    if not path.is_file():
        raise RunError(f"{path}: expected the run's measurements, found no such file; run the training again")
    lines = path.read_bytes().splitlines(keepends=True)
    if is_growing and lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return [parse_measurement(line.decode(), f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


_RUN_FIELDS: dict[str, Any] = {
    "kind": str,
    "name": str,
    "task": str,
    "seed": int,
    "step_unit": str,
    "sites": tuple[str, ...],
    "trained_on": tuple[str, ...],
    "settings": dict[str, Any],
    "status": str,
    "best_step": int | None,
    "monitor": str,
    "seconds": float,
}
_HISTORY_FIELDS: dict[str, Any] = {
    "step": int,
    "site": str,
    "split": str,
    "loss": float | None,
    "parts": dict[str, float],
    "metrics": dict[str, float | None],
    "num_samples": int,
    "seconds": float,
}


def parse_measurement(line: str, where: str) -> Measurement:
    """What `history_line` wrote. Raises RunError, which begins with `where`."""
    facts = _object(line, where)
    known = {name: _field(facts, name, kind, where) for name, kind in _HISTORY_FIELDS.items()}
    try:
        return Measurement(**known)
    except RunError as error:
        raise RunError(f"{where}: {error}") from None


def _object(text: str, where: Path | str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise RunError(
            f"{where}: expected JSON, found text that does not parse ({error}); was its writer cut off? "
            "Run the training again"
        ) from None
    if not isinstance(facts, dict):
        raise RunError(f"{where}: expected a JSON object, found {type(facts).__name__}; run the training again")
    return facts


def _field(facts: Mapping[str, Any], name: str, kind: Any, where: Path | str) -> Any:
    if name not in facts:
        raise RunError(f"{where}: expected `{name}`, found none; run the training again")
    if not _is(facts[name], kind):
        raise RunError(f"{where}: `{name}`: expected {_words(kind)}, found {type(facts[name]).__name__}")
    return tuple(facts[name]) if get_origin(kind) is tuple else facts[name]


def _is(value: Any, kind: Any) -> bool:
    """Whether a JSON value has a type; a whole number passes as a float, true and false as no number."""
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is(each, get_args(kind)[1]) for each in value.values())
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if kind is Any:
        return True
    if get_args(kind):
        return any(_is(value, each) for each in get_args(kind))
    if kind in (int, float):
        numbers = int if kind is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", type(None): "null"}
    if get_origin(kind) is tuple:
        return "a list of texts"
    if get_origin(kind) is dict:
        value = get_args(kind)[1]
        return "an object" if value is Any else f"an object of names to {_words(value)}"
    return " or ".join(names[each] for each in (get_args(kind) or (kind,)))
