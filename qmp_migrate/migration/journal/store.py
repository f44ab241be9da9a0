"""The journal: what a migration intends and what came of it, on disk before it happens.

SQLAlchemy Core on SQLite (write-ahead log, ``synchronous=FULL``: a commit is on the disk when the call returns), or on
PostgreSQL by URL. All access runs in one thread of its own, so that the event loop never waits for a disk, and in one
order: a result that is written "soon" is on disk before the next intent is.

Two kinds of write:

* `Journal.intent` returns when the record is durable. It goes *before* each act that cannot be taken back by itself.
* `Journal.result` returns at once; it is written with the next intent. Losing it to a crash costs a question to QEMU,
  nothing else, since recovery asks both sides anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from qmp_migrate.errors import Fenced, JournalError, MigrationUnknown
from qmp_migrate.migration.journal.schema import entries, migrations, open_engine, probes
from qmp_migrate.migration.model.phases import ENDS, Phase

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class MigrationRecord:
    """One row of the journal's migrations, as it is on disk.

    Attributes:
        phase: The last phase that was entered.
        epoch: The guest's fencing number that this migration holds.
        may_have_run: The destination may have executed the guest (written before ``cont`` is sent).
        controller: Who drives it: ``host``, ``pid``, ``start_time``, ``boot_id``.
        started_at: Seconds since the epoch; ``updated_at`` likewise.
        result: The result document once it has ended.
    """

    id: str
    vm: str
    source: str
    destination: str
    mode: str
    phase: Phase
    epoch: int
    rev: int
    outcome: str | None
    owner: str | None
    may_have_run: bool
    cancel_requested: bool
    controller: dict[str, Any]
    request: dict[str, Any]
    result: dict[str, Any] | None
    started_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a migration's story: ``kind`` is intent, result, phase or note."""

    seq: int
    at: float
    kind: str
    act: str
    data: dict[str, Any]


