"""An index that finds the events of one kind."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index("events_by_kind", "events", ["run_id", "kind", "number"])
