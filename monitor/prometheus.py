"""What the database has of the runs as figures for Prometheus: the latest of each, none where none is defined."""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select

from monitor import privacy, views
from monitor.alarms import AT_WORK, RULES
from monitor.tables import alarms, events, measurements
from monitor.times import seconds_of

_KEPT_AFTER_END = timedelta(days=1)
_KEPT_IN_SILENCE = timedelta(days=7)
"""A run that never says that it ended is not shown for ever."""
_RUN_STATES = (*AT_WORK, "finished", "failed")
_SITE_STATES = ("waiting", "working", "refused", "done", "did not answer")
_NODE = re.compile(r"node \d+")
_RUN, _SITE = ("run", "run_id"), ("run", "run_id", "site")
_NO_METRICS = ("loss", "num_samples", "seconds")
"""Numbers of a history that have a name of their own here, or say nothing of the model."""


def exposition(connection: Connection, accept: str) -> tuple[bytes, str]:
    """The text of /metrics, and its type: OpenMetrics where that is asked for."""
    registry = CollectorRegistry()
    registry.register(_Figures(connection, datetime.now(UTC)))
    encode, kind = choose_encoder(accept)
    return encode(registry), kind


class _Figures(Collector):
    """One look into the database."""

    def __init__(self, connection: Connection, now: datetime) -> None:
        self._connection, self._now = connection, now

    def describe(self) -> list[Metric]:
        """Nothing; else the registry would look twice."""
        return []

    def collect(self) -> Iterator[Metric]:
        families = _families()
        for run in views.all_runs(self._connection):
            if _is_shown(run, self._now):
                labels = (run["name"], str(run["run_id"]))
                self._of_run(families, run, labels)
                self._of_sites(families, run, labels)
                self._of_models(families, run["run_id"], labels)
                self._of_privacy(families, run, labels)
                self._of_alarms(families, run["run_id"], labels)
        return iter(families.values())

    def _of_run(self, families: Mapping[str, Any], run: dict[str, Any], labels: tuple[str, ...]) -> None:
        described = (run["kind"], run["task"] or "", run["step_unit"] or "round")
        families["run_info"].add_metric([*labels, *described], 1)
        for state in dict.fromkeys((*_RUN_STATES, run["status"])):
            families["run_state"].add_metric([*labels, state], state == run["status"])
        families["rounds_finished"].add_metric(labels, run["step"] or 0)
        for name, value in {
            "best_round": run["best_step"],
            "last_event_timestamp_seconds": seconds_of(run["heard"]),
            "round_duration_seconds": _round_seconds(self._connection, run["run_id"]),
        }.items():
            if value is not None:
                families[name].add_metric(labels, value)

    def _of_sites(self, families: Mapping[str, Any], run: dict[str, Any], labels: tuple[str, ...]) -> None:
        for seat in views.board(self._connection, run):
            if run["status"] == "joining" and _NODE.fullmatch(seat.site):
                continue  # it has not said yet which site it is
            site = (*labels, seat.site)
            for state in dict.fromkeys((*_SITE_STATES, seat.state)):
                families["site_state"].add_metric([*site, state], state == seat.state)
            families["to_site_bytes"].add_metric(site, seat.to_site)
            families["from_site_bytes"].add_metric(site, seat.from_site)
            families["refused_updates"].add_metric(site, seat.refused)
            for name, value in {
                "site_work_seconds": seat.seconds,
                "site_last_seen_timestamp_seconds": seconds_of(seat.seen),
            }.items():
                if value is not None:
                    families[name].add_metric(site, value)

    def _of_models(self, families: Mapping[str, Any], run_id: int, labels: tuple[str, ...]) -> None:
        """Losses and metrics of the last step that has any of that name and split."""
        for name, split in views.metrics(self._connection, run_id):
            of_name = (
                measurements.c.run_id == run_id,
                measurements.c.metric == name,
                measurements.c.split == split,
            )
            last = select(func.max(measurements.c.step)).where(*of_name).scalar_subquery()
            asked = select(measurements.c.site, measurements.c.value).where(*of_name, measurements.c.step == last)
            for site, value in self._connection.execute(asked):
                if value is None:
                    continue
                if name == "loss":
                    families["loss"].add_metric([*labels, site, split], value)
                elif name.startswith("loss/"):
                    families["loss_part"].add_metric([*labels, site, split, name.removeprefix("loss/")], value)
                elif name not in _NO_METRICS:
                    families["metric"].add_metric([*labels, site, split, name], value)

    def _of_privacy(self, families: Mapping[str, Any], run: dict[str, Any], labels: tuple[str, ...]) -> None:
        """What a run that hides something has spent, and what secure aggregation hid; nothing of any other run."""
        for each in privacy.spent(self._connection, run):
            is_site = each.of == privacy.WHOLE_SITE
            where = labels if is_site else (*labels, each.of)
            families["site_epsilon" if is_site else "patient_epsilon"].add_metric(where, each.epsilon)
            if each.budget is not None:
                families["site_epsilon_budget" if is_site else "patient_epsilon_budget"].add_metric(where, each.budget)
        masks = privacy.masks(self._connection, run)
        if masks is None:
            return
        families["masked_rounds"].add_metric(labels, masks.num_rounds)
        families["masked_rounds_begun_again"].add_metric(labels, sum(times for _, times in masks.again))
        masked, opened = masks.masked, masks.opened
        for site in sorted({*masked, *opened}):
            families["masked_updates"].add_metric([*labels, site], masked[site])
            families["opened_masks"].add_metric([*labels, site], opened[site])

    def _of_alarms(self, families: Mapping[str, Any], run_id: int, labels: tuple[str, ...]) -> None:
        asked = select(alarms.c.rule, func.count()).where(alarms.c.run_id == run_id).group_by(alarms.c.rule)
        # A rule that has not fired is 0, so that `increase` sees the first time.
        counts: dict[str, int] = dict.fromkeys(RULES, 0)
        for rule, count in self._connection.execute(asked):
            counts[rule] = count
        for rule, count in counts.items():
            families["alarms"].add_metric([*labels, rule], count)


