"""Alarms: what in a run's events, losses and silence people must hear of, each once."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select

from federation.run_folder import POOLED
from federation.sections import FederationSettings
from monitor.database import upsert
from monitor.divergence import Rise, rises
from monitor.limits import Limits
from monitor.rows import Row, is_number, plain
from monitor.tables import alarms, events, measurements, runs
from monitor.times import iso

REFUSED, MISSING, FAILED = "refused update", "missing site", "run failed"
DIVERGENCE, CLOCK, SILENT = "divergence", "clock", "silent run"
BUDGET = "privacy budget"
RULES = (REFUSED, MISSING, FAILED, DIVERGENCE, CLOCK, SILENT, BUDGET)
AT_WORK = ("joining", "running")
"""States of a run of which events are expected."""
_BEGINNINGS = ("run began", "run goes on")
_OWN_WORK = 60.0
"""Seconds that a server may take between two events without waiting for anybody."""
_LONGEST_WORDS, _LONGEST_SITE = 2000, 200


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A rule that fired."""

    rule: str
    about: tuple[object, ...]
    """What of the run it is about, by which it is the same alarm whoever finds it and however often."""
    time: str
    """When it happened, ISO 8601 in UTC."""
    words: str
    """What was expected and what came, for people."""
    site: str | None = None
    round: int | None = None

    def row(self) -> Row:
        """For the table of alarms, texts no longer than people read."""
        # A site's name may be of any length, and PostgreSQL takes no long text into a key.
        identity = hashlib.sha256(json.dumps([self.rule, *self.about]).encode()).hexdigest()
        site = None if self.site is None else self.site[:_LONGEST_SITE]
        words = plain(self.words)[:_LONGEST_WORDS]
        return {
            "identity": identity,
            "rule": self.rule,
            "site": site,
            "round": self.round,
            "time": self.time,
            "words": words,
        }


def keep(connection: Connection, run_id: int, found: Sequence[Alarm]) -> None:
    """Note alarms of a run; one that is there already stays as it is."""
    if found:
        once = upsert(connection, alarms).on_conflict_do_nothing(index_elements=["run_id", "identity"])
        connection.execute(once, [{"run_id": run_id, **each.row()} for each in found])


def of_events(connection: Connection, run_id: int, new: Sequence[Row], limits: Limits) -> list[Alarm]:
    """What new events, which the database has already, give rise to."""
    found = [alarm for row in new for alarm in _of_event(connection, run_id, row)]
    found += [alarm for row in new for alarm in _of_clock(row, limits.clock.seconds)]
    found += [alarm for row in new for alarm in _of_budget(row, limits.privacy_budget.share)]
    found += [alarm for row in new for alarm in _of_sites_budget(row, limits.privacy_budget.share)]
    return [alarm for alarm in found if limits.has(alarm.rule)]


def of_losses(connection: Connection, run_id: int, new: Sequence[Row], limits: Limits) -> list[Alarm]:
    """Whether the loss of all sites diverges, where there are new ones, which the database has already."""
    splits = sorted({row["split"] for row in new if (row["metric"], row["site"]) == ("loss", POOLED)})
    if not limits.has(DIVERGENCE):
        return []
    return [
        _diverging(connection, run_id, split, rise, limits)
        for split in splits
        for rise in rises(_curve(connection, run_id, split), limits.divergence)
    ]


def of_failure(run: Mapping[str, Any], seconds: float, limits: Limits) -> list[Alarm]:
    """A failed run whose only word is run.json, as of centralized training; `seconds` is how long it went on."""
    if run["status"] != "failed" or not limits.has(FAILED):
        return []
    words = f"expected a run that finishes; it failed: {run['error'] or 'no reason is given'}"
    return [Alarm(rule=FAILED, about=("run.json", seconds), time=_time(run["ended"]), words=words)]


