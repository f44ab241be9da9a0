"""The life of one migration (DESIGN §5): each step is written down, done, and its result written down.

The engine holds no opinion of its own on who owns the guest: going forward it follows QEMU's proven states, and whenever
something fails it hands over to `rollback.settle`, which acts on `handover.decide` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

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
from qmp_migrate.hosts.process import identify, launch, wait_gone
from qmp_migrate.migration import locks, rollback, wiring
from qmp_migrate.migration.copying import CancelRequested, Copying
from qmp_migrate.migration.handover import Action, Destination, Facts, Goal, Source
from qmp_migrate.migration.journal import Journal
from qmp_migrate.migration.phases import AFTER_COMMIT, Phase, check_step
from qmp_migrate.migration.reporter import MigrationView, Reporter
from qmp_migrate.migration.request import MigrationRequest, MigrationResult, Outcome, Owner
from qmp_migrate.migration.rollback import Settled
from qmp_migrate.migration.side import Side
from qmp_migrate.migration.wiring import Wires
from qmp_migrate.qemu import migration as qmp

log = structlog.get_logger(__name__)

CANCEL_POLL_S: Final = 0.25
VERIFY_RUNNING_S: Final = 10.0
RELEASE_S: Final = 20.0
CONSOLE_LOG_BYTES: Final = 1 << 20
"""So much of a guest's serial log moves along with it, as ``serial.log.1``."""


