"""Operations that are no migrations and must not be left half done: a save, a restore, the move of a shut-down guest.

Each has one row in the journal: what it is about, the last step that was entered, and what was learnt on the way. A step is
on disk before the act that it names. Whoever finds an operation whose controller is gone settles it from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from qmp_migrate.errors import Fenced, MigrationUnknown
from qmp_migrate.migration.journal.schema import operations
from qmp_migrate.migration.journal.store import Journal, MigrationRecord, controller_lives, this_controller

Kind = Literal["save", "restore", "move"]

DONE: Final = "done"


@dataclass(frozen=True, slots=True)
class Operation:
    """One row.

    Attributes:
        step: The last that was entered; `DONE` at the end.
        epoch: The guest's fencing number that it holds.
        data: What it is about, and what was learnt; see the operation's own file.
        outcome: None until it has ended.
        controller: Who drives it, as of a migration.
    """

    id: str
    kind: Kind
    vm: str
    host: str
    step: str
    epoch: int
    data: dict[str, Any]
    outcome: str | None
    controller: dict[str, Any]
    started_at: float
    updated_at: float

    @property
    def left(self) -> bool:
        """Whether no living controller drives it on."""
        return self.outcome is None and controller_lives(self.controller) is not True


class Operations:
    """The operations in a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def begin(self, id: str, kind: Kind, vm: str, host: str, data: dict[str, Any]) -> None:
        """Record that an operation begins. Durable on return. Raises `JournalError`."""
        now = time.time()
        row = {
            "id": id,
            "kind": kind,
            "vm": vm,
            "host": host,
            "step": "begun",
            "epoch": 0,
            "data": data,
            "controller": this_controller(),
            "started_at": now,
            "updated_at": now,
        }
        await self._journal.transact(lambda connection: connection.execute(operations.insert(), row))

    async def enter(self, id: str, step: str, *, epoch: int, outcome: str | None = None, **data: Any) -> None:
        """Record a step, and what was learnt before it. Durable on return.

        Args:
            id: The operation.
            step: What is about to be done.
            epoch: The fencing number that this controller holds: an older controller writes nothing more.
            outcome: How it ended.
            data: Laid over what is known.

        Raises:
            JournalError: It could not be written: then do not do it.
            Fenced: Another controller has taken the operation over.
        """

        def work(connection: sa.Connection) -> None:
            row = operations.c.id == id
            found = connection.execute(sa.select(operations.c.data, operations.c.epoch).where(row)).one()
            if found.epoch > epoch:
                raise Fenced(
                    f"another controller has taken {id} over (epoch {found.epoch})", hint="see: qmp-migrate status"
                )
            values = {
                "step": step,
                "epoch": epoch,
                "outcome": outcome,
                "data": {**found.data, **data},
                "controller": this_controller(),
                "updated_at": time.time(),
            }
            connection.execute(operations.update().where(row).values(values))

        await self._journal.transact(work)

    async def get(self, id: str) -> Operation:
        """Return one operation; a unique beginning of its id is enough.

        Raises:
            MigrationUnknown: None, or more than one, begins so.
        """
        found = await self._select(operations.c.id.startswith(id, autoescape=True)) if id else []
        if len(found) != 1:
            what = "more than one operation begins" if found else "the journal has no operation that begins"
            raise MigrationUnknown(f"{what} with {id!r}", hint="see: qmp-migrate history")
        return found[0]

    async def unsettled(self, *, vm: str | None = None) -> list[Operation]:
        """Return those that have not ended, oldest first."""
        open_ = operations.c.outcome.is_(None)
        return await self._select(open_ if vm is None else sa.and_(open_, operations.c.vm == vm))

    async def latest(self, *, vm: str | None = None, limit: int = 50) -> list[Operation]:
        """Return the latest ones, newest first."""
        return await self._select(
            operations.c.vm == vm if vm is not None else sa.true(), newest_first=True, limit=limit
        )

    async def _select(
        self,
        condition: sa.ColumnElement[bool],
        *,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> list[Operation]:
        order = operations.c.started_at.desc() if newest_first else operations.c.started_at.asc()
        statement = sa.select(operations).where(condition).order_by(order).limit(limit)
        rows: Callable[[sa.Connection], Iterable[Any]] = lambda c: c.execute(statement).mappings().all()  # noqa: E731
        return [Operation(**row) for row in await self._journal.transact(rows)]


async def either(journal: Journal, id: str) -> tuple[list[MigrationRecord], list[Operation]]:
    """Return the one migration, or the one operation, whose id begins so: the other list is empty.

    Raises:
        MigrationUnknown: None, or more than one, begins so.
    """
    try:
        return [await journal.get(id)], []
    except MigrationUnknown:
        # Saves, restores and moves have ids of their own letters, migrations have m.
        if id[:1] not in {"s", "r", "d"}:
            raise
    return [], [await Operations(journal).get(id)]
