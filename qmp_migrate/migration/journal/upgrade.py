"""Bring a journal's schema up to date with Alembic. Imported only where there is something to do: Alembic takes 0.3 s."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

HERE: Final = Path(__file__).resolve().parent
"""Has ``versions/``."""
_LOCK: Final = 0x716D706A
"""Number of the lock under which PostgreSQL lets one controller at a time change the schema."""

_ONE_AT_A_TIME: Final = threading.Lock()
"""``alembic.op`` stands for one migration in the whole process."""


def upgrade(engine: sa.Engine, metadata: sa.MetaData) -> None:
    """Upgrade a database to the newest schema, in one transaction, also where several controllers do so at once.

    Args:
        engine: The database.
        metadata: The tables as the program knows them.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: The database cannot be written.
    """
    config = Config()
    config.set_main_option("script_location", str(HERE).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)

    def steps(revision: Any, _context: Any) -> Iterable[Any]:
        return scripts._upgrade_revs("head", revision)

    with _ONE_AT_A_TIME, engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            # Of its own, sqlite3 begins no transaction for DDL.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        with EnvironmentContext(config, scripts, fn=steps, destination_rev="head") as environment:
            environment.configure(connection=connection, target_metadata=metadata)
            environment.run_migrations()
        connection.commit()
