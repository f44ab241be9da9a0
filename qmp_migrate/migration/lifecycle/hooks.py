"""Commands of the user's at named points of a migration: for a switch, Open vSwitch, DNS, a load balancer.

A hook is an argument vector, never a shell line. It runs on the controller, the source or the destination, gets the migration
as JSON on standard input and as ``QMP_MIGRATE_*`` in its environment, and is killed when its time is over. What it wrote goes
into the result. Before the commit a required hook that fails takes the guest back; after the commit nothing can, and a hook
that fails is only told of.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from qmp_migrate.errors import Fenced, MigrationFailed, QmpMigrateError
from qmp_migrate.hosts.session import start_session
from qmp_migrate.vm.units import parse_time_ms

if TYPE_CHECKING:
    from qmp_migrate.hosts import Host
    from qmp_migrate.migration.endpoint.endpoint import Side
    from qmp_migrate.migration.journal.store import Entry
    from qmp_migrate.migration.lifecycle.recorder import Chronicle
    from qmp_migrate.migration.model.request import MigrationRequest
    from qmp_migrate.settings import HookSettings, Limits

OUTPUT_BYTES: Final = 4096
"""So much of what a hook wrote is kept, its end."""

GRACE_S: Final = 1.0
"""Between SIGTERM and SIGKILL."""

SSH_S: Final = 10.0
"""What a host may take beyond the hook's own time."""

_TIMED_OUT: Final = frozenset({124, 137, -9, -1})
"""How ``timeout`` ends when it had to end its command; with SIGKILL it ends itself as well."""


class HookContext(Protocol):
    """What a hook is run for, and told of: see `lifecycle.context.Course`."""

    request: MigrationRequest
    source: Side
    destination: Side
    chronicle: Chronicle
    postcopy: bool


class Point(StrEnum):
    """Where a hook runs.

    ``before``: the guest is locked, nothing is started yet. ``pre-switchover``: it stands still at the source; the hook's
    time is blackout. ``after-commit``: it runs at the destination, the source still stands there. ``rolled-back``: it is
    proven to be at its source again. ``done``: it runs at the destination, and the source is gone.
    """

    BEFORE = "before"
    PRE_SWITCHOVER = "pre-switchover"
    AFTER_COMMIT = "after-commit"
    ROLLED_BACK = "rolled-back"
    DONE = "done"


BEFORE_COMMIT: Final = frozenset({Point.BEFORE, Point.PRE_SWITCHOVER})


@dataclass(frozen=True, slots=True)
class Hook:
    """One command.

    Attributes:
        at: Where in the migration.
        where: On which machine.
        command: Program and arguments; no shell syntax has a meaning in them.
        timeout_s: After this it is killed, with all that it started.
        required: Before the commit: its failure takes the guest back.
    """

    at: Point
    where: Literal["controller", "source", "destination"]
    command: tuple[str, ...]
    timeout_s: float
    required: bool = False


@dataclass(frozen=True, slots=True)
class HookRun:
    """How a hook ended: a member of the result's ``hooks``.

    Attributes:
        host: The host's name, or ``controller``.
        outcome: ``ok``, ``failed``, ``timeout``, or ``unknown`` where the host could not be asked.
        status: Its exit status; None where there is none.
        ms: How long it took; at ``pre-switchover`` a part of the blackout.
        output: The end of what it wrote.
    """

    at: str
    where: str
    host: str
    command: tuple[str, ...]
    outcome: Literal["ok", "failed", "timeout", "unknown"]
    status: int | None
    ms: int
    output: str