def _families() -> dict[str, Any]:
    """By short name; in the order of the text."""
    gauges = {
        "run_info": ("A run; always 1.", (*_RUN, "kind", "task", "step_unit")),
        "run_state": ("1 for the state that a run is in, 0 for the others.", (*_RUN, "state")),
        "rounds_finished": ("Rounds, or epochs, that a run has trained.", _RUN),
        "best_round": ("Round of the best model so far.", _RUN),
        "round_duration_seconds": ("From the first question of the last round to its aggregate.", _RUN),
        "last_event_timestamp_seconds": ("When the run wrote its last event.", _RUN),
        "site_state": ("1 for the state that a site is in, 0 for the others.", (*_SITE, "state")),
        "site_work_seconds": ("Local work of the last round, as the site says.", _SITE),
        "site_last_seen_timestamp_seconds": ("When something of the site came last.", _SITE),
        "loss": ("Objective in the last step; site `pooled` is all together.", (*_SITE, "split")),
        "loss_part": ("A term of the objective in the last step.", (*_SITE, "split", "part")),
        "metric": ("A metric in the last step, where it is defined.", (*_SITE, "split", "metric")),
        "patient_epsilon": ("Spent by the run of the privacy of a site's training patients.", _SITE),
        "patient_epsilon_budget": ("What the run may spend of it.", _SITE),
        "site_epsilon": ("Spent by the run of the privacy of any whole site.", _RUN),
        "site_epsilon_budget": ("What the run may spend of it.", _RUN),
    }
    counters = {
        "to_site_bytes": ("Sent to a site, without Flower's frame.", _SITE),
        "from_site_bytes": ("Received from a site, without Flower's frame.", _SITE),
        "refused_updates": ("Updates of a site that a round went on without.", _SITE),
        "masked_rounds": ("Rounds of which the server learned the sum of masked updates alone.", _RUN),
        "masked_rounds_begun_again": ("Attempts at masked rounds beyond the first of each.", _RUN),
        "masked_updates": ("Updates of a site that the server had in a sum alone.", _SITE),
        "opened_masks": ("Rounds in which the others opened the masks of a site that was lost.", _SITE),
        "alarms": ("Alarms that fired.", (*_RUN, "rule")),
    }
    found: dict[str, Any] = {}
    for kind, named in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
        for name, (words, labels) in named.items():
            found[name] = kind(f"dipro_fed_{name}", words, labels=labels)
    return found


def _is_shown(run: dict[str, Any], now: datetime) -> bool:
    """A run that ended lately, or that may not have ended."""
    last = seconds_of(run["ended"] or run["heard"] or run["started"])
    kept = _KEPT_AFTER_END if run["ended"] else _KEPT_IN_SILENCE
    return last is None or now.timestamp() - last <= kept.total_seconds()


def _round_seconds(connection: Connection, run_id: int) -> float | None:
    """Of the last round that was aggregated; None before the first."""
    aggregated = (events.c.run_id == run_id, events.c.kind == "aggregated")
    asked = select(events.c.round, events.c.time).where(*aggregated).order_by(events.c.number.desc()).limit(1)
    end = connection.execute(asked).one_or_none()
    if end is None:
        return None
    # A run that goes on may have begun this round before, a night ago.
    goes_on = select(func.max(events.c.number)).where(events.c.run_id == run_id, events.c.kind == "run goes on")
    since = connection.execute(goes_on).scalar_one() or 0
    first = select(func.min(events.c.time)).where(
        events.c.run_id == run_id, events.c.round == end.round, events.c.kind == "sent", events.c.number > since
    )
    began, ended = seconds_of(connection.execute(first).scalar_one()), seconds_of(end.time)
    return None if began is None or ended is None else max(0.0, ended - began)
