"""How alike the sites' updates are, and what the models are worth at each other's sites, as the database has it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from monitor.tables import events

TEST = "test"


def with_others(connection: Connection, run_id: int, after: int = -1) -> dict[str, Any]:
    """Each site's cosine with the mean update of the others by round: {site: {step: [...], value: [...]}}."""
    asked = (
        select(events.c.round, events.c.facts)
        .where(events.c.run_id == run_id, events.c.kind == "aggregated", events.c.round > after)
        .order_by(events.c.number)
    )
    by_site: dict[str, dict[int, float]] = defaultdict(dict)
    for number, facts in connection.execute(asked):
        said = facts.get("with_others")
        for site, value in said.items() if isinstance(said, dict) else ():
            if _is_number(value):
                by_site[site][number] = value
    return {site: {"step": list(found), "value": list(found.values())} for site, found in sorted(by_site.items())}


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


def cross_site(runs: Sequence[dict[str, Any]], metric: str) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """The sites, and of each run's chosen model the metric on every site's test part; runs without one are left out.

    A site's own model is a run that was trained there alone.
    """
    results = [(run["name"], run["facts"].get("results")) for run in runs]
    results = [(name, each) for name, each in results if isinstance(each, dict)]
    sites = list(dict.fromkeys(site for _, each in results for site in each))
    return sites, [(name, [_value(each, site, metric) for site in sites]) for name, each in results]


def _value(results: dict[str, Any], site: str, metric: str) -> float | None:
    split = results.get(site, {}).get(TEST)
    return split.get(metric) if isinstance(split, dict) else None


def _is_lower(rows: Sequence[Any], size: int) -> bool:
    return len(rows) == size and all(
        isinstance(row, list) and len(row) == place and all(map(_is_number, row)) for place, row in enumerate(rows)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