def of_silence(connection: Connection, run_id: int, now: datetime, limits: Limits) -> list[Alarm]:
    """Whether a run at work has said nothing for too long; once for each silence."""
    run = connection.execute(select(runs.c.status, runs.c.settings).where(runs.c.run_id == run_id)).one()
    asked = select(events.c.number, events.c.time, events.c.kind).where(events.c.run_id == run_id)
    last = connection.execute(asked.order_by(events.c.number.desc()).limit(1)).one_or_none()
    if run.status not in AT_WORK or last is None or not limits.has(SILENT):
        return []
    deadline = limits.silent_run.seconds or patience(run.settings, last.kind)
    since = datetime.fromisoformat(_time(last.time))
    if (now - since).total_seconds() <= deadline:
        return []
    words = f"expected an event within {deadline:g} s, found none since {_time(last.time)} ({last.kind})"
    due = _time((since + timedelta(seconds=deadline)).isoformat())
    return [Alarm(rule=SILENT, about=(last.number,), time=due, words=words)]


def _of_event(connection: Connection, run_id: int, row: Row) -> Iterator[Alarm]:
    kind, site, number = row["kind"], row["site"], row["round"]
    common = {"time": _time(row["time"]), "site": site, "round": number}
    reason = str(row["facts"].get("reason", "no reason is given"))
    if kind == "refused" and (site is None or number is None or _came(connection, run_id, site, number)):
        words = f"the update of {site or 'a site'} was not used: {reason}"
        yield Alarm(rule=REFUSED, about=(row["number"],), words=words, **common)
    elif kind == "refused":
        words = f"expected an update of {site}, none came: {reason}"
        yield Alarm(rule=MISSING, about=(site, number, "train"), words=words, **common)
    elif kind == "not scored":
        words = f"expected scores of {site or 'a site'}, none came: {reason}"
        yield Alarm(rule=MISSING, about=(row["number"],), words=words, **common)
    elif kind == "aggregated" and number is not None:
        said = row["facts"].get("left_out")
        for absent in _without_answer(connection, run_id, number):
            why = said.get(absent) if isinstance(said, dict) else None
            words = f"expected an update of {absent}, none came: {why or 'the round was made without it'}"
            yield Alarm(rule=MISSING, about=(absent, number, "train"), words=words, **{**common, "site": absent})
    elif kind == "run ended" and row["facts"].get("status") != "finished":
        words = f"expected a run that finishes; it {row['facts'].get('status')}: {reason}"
        yield Alarm(rule=FAILED, about=(row["number"],), words=words, **common)


def _of_clock(row: Row, limit: float) -> Iterator[Alarm]:
    """Only where the site's clock is off whatever the way of the messages took."""
    ahead = row["facts"].get("clock_ahead_seconds") if row["kind"] == "joined" else None
    if not isinstance(ahead, dict) or not (is_number(ahead.get("least")) and is_number(ahead.get("most"))):
        return
    least, most = ahead["least"], ahead["most"]
    if least > limit or most < -limit:
        words = (
            f"expected a clock within {limit:g} s of the server's, found the one of {row['site']} "
            f"{min(abs(least), abs(most)):,.0f} s {'ahead' if least > 0 else 'behind'} or more"
        )
        yield Alarm(rule=CLOCK, about=(row["number"],), time=_time(row["time"]), words=words, site=row["site"])


def _of_budget(row: Row, nearly: float) -> Iterator[Alarm]:
    """What a private run has spent of the epsilon that it keeps; of each site once when near, once when past."""
    budget, sites = row["facts"].get("budget"), row["facts"].get("sites")
    if row["kind"] != "privacy" or not is_number(budget) or not isinstance(sites, dict):
        return
    for site, said in sorted(sites.items()):
        epsilon = said.get("epsilon") if isinstance(said, dict) else None
        if not is_number(epsilon) or epsilon < nearly * budget:
            continue
        state = "spent" if epsilon > budget else "nearly spent"
        words = f"the privacy budget of {site}'s patients is {state}: epsilon {epsilon:.3g} of {budget:.3g} in this run"
        common = {"time": _time(row["time"]), "site": site, "round": row["round"]}
        yield Alarm(rule=BUDGET, about=(site, state), words=words, **common)


