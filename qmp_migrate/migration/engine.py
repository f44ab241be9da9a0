"""The life of one migration (DESIGN §5): each step is written down, done, and its result written down.

The engine holds no opinion of its own on who owns the guest: going forward it follows QEMU's proven states, and whenever
something fails it hands over to `rollback.settle`, which acts on `handover.decide` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

import structlog

from qmp_migrate.errors import (
    ConnectionLost,
    LaunchFailed,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    NotConverging,
    OutcomeUnknown,
    QmpCommandFailed,
    QmpMigrateError,
)
from qmp_migrate.hosts.process import identify, launch
from qmp_migrate.migration import locks, release, rollback, wiring
from qmp_migrate.migration.chronicle import Chronicle
from qmp_migrate.migration.copying import CancelRequested, Copying
from qmp_migrate.migration.handover import Action, Destination, Facts, Goal, Source
from qmp_migrate.migration.locks import GuestLock
from qmp_migrate.migration.phases import AFTER_COMMIT, Phase
from qmp_migrate.migration.request import MigrationRequest, Outcome, Owner
from qmp_migrate.migration.rollback import Settled
from qmp_migrate.migration.side import Side
from qmp_migrate.migration.wiring import Wires
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.qemu.states import ENDED_BY_GUEST

log = structlog.get_logger(__name__)

CANCEL_POLL_S: Final = 0.25
VERIFY_RUNNING_S: Final = 10.0


@dataclass(slots=True)
class Engine:
    """One migration under way. Made after preflight; `run` drives it to its end.

    Attributes:
        request: What is wanted.
        source: Where the guest is; its process and monitor are known.
        destination: Where it goes; nothing is started there yet.
        argv: The destination's command line, derived and checked by preflight.
        running: The guest runs now; a paused one arrives paused.
        one_pass: See `Copying.one_pass`.
        chronicle: Written before each act, and told of everything.
        cancel: Set it to cancel; obeyed until the commit.
        error: What went wrong, once it has ended; None: the guest runs at the destination.
    """

    request: MigrationRequest
    source: Side
    destination: Side
    argv: tuple[str, ...]
    running: bool
    one_pass: bool
    chronicle: Chronicle
    cancel: asyncio.Event
    error: QmpMigrateError | None = None
    _lock: GuestLock | None = None
    _wires: Wires = field(default_factory=Wires)
    _copying: Copying | None = None
    _arming: asyncio.Task[None] | None = None
    _armed: bool = False
    _cont_sent: bool = False
    _cont_refused: bool = False

    async def run(self) -> None:
        """Drive the migration to its end; `error` then tells whether the guest runs at the destination.

        Raises:
            asyncio.CancelledError: The caller was cancelled; the guest was brought to a proven state first.
        """
        task = asyncio.create_task(self._run(), name=f"migration {self.request.id}")
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            self.cancel.set()
            await asyncio.shield(task)
            raise

    async def _run(self) -> None:
        structlog.contextvars.bind_contextvars(migration=self.request.id, vm=self.request.vm)
        try:
            async with self._locked(), self._cancel_watched():
                self.error = await self._drive()
        except QmpMigrateError as failure:  # before anything was launched, or the journal failed
            self.error = failure
            if not self.chronicle.ended:
                await self.chronicle.end(Phase.ROLLED_BACK, "failed", "source", failure)

    # -- the way forward ------------------------------------------------------------------------------------------

    async def _drive(self) -> QmpMigrateError | None:
        """Go forward; on any failure settle. Returns what went wrong, or None."""
        try:
            await self._launch()
            await self._wire()
            await self._copy_and_commit()
        except CancelRequested:
            return await self._back(MigrationCancelled("the migration was cancelled", hint=None, host=self.source.name))
        except QmpMigrateError as error:
            return await self._back(error)
        await self._release()
        return None

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        self._checkpoint_quietly()
        await self.chronicle.intent("lock")
        self._lock = lock = await locks.take(self.source, self.destination, self.request.id)
        try:
            await self.chronicle.enter(Phase.LOCKED, epoch=lock.epoch)
            yield
        finally:
            await lock.release()

    @contextlib.asynccontextmanager
    async def _cancel_watched(self) -> AsyncIterator[None]:
        """Obey ``qmp-migrate cancel`` of another process: it writes its wish into the journal."""

        async def watch() -> None:
            while not self.cancel.is_set():
                with contextlib.suppress(QmpMigrateError):
                    if await self.chronicle.journal.cancel_requested(self.request.id):
                        self.cancel.set()
                await asyncio.sleep(CANCEL_POLL_S)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _checkpoint(self) -> None:
        if self.cancel.is_set():
            raise CancelRequested

    def _checkpoint_quietly(self) -> None:
        if self.cancel.is_set():
            raise MigrationCancelled("the migration was cancelled before it began", host=self.source.name)

    async def _launch(self) -> None:
        self._checkpoint()
        side = self.destination
        await self.chronicle.intent("launch-destination", host=side.name, argv=list(self.argv))
        try:
            side.process = await launch(side.host, directory=side.directory, argv=self.argv)
        except ConnectionLost:
            # Unknown whether it runs: find out before anything else.
            await side.host.connect()
            side.process = await identify(side.host, side.directory)
            if side.process is None:
                raise
        self.chronicle.did(
            "launch-destination",
            pid=side.process.pid,
            start_time=side.process.start_time,
            boot_id=side.process.boot_id,
        )
        await self.chronicle.enter(Phase.DESTINATION_LAUNCHED)

    async def _wire(self) -> None:
        self._checkpoint()
        await self.chronicle.intent("wire", encrypt=self.request.encrypt)
        try:
            await wiring.wire(self.source, self.destination, self.request, self._wires, one_pass=self.one_pass)
        except QmpMigrateError as error:
            raise await self._with_stderr(error) from error
        self.chronicle.result.encrypted = self._wires.credentials is not None
        self.chronicle.did("wire", port=self._wires.port, encrypted=self.chronicle.result.encrypted)
        await self.chronicle.enter(Phase.WIRED)
        self._checkpoint()

    async def _copy_and_commit(self) -> None:
        copying = self._copying = Copying(
            source=self.source,
            destination=self.destination,
            request=self.request,
            one_pass=self.one_pass,
            cancel=self.cancel,
            on_progress=self.chronicle.reporter.progress,
            on_step=lambda reason: self.chronicle.event("step", reason=reason),
            on_near_end=self._arm,
            on_stopped=self._arm,
        )
        async with copying.watching():
            await self._look_again()
            await self.chronicle.intent("migrate", address=self.destination.migration_address, port=self._wires.port)
            await self.chronicle.enter(Phase.COPYING)
            keys = asyncio.create_task(self._remove_keys_when_used(copying))
            try:
                await copying.run(self.destination.migration_address, self._wires.port)
                await self._commit(copying)
            finally:
                if not copying.connected.is_set():
                    keys.cancel()
                await asyncio.gather(keys, return_exceptions=True)

    async def _look_again(self) -> None:
        """See whether the guest is still what preflight saw; from here on events tell of every change."""
        status = await qmp.run_status(await self.source.attach())
        if status.status in ENDED_BY_GUEST:
            raise MigrationFailed(
                f"the guest is {status.status} now; it is left at the source as it is",
                safe_at_source=False,
                code="guest_panicked" if status.status == "guest-panicked" else "guest_shutdown",
                hint="look at its serial log, dump it, or reset it there",
                host=self.source.name,
            )
        self.running = status.running

    async def _remove_keys_when_used(self, copying: Copying) -> None:
        await copying.connected.wait()
        # Not in the way of a switchover that is only milliseconds away: a small guest is copied in less than one poll.
        if copying.timeline.stopped is None:
            self.chronicle.result.warnings += await wiring.remove_keys(self._wires)

    def _arm(self) -> None:
        """Begin to write the commit down, while the last pass runs: the fsync is off the blackout (rule 4)."""
        if self._arming is None:
            self._armed = True
            self._arming = asyncio.create_task(self.chronicle.journal.arm_commit(self.request.id))

    async def _commit(self, copying: Copying) -> None:
        """The hand-over: the source is proven completed, the destination loaded. One command, then look."""
        self._arm()
        assert self._arming is not None
        await self._arming
        self._checkpoint()
        if self._lock is not None and self._lock.lost:
            raise MigrationFailed(
                "the guest's lock was lost: another controller may hold it",
                safe_at_source=True,
                code="lock_lost",
                hint="the connection to a host was cut; try again",
            )
        monitor = await self.destination.attach()
        self.chronicle.lenient = True  # from here on the guest may be the destination's, whatever the journal can take
        if self.running:
            self._cont_sent = True
            try:
                await monitor.execute("cont")
            except QmpCommandFailed as error:
                self._cont_refused = True
                raise await self._with_stderr(error) from error
        self.chronicle.pass_through(Phase.SWITCHING)
        await self.chronicle.enter(Phase.COMMITTED)
        self.chronicle.event("switchover", blackout_ms=copying.timeline.blackout_ms)
        self.chronicle.event("committed", owner="destination")
        await self._verify(copying)

    async def _verify(self, copying: Copying) -> None:
        """Believe nothing: the destination's own word that it runs, then the announcement of its addresses."""
        deadline = time.monotonic() + VERIFY_RUNNING_S
        while True:
            status = await qmp.run_status(await self.destination.attach())
            if status.running or not self.running:
                break
            if status.status in {"shutdown", "guest-panicked", "io-error", "internal-error", "suspended"}:
                self.chronicle.warn(f"the guest is {status.status} at the destination")
                break
            if time.monotonic() > deadline:
                raise MigrationFailed(
                    f"the destination took the guest but does not run it: {status.status}",
                    safe_at_source=False,
                    code="not_running",
                    hint="look at its storage and its qemu.log, then send `cont` to its monitor",
                    host=self.destination.name,
                )
            await asyncio.sleep(0.02)
        if copying.timeline.resumed is None and self.running:
            # The event comes on the same connection before the answer above, so it is only waiting to be read.
            await asyncio.sleep(0)
        with self.chronicle.tolerate("the guest's network addresses were not announced again"):
            await qmp.announce(await self.destination.attach())
        await self.chronicle.enter(Phase.RUNNING_AT_DESTINATION)

    async def _release(self) -> None:
        """The guest runs at the destination: take the numbers, end the source, clean up."""
        copying = self._copying
        assert copying is not None
        with self.chronicle.tolerate("the source's last numbers are missing"):
            await release.take_numbers(self.source, copying, self.chronicle.result, running=self.running)
        self._take_timeline(copying)
        await release.release_source(self.source, self.destination, self._wires, self.chronicle)
        await self.chronicle.enter(Phase.SOURCE_RELEASED)
        await self.chronicle.end(Phase.DONE, "completed", "destination", None)

    def _take_timeline(self, copying: Copying) -> None:
        result = self.chronicle.result
        result.blackout_ms = copying.timeline.blackout_ms
        result.steps = list(copying.steps)
        if copying.timeline.resets:
            self.chronicle.warn("the guest reset itself during the migration")

    # -- the way back ---------------------------------------------------------------------------------------------

    def _facts(self, patience: bool) -> Facts:
        return Facts(
            may_have_run=self._armed,
            never_ran=not self._cont_sent or self._cont_refused,
            source_completed=self._copying is not None and self._copying.timeline.completed is not None,
            was_running=self.running,
            patience=patience,
        )

    async def _back(self, error: QmpMigrateError) -> QmpMigrateError | None:
        """Something failed, or a cancel was asked for: bring the guest to one proven owner, and say which."""
        log.info("settling", because=str(error), phase=self.chronicle.phase)
        if self._copying is not None:
            self._take_timeline(self._copying)
        if self._arming is not None:
            with contextlib.suppress(QmpMigrateError):
                await self._arming
        stderr = await self.destination.stderr_tail() if self.destination.process else ""
        # Once `cont` was sent and not refused, forward is the only safe way (rule 4).
        goal = Goal.FORWARD if self._cont_sent and not self._cont_refused else Goal.BACK
        if self.chronicle.phase not in AFTER_COMMIT or goal is Goal.BACK:
            await self.chronicle.turn_back()
        settled = await rollback.settle(
            self.source,
            self.destination,
            goal=goal,
            facts=self._facts,
            journal=self.chronicle.journal,
            migration_id=self.request.id,
        )
        match settled.action:
            case Action.FINISHED_AT_SOURCE:
                return await self._ended_at_source(error, settled, stderr)
            case Action.GUEST_GONE:
                return await self._ended_nowhere(error)
            case Action.COMMIT | Action.RELEASE_SOURCE | Action.FINISHED_AT_DESTINATION:
                return await self._forward_after_all(error, settled)
            case _:
                return await self._parked(error, settled)

    async def _ended_at_source(self, error: QmpMigrateError, settled: Settled, stderr: str) -> QmpMigrateError:
        self.chronicle.result.warnings += await wiring.unwire_source(self.source, self._wires)
        self.chronicle.result.warnings += await wiring.remove_keys(self._wires)
        self.chronicle.result.warnings += await rollback.discard_destination(self.destination)
        running = settled.source_state is Source.RUNS
        state = "runs on" if running else f"is {settled.source.run_state}"
        final = _retold(
            error,
            f"{error.message}; the guest {state} at {self.source.name}",
            safe=running or not self.running,
            stderr=getattr(error, "stderr", "") or stderr,
        )
        outcome: Outcome = "cancelled" if isinstance(error, MigrationCancelled) else "rolled_back"
        self.chronicle.event("rolled-back", owner="source", reason=error.message)
        await self.chronicle.end(Phase.ROLLED_BACK, outcome, "source", final)
        return final

    async def _ended_nowhere(self, error: QmpMigrateError) -> QmpMigrateError:
        self.chronicle.result.warnings += await rollback.discard_destination(self.destination)
        if isinstance(error, MigrationFailed) and error.code in {"guest_shutdown", "source_ended"}:
            final: QmpMigrateError = error
        else:
            final = MigrationFailed(
                f"{error.message}; the source QEMU has ended: the guest runs nowhere",
                safe_at_source=False,
                code="guest_lost",
                hint=f"see {self.source.directory}/qemu.log on {self.source.name}, then start the guest again",
                host=self.source.name,
            )
        await self.chronicle.end(Phase.ROLLED_BACK, "failed", "none", final)
        return final

    async def _forward_after_all(self, error: QmpMigrateError, settled: Settled) -> QmpMigrateError | None:
        """It had been handed over, or only the destination still holds it: finish there."""
        self.chronicle.warn(f"went on after: {error.message}")
        if settled.action is Action.COMMIT and self.running:
            try:
                if not self._cont_sent:
                    await self.chronicle.journal.arm_commit(self.request.id)
                self._armed = self._cont_sent = True
                await (await self.destination.attach()).execute("cont")
            except QmpMigrateError as failure:
                return await self._parked(failure, settled)
        if self.chronicle.phase not in AFTER_COMMIT:
            await self.chronicle.enter(Phase.PARKED)  # the graph's only way forward from a roll-back
            await self.chronicle.enter(Phase.COMMITTED)
        if self.chronicle.phase is Phase.COMMITTED:
            await self.chronicle.enter(Phase.RUNNING_AT_DESTINATION)
        with self.chronicle.tolerate("the guest's network addresses were not announced again"):
            await qmp.announce(await self.destination.attach())
        await self._release()
        return None

    async def _parked(self, error: QmpMigrateError, settled: Settled) -> QmpMigrateError:
        """Nothing that is surely right is left to do. Say exactly what is known."""
        owner: Owner = "source" if settled.source_state is Source.RUNS else "unknown"
        known = (
            f"source {self.source.name}: {settled.source}; destination {self.destination.name}: {settled.destination}"
        )
        if owner == "source" and settled.destination_state is Destination.UNKNOWN:
            # Safe: it runs at the source, and what may be left over there waits paused, never to be continued.
            final: QmpMigrateError = _retold(
                error,
                f"{error.message}; the guest runs on at {self.source.name}. {self.destination.name} cannot be asked: "
                f"its QEMU for {self.request.vm} may be left there, paused, and must be ended",
                safe=True,
            )
            await self.chronicle.end(Phase.PARKED, "rolled_back", "source", final)
            return final
        final = OutcomeUnknown(
            f"{error.message}; who owns the guest cannot be proven ({settled.reason}). Known: {known}",
            hint="do nothing by hand that starts or continues a copy; when both hosts answer again, look at "
            f"`qmp-migrate status {self.request.id}`",
        )
        await self.chronicle.end(Phase.PARKED, "unknown", owner, final)
        return final

    # -- telling --------------------------------------------------------------------------------------------------

    async def _with_stderr(self, error: QmpMigrateError) -> QmpMigrateError:
        """A destination that died says why on its standard error: that is the message people need."""
        observed = await self.destination.observe()
        text = await self.destination.stderr_tail()
        if observed.alive is False and text:
            return LaunchFailed(
                f"the destination QEMU ended: {text.splitlines()[-1]}",
                stderr=text,
                hint="QEMU's own words say what it did not like",
                host=self.destination.name,
            )
        return error


def _retold(error: QmpMigrateError, message: str, *, safe: bool, stderr: str = "") -> QmpMigrateError:
    """Return the error with a message that says where the guest is now, as the kind that has the right exit code."""
    if isinstance(error, MigrationCancelled | NotConverging) and safe:
        return type(error)(message, hint=error.hint, host=error.host)
    code = error.code if not isinstance(error, MigrationError) or error.code != "cancelled" else None
    return MigrationFailed(message, safe_at_source=safe, code=code, stderr=stderr, hint=error.hint, host=error.host)
