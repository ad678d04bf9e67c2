"""What the page shows of a run, as the database has it: numbers and texts, without a look."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Row, func, select

from monitor.alarm_views import alarms_version
from monitor.alarms import AT_WORK, patience
from monitor.tables import events, measurements, positions, runs

_ORDINARY = (
    *("run began", "run goes on", "sent", "received", "joined", "aggregated", "compared", "left"),
    *("privacy", "privacy spent", "charged", "masking", "unmasked", "opened"),
)
"""Events that are shown elsewhere, or not at all; any other, of a newer version too, is listed."""
_MOST_SHOWN = 200
SHOWN_ROUNDS = 8
"""Rounds of the time line, the last ones."""


@dataclass(kw_only=True)
class Seat:
    """A site on the board."""

    site: str
    state: str = ""
    seen: str = ""
    """When something of it came last."""
    samples: dict[str, int] = field(default_factory=dict)
    """By split."""
    patients: int | None = None
    runs_on: tuple[str, ...] = ()
    to_site: int = 0
    from_site: int = 0
    """Bytes, so far."""
    refused: int = 0
    seconds: float | None = None
    """Of its last local work."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A question to a site and its answer, on the time line."""

    site: str
    what: str
    """train or evaluate."""
    round: int
    sent: str
    received: str | None
    """None while the site works, and where no answer came."""
    seconds: float | None
    """How long the work took, as the site says."""
    end: str
    """answered, working, refused or not scored."""


def all_runs(connection: Connection) -> list[dict[str, Any]]:
    """The latest first, each with when it was heard of last and how far it is."""
    last = select(events).where(events.c.run_id == runs.c.run_id).order_by(events.c.number.desc()).limit(1)
    heard, said = (last.with_only_columns(column).scalar_subquery() for column in (events.c.time, events.c.kind))
    step = (
        select(func.max(measurements.c.step))
        .where(measurements.c.run_id == runs.c.run_id, measurements.c.metric == "loss", measurements.c.split == "train")
        .scalar_subquery()
    )
    asked = select(runs, heard.label("heard"), said.label("said"), step.label("step"))
    asked = asked.order_by(runs.c.started.desc(), runs.c.run_id.desc())
    found = [dict(row._mapping) for row in connection.execute(asked)]
    return [{**run, "is_silent": is_silent(run, run["heard"], run["said"])} for run in found]


def one_run(connection: Connection, run_id: int) -> dict[str, Any] | None:
    found = connection.execute(select(runs).where(runs.c.run_id == run_id)).one_or_none()
    if found is None:
        return None
    asked = select(events.c.time, events.c.kind).where(events.c.run_id == run_id)
    last = connection.execute(asked.order_by(events.c.number.desc()).limit(1)).one_or_none()
    run, heard, said = dict(found._mapping), *((None, None) if last is None else last)
    return {**run, "heard": heard, "is_silent": is_silent(run, heard, said)}


def is_silent(run: Mapping[str, Any], heard: str | None, said: str | None) -> bool:
    """Whether a run at work said nothing after its last event, `said`, for longer than it waits: it may be killed."""
    if run["status"] not in AT_WORK or heard is None or said is None:
        return False
    try:
        silence = datetime.now(UTC) - datetime.fromisoformat(heard)
    except (ValueError, TypeError):  # a time of another form, or without a zone
        return False
    return silence.total_seconds() > patience(run["settings"], said)


def version(connection: Connection, run_id: int) -> str:
    """Changes whenever the run has something new."""
    asked = select(positions.c.file, positions.c.bytes).where(positions.c.run_id == run_id).order_by(positions.c.file)
    said = [f"{file}{size}" for file, size in connection.execute(asked)]
    run = one_run(connection, run_id)
    assert run is not None, "whoever asks has found the run"
    silence = ["silent"] if run["is_silent"] else []
    return "-".join([*said, run["status"], *silence, alarms_version(connection, run_id)])