@dataclass(slots=True)
class Hooks:
    """The hooks of one migration.

    Attributes:
        hooks: In the order in which those of one point run, one after the other.
        ran: Points whose hooks have run, also under another controller.
    """

    hooks: tuple[Hook, ...] = ()
    ran: set[str] = field(default_factory=set)
    _begun: dict[Point, asyncio.Task[bool]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Iterable[HookSettings]) -> Hooks:
        """Return the hooks of the settings."""
        return cls(
            tuple(
                Hook(Point(s.at), s.where, s.command, parse_time_ms(s.timeout) / 1000, required=s.required)
                for s in settings
            )
        )

    def asked_for(self, request: MigrationRequest) -> MigrationRequest:
        """Return a request as the hooks want it: one with hooks in the pause needs the pause, and more time for it."""
        if not self.at(Point.PRE_SWITCHOVER):
            return request
        return replace(request, guarded=True, limits=self.more_time(request.limits))

    def more_time(self, limits: Limits) -> Limits:
        """Return the limits with the time of the hooks in the pause added to the switchover's."""
        return replace(limits, switchover_s=limits.switchover_s + self.seconds(Point.PRE_SWITCHOVER))

    def at(self, point: Point) -> tuple[Hook, ...]:
        """Return those of one point."""
        return tuple(hook for hook in self.hooks if hook.at is point)

    def seconds(self, point: Point) -> float:
        """Return how long those of one point may take in all."""
        return sum(hook.timeout_s + GRACE_S + SSH_S for hook in self.at(point))

    def remember(self, entries: Iterable[Entry]) -> None:
        """Take from the journal which points another controller has been through: those are not run again."""
        self.ran |= {str(entry.data.get("at")) for entry in entries if (entry.kind, entry.act) == ("intent", "hooks")}

    async def run(self, point: Point, course: HookContext) -> None:
        """Run the hooks of one point, once in a migration's life.

        Raises:
            MigrationFailed: A required one failed, before the commit.
            JournalError: Before the commit: that they run could not be written down.
            Fenced: Another controller has the guest.
        """
        hooks = self.at(point)
        if not hooks or point in self.ran:
            return
        self.ran.add(point)
        chronicle = course.chronicle
        await chronicle.intent("hooks", at=point.value)
        for hook in hooks:
            run = await _run(hook, course)
            chronicle.result.hooks.append(asdict(run))
            chronicle.event("hook", **asdict(run))
            if run.outcome == "ok":
                continue
            told = describe(run)
            # Where post-copy was begun already there is no way back: the hook in its pause comes after the commit.
            if hook.required and point in BEFORE_COMMIT and not course.postcopy:
                raise MigrationFailed(
                    told,
                    safe_at_source=True,
                    code="hook_failed",
                    stderr=run.output,
                    hint="it is required by a [[hook]] of the settings: the guest is not moved without it",
                    host=None if hook.where == "controller" else run.host,
                )
            chronicle.warn(told)

    async def run_after(self, point: Point, course: HookContext) -> bool:
        """Run hooks that change nothing about who has the guest: what fails is a warning. Tell whether any ran now.

        Raises:
            Fenced: Another controller has the guest.
        """
        begun = self._begun.pop(point, None)
        if begun is not None:
            return await begun
        if not self.at(point) or point in self.ran:
            return False
        return await self._run_after(point, course)

    async def _run_after(self, point: Point, course: HookContext) -> bool:
        try:
            await self.run(point, course)
        except Fenced:
            raise
        except QmpMigrateError as error:
            course.chronicle.warn(f"the {point} hooks: {error}")
        return True

    def begin(self, point: Point, course: HookContext) -> None:
        """Let the hooks of a point run on beside what comes next; `run_after` waits for them."""
        if self.at(point) and point not in self.ran and point not in self._begun:
            task = asyncio.create_task(self._run_after(point, course))
            self._begun[point] = task
            task.add_done_callback(lambda done: done.cancelled() or done.exception())


def describe(run: HookRun) -> str:
    """Return one line on a hook that did not succeed."""
    command = shlex.join(run.command)
    how = {"timeout": "was killed: its time was over", "unknown": "may have run: its host could not be asked"}
    status = "could not be started" if run.status is None else f"ended with status {run.status}"
    ended = how.get(run.outcome, status)
    last = run.output.strip().splitlines()[-1:]
    return f"the {run.at} hook {command} on {run.host} {ended}" + (f": {last[0]}" if last else "")


