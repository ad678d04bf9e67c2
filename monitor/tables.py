"""The tables of the monitor's database; monitor/migrations makes them, step by step."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("run_id", Integer, primary_key=True),
    Column("uid", Text, nullable=False, unique=True),  # stays when the run is resumed or its folder is moved
    Column("folder", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("task", Text),
    Column("seed", BigInteger),
    Column("status", Text, nullable=False),  # joining, running, finished, failed, or what a newer version says
    Column("started", Text, nullable=False),  # times are ISO 8601 in UTC, as text: they sort, and stay as they came
    Column("ended", Text),
    Column("error", Text),
    Column("step_unit", Text),
    Column("best_step", BigInteger),
    Column("monitor", Text),  # the metric that chooses the best step
    Column("sites", JSON, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("facts", JSON, nullable=False),  # what else run.json says
)

events = Table(
    "events",
    metadata,
    Column("run_id", Integer, ForeignKey("runs.run_id"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # of the line in the audit log
    Column("time", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("site", Text),
    Column("round", BigInteger),
    Column("bytes", BigInteger),
    Column("facts", JSON, nullable=False),  # all that the line says
)
# What the page asks of all events of a run is answered from these alone.
Index("events_by_kind", events.c.run_id, events.c.kind, events.c.number)
Index("events_by_site", *(events.c[name] for name in ("run_id", "site", "kind", "number", "time", "bytes")))
Index("events_by_round", *(events.c[name] for name in ("run_id", "round", "kind", "bytes")))

measurements = Table(
    "measurements",
    metadata,
    # In this order a metric of all sites, from some step on, is one range of the key.
    Column("run_id", Integer, ForeignKey("runs.run_id"), primary_key=True),
    Column("metric", Text, primary_key=True),
    Column("split", Text, primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("site", Text, primary_key=True),
    Column("value", Float(53)),
    Column("reason", Text),  # why there is no value
    sqlite_with_rowid=False,
)

positions = Table(
    "positions",
    metadata,
    Column("run_id", Integer, ForeignKey("runs.run_id"), primary_key=True),
    Column("file", Text, primary_key=True),
    Column("bytes", BigInteger, nullable=False),  # of the file that were delivered
    Column("lines", BigInteger, nullable=False),
    Column("tail", Text, nullable=False),  # SHA-256 of the last of these bytes, which shows that they are the same
)

alarms = Table(
    "alarms",
    metadata,
    Column("alarm_id", Integer, primary_key=True),
    Column("run_id", Integer, ForeignKey("runs.run_id"), nullable=False),
    Column("identity", Text, nullable=False),  # SHA-256 of the rule and what it is about: an alarm is there once
    Column("rule", Text, nullable=False),
    Column("site", Text),
    Column("round", BigInteger),
    Column("time", Text, nullable=False),
    Column("words", Text, nullable=False),
    UniqueConstraint("run_id", "identity", name="alarms_once"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("alarm_id", Integer, ForeignKey("alarms.alarm_id"), primary_key=True),
    Column("hook", Text, primary_key=True),  # webhook or command
    Column("state", Text, nullable=False),  # trying, delivered or given up
    Column("until", Text, nullable=False),  # nobody else tries before; of the others, when that was
    Column("tries", Integer, nullable=False),
    Column("reason", Text),  # why the last one failed
)

logged = Table(
    "logged",
    metadata,
    Column("run_id", Integer, ForeignKey("runs.run_id"), primary_key=True),
    Column("target", Text, primary_key=True),  # a TensorBoard folder or an MLflow server
    Column("holder", Text),  # who is writing there
    Column("until", Text, nullable=False),  # nobody else writes before
    Column("bytes", BigInteger, nullable=False),  # of history.jsonl that are there
    Column("lines", BigInteger, nullable=False),
    Column("tail", Text, nullable=False),
    Column("status", Text),  # in which the tool was told that the run ended
)