def board(connection: Connection, run: dict[str, Any]) -> list[Seat]:
    """What each site does and is, in the order of their names."""
    seats, nodes = _joined(connection, run)
    asked = (
        select(
            events.c.site,
            events.c.kind,
            func.count().label("times"),
            func.sum(events.c.bytes).label("bytes"),
            func.max(events.c.number).label("last"),
            func.max(events.c.time).label("time"),
        )
        .where(events.c.run_id == run["run_id"], events.c.site.is_not(None))
        .group_by(events.c.site, events.c.kind)
    )
    last: dict[str, dict[str, int]] = defaultdict(dict)
    for row in connection.execute(asked):
        site = nodes.get(str(row.site), str(row.site))
        seat = seats.setdefault(site, Seat(site=site))
        last[site][row.kind] = max(row.last, last[site].get(row.kind, 0))
        if row.kind == "sent":
            seat.to_site += row.bytes or 0
        elif row.kind == "received":
            seat.from_site += row.bytes or 0
        elif row.kind == "refused":
            seat.refused += row.times
        if row.kind in ("received", "joined"):
            seat.seen = max(seat.seen, row.time)
    for site, seconds in _last_seconds(connection, run["run_id"]).items():
        if site in seats:
            seats[site].seconds = seconds
    for site, seat in seats.items():
        seat.state = _state(last[site], run["status"])
    return [seats[site] for site in sorted(seats)]


def timeline(connection: Connection, run_id: int, num_rounds: int = SHOWN_ROUNDS) -> list[Bar]:
    """Questions and answers of the last rounds, in the order in which they were asked."""
    asked_in = select(func.max(events.c.round)).where(events.c.run_id == run_id, events.c.kind == "sent")
    newest = connection.execute(asked_in).scalar_one()
    if newest is None:
        return []
    first = newest - num_rounds + 1
    asked = (
        select(events.c.kind, events.c.site, events.c.round, events.c.time, events.c.facts)
        .where(events.c.run_id == run_id, events.c.round >= first)
        .order_by(events.c.number)
    )
    sent: dict[tuple[Any, ...], Row] = {}
    came: dict[tuple[Any, ...], str] = {}
    ends: dict[tuple[Any, ...], str] = {}
    for row in connection.execute(asked):
        what = str(row.facts.get("exchange", "")).rpartition(", ")[2]
        if row.kind == "sent":
            sent[row.site, row.round, what] = row
            came.pop((row.site, row.round, what), None)  # it was asked again
        elif row.kind == "received":
            came[row.site, row.round, what] = row.time
        elif row.kind in ("refused", "not scored"):
            ends[row.site, row.round, "train" if row.kind == "refused" else "evaluate"] = row.kind
    seconds = _seconds(connection, run_id, first)
    return [
        Bar(
            site=site,
            what=what,
            round=number,
            sent=row.time,
            received=came.get((site, number, what)),
            seconds=seconds.get((site, number, {"train": "train", "evaluate": "val"}.get(what, ""))),
            end=ends.get((site, number, what), "answered" if (site, number, what) in came else "working"),
        )
        for (site, number, what), row in sent.items()
    ]


def happenings(connection: Connection, run_id: int) -> list[dict[str, Any]]:
    """Refusals, failures and whatever this version knows nothing of; the last ones, the latest first."""
    kinds = set(_different(connection, events.c.kind, events.c.run_id == run_id)) - set(_ORDINARY)
    if not kinds:
        return []
    asked = (
        select(events)
        .where(events.c.run_id == run_id, events.c.kind.in_(kinds))
        .order_by(events.c.number.desc())
        .limit(_MOST_SHOWN)
    )
    found = [dict(row._mapping) for row in connection.execute(asked)]
    return [each for each in found if (each["kind"], each["facts"].get("status")) != ("run ended", "finished")]


def departures(connection: Connection, run_id: int) -> list[dict[str, Any]]:
    """What left a site, as its own log says: time, round, what was asked, and names, types, shapes and bytes."""
    asked = (
        select(events)
        .where(events.c.run_id == run_id, events.c.kind == "left")
        .order_by(events.c.number.desc())
        .limit(_MOST_SHOWN)
    )
    return [{**row._mapping, "says": _departure(row.facts)} for row in connection.execute(asked)]