def _of_sites_budget(row: Row, nearly: float) -> Iterator[Alarm]:
    """The same of whole sites, once each; such a run ends before it would be past its epsilon."""
    facts, common = row["facts"], {"time": _time(row["time"]), "round": row["round"]}
    epsilon, budget = facts.get("epsilon"), facts.get("budget")
    if row["kind"] == "charged" and is_number(epsilon) and is_number(budget) and epsilon >= nearly * budget:
        words = f"the privacy budget of whole sites is nearly spent: epsilon {epsilon:.3g} of {budget:.3g} in this run"
        yield Alarm(rule=BUDGET, about=("any whole site", "nearly spent"), words=words, **common)
    elif row["kind"] == "budget spent":
        words = f"the privacy budget of whole sites is spent and ended the run {facts.get('said', '')}".rstrip()
        yield Alarm(rule=BUDGET, about=("any whole site", "spent"), words=words, **common)


def _came(connection: Connection, run_id: int, site: str, number: int) -> bool:
    """Whether anything of a site's training came in a round."""
    return site in {row.site for row in _exchanged(connection, run_id, number) if row.kind == "received"}


def _without_answer(connection: Connection, run_id: int, number: int) -> list[str]:
    """Sites that were asked to train in a round after their last answer in it."""
    last: dict[str, str] = {row.site: row.kind for row in _exchanged(connection, run_id, number)}
    return sorted(site for site, kind in last.items() if kind == "sent")


def _exchanged(connection: Connection, run_id: int, number: int) -> list[Any]:
    """Questions to train in a round and their answers, in order."""
    asked = (
        select(events.c.kind, events.c.site, events.c.facts)
        .where(events.c.run_id == run_id, events.c.round == number, events.c.kind.in_(("sent", "received")))
        .order_by(events.c.number)
    )
    found = connection.execute(asked).all()
    return [row for row in found if row.site is not None and str(row.facts.get("exchange", "")).endswith(", train")]


def _curve(connection: Connection, run_id: int, split: str) -> list[tuple[int, float | None]]:
    asked = select(measurements.c.step, measurements.c.value).where(
        measurements.c.run_id == run_id,
        measurements.c.metric == "loss",
        measurements.c.split == split,
        measurements.c.site == POOLED,
    )
    return [(step, value) for step, value in connection.execute(asked.order_by(measurements.c.step))]


def _diverging(connection: Connection, run_id: int, split: str, rise: Rise, limits: Limits) -> Alarm:
    of_round = select(func.max(events.c.time)).where(events.c.run_id == run_id, events.c.round == rise.step)
    time = (
        connection.execute(of_round).scalar_one()
        or connection.execute(select(runs.c.ended).where(runs.c.run_id == run_id)).scalar_one()
    )
    if rise.loss is None:
        words = f"expected a {split} loss that is a finite number, found none in step {rise.step}"
    else:
        words = (
            f"expected a {split} loss near its best, {rise.best:.4g}, found it far above since step {rise.first}: "
            f"{rise.loss:.4g} in step {rise.step}"
        )
    about = (split, rise.first, rise.loss is None)
    return Alarm(rule=DIVERGENCE, about=about, time=_time(time), words=words, round=rise.step)


def patience(settings: Any, last: str) -> float:
    """How many seconds a run may be silent after an event of kind `last`: as long as it waits itself, and a minute.

    With the defaults of the settings where its log does not say.
    """
    said = settings.get("federation") if isinstance(settings, dict) else None
    name = "join_seconds" if last in _BEGINNINGS else "round_seconds"
    found = said.get(name) if isinstance(said, dict) else None
    return (float(found) if is_number(found) else getattr(FederationSettings(), name)) + _OWN_WORK


def _time(text: object) -> str:
    """In one form, so that times compare as texts; now, where an event's own cannot be read."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        found = datetime.now(UTC)
    return iso(found if found.tzinfo else found.replace(tzinfo=UTC))
