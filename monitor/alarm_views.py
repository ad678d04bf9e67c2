"""Alarms of a run as the page shows them."""

from typing import Any

from sqlalchemy import Connection, func, select

from monitor.tables import alarms, deliveries

_MOST_SHOWN = 200


def run_alarms(connection: Connection, run_id: int) -> list[dict[str, Any]]:
    """The last ones, the latest first, each with what became of it at the hooks, `{hook: state}`."""
    asked = select(alarms).where(alarms.c.run_id == run_id)
    asked = asked.order_by(alarms.c.time.desc(), alarms.c.alarm_id.desc()).limit(_MOST_SHOWN)
    found = {row.alarm_id: {**row._mapping, "sent": {}} for row in connection.execute(asked)}
    states = (
        select(deliveries.c.alarm_id, deliveries.c.hook, deliveries.c.state, deliveries.c.reason)
        .join(alarms, alarms.c.alarm_id == deliveries.c.alarm_id)
        .where(alarms.c.run_id == run_id)
        .order_by(deliveries.c.hook)
    )
    for alarm_id, hook, state, reason in connection.execute(states):
        if alarm_id in found:
            found[alarm_id]["sent"][hook] = state if reason is None else f"{state} ({reason})"
    return list(found.values())


def alarms_version(connection: Connection, run_id: int) -> str:
    """Changes whenever a run has another alarm, or something became of one."""
    count = select(func.count(), func.max(alarms.c.alarm_id)).where(alarms.c.run_id == run_id)
    tried = (
        select(deliveries.c.state, func.count(), func.sum(deliveries.c.tries))
        .join(alarms, alarms.c.alarm_id == deliveries.c.alarm_id)
        .where(alarms.c.run_id == run_id)
        .group_by(deliveries.c.state)
        .order_by(deliveries.c.state)
    )
    said = [tuple(connection.execute(count).one()), *map(tuple, connection.execute(tried))]
    return "".join(f"{part or 0}." for each in said for part in each).replace(" ", "")
