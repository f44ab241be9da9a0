"""The journal's tables, and how its database is opened: SQLite with a write-ahead log, or PostgreSQL."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event as sa_event

from qmp_migrate.errors import JournalError

SCHEMA: Final = 1
"""The newest of ``versions/``. In the table ``meta`` for programs that know no Alembic: they refuse a newer one."""
BUSY_S: Final = 10.0
"""How long another controller may hold the database, seconds."""

metadata = sa.MetaData()
revisions = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))
"""Alembic's own table: which of ``versions/`` have run."""
meta = sa.Table("meta", metadata, sa.Column("schema", sa.Integer, primary_key=True))
migrations = sa.Table(
    "migrations",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("vm", sa.String, nullable=False, index=True),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("destination", sa.String, nullable=False),
    sa.Column("mode", sa.String, nullable=False),
    sa.Column("phase", sa.String, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False, default=0),
    sa.Column("rev", sa.Integer, nullable=False, default=0),
    sa.Column("outcome", sa.String),
    sa.Column("owner", sa.String),
    sa.Column("may_have_run", sa.Boolean, nullable=False, default=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("controller", sa.JSON, nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)
entries = sa.Table(
    "entries",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("migration", sa.String, nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("act", sa.String, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
)
probes = sa.Table(
    "probes",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
operations = sa.Table(
    "operations",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("vm", sa.String, nullable=False, index=True),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("step", sa.String, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False, default=0),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("outcome", sa.String),
    sa.Column("controller", sa.JSON, nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)


def open_engine(url: str) -> sa.Engine:
    """Open (and where it is new, create) the database behind a URL.

    Raises:
        JournalError: It is of another version.
        sqlalchemy.exc.SQLAlchemyError, OSError: It cannot be opened.
    """
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_S}, json_serializer=_dump)
        sa_event.listen(engine, "connect", _sqlite_pragmas)
    else:
        engine = sa.create_engine(url, json_serializer=_dump)
    try:
        _check_version(engine, url)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _check_version(engine: sa.Engine, url: str) -> None:
    """Refuse a journal of a newer program, and bring one of an older one, or a new one, up to date."""
    # The version first, and for itself: a journal of a newer program is not to be touched, and a transaction that has begun
    # with reading cannot go on to write while another controller changes the schema.
    with engine.connect() as connection:
        tables = sa.inspect(connection)
        known = connection.execute(sa.select(meta.c.schema)).scalar() if tables.has_table("meta") else None
        marked = tables.has_table(revisions.name)
        revision = connection.execute(sa.select(revisions.c.version_num)).scalar() if marked else None
    if known is not None and known > SCHEMA:
        raise JournalError(
            f"the journal {url} has version {known}, this program knows {SCHEMA}", hint="use the newer qmp-migrate"
        )
    if revision != str(SCHEMA):
        from qmp_migrate.migration.journal.upgrade import upgrade

        upgrade(engine, metadata)


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _sqlite_pragmas(connection: Any, _record: Any) -> None:
    try:
        cursor = connection.cursor()
        _use_write_ahead_log(cursor)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute(f"PRAGMA busy_timeout={round(BUSY_S * 1000)}")
        cursor.close()
    except BaseException:
        connection.close()  # it is not in the engine's pool yet, so nobody else does
        raise


def _use_write_ahead_log(cursor: Any) -> None:
    """Switch to the write-ahead log: SQLite's busy time-out does not count for this one, so wait for others ourselves.

    Raises:
        sqlite3.OperationalError: Others hold the database for longer than `BUSY_S`.
    """
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.02)
