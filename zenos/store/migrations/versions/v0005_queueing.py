"""Arrays of tasks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their table. Tasks of an array have no specification of their own in theirs."""
    op.create_table(
        "arrays",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("user", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