def _departure(facts: Mapping[str, Any]) -> str:
    """Arrays with type, shape and bytes, the names of numbers and texts, what was hidden; as JSON in another form."""
    try:
        arrays = [f"{name} {each['type']} {each['shape']}" for name, each in facts["arrays"].items()]
        said = [*arrays, *(", ".join(map(str, facts[name])) for name in ("numbers", "text_bytes"))]
        return "; ".join([*said, *_masks(facts)])
    except (KeyError, TypeError, AttributeError):
        return json.dumps(facts, ensure_ascii=False)


def _masks(facts: Mapping[str, Any]) -> list[str]:
    """Whether what left says nothing alone, and whose masks the site helped to take away by it."""
    said = ["masked: it says nothing without the other sites'"] if facts.get("masked") is True else []
    words = {"self_masks": "took away the masks of the sum's sites", "mask_keys": "opened the masks of lost sites"}
    return said + [f"{each}: {', '.join(map(str, facts[name]))}" for name, each in words.items() if facts.get(name)]


def is_measured(connection: Connection, run_id: int) -> bool:
    asked = select(measurements.c.step).where(measurements.c.run_id == run_id).limit(1)
    return connection.execute(asked).first() is not None


def metrics(connection: Connection, run_id: int) -> list[tuple[str, str]]:
    """Metric and split of all measurements; one look into the key for each, however many steps and sites there are."""
    return [
        (metric, split)
        for metric in _different(connection, measurements.c.metric, measurements.c.run_id == run_id)
        for split in _different(
            connection, measurements.c.split, measurements.c.run_id == run_id, measurements.c.metric == metric
        )
    ]


def _different(connection: Connection, column: Column[str], *where: ColumnElement[bool]) -> list[str]:
    """The values that a column has, in order: each is looked up behind the one before it."""
    found: list[str] = []
    while True:
        behind = (column > found[-1],) if found else ()
        value = connection.execute(select(func.min(column)).where(*where, *behind)).scalar_one()
        if value is None:
            return found
        found.append(value)


def _joined(connection: Connection, run: dict[str, Any]) -> tuple[dict[str, Seat], dict[str, str]]:
    """A seat for each site that joined, and which site a node is."""
    seats, nodes = {}, {}
    asked = select(events.c.site, events.c.facts).where(
        events.c.run_id == run["run_id"], events.c.kind == "joined", events.c.site.is_not(None)
    )
    for site, facts in connection.execute(asked.order_by(events.c.number)):
        samples, runs_on = facts.get("num_samples"), facts.get("runs_on")
        seats[site] = Seat(
            site=site,
            samples=samples if isinstance(samples, dict) else {},
            patients=facts.get("patients"),
            runs_on=tuple(map(str, runs_on)) if isinstance(runs_on, Sequence) else (),
        )
        nodes[f"node {facts.get('node')}"] = site
    return seats, nodes


def _state(last: dict[str, int], status: str) -> str:
    """What a site does, from the number of its last event of each kind."""
    sent, received = last.get("sent", 0), last.get("received", 0)
    if max(last.get("refused", 0), last.get("not scored", 0)) > max(sent, received):
        return "refused"
    if status not in AT_WORK:
        return "done" if received >= sent else "did not answer"
    return "working" if sent > received else "waiting"


def _last_seconds(connection: Connection, run_id: int) -> dict[str, float]:
    """By site, of the last round in which it trained."""
    trained = (measurements.c.run_id == run_id, measurements.c.metric == "seconds", measurements.c.split == "train")
    step = select(func.max(measurements.c.step)).where(*trained).scalar_subquery()
    asked = select(measurements.c.site, measurements.c.value).where(*trained, measurements.c.step == step)
    return {row.site: row.value for row in connection.execute(asked)}


def _seconds(connection: Connection, run_id: int, first: int) -> dict[tuple[str, int, str], float]:
    asked = select(measurements.c.site, measurements.c.step, measurements.c.split, measurements.c.value).where(
        measurements.c.run_id == run_id,
        measurements.c.metric == "seconds",
        measurements.c.split.in_(("train", "val")),
        measurements.c.step >= first,
    )
    return {(site, step, split): value for site, step, split, value in connection.execute(asked)}
