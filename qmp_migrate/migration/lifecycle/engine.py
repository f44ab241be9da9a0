"""The way forward of one migration (DESIGN §5): each step is written down, done, and its result written down.

The engine holds no opinion of its own on who owns the guest: going forward it follows QEMU's proven states, and whenever
something fails it hands over to `completion.back`, which acts on `decision.decide` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import structlog

from qmp_migrate.errors import (
    ConnectionLost,
    Fenced,
    MigrationCancelled,
    MigrationFailed,
    MonitorLost,
    QmpCommandFailed,
    QmpMigrateError,
    TransportError,
)
from qmp_migrate.hosts.process import identify, launch
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.migration.lifecycle import completion, delegation, disk_phase, postcopy, reconciliation
from qmp_migrate.migration.lifecycle.context import Course
from qmp_migrate.migration.lifecycle.hooks import Point
from qmp_migrate.migration.lifecycle.tuning import Tuner
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.migration.ownership.decision import Action, Goal
from qmp_migrate.migration.precopy.runner import CancelRequested, Copying
from qmp_migrate.migration.transport import launch_check, setup
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.qemu.states import ENDED_BY_GUEST

CANCEL_POLL_S: Final = 0.25
VERIFY_RUNNING_S: Final = 10.0
RECONNECT_S: Final = 15.0
"""How long a control connection that is lost while memory is copied may take to come back."""

RECONNECT_PAUSE_S: Final = 0.5


@dataclass(slots=True)
class Engine:
    """One migration under way. Made after preflight; `run` drives it to its end.

    Attributes:
        course: The migration; its source's process and monitor are known, nothing is started at the destination yet.
        argv: The destination's command line, derived and checked by preflight.
        cancel: Set it to cancel; obeyed until the commit.
        error: What went wrong, once it has ended; None: the guest runs at the destination.
    """

    course: Course
    argv: tuple[str, ...]
    cancel: asyncio.Event
    error: QmpMigrateError | None = None
    _settled_as: reconciliation.Settled | None = None

    async def run(self) -> None:
        """Drive the migration to its end; `error` then tells whether the guest runs at the destination.

        Raises:
            asyncio.CancelledError: The caller was cancelled; the guest was brought to a proven state first.
        """
        task = asyncio.create_task(self._run(), name=f"migration {self.course.request.id}")
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            self.cancel.set()
            await asyncio.shield(task)
            raise

    async def adopt(self) -> None:
        """Drive on what runs in QEMU already; the guest's locks are held. `error` is then as after `run`."""
        async with self._cancel_watched():
            self.error = await self._settled(self._drive_on())

    async def _run(self) -> None:
        course = self.course
        structlog.contextvars.bind_contextvars(migration=course.request.id, vm=course.request.vm)
        try:
            async with self._locked(), self._cancel_watched():
                self.error = await self._settled(self._drive())
        except Fenced as failure:
            self.error = completion.gave_way(course, failure)
        except QmpMigrateError as failure:  # before anything was launched, or the journal failed
            self.error = failure
            if not course.chronicle.ended:
                await course.chronicle.end(Phase.ROLLED_BACK, "failed", "source", failure)

    async def _settled(self, way: Coroutine[Any, Any, None]) -> QmpMigrateError | None:
        """Go a way; on any failure settle, but do nothing more where another controller has the guest."""
        course = self.course
        try:
            try:
                await way
            except CancelRequested:
                cancelled = MigrationCancelled("the migration was cancelled", hint=None, host=course.source.name)
                return await completion.back(course, cancelled)
            except Fenced:
                raise
            except QmpMigrateError as error:
                return await completion.back(course, error, settled=self._settled_as)
            return await completion.finish(course)
        except Fenced as error:
            return completion.gave_way(course, error)

    # -- the way forward ------------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        await self.course.hooks.run(Point.BEFORE, self.course)
        self._checkpoint()
        await disk_phase.make_images(self.course)
        await self._launch()
        await self._wire()
        await self._mirror_disks()
        await self._copy_and_commit(adopt=False)

    async def _drive_on(self) -> None:
        await self._copy_and_commit(adopt=True)

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        course = self.course
        if self.cancel.is_set():
            raise MigrationCancelled("the migration was cancelled before it began", host=course.source.name)
        await course.chronicle.intent("lock")
        taken = await guest_locks.take(course.source, course.destination, f"migration {course.request.id}")
        async with course.holding(taken) as lock:
            await course.chronicle.enter(Phase.LOCKED, epoch=lock.epoch)
            yield

    @contextlib.asynccontextmanager
    async def _cancel_watched(self) -> AsyncIterator[None]:
        """Obey ``qmp-migrate cancel`` and ``tune`` of another process: it writes its wish into the journal."""
        chronicle = self.course.chronicle

        async def watch() -> None:
            while not self.cancel.is_set():
                copying = self.course.copying
                if copying is None or copying.timeline.switching is None:  # nothing of ours between STOP and RESUME
                    with contextlib.suppress(QmpMigrateError):
                        if await chronicle.journal.cancel_requested(self.course.request.id):
                            self.cancel.set()
                await asyncio.sleep(CANCEL_POLL_S)

        tasks = [asyncio.create_task(watch()), asyncio.create_task(Tuner(self.course).watch())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _checkpoint(self) -> None:
        if self.cancel.is_set():
            raise CancelRequested

    async def _launch(self) -> None:
        self._checkpoint()
        side, chronicle = self.course.destination, self.course.chronicle
        await chronicle.intent("launch-destination", host=side.name, argv=list(self.argv))
        try:
            side.process = await launch(
                side.host, directory=side.directory, argv=self.argv, timeout=side.launch_limit_s
            )
        except ConnectionLost:
            # Unknown whether it runs: find out before anything else.
            await side.host.connect()
            side.process = await identify(side.host, side.directory)
            if side.process is None:
                raise
        chronicle.did("launch-destination", process=side.process.words)
        await chronicle.enter(Phase.DESTINATION_LAUNCHED)

    async def _wire(self) -> None:
        course = self.course
        self._checkpoint()
        try:
            await asyncio.gather(
                setup.survey(course.source, course.destination, course.wires),
                launch_check.see(course.destination, self.argv),
            )
            await course.chronicle.intent(
                "wire",
                encrypt=course.request.encrypt,
                transport=course.profile.written,
                source_parameters=course.wires.source_parameters,
                destination_parameters=course.wires.destination_parameters,
            )
            await setup.wire(
                course.source,
                course.destination,
                course.request,
                course.profile,
                course.wires,
                one_pass=course.one_pass,
            )
        except QmpMigrateError as error:
            raise await course.with_stderr(error) from error
        course.chronicle.result.encrypted = course.wires.credentials is not None
        course.chronicle.did("wire", port=course.wires.port, encrypted=course.chronicle.result.encrypted)
        await course.chronicle.enter(Phase.WIRED)
        self._checkpoint()

    async def _mirror_disks(self) -> None:
        course = self.course
        try:
            await disk_phase.begin(course, self.cancel)
        except QmpMigrateError as error:
            raise await course.with_stderr(error) from error
        while True:
            try:
                await disk_phase.until_in_step(course, self.cancel)
                return
            except (MonitorLost, TransportError) as error:
                if not await self._reconnected(error):
                    raise

    async def _copy_and_commit(self, *, adopt: bool) -> None:
        """Copy, hand over, and see it run; a control connection that is lost while memory is copied may come back."""
        course = self.course
        copying = course.copying = Copying(
            source=course.source,
            destination=course.destination,
            request=course.request,
            one_pass=course.one_pass,
            cancel=self.cancel,
            on_progress=course.chronicle.reporter.progress,
            on_step=lambda reason: course.chronicle.event("step", reason=reason),
            on_near_end=course.arm,
            on_stopped=course.arm,
            on_held=self._held,
            meter=course.meter,
            on_stop=course.will_stop,
            on_postcopy=course.will_start_postcopy,
            on_postcopy_refused=course.no_postcopy,
            on_cancel_refused=self._refuse_cancel,
            asked_for_postcopy=course.postcopy,
            suspended=course.stopped_by_us,
            can_postcopy=course.profile.postcopy,
            can_throttle=course.wires.throttle,
            dirty_ring=course.profile.dirty_ring,
        )
        while True:
            try:
                async with copying.watching():
                    if not adopt:
                        await self._begin(copying)
                    await self._copy_once(copying, adopt=adopt)
                return
            except (MonitorLost, TransportError) as error:
                if course.cont_sent or course.chronicle.phase is not Phase.COPYING:
                    raise
                if not await self._reconnected(error):
                    raise
                adopt = True

    async def _begin(self, copying: Copying) -> None:
        course = self.course
        await self._look_again()
        if delegation.wanted(course):
            await delegation.give(course)
            course.mandated = True
        await course.chronicle.intent(
            "migrate",
            address=course.destination.migration_address,
            port=course.wires.port,
            running=course.running,
            one_pass=course.one_pass,
        )
        await course.chronicle.enter(Phase.COPYING)
        if course.request.mode == "offline" and course.running:
            await copying.stop_guest("stopped, so that its memory travels at full speed (--mode offline)")

    async def _copy_once(self, copying: Copying, *, adopt: bool) -> None:
        course = self.course
        keys = asyncio.create_task(self._remove_keys_when_used(copying))
        try:
            async with disk_phase.watched(course, copying):
                await copying.run(course.destination.migration_address, course.wires.port, adopt=adopt)
            if copying.timeline.postcopy is not None and copying.timeline.completed is None:
                await self._go_on_in_postcopy(copying)
            else:
                await self._commit(copying)
        finally:
            if not copying.connected.is_set():
                keys.cancel()
            await asyncio.gather(keys, return_exceptions=True)

    async def _reconnected(self, error: QmpMigrateError) -> bool:
        """Wait for a lost control connection; QEMU copies on meanwhile.

        Returns:
            True once both QEMUs answer again and the locks are held; False where one of them has ended, or it takes too long.

        Raises:
            Fenced: Another controller has taken the guest meanwhile.
        """
        course = self.course
        deadline = time.monotonic() + RECONNECT_S
        told = False
        what = "memory was" if course.chronicle.phase is Phase.COPYING else "disks were"
        while time.monotonic() < deadline and not self.cancel.is_set():
            # The locks first: that ends what is left of the old connection, which would keep the monitors busy.
            ours = await self._ours_again()
            of_source, of_destination = await asyncio.gather(course.source.observe(), course.destination.observe())
            copying = course.chronicle.phase is Phase.COPYING
            if of_source.alive is False or of_destination.alive is False or (copying and of_source.status == "none"):
                return False  # "none": `migrate` was lost with the connection
            if not told:
                told = True
                course.chronicle.warn(f"the control connection was lost while {what} copied: {error.message}")
            if ours and of_source.run_state is not None and of_destination.run_state is not None:
                course.chronicle.event("step", reason="the control connection is back; the copying goes on")
                return True
            await asyncio.sleep(RECONNECT_PAUSE_S)
        return False

    async def _ours_again(self) -> bool:
        try:
            await self.course.still_ours()
        except MigrationFailed:
            return False
        return True

    async def _look_again(self) -> None:
        """See whether the guest is still what preflight saw; from here on events tell of every change."""
        source = self.course.source
        status = await qmp.run_status(await source.attach())
        if status.status in ENDED_BY_GUEST:
            raise MigrationFailed(
                f"the guest is {status.status} now; it is left at the source as it is",
                safe_at_source=False,
                code="guest_panicked" if status.status == "guest-panicked" else "guest_shutdown",
                hint="look at its serial log, dump it, or reset it there",
                host=source.name,
            )
        self.course.running = status.running

    async def _remove_keys_when_used(self, copying: Copying) -> None:
        if self.course.profile.postcopy:
            return  # a connection that is lost is replaced by a new one, with a new handshake
        await copying.connected.wait()
        # Not in the way of a switchover that is only milliseconds away: a small guest is copied in less than one poll.
        if copying.timeline.switching is None:
            self.course.chronicle.result.warnings += await setup.remove_keys(self.course.wires)

    # -- the hand-over --------------------------------------------------------------------------------------------

    async def _held(self) -> None:
        """The source waits at pre-switchover: prove once more that it may be let go on."""
        course = self.course
        if not course.postcopy:
            course.chronicle.pass_through(Phase.PRE_SWITCHOVER)
        await course.hooks.run(Point.PRE_SWITCHOVER, course)  # before the proofs: it takes time
        await course.be_armed()
        await course.still_ours()
        self._checkpoint_held()
        status = await qmp.run_status(await course.destination.attach())
        if status.status != "inmigrate":
            raise MigrationFailed(
                f"the destination is {status.status} before the switchover, and should wait for it",
                safe_at_source=True,
                code="unexpected_state",
                host=course.destination.name,
            )
        await disk_phase.prove(course)

    def _checkpoint_held(self) -> None:
        if self.course.postcopy:
            return
        if self.cancel.is_set():
            raise MigrationCancelled("the migration was cancelled", host=self.course.source.name)

    async def _commit(self, copying: Copying) -> None:
        """The hand-over: the source is proven completed, the destination loaded. One command, then look."""
        course = self.course
        await course.be_armed()
        if not course.postcopy:
            self._checkpoint()
        await course.still_ours()
        monitor = await course.destination.attach()
        course.chronicle.lenient = (
            True  # from here on the guest may be the destination's, whatever the journal can take
        )
        if course.running:
            course.cont_sent = True
            try:
                await monitor.execute("cont")
            except QmpCommandFailed as error:
                course.cont_refused = True
                raise await course.with_stderr(error) from error
            except MonitorLost as error:
                course.cont_refused = not error.sent
                raise
        course.chronicle.pass_through(Phase.SWITCHING)
        await course.chronicle.enter(Phase.COMMITTED)
        course.chronicle.event("switchover", blackout_ms=copying.timeline.blackout_ms)
        course.chronicle.event("committed", owner="destination")
        await self._verify(copying)

    async def _go_on_in_postcopy(self, copying: Copying) -> None:
        """The guest's devices travel: continue it there, and follow until all of its memory is there, too."""
        course = self.course
        if course.chronicle.phase is not Phase.POSTCOPY:  # another controller died while it wrote that down
            await course.chronicle.enter(Phase.POSTCOPY)
        tasks = [asyncio.create_task(self._refuse_cancels())]
        try:
            await postcopy.hand_over(course)
            if course.continued:  # it runs there: its network is to follow, before its memory does
                tasks.append(asyncio.create_task(completion.after_commit(course)))
            settled = await reconciliation.settle(course, goal=Goal.FORWARD)
            await asyncio.gather(*tasks[1:])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if settled.action is not Action.RELEASE_SOURCE:
            self._settled_as = settled
            raise MigrationFailed(
                f"post-copy has not come to its end: {settled.reason}",
                safe_at_source=False,
                code="postcopy_failed",
                host=course.destination.name,
            )
        await self._verify(copying)

    async def _refuse_cancels(self) -> None:
        await self.cancel.wait()
        self._refuse_cancel()

    def _refuse_cancel(self) -> None:
        self.course.chronicle.warn(
            "the cancel is refused: post-copy has begun, and the guest's memory is on both hosts; it goes on to "
            f"{self.course.destination.name}"
        )

    async def _verify(self, copying: Copying) -> None:
        """Believe nothing: the destination's own word that it runs, then the announcement of its addresses."""
        course = self.course
        deadline = time.monotonic() + VERIFY_RUNNING_S
        while True:
            status = await qmp.run_status(await course.destination.attach())
            if status.running or not course.running:
                break
            if status.status in {"shutdown", "guest-panicked", "io-error", "internal-error", "suspended"}:
                course.chronicle.warn(f"the guest is {status.status} at the destination")
                break
            if time.monotonic() > deadline:
                raise MigrationFailed(
                    f"the destination took the guest but does not run it: {status.status}",
                    safe_at_source=False,
                    code="not_running",
                    hint="look at its storage and its qemu.log, then send `cont` to its monitor",
                    host=course.destination.name,
                )
            await asyncio.sleep(0.02)
        if copying.timeline.resumed is None and course.running:
            # The event comes on the same connection before the answer above, so it is only waiting to be read.
            await asyncio.sleep(0)
        with course.chronicle.tolerate("the guest's network addresses were not announced again"):
            await qmp.announce(await course.destination.attach(), *course.request.announce)
        await course.chronicle.enter(Phase.RUNNING_AT_DESTINATION)
