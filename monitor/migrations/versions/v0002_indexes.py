"""Indexes that answer what the page asks of all events of a run."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index("events_by_kind", "events", ["run_id", "kind", "number"])
    op.create_index("events_by_site", "events", ["run_id", "site", "kind", "number", "time", "bytes"])
    op.create_index("events_by_round", "events", ["run_id", "round", "kind", "bytes"])
