"""The journal on a real PostgreSQL: the same schema, upgraded in place, beside other controllers, and through a restart."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from qmp_migrate.errors import Fenced, JournalError, MigrationUnknown
from qmp_migrate.migration.journal import schema
from qmp_migrate.migration.journal.operations import Operations
from qmp_migrate.migration.journal.schema import SCHEMA, metadata, open_engine
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.model.phases import Phase
from tests import ROOT
from tests.support.real.postgresql import Postgresql, running_postgresql

# All are ready before the first one begins.
OPEN = """
import sys
from qmp_migrate.migration.journal import upgrade
from qmp_migrate.migration.journal.schema import open_engine
print("ready", flush=True)
sys.stdin.readline()
open_engine(sys.argv[1]).dispose()
"""
MIGRATION = {"vm": "web1", "source": "a", "destination": "b", "mode": "live", "request": {"downtime_limit_ms": 300}}


@pytest.fixture
async def server(directory: Path) -> AsyncIterator[Postgresql]:
    async with running_postgresql(directory) as running:
        yield running


@pytest.fixture
def database(server: Postgresql) -> Iterator[sa.Engine]:
    """The database without our code."""
    engine = sa.create_engine(server.url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


def as_before(database: sa.Engine) -> None:
    """Make a journal as the program did before it used Alembic, with something in it."""
    metadata.create_all(database)
    with database.begin() as connection:
        connection.execute(schema.meta.insert(), {"schema": 1})
        connection.execute(
            schema.migrations.insert(),
            {
                "id": "m1",
                "phase": "preflight",
                "controller": {"pid": 4711},
                "started_at": 1.0,
                "updated_at": 2.0,
                **MIGRATION,
            },
        )
        entry = {"migration": "m1", "at": 1.5, "kind": "intent", "act": "launch-destination", "data": {"host": "b"}}
        connection.execute(schema.entries.insert(), entry)


def content(database: sa.Engine) -> dict[str, list[tuple[Any, ...]]]:
    found = sa.MetaData()
    with database.connect() as connection:
        found.reflect(connection)
        return {
            name: [tuple(row) for row in connection.execute(sa.select(table))] for name, table in found.tables.items()
        }


def differences(database: sa.Engine) -> list[object]:
    """Return where the database is not what the program takes it for."""
    with database.connect() as connection:
        options = {"include_name": lambda name, kind, _parents: not (kind == "table" and name == "alembic_version")}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def test_a_new_journal_has_the_tables_that_the_program_knows(server: Postgresql, database: sa.Engine) -> None:
    open_engine(server.url).dispose()
    assert differences(database) == []
    assert content(database)["alembic_version"] == [(str(SCHEMA),)]


@pytest.mark.parametrize("operations", [True, False])
async def test_a_journal_of_before_is_upgraded_and_loses_nothing(
    server: Postgresql, database: sa.Engine, operations: bool
) -> None:
    as_before(database)
    if not operations:  # they came later
        schema.operations.drop(database)
    before = content(database)
    async with await Journal.open(server.url) as journal:
        migration = await journal.get("m1")
        assert (migration.vm, migration.phase, migration.controller) == ("web1", Phase.PREFLIGHT, {"pid": 4711})
        assert [(entry.act, entry.data) for entry in await journal.entries("m1")] == [
            ("launch-destination", {"host": "b"})
        ]
    assert content(database) == {"operations": []} | before | {"alembic_version": [(str(SCHEMA),)]}
    assert differences(database) == []


@pytest.mark.parametrize("of_before", [True, False])
def test_many_controllers_upgrade_it_at_once(server: Postgresql, database: sa.Engine, of_before: bool) -> None:
    if of_before:
        as_before(database)
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    argv = [sys.executable, "-c", OPEN, server.url]
    started = [subprocess.Popen(argv, cwd=ROOT, **pipes) for _ in range(4)]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[1] for process in started] == [""] * len(started)
    assert differences(database) == []
    assert content(database)["meta"] == [(1,)]


@pytest.mark.parametrize("of_before", [True, False])
def test_a_newer_one_is_refused_and_not_touched(server: Postgresql, database: sa.Engine, of_before: bool) -> None:
    if of_before:
        as_before(database)
    else:
        open_engine(server.url).dispose()
    with database.begin() as connection:
        connection.execute(schema.meta.update().values(schema=SCHEMA + 1))
    before = content(database)
    with pytest.raises(JournalError, match=f"has version {SCHEMA + 1}, this program knows {SCHEMA}"):
        open_engine(server.url)
    assert content(database) == before


def test_what_fails_half_way_changes_nothing(
    server: Postgresql, database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alembic.op.bulk_insert", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        open_engine(server.url)
    assert content(database) == {}


async def test_a_migration_is_told_from_its_begin_to_its_end(server: Postgresql) -> None:
    async with await Journal.open(server.url) as journal:
        await journal.begin(id="m1", **MIGRATION)
        await journal.enter("m1", Phase.LOCKED, epoch=7)
        await journal.intent("m1", "launch-destination", host="b")
        journal.result("m1", "launch-destination", pid=17)
        assert await journal.cancel_requested("m1") is False
        await journal.request_cancel("m1")
        assert await journal.cancel_requested("m1") is True
        await journal.arm_commit("m1")
        assert [record.id for record in await journal.unsettled(vm="web1")] == ["m1"]
        await journal.enter("m1", Phase.DONE, outcome="completed", owner="destination", result={"blackout_ms": 0.5})
        assert await journal.unsettled() == []
        await journal.remember_probe("binary/a", {"version": "10.0"})
        with pytest.raises(MigrationUnknown):
            await journal.get("m2")
    async with await Journal.open(server.url) as journal:
        record = await journal.get("m")
        assert (record.phase, record.epoch, record.may_have_run) == (Phase.DONE, 7, True)
        assert (record.outcome, record.owner, record.result) == ("completed", "destination", {"blackout_ms": 0.5})
        assert record.request == MIGRATION["request"]
        assert [(entry.kind, entry.act) for entry in await journal.entries("m1")] == [
            ("phase", "locked"),
            ("intent", "launch-destination"),
            ("result", "launch-destination"),
            ("intent", "commit"),
            ("phase", "done"),
        ]
        assert await journal.probe("binary/a") == {"version": "10.0"}
        assert await Operations(journal).unsettled() == []


async def test_who_has_lost_a_migration_writes_no_more(server: Postgresql) -> None:
    async with await Journal.open(server.url) as one, await Journal.open(server.url) as other:
        await one.begin(id="m1", **MIGRATION)
        await one.enter("m1", Phase.LOCKED, epoch=7)
        await other.claim("m1", 8, may_have_run=False)
        with pytest.raises(Fenced, match="epoch 8"):
            await one.intent("m1", "quit-source")
        assert "quit-source" not in [entry.act for entry in await other.entries("m1")]


async def test_a_server_that_is_restarted_is_said_and_the_journal_goes_on(server: Postgresql) -> None:
    async with await Journal.open(server.url) as journal:
        await journal.begin(id="m1", **MIGRATION)
        await server.stop(signal.SIGINT)
        journal.note("m1", "warning", text="kept until it can be written")
        with pytest.raises(JournalError, match="the journal"):
            await journal.intent("m1", "launch-destination")
        await server.start()
        await journal.intent("m1", "launch-destination")
        assert [entry.act for entry in await journal.entries("m1")] == ["warning", "launch-destination"]


async def test_without_a_server_it_says_how_to_name_another_place(server: Postgresql) -> None:
    await server.stop()
    with pytest.raises(JournalError, match="cannot open the journal") as caught:
        await asyncio.wait_for(Journal.open(server.url), 30)
    assert "[controller] state" in (caught.value.hint or "")