class Journal:
    """The journal behind one URL. Use as ``async with await Journal.open(url) as journal``."""

    def __init__(self, engine: sa.Engine, executor: Executor, url: str) -> None:
        self._engine = engine
        self._executor = executor
        self._url = url
        self._pending: list[dict[str, Any]] = []
        self._epochs: dict[str, int] = {}

    @classmethod
    async def open(cls, url: str) -> Journal:
        """Open (and where it is new, create) a journal.

        Raises:
            JournalError: The place cannot be written, the file is not a journal, or is of a newer version.
        """
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        try:
            engine = await asyncio.get_running_loop().run_in_executor(executor, open_engine, url)
        except ImportError as error:
            executor.shutdown(wait=False)
            raise JournalError(
                f"the driver for {url.partition(':')[0]} is not installed: {error}",
                hint="pip install 'qmp-migrate[postgresql]'",
            ) from error
        except (sa.exc.SQLAlchemyError, OSError) as error:
            executor.shutdown(wait=False)
            raise JournalError(
                f"cannot open the journal {url}: {_short(error)}",
                hint='set [controller] state = "sqlite:////path/you/may/write" in the settings',
            ) from error
        except JournalError:
            executor.shutdown(wait=False)
            raise
        return cls(engine, executor, url)

    async def __aenter__(self) -> Journal:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Write what is pending and close."""
        with contextlib.suppress(JournalError):
            await self._write_with([], lambda _connection: None)
        await asyncio.get_running_loop().run_in_executor(self._executor, self._engine.dispose)
        self._executor.shutdown(wait=False)

    async def transact(self, work: Callable[[sa.Connection], _T]) -> _T:
        """Do something with the journal's database, in one transaction and in its thread: for `operations`.

        Raises:
            JournalError: The database failed.
        """
        return await self._run(work)

    async def _run(self, work: Callable[..., _T], *args: Any) -> _T:
        def call() -> _T:
            with self._engine.begin() as connection:
                return work(connection, *args)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except sa.exc.SQLAlchemyError as error:
            raise JournalError(
                f"the journal {self._url} failed: {_short(error)}",
                hint="is its disk full, or its file system read-only?",
            ) from error

    async def _write_with(
        self, rows: list[dict[str, Any]], work: Callable[[sa.Connection], None], *, migration: str | None = None
    ) -> None:
        """Write what is pending, then `rows`, then do `work`, in one transaction; what is pending stays if it fails.

        Raises:
            Fenced: Another controller has claimed the `migration` since: this one's words count no more.
        """
        pending, self._pending = self._pending, []

        def write(connection: sa.Connection) -> None:
            if migration in self._epochs:
                epoch = connection.execute(sa.select(migrations.c.epoch).where(migrations.c.id == migration)).scalar()
                if epoch is not None and epoch > self._epochs[migration]:
                    raise Fenced(
                        f"another controller has taken migration {migration} over (epoch {epoch})",
                        hint="nothing more is done here; see: qmp-migrate status",
                    )
            if pending or rows:
                connection.execute(entries.insert(), [*pending, *rows])
            work(connection)

        try:
            await self._run(write)
        except Fenced:
            self._pending = []
            raise
        except JournalError:
            self._pending = [*pending, *self._pending]
            raise

    @staticmethod
    def _row(migration: str, kind: str, act: str, data: dict[str, Any]) -> dict[str, Any]:
        return {"migration": migration, "at": time.time(), "kind": kind, "act": act, "data": data}

    async def begin(
        self, *, id: str, vm: str, source: str, destination: str, mode: str, request: dict[str, Any]
    ) -> None:
        """Record that a migration was requested. Durable on return."""
        now = time.time()
        row = {
            "id": id,
            "vm": vm,
            "source": source,
            "destination": destination,
            "mode": mode,
            "phase": Phase.REQUESTED.value,
            "controller": this_controller(),
            "request": request,
            "started_at": now,
            "updated_at": now,
        }
        await self._run(lambda connection: connection.execute(migrations.insert(), row))

    async def intent(self, migration: str, act: str, **data: Any) -> None:
        """Record what is about to be done. Durable on return, together with all results so far.

        Raises:
            JournalError: It could not be written; then the act must not happen.
        """
        await self._write_with(
            [self._row(migration, "intent", act, data)], lambda _connection: None, migration=migration
        )

    def result(self, migration: str, act: str, **data: Any) -> None:
        """Record what came of an act; durable with the next intent, phase or close."""
        self._pending.append(self._row(migration, "result", act, data))

    def note(self, migration: str, act: str, **data: Any) -> None:
        """Record something worth telling later; durable like a `result`."""
        self._pending.append(self._row(migration, "note", act, data))

    async def enter(self, migration: str, phase: Phase, **columns: Any) -> None:
        """Record that a phase was entered. Durable on return.

        Args:
            migration: Its id.
            phase: The phase.
            columns: Columns to change with it: ``epoch``, ``outcome``, ``owner``, ``result``, ``may_have_run``.

        Raises:
            Fenced: Another controller has taken it over, or has settled it before it began.
        """
        values = {"phase": phase.value, "updated_at": time.time(), "rev": migrations.c.rev + 1, **columns}
        row = migrations.c.id == migration
        if phase is Phase.LOCKED:
            row &= migrations.c.outcome.is_(None)

        def work(connection: sa.Connection) -> None:
            changed = connection.execute(migrations.update().where(row).values(values)).rowcount
            if phase is Phase.LOCKED and not changed:
                raise Fenced(f"migration {migration} was settled by another controller before it began")

        await self._write_with([self._row(migration, "phase", phase.value, {})], work, migration=migration)
        if "epoch" in columns:
            self._epochs[migration] = columns["epoch"]

    async def claim(self, migration: str, epoch: int, *, may_have_run: bool) -> None:
        """Record that this controller drives a migration from now on: whoever did before writes no more. Durable.

        Args:
            migration: Its id.
            epoch: The guest's fencing number, which this controller has just raised.
            may_have_run: The destination may have run the guest, for all that is known now.

        Raises:
            Fenced: Another controller holds a higher one.
        """
        self._epochs[migration] = epoch

        def work(connection: sa.Connection) -> None:
            values = {
                "epoch": epoch,
                "may_have_run": may_have_run,
                "controller": this_controller(),
                "updated_at": time.time(),
            }
            connection.execute(migrations.update().where(migrations.c.id == migration).values(values))

        row = self._row(migration, "intent", "recover", {"epoch": epoch, **this_controller()})
        await self._write_with([row], work, migration=migration)

    async def arm_commit(self, migration: str) -> None:
        """Record that from now on the destination may run the guest (DESIGN rule 4). Durable on return."""

        def work(connection: sa.Connection) -> None:
            connection.execute(migrations.update().where(migrations.c.id == migration).values(may_have_run=True))

        await self._write_with([self._row(migration, "intent", "commit", {})], work, migration=migration)

    async def disarm_commit(self, migration: str) -> None:
        """Record that the destination has surely not run, although the commit was written. Durable on return."""

        def work(connection: sa.Connection) -> None:
            connection.execute(migrations.update().where(migrations.c.id == migration).values(may_have_run=False))

        await self._write_with([self._row(migration, "intent", "not-committed", {})], work, migration=migration)

    async def request_cancel(self, migration: str) -> None:
        """Ask the controller that drives a migration to cancel it.

        Raises:
            MigrationUnknown: No such migration.
        """
        statement = migrations.update().where(migrations.c.id == migration).values(cancel_requested=True)
        if (await self._run(lambda connection: connection.execute(statement).rowcount)) == 0:
            raise _unknown(migration)

    async def cancel_requested(self, migration: str) -> bool:
        """Tell whether somebody asked for a cancel."""
        statement = sa.select(migrations.c.cancel_requested).where(migrations.c.id == migration)
        return bool(await self._run(lambda connection: connection.execute(statement).scalar()))

    async def get(self, migration: str) -> MigrationRecord:
        """Return one migration; a unique beginning of its id is enough.

        Raises:
            MigrationUnknown: None, or more than one, begins so.
        """
        rows = await self._select(migrations.c.id.startswith(migration, autoescape=True), limit=2) if migration else []
        if len(rows) > 1:
            raise MigrationUnknown(
                f"more than one migration begins with {migration!r}", hint="give more of the id: qmp-migrate history"
            )
        if not rows:
            raise _unknown(migration)
        return rows[0]

    async def migrations(self, *, vm: str | None = None, limit: int = 50) -> list[MigrationRecord]:
        """Return the latest migrations, newest first."""
        return await self._select(migrations.c.vm == vm if vm is not None else sa.true(), limit=limit)

    async def unsettled(self, *, vm: str | None = None) -> list[MigrationRecord]:
        """Return the migrations that have not ended with one proven owner, newest first."""
        unended = migrations.c.phase.not_in([phase.value for phase in ENDS])
        return await self._select(unended if vm is None else sa.and_(unended, migrations.c.vm == vm), limit=10_000)

    async def _select(self, condition: sa.ColumnElement[bool], *, limit: int) -> list[MigrationRecord]:
        statement = sa.select(migrations).where(condition).order_by(migrations.c.started_at.desc()).limit(limit)

        def work(connection: sa.Connection) -> list[MigrationRecord]:
            return [
                MigrationRecord(**{**row, "phase": Phase(row["phase"])})
                for row in connection.execute(statement).mappings()
            ]

        return await self._run(work)

    async def entries(self, migration: str) -> list[Entry]:
        """Return the story of one migration, oldest first."""
        await self._write_with([], lambda _connection: None)
        columns = [entries.c[name] for name in ("seq", "at", "kind", "act", "data")]
        statement = sa.select(*columns).where(entries.c.migration == migration).order_by(entries.c.seq)
        return await self._run(lambda c: [Entry(**row) for row in c.execute(statement).mappings()])

    async def probe(self, key: str) -> Any | None:
        """Return what was remembered under a key (what a QEMU binary can do), or None."""
        statement = sa.select(probes.c.value).where(probes.c.key == key)
        return await self._run(lambda connection: connection.execute(statement).scalar())

    async def remember_probe(self, key: str, value: Any) -> None:
        """Remember a probe's answer; the key must change whenever the answer may."""

        def work(connection: sa.Connection) -> None:
            connection.execute(probes.delete().where(probes.c.key == key))
            connection.execute(probes.insert(), {"key": key, "value": value, "at": time.time()})

        await self._run(work)


def this_controller() -> dict[str, Any]:
    """Return the identity of this process: who drives a migration."""
    stat = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start_time": int(stat[19]),
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        "pid_namespace": os.readlink("/proc/self/ns/pid"),
    }


def controller_lives(controller: dict[str, Any]) -> bool | None:
    """Tell whether the controller of a record still runs: True/False with proof.

    None: it is of another machine or container, or it is frozen (then its locks tell).
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    if controller.get("boot_id") != boot_id:
        return False if controller.get("host") == socket.gethostname() else None
    if controller.get("pid_namespace", os.readlink("/proc/self/ns/pid")) != os.readlink("/proc/self/ns/pid"):
        return None  # its pid means another process here
    try:
        stat = Path(f"/proc/{int(controller['pid'])}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except (OSError, KeyError, ValueError):
        return False
    if stat[0] in {"Z", "X"} or int(stat[19]) != controller.get("start_time"):
        return False
    return None if stat[0] in {"T", "t"} else True


def _unknown(migration: str) -> MigrationUnknown:
    return MigrationUnknown(f"the journal has no migration {migration!r}", hint="see: qmp-migrate history")


def _short(error: BaseException) -> str:
    original = getattr(error, "orig", None)
    return str(original or error).splitlines()[0]
