"""Retune a migration that another process drives: a wish in the journal, an answer in the journal.

Who wishes writes an entry and waits for its answer; who drives the migration looks for wishes as it looks for a cancel,
obeys while memory is copied, reads back from QEMU what is in force now, and answers with that, or with the reason why not.
Wishes are plain entries of the journal's story, so that an older program reads them as it reads any other, and nothing new is
in its tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from qmp_migrate.errors import MonitorError, QmpMigrateError, UsageError
from qmp_migrate.migration.convergence import policies
from qmp_migrate.migration.journal.schema import entries, migrations
from qmp_migrate.migration.journal.store import Journal, MigrationRecord, controller_lives
from qmp_migrate.migration.model.phases import AFTER_COMMIT, ENDS, Phase
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.vm.units import about_size

if TYPE_CHECKING:
    from qmp_migrate.migration.lifecycle.context import Course

WISH: Final = "wish"
ANSWER: Final = "answer"
"""Kinds of entries; the act is ``tune``."""

ANSWER_POLL_S: Final = 0.1
LOOK_S: Final = 0.25
ANSWER_S: Final = 20.0
"""How long an answer is waited for: QEMU may take some of it, when its main loop is busy."""


@dataclass(frozen=True, slots=True)
class Tune:
    """What is to be different; None: as it is.

    Attributes:
        bandwidth_bytes_per_s: The rate limit; 0: none.
        downtime_limit_ms: The longest blackout that is allowed. QEMU is told of less at once, of more by need.
        max_throttle_percent: How far the guest is slowed down, now, and at most; 0: not at all.
        policy: Another policy from here on.
    """

    bandwidth_bytes_per_s: int | None = None
    downtime_limit_ms: int | None = None
    max_throttle_percent: int | None = None
    policy: str | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """What is named."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def laid_over(self, request: MigrationRequest) -> MigrationRequest:
        """Return the request as it is now to be. Raises `UsageError`, `InvalidQuantity` as a request does."""
        return replace(request, **self.changes)


def in_words(values: Mapping[str, Any]) -> str:
    """Return names and values for a person: those of a wish, and QEMU's parameters in its spelling."""
    return ", ".join(f"{_NAMES.get(name, name)} {_quantity(name, value)}" for name, value in values.items())


_NAMES: Final = {
    "bandwidth_bytes_per_s": "bandwidth",
    "downtime_limit_ms": "downtime limit",
    "max_throttle_percent": "throttle at most",
}


def _quantity(name: str, value: Any) -> str:
    if name in {"bandwidth_bytes_per_s", "max-bandwidth"}:
        return f"{about_size(value)}/s" if value else "without a limit"
    if name == "downtime_limit_ms" or name.endswith("downtime-limit"):
        return f"{value} ms"
    return f"{value} %" if "throttle" in name else str(value)


# -- who wishes -------------------------------------------------------------------------------------------------------


async def ask(journal: Journal, migration: str, tune: Tune) -> str:
    """Write a wish down; durable on return. Returns the token that its answer will name. Raises `JournalError`."""
    token = secrets.token_hex(6)
    await _write(journal, migration, WISH, {"token": token, **tune.changes})
    return token


async def answer(journal: Journal, migration: str, token: str) -> dict[str, Any] | None:
    """Return the answer to a wish: ``in_force`` with QEMU's parameters, or ``refused`` with the reason; None: none yet."""
    answers = (data for _seq, data in await _entries(journal, migration, ANSWER, 0))
    return next((data for data in answers if data.get("token") == token), None)


async def retune(journal: Journal, migration: str, tune: Tune) -> dict[str, Any]:
    """Have a migration retuned by whoever drives it, and return what is in force now.

    Args:
        journal: Where the migration is written down.
        migration: Its id, or a unique beginning of it.
        tune: What is to be different.

    Raises:
        MigrationUnknown: No such migration.
        UsageError: It has ended, its controller is gone or has not answered, or it said why not.
        InvalidQuantity: No request could ask for that.
        JournalError: The journal cannot be written.
    """
    record = await journal.get(migration)
    if not tune.changes:
        raise UsageError("nothing to change is named", hint="--bandwidth, --downtime-limit, --throttle or --policy")
    # What no request could ask for is refused here, with the words that a request has.
    tune.laid_over(MigrationRequest(record.vm, record.destination))
    _refuse_ended(record)
    if controller_lives(record.controller) is False:
        raise UsageError(f"migration {record.id} has no controller any more", hint=f"qmp-migrate recover {record.id}")
    token = await ask(journal, record.id, tune)
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        if (reply := await answer(journal, record.id, token)) is not None:
            if "refused" in reply:
                raise UsageError(f"migration {record.id} was not retuned: {reply['refused']}")
            return dict(reply["in_force"])
        _refuse_ended(await journal.get(record.id))
        await asyncio.sleep(ANSWER_POLL_S)
    raise UsageError(
        f"the controller of migration {record.id} has not answered within {ANSWER_S:g} s",
        hint="it is still asked to; look at its steps with: qmp-migrate report " + record.id,
    )


