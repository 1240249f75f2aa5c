"""The tables. Rows have the columns that are asked for, and the whole record as JSON."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

# The newest migration in migrations/versions. A database of a later one is refused.
REVISION: Final = "0006"

metadata = sa.MetaData()

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("user", sa.String, nullable=False),
    sa.Column("project", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("submitted", sa.Float, nullable=False),
    sa.Column("ended", sa.Float),
    sa.Column("record", sa.Text, nullable=False),
)

task_events = sa.Table(
    "task_events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("task", sa.String, nullable=False, index=True),
    sa.Column("record", sa.Text, nullable=False),
)

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("record", sa.Text, nullable=False),
)

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("user", sa.String, nullable=False),
    sa.Column("project", sa.String, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("user", sa.String, primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("at", sa.Float, nullable=False, index=True),
    sa.Column("record", sa.Text, nullable=False),
)

messages = sa.Table(
    "messages",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("topic", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),  # live, dead or done
    sa.Column("record", sa.Text, nullable=False),  # without the body
    sa.Column("body", sa.LargeBinary, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("user", sa.String, nullable=False),
    sa.Column("project", sa.String, nullable=False),
    sa.Column("action", sa.String, nullable=False),
    sa.Column("subject", sa.String, nullable=False, index=True),
    sa.Column("record", sa.Text, nullable=False),
)

estimates = sa.Table(
    "estimates",
    metadata,
    sa.Column("signature", sa.String, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
)

arrays = sa.Table(
    "arrays",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("user", sa.String, nullable=False),
    sa.Column("project", sa.String, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
)

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("account", sa.String, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
)
