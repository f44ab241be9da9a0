"""Schema 1: migrations, their entries, probes, and operations.

A journal from before Alembic has no mark of a revision, but has these tables, or all but ``operations``, which came later:
so what exists stays as it is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create what is absent."""
    op.create_table("meta", sa.Column("schema", sa.Integer, primary_key=True), if_not_exists=True)
    op.create_table(
        "migrations",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("vm", sa.String, nullable=False),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("destination", sa.String, nullable=False),
        sa.Column("mode", sa.String, nullable=False),
        sa.Column("phase", sa.String, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("rev", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String),
        sa.Column("owner", sa.String),
        sa.Column("may_have_run", sa.Boolean, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("controller", sa.JSON, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("result", sa.JSON),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_migrations_vm", "migrations", ["vm"], if_not_exists=True)
    op.create_table(
        "entries",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("migration", sa.String, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("act", sa.String, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_entries_migration", "entries", ["migration"], if_not_exists=True)
    op.create_table(
        "probes",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("value", sa.JSON, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "operations",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("vm", sa.String, nullable=False),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("step", sa.String, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("outcome", sa.String),
        sa.Column("controller", sa.JSON, nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_operations_vm", "operations", ["vm"], if_not_exists=True)
    meta = sa.table("meta", sa.column("schema", sa.Integer))
    if op.get_bind().execute(sa.select(meta.c.schema)).scalar() is None:
        op.bulk_insert(meta, [{"schema": 1}])
