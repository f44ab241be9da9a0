"""The journal's schema: what Alembic makes of nothing, of a journal of before, and beside other controllers."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from qmp_migrate.errors import JournalError
from qmp_migrate.migration.journal import upgrade
from qmp_migrate.migration.journal.operations import Operations
from qmp_migrate.migration.journal.schema import SCHEMA, metadata, open_engine
from qmp_migrate.migration.journal.store import Journal
from tests import ROOT

RECORDED = (ROOT / "tests" / "data" / "journal-schema-1.sql").read_text()
"""What the program wrote before it used Alembic."""

TABLES = ("entries", "meta", "migrations", "operations", "probes")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def record(path: Path, *more: str) -> None:
    """Make a journal of before."""
    with sqlite3.connect(path) as database:
        database.executescript(RECORDED)
        for statement in more:
            database.execute(statement)
    database.close()


def dump(path: Path) -> list[str]:
    with sqlite3.connect(path) as database:
        lines = list(database.iterdump())
    database.close()
    return lines


def rows(path: Path, table: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as database:
        found = list(database.execute(f"SELECT * FROM {table}"))
    database.close()
    return found


def differences(path: Path) -> list[object]:
    """Return where the database is not what the program takes it for."""
    engine = open_engine(f"sqlite:///{path}")
    try:
        with engine.connect() as connection:
            options = {"include_name": lambda name, kind, _parents: not (kind == "table" and name == "alembic_version")}
            return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))
    finally:
        engine.dispose()


def test_the_newest_version_is_the_one_that_the_program_knows() -> None:
    scripts = ScriptDirectory(str(upgrade.HERE))
    assert scripts.get_heads() == [str(SCHEMA)]


def test_a_new_journal_has_the_tables_that_the_program_knows(path: Path) -> None:
    assert differences(path) == []


async def test_a_journal_of_before_is_upgraded_and_loses_nothing(path: Path) -> None:
    record(path)
    async with await Journal.open(f"sqlite:///{path}") as journal:
        migration = await journal.get("m1")
        assert (migration.vm, migration.phase.value, migration.controller["pid"]) == ("web1", "preflight", 4711)
        assert [entry.act for entry in await journal.entries("m1")] == ["preflight", "launch-destination"]
        assert await journal.probe("binary/a") == {"version": "7.2.22"}
        assert (await Operations(journal).get("o1")).data == {"path": "/srv/web2.state"}
    before = path.with_name("before.sqlite")
    record(before)
    assert {table: rows(path, table) for table in TABLES} == {table: rows(before, table) for table in TABLES}
    assert differences(path) == []


def test_one_from_before_there_were_operations(path: Path) -> None:
    record(path, "DROP TABLE operations")
    assert differences(path) == []


def test_one_that_is_up_to_date_is_opened_without_alembic(path: Path) -> None:
    open_engine(f"sqlite:///{path}").dispose()
    program = (
        "import sys\nfrom qmp_migrate.migration.journal.schema import open_engine\nopen_engine(sys.argv[1]).dispose()\n"
    )
    program += "assert 'alembic' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", program, f"sqlite:///{path}"], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("of_before", [True, False])
def test_a_newer_one_is_refused_and_not_touched(path: Path, of_before: bool) -> None:
    if of_before:
        record(path, f"UPDATE meta SET schema = {SCHEMA + 1}")
    else:
        open_engine(f"sqlite:///{path}").dispose()
        with sqlite3.connect(path) as database:
            database.execute(f"UPDATE meta SET schema = {SCHEMA + 1}")
            database.execute(f"UPDATE alembic_version SET version_num = '{SCHEMA + 1}'")
        database.close()
    before = dump(path)
    with pytest.raises(JournalError, match=f"has version {SCHEMA + 1}, this program knows {SCHEMA}"):
        open_engine(f"sqlite:///{path}")
    assert dump(path) == before


@pytest.mark.parametrize("of_before", [True, False])
def test_many_controllers_upgrade_it_at_once(path: Path, of_before: bool) -> None:
    if of_before:
        record(path)
    program = (
        "import sys\nfrom qmp_migrate.migration.journal.schema import open_engine\nopen_engine(sys.argv[1]).dispose()\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, f"sqlite:///{path}"], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = [process.communicate(timeout=60)[1] for process in started]
    assert said == [""] * len(started)
    assert differences(path) == []


def test_what_fails_half_way_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction holds all of it: the disk may be full, or the controller be killed."""
    record(path, "DROP TABLE operations")
    before = dump(path)
    monkeypatch.setattr("alembic.op.bulk_insert", None)
    monkeypatch.setattr("alembic.op.create_index", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises((JournalError, OSError, sa.exc.SQLAlchemyError)):
        open_engine(f"sqlite:///{path}")
    assert dump(path) == before
