"""Alarms, where each was sent, and what other tools were given."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "alarms",
        sa.Column("alarm_id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.run_id"), nullable=False),
        sa.Column("identity", sa.Text, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("site", sa.Text),
        sa.Column("round", sa.BigInteger),
        sa.Column("time", sa.Text, nullable=False),
        sa.Column("words", sa.Text, nullable=False),
        sa.UniqueConstraint("run_id", "identity", name="alarms_once"),
    )
    op.create_table(
        "deliveries",
        sa.Column("alarm_id", sa.Integer, sa.ForeignKey("alarms.alarm_id"), primary_key=True),
        sa.Column("hook", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("until", sa.Text, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text),
    )
    op.create_table(
        "logged",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text),
        sa.Column("until", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("lines", sa.BigInteger, nullable=False),
        sa.Column("tail", sa.Text, nullable=False),
        sa.Column("status", sa.Text),
    )