def document(at: Point, course: HookContext) -> dict[str, Any]:
    """Return what a hook is told on standard input (``hook/1``)."""
    chronicle, request = course.chronicle, course.request
    return {
        "schema": "hook/1",
        "at": at.value,
        "id": request.id,
        "vm": request.vm,
        "source": course.source.name,
        "destination": course.destination.name,
        "source_address": course.source.migration_address,
        "destination_address": course.destination.migration_address,
        "mode": request.mode,
        "phase": chronicle.phase.value,
        "result": chronicle.result.to_dict(),
    }


def environment(told: Mapping[str, Any]) -> dict[str, str]:
    """Return the same, as far as it is words, as environment variables."""
    names = ("at", "id", "vm", "source", "destination", "source_address", "destination_address", "mode")
    return {f"QMP_MIGRATE_{name.upper()}": str(told[name]) for name in names}


async def _run(hook: Hook, course: HookContext) -> HookRun:
    told = document(hook.at, course)
    data = json.dumps(told).encode() + b"\n"
    begun = time.monotonic()
    outcome: Literal["ok", "failed", "timeout", "unknown"]
    if hook.where == "controller":
        name = "controller"
        outcome, status, output = await run_here(hook.command, environment(told), data, hook.timeout_s)
    else:
        side = course.source if hook.where == "source" else course.destination
        name = side.name
        if side.fenced:
            outcome, status, output = "unknown", None, b"the host is taken for switched off: it was not run"
        else:
            outcome, status, output = await run_there(side.host, hook.command, environment(told), data, hook.timeout_s)
    ms = round((time.monotonic() - begun) * 1000)
    text = output[-OUTPUT_BYTES:].decode("utf-8", "replace")
    return HookRun(hook.at.value, hook.where, name, hook.command, outcome, status, ms, text)


_Outcome = tuple[Literal["ok", "failed", "timeout", "unknown"], int | None, bytes]


async def run_here(command: Sequence[str], more: Mapping[str, str], data: bytes, timeout_s: float) -> _Outcome:
    """Run a command on this machine, in a process group of its own, which is killed when its time is over."""
    try:
        process = await start_session(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **more},
        )
    except OSError as error:
        return "failed", None, str(error).encode()
    kept = bytearray()

    async def read() -> None:
        assert process.stdout is not None
        while part := await process.stdout.read(1 << 16):
            kept.extend(part)
            del kept[:-OUTPUT_BYTES]

    async def feed() -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it need not read what it is told
            process.stdin.write(data)
            await process.stdin.drain()
        process.stdin.close()

    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(feed(), read(), process.wait())
    except TimeoutError:
        await _end(process)
        return "timeout", None, bytes(kept)
    except BaseException:
        await _end(process)
        raise
    status = process.returncode
    return ("ok" if status == 0 else "failed"), status, bytes(kept)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process and all that it has started and that is still in its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await process.wait()
                if number is signal.SIGKILL:
                    return


async def run_there(
    host: Host, command: Sequence[str], more: Mapping[str, str], data: bytes, timeout_s: float
) -> _Outcome:
    """Run a command on a host; the host's own ``timeout`` kills it and its process group, whatever the connection does.

    Raises:
        Fenced: Another controller has the guest: it was not run.
    """
    words = ["timeout", "-k", f"{GRACE_S:g}", f"{timeout_s:g}", "env", *(f"{k}={v}" for k, v in more.items()), *command]
    begun = time.monotonic()
    try:
        done = await host.run(words, input=data, timeout=timeout_s + GRACE_S + SSH_S, check=False)
    except Fenced:
        raise
    except QmpMigrateError as error:
        return "unknown", None, str(error).encode()
    output = done.stdout + done.stderr
    if done.returncode in _TIMED_OUT and time.monotonic() - begun >= timeout_s:
        return "timeout", None, output
    return ("ok" if done.returncode == 0 else "failed"), done.returncode, output