@dataclass(slots=True)
class Engine:
    """One migration under way. Made after preflight; `run` drives it to its end.

    Attributes:
        request: What is wanted.
        source: Where the guest is; its process and monitor are known.
        destination: Where it goes; nothing is started there yet.
        argv: The destination's command line, derived and checked by preflight.
        running: The guest runs now; a paused one arrives paused.
        journal: Written before each act.
        reporter: Told of everything.
        cancel: Set it to cancel; obeyed until the commit.
        error: What went wrong, once it has ended; None: the guest runs at the destination.
    """

    request: MigrationRequest
    source: Side
    destination: Side
    argv: tuple[str, ...]
    running: bool
    journal: Journal
    reporter: Reporter
    result: MigrationResult
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    phase: Phase = Phase.PREFLIGHT
    error: QmpMigrateError | None = None
    _rev: int = 1
    _started_at: float = field(default_factory=time.time)
    _wires: Wires = field(default_factory=Wires)
    _copying: Copying | None = None
    _arming: asyncio.Task[None] | None = None
    _armed: bool = False
    _cont_sent: bool = False
    _cont_refused: bool = False

    async def run(self) -> MigrationResult:
        """Drive the migration to its end.

        Returns:
            The result; its ``error`` is None only when the guest runs at the destination and the source is released.

        Raises:
            asyncio.CancelledError: The caller was cancelled; the guest was brought to a proven state first.
        """
        task = asyncio.create_task(self._run(), name=f"migration {self.request.id}")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.cancel.set()
            await asyncio.shield(task)
            raise

    async def _run(self) -> MigrationResult:
        structlog.contextvars.bind_contextvars(migration=self.request.id, vm=self.request.vm)
        begun = time.monotonic()
        try:
            async with self._locked(), self._cancel_watched():
                self.error = await self._drive()
        except QmpMigrateError as failure:  # before anything was launched
            self.error = failure
            if self.phase not in {Phase.DONE, Phase.ROLLED_BACK, Phase.PARKED}:
                await self._end(Phase.ROLLED_BACK, "failed", "source", failure)
        self.result.total_ms = int((time.monotonic() - begun) * 1000)
        self.result.error = self.error.to_dict() if self.error else None
        await self.journal.enter(self.request.id, self.phase, result=self.result.to_dict())
        self._event("done", outcome=self.result.outcome, owner=self.result.owner)
        return self.result

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
        return await self._release()

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        self._checkpoint_quietly()
        await self.journal.intent(self.request.id, "lock")
        lock = await locks.take(self.source, self.destination, self.request.id)
        try:
            await self._enter(Phase.LOCKED, epoch=lock.epoch)
            yield
        finally:
            await lock.release()

    @contextlib.asynccontextmanager
    async def _cancel_watched(self) -> AsyncIterator[None]:
        """Obey ``qmp-migrate cancel`` of another process: it writes its wish into the journal."""

        async def watch() -> None:
            while not self.cancel.is_set():
                with contextlib.suppress(QmpMigrateError):
                    if await self.journal.cancel_requested(self.request.id):
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
        await self.journal.intent(self.request.id, "launch-destination", host=side.name, argv=list(self.argv))
        try:
            side.process = await launch(side.host, directory=side.directory, argv=self.argv)
        except ConnectionLost:
            # Unknown whether it runs: find out before anything else.
            await side.host.connect()
            side.process = await identify(side.host, side.directory)
            if side.process is None:
                raise
        self.journal.result(
            self.request.id,
            "launch-destination",
            pid=side.process.pid,
            start_time=side.process.start_time,
            boot_id=side.process.boot_id,
        )
        await self._enter(Phase.DESTINATION_LAUNCHED)

    async def _wire(self) -> None:
        self._checkpoint()
        await self.journal.intent(self.request.id, "wire", encrypt=self.request.encrypt)
        try:
            await wiring.wire(self.source, self.destination, self.request, self._wires)
        except QmpMigrateError as error:
            raise await self._with_stderr(error) from error
        self.result.encrypted = self._wires.credentials is not None
        self.journal.result(self.request.id, "wire", port=self._wires.port, encrypted=self.result.encrypted)
        await self._enter(Phase.WIRED)
        self._checkpoint()

    async def _copy_and_commit(self) -> None:
        copying = self._copying = Copying(
            source=self.source,
            destination=self.destination,
            request=self.request,
            cancel=self.cancel,
            on_progress=self.reporter.progress,
            on_step=lambda reason: self._event("step", reason=reason),
            on_near_end=self._arm,
            on_stopped=self._arm,
        )
        async with copying.watching():
            await self.journal.intent(
                self.request.id, "migrate", address=self.destination.migration_address, port=self._wires.port
            )
            await self._enter(Phase.COPYING)
            keys = asyncio.create_task(self._remove_keys_when_used(copying))
            try:
                await copying.run(self.destination.migration_address, self._wires.port)
                await self._commit(copying)
            finally:
                if not copying.connected.is_set():
                    keys.cancel()
                await asyncio.gather(keys, return_exceptions=True)

    async def _remove_keys_when_used(self, copying: Copying) -> None:
        await copying.connected.wait()
        # Not in the way of a switchover that is only milliseconds away: a small guest is copied in less than one poll.
        if copying.timeline.stopped is None:
            self.result.warnings += await wiring.remove_keys(self._wires)

    def _arm(self) -> None:
        """Begin to write the commit down, while the last pass runs: the fsync is off the blackout (rule 4)."""
        if self._arming is None:
            self._armed = True
            self._arming = asyncio.create_task(self.journal.arm_commit(self.request.id))

    async def _commit(self, copying: Copying) -> None:
        """The hand-over: the source is proven completed, the destination loaded. One command, then look."""
        self._arm()
        assert self._arming is not None
        await self._arming
        self._checkpoint()
        monitor = await self.destination.attach()
        if self.running:
            self._cont_sent = True
            try:
                await monitor.execute("cont")
            except QmpCommandFailed as error:
                self._cont_refused = True
                raise await self._with_stderr(error) from error
        self._enter_quietly(Phase.SWITCHING)
        await self._enter(Phase.COMMITTED)
        self._event("switchover", blackout_ms=copying.timeline.blackout_ms)
        self._event("committed", owner="destination")
        await self._verify(copying)

    async def _verify(self, copying: Copying) -> None:
        """Believe nothing: the destination's own word that it runs, then the announcement of its addresses."""
        deadline = time.monotonic() + VERIFY_RUNNING_S
        while True:
            status = await qmp.run_status(await self.destination.attach())
            if status.running or not self.running:
                break
            if status.status in {"shutdown", "guest-panicked", "io-error", "internal-error", "suspended"}:
                self._warn(f"the guest is {status.status} at the destination")
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
        with self._tolerated("the guest's network addresses were not announced again"):
            await qmp.announce(await self.destination.attach())
        await self._enter(Phase.RUNNING_AT_DESTINATION)

    async def _release(self) -> QmpMigrateError | None:
        """The guest runs at the destination: end the source and remove what is left of it."""
        copying = self._copying
        assert copying is not None
        with self._tolerated("the source's last numbers are missing"):
            await self._take_numbers(copying)
        await self.journal.intent(self.request.id, "release-source", host=self.source.name)
        gone = await self._end_source()
        if gone:
            with self._tolerated("the guest's serial log stayed behind"):
                await self._carry_console_log()
            self.result.warnings += await wiring.remove_keys(self._wires)
            with self._tolerated(f"{self.source.directory} on {self.source.name} could not be removed"):
                await rollback.remove_guest_directory(self.source)
        else:
            self._warn(
                f"the source QEMU on {self.source.name} could not be proven gone; it is stopped for good, and must not "
                f"be continued: end it (pid {self.source.process.pid if self.source.process else '?'})"
            )
        self.journal.result(self.request.id, "release-source", gone=gone)
        with self._tolerated("the destination's TLS key object stays until the guest ends"):
            if self._wires.credentials is not None:
                from qmp_migrate.qemu.encryption import remove_credentials

                await remove_credentials(await self.destination.attach(), self._wires.credentials)
        await self._enter(Phase.SOURCE_RELEASED)
        await self._end(Phase.DONE, "completed", "destination", None)
        return None

    async def _end_source(self) -> bool:
        assert self.source.process is not None
        try:
            with contextlib.suppress(QmpMigrateError):
                await (await self.source.attach()).execute("quit")
            await self.source.detach()
            await self.source.host.connect()
            if await wait_gone(self.source.host, self.source.process, RELEASE_S):
                return True
        except QmpMigrateError as error:
            log.warning("source-release", error=str(error))
        return await self.source.kill()

    async def _take_numbers(self, copying: Copying) -> None:
        """QEMU's own figures, asked until they are there: right after `completed` 7.2 may still say 0."""
        monitor = await self.source.attach()
        for _ in range(20):
            info = await qmp.query(monitor)
            if info.total_ms and (info.downtime_ms or not self.running):
                break
            await asyncio.sleep(0.01)
        ram = info.ram or copying.last.ram
        self.result.qemu = {"total_ms": info.total_ms, "downtime_ms": info.downtime_ms, "setup_ms": info.setup_ms}
        if ram is not None:
            self.result.ram_bytes = ram.total
            self.result.transferred_bytes = ram.transferred
            self.result.passes = ram.passes
            busy_ms = max(1, info.total_ms - info.setup_ms)
            self.result.throughput_bytes_per_s = ram.transferred * 1000 // busy_ms
        self._take_timeline(copying)

    def _take_timeline(self, copying: Copying) -> None:
        self.result.blackout_ms = copying.timeline.blackout_ms
        self.result.steps = list(copying.steps)
        if copying.timeline.resets:
            self._warn(f"the guest reset itself {copying.timeline.resets} time(s) during the migration")

    async def _carry_console_log(self) -> None:
        """Move the guest's serial output so far along with it, like a rotated log: ``serial.log.1``."""
        parts = []
        for name in ("serial.log.1", "serial.log"):
            path = f"{self.source.directory}/{name}"
            done = await self.source.host.script(
                '[ -f "$1" ] || exit 0; tail -c "$2" -- "$1"', [path, str(CONSOLE_LOG_BYTES)]
            )
            parts.append(done.stdout)
        text = b"".join(parts)[-CONSOLE_LOG_BYTES:]
        if text:
            await self.destination.host.write_file(f"{self.destination.directory}/serial.log.1", text, mode=0o600)

    # -- the way back ---------------------------------------------------------------------------------------------

    def _facts(self, patience: bool) -> Facts:
        return Facts(
            may_have_run=self._armed,
            never_ran=not self._cont_sent or self._cont_refused,
            patience=patience,
        )

    async def _back(self, error: QmpMigrateError) -> QmpMigrateError | None:
        """Something failed, or a cancel was asked for: bring the guest to one proven owner, and say which."""
        log.info("settling", because=str(error), phase=self.phase)
        if self._copying is not None:
            self._take_timeline(self._copying)
        if self._arming is not None:
            with contextlib.suppress(QmpMigrateError):
                await self._arming
        stderr = await self.destination.stderr_tail() if self.destination.process else ""
        # Once `cont` was sent and not refused, forward is the only safe way (rule 4).
        goal = Goal.FORWARD if self._cont_sent and not self._cont_refused else Goal.BACK
        if self.phase not in {Phase.LOCKED, *AFTER_COMMIT} or goal is Goal.BACK:
            await self._enter(Phase.ROLLING_BACK, strict=False)
        settled = await rollback.settle(
            self.source,
            self.destination,
            goal=goal,
            facts=self._facts,
            journal=self.journal,
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
        self.result.warnings += await wiring.unwire_source(self.source, self._wires)
        self.result.warnings += await wiring.remove_keys(self._wires)
        self.result.warnings += await rollback.discard_destination(self.destination)
        running = settled.source_state is Source.RUNS
        state = "runs on" if running else f"is {settled.source.run_state}"
        tail = f"\n{stderr}" if stderr and not isinstance(error, MigrationCancelled | LaunchFailed) else ""
        said = f"{error.message}; the guest {state} at {self.source.name}"
        if tail:
            said += f"\nthe destination's QEMU said:{tail}"
        final = _retold(error, said, safe=running or not self.running)
        outcome: Outcome = "cancelled" if isinstance(error, MigrationCancelled) else "rolled_back"
        await self._end(Phase.ROLLED_BACK, outcome, "source", final)
        self._event("rolled-back", owner="source", reason=error.message)
        return final

    async def _ended_nowhere(self, error: QmpMigrateError) -> QmpMigrateError:
        self.result.warnings += await rollback.discard_destination(self.destination)
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
        await self._end(Phase.ROLLED_BACK, "failed", "none", final)
        return final

    async def _forward_after_all(self, error: QmpMigrateError, settled: Settled) -> QmpMigrateError | None:
        """It had been handed over, or only the destination still holds it: finish there."""
        self._warn(f"went on after: {error.message}")
        if settled.action is Action.COMMIT and self.running:
            await self.journal.arm_commit(self.request.id)
            self._armed = self._cont_sent = True
            try:
                await (await self.destination.attach()).execute("cont")
            except QmpMigrateError as failure:
                return await self._parked(failure, settled)
        if self.phase not in AFTER_COMMIT:
            await self._enter(Phase.COMMITTED, strict=False)
        if self.phase is Phase.COMMITTED:
            await self._enter(Phase.RUNNING_AT_DESTINATION)
        with self._tolerated("the guest's network addresses were not announced again"):
            await qmp.announce(await self.destination.attach())
        return await self._release()

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
            await self._end(Phase.PARKED, "rolled_back", "source", final)
            return final
        final = OutcomeUnknown(
            f"{error.message}; who owns the guest cannot be proven ({settled.reason}). Known: {known}",
            hint="do nothing by hand that starts or continues a copy; when both hosts answer again, look at "
            f"`qmp-migrate status {self.request.id}`",
        )
        await self._end(Phase.PARKED, "unknown", owner, final)
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

    def _enter_quietly(self, phase: Phase) -> None:
        """Tell of a phase that lasted no longer than the blackout: no disk write of its own."""
        check_step(self.phase, phase)
        self.phase = phase
        self.journal.note(self.request.id, phase.value)

    async def _enter(self, phase: Phase, *, strict: bool = True, **columns: Any) -> None:
        if strict:
            check_step(self.phase, phase)
        self.phase = phase
        self._rev += 1
        await self.journal.enter(self.request.id, phase, **columns)
        self.reporter.phase(self.view())

    async def _end(self, phase: Phase, outcome: Outcome, owner: Owner, error: QmpMigrateError | None) -> None:
        self.result.outcome, self.result.owner = outcome, owner
        self.phase = phase
        self._rev += 1
        await self.journal.enter(self.request.id, phase, outcome=outcome, owner=owner)
        self.reporter.phase(self.view(error))

    def view(self, error: QmpMigrateError | None = None) -> MigrationView:
        """Return the migration as others see it now."""
        ended = self.phase in {Phase.DONE, Phase.ROLLED_BACK, Phase.PARKED}
        owner = "destination" if self.phase in AFTER_COMMIT else "source"
        return MigrationView(
            id=self.request.id,
            vm=self.request.vm,
            source=self.source.name,
            destination=self.destination.name,
            mode=self.request.mode,
            phase=self.phase.value,
            rev=self._rev,
            started_at=self._started_at,
            outcome=self.result.outcome if ended else None,
            owner=self.result.owner if ended else owner,
            error=error.to_dict() if error else None,
        )

    def _event(self, kind: str, **data: Any) -> None:
        payload: Mapping[str, Any] = {"id": self.request.id, "vm": self.request.vm, **data}
        self.journal.note(self.request.id, kind, **data)
        self.reporter.event(kind, payload)

    def _warn(self, text: str) -> None:
        self.result.warnings.append(text)
        self._event("warning", text=text)

    @contextlib.contextmanager
    def _tolerated(self, what: str) -> Any:
        """What fails here harms nobody: the guest is where it belongs. It becomes a warning."""
        try:
            yield
        except QmpMigrateError as error:
            self._warn(f"{what}: {error}")


def _retold(error: QmpMigrateError, message: str, *, safe: bool) -> QmpMigrateError:
    """Return the error with a message that says where the guest is now, as the kind that has the right exit code."""
    if isinstance(error, MigrationCancelled | NotConverging) and safe:
        return type(error)(message, hint=error.hint, host=error.host)
    code = error.code if not isinstance(error, MigrationError) or error.code != "cancelled" else None
    return MigrationFailed(message, safe_at_source=safe, code=code, hint=error.hint, host=error.host)