def _refuse_ended(record: MigrationRecord) -> None:
    if record.phase in AFTER_COMMIT or record.phase in ENDS or record.outcome is not None:
        raise UsageError(
            f"migration {record.id} is over: {record.outcome or record.phase}", hint="see: qmp-migrate history"
        )


async def _write(journal: Journal, migration: str, kind: str, data: Mapping[str, Any]) -> None:
    row = {"migration": migration, "at": time.time(), "kind": kind, "act": "tune", "data": dict(data)}
    await journal.transact(lambda connection: connection.execute(entries.insert(), row))


async def _entries(journal: Journal, migration: str, kind: str, after: int) -> list[tuple[int, dict[str, Any]]]:
    statement = (
        sa.select(entries.c.seq, entries.c.data)
        .where(entries.c.migration == migration, entries.c.kind == kind, entries.c.seq > after)
        .order_by(entries.c.seq)
    )
    return await journal.transact(lambda connection: [(seq, data) for seq, data in connection.execute(statement)])


# -- who drives -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tuner:
    """Obeys the wishes of one migration.

    Attributes:
        seen: The last wish that was answered. 0 at the beginning: what an earlier controller has left unanswered counts.
    """

    course: Course
    seen: int = 0

    async def watch(self) -> None:
        """Look again and again, but never between STOP and RESUME; until this is cancelled."""
        while True:
            copying = self.course.copying
            if copying is None or copying.timeline.switching is None:
                with contextlib.suppress(QmpMigrateError):
                    await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Obey what has been wished for since the last look. Raises `JournalError`."""
        journal, migration = self.course.chronicle.journal, self.course.request.id
        if self.seen == 0:
            answered = {data.get("token") for _seq, data in await _entries(journal, migration, ANSWER, 0)}
        else:
            answered = set()
        for seq, data in await _entries(journal, migration, WISH, self.seen):
            self.seen = seq
            if data.get("token") not in answered:
                await self._obey(journal, migration, data)

    async def _obey(self, journal: Journal, migration: str, data: Mapping[str, Any]) -> None:
        known = {field.name for field in fields(Tune)}
        reply: dict[str, Any] = {"token": data.get("token")}
        try:
            unknown = sorted(set(data) - known - {"token"})
            if unknown:
                raise UsageError(f"the controller that drives it is older and does not know {', '.join(unknown)}")
            reply["in_force"] = await apply(self.course, Tune(**{name: data[name] for name in known & set(data)}))
        except QmpMigrateError as error:
            reply["refused"] = error.message
        await _write(journal, migration, ANSWER, reply)


async def apply(course: Course, tune: Tune) -> dict[str, Any]:
    """Retune a migration here and now, and return what the source's QEMU says is in force.

    Raises:
        UsageError: It cannot be done now, or not at all.
        MonitorError: The source did not take it.
    """
    copying = course.copying
    if copying is None or course.chronicle.phase is not Phase.COPYING:
        raise UsageError(f"nothing can be retuned in phase {course.chronicle.phase}: only while memory is copied")
    if copying.timeline.switching is not None:
        raise UsageError("the guest is being handed over already")
    steering = copying.steering
    request = tune.laid_over(steering.request)
    if tune.max_throttle_percent and not steering.can_throttle:
        raise UsageError(
            f"the guest cannot be slowed down: the migration was begun with the policy {course.request.policy}, which does "
            "not, and QEMU wants to know it beforehand"
        )
    most = request.downtime_limit_ms
    fixed = copying.one_pass or copying.suspended  # there the limit is not raised by need
    limit = most if fixed or steering.limit_ms > most else None
    await steering.change(
        limit_ms=limit if policies.find(request.policy).of is None else None,
        bandwidth_bytes_per_s=tune.bandwidth_bytes_per_s,
        throttle_percent=tune.max_throttle_percent if steering.can_throttle else None,
    )
    in_force = await _in_force(course)
    wrong = [
        f"{name} is {in_force.get(name)}, not {value}"
        for name, value in (
            ("max-bandwidth", tune.bandwidth_bytes_per_s),
            ("max-cpu-throttle", max(1, tune.max_throttle_percent) if tune.max_throttle_percent else None),
            ("downtime-limit", limit),
        )
        if value is not None and in_force.get(name) != value
    ]
    if wrong:
        raise MonitorError(f"the source did not take it: {'; '.join(wrong)}", host=course.source.name)
    steering.request = request
    await _remember(course, tune)
    steering.tell(f"retuned: {in_words(tune.changes)}")
    return {**in_force, "allowed-downtime-limit": most, "policy": request.policy}


async def _in_force(course: Course) -> dict[str, Any]:
    parameters = await (await course.source.attach()).execute("query-migrate-parameters")
    names = ("downtime-limit", "max-bandwidth", *(("max-cpu-throttle",) if course.wires.throttle else ()))
    return {name: parameters.get(name) for name in names}


async def _remember(course: Course, tune: Tune) -> None:
    """Have the journal's request say so, too: whoever drives it on after this controller goes by that."""
    row = migrations.c.id == course.request.id

    def work(connection: sa.Connection) -> None:
        asked = connection.execute(sa.select(migrations.c.request).where(row)).scalar() or {}
        connection.execute(migrations.update().where(row).values(request={**asked, **tune.changes}))

    await course.chronicle.journal.transact(work)
