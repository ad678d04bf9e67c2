"""The numbers that the page's pictures are drawn from, as the database has them, after a step."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from federation.run_folder import POOLED
from monitor.rows import is_number
from monitor.tables import events, measurements


def series(connection: Connection, run_id: int, metric: str, split: str, after: int = -1) -> dict[str, Any]:
    """A metric by step after one, all sites together and each site: {site: {step: [...], value: [...]}}."""
    asked = (
        select(measurements.c.step, measurements.c.site, measurements.c.value)
        .where(
            measurements.c.run_id == run_id,
            measurements.c.metric == metric,
            measurements.c.split == split,
            measurements.c.step > after,
        )
        .order_by(measurements.c.step)
    )
    found: dict[str, Any] = {}
    for step, site, value in connection.execute(asked):
        line = found.setdefault(site, {"step": [], "value": []})
        line["step"].append(step)
        line["value"].append(value)
    return dict(sorted(found.items(), key=lambda item: (item[0] != POOLED, item[0])))


def norms(connection: Connection, run_id: int, after: int = -1) -> dict[str, Any]:
    """Lengths of the updates by round after one, of each site: {site: {step: [...], value: [...]}}."""

    def length(groups: Any) -> float | None:
        lengths = [value for value in groups.values() if is_number(value)] if isinstance(groups, dict) else []
        return groups.get("parameters", lengths[0]) if lengths else None

    return _of_updates(connection, run_id, after, "norms", length)


def similarity(connection: Connection, run_id: int, after: int = -1) -> dict[str, Any]:
    """Each site's cosine with the mean update of the others by round: {site: {step: [...], value: [...]}}."""
    return _of_updates(connection, run_id, after, "with_others", lambda value: value if is_number(value) else None)


def _of_updates(
    connection: Connection, run_id: int, after: int, fact: str, number_of: Callable[[Any], float | None]
) -> dict[str, Any]:
    """What the log says of each site's update under a name, where that is a number."""
    asked = (
        select(events.c.round, events.c.facts)
        .where(events.c.run_id == run_id, events.c.kind == "aggregated", events.c.round > after)
        .order_by(events.c.number)
    )
    by_site: dict[str, dict[int, float]] = defaultdict(dict)
    for server_round, facts in connection.execute(asked):
        said = facts.get(fact)
        for site, each in said.items() if isinstance(said, dict) else ():
            if (number := number_of(each)) is not None:
                by_site[site][server_round] = number
    return {site: {"step": list(found), "value": list(found.values())} for site, found in sorted(by_site.items())}


def traffic(connection: Connection, run_id: int, after: int = -1) -> dict[str, Any]:
    """Bytes by round after one, to all sites and from them."""
    asked = (
        select(events.c.round, events.c.kind, func.sum(events.c.bytes))
        .where(events.c.run_id == run_id, events.c.kind.in_(("sent", "received")), events.c.round > after)
        .group_by(events.c.round, events.c.kind)
        .order_by(events.c.round)
    )
    names = {"sent": "to the sites", "received": "from the sites"}
    found: dict[str, Any] = {name: {"step": [], "value": []} for name in names.values()}
    for number, kind, size in connection.execute(asked):
        found[names[kind]]["step"].append(number)
        found[names[kind]]["value"].append(int(size or 0))
    return found


def compared(connection: Connection, run_id: int) -> dict[str, Any] | None:
    """Of the last round that was aggregated: its number, the sites, and the cosines between their updates.

    Rows and columns in the order of the sites; None where no log line says so, or not in a way that this version knows.
    """
    asked = (
        select(events.c.round, events.c.facts)
        .where(events.c.run_id == run_id, events.c.kind == "compared")
        .order_by(events.c.number.desc())
        .limit(1)
    )
    row = connection.execute(asked).one_or_none()
    if row is None:
        return None
    sites, lower = row.facts.get("sites"), row.facts.get("cosines")
    if not isinstance(sites, list) or not isinstance(lower, list) or not _is_lower(lower, len(sites)):
        return None
    whole = [
        [1.0 if row == column else lower[max(row, column)][min(row, column)] for column in range(len(sites))]
        for row in range(len(sites))
    ]
    return {"round": row.round, "sites": [str(site) for site in sites], "cosines": whole}


def _is_lower(rows: Sequence[Any], size: int) -> bool:
    return len(rows) == size and all(
        isinstance(row, list) and len(row) == place and all(map(is_number, row)) for place, row in enumerate(rows)
    )
