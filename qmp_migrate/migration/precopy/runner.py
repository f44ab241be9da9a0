"""From ``migrate`` to the source's ``completed``: events for transitions, ``query-migrate`` for numbers.

Both monitors' events and the poll's answers go through one queue, in order of arrival, so that nothing here ever waits
for a QEMU whose main loop is busy switching. Polling is at 4 Hz, ten times as fast when the end is near, and slow once
the guest is stopped: between STOP and RESUME there is one thing of ours, the ``cont``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from qmp_migrate.errors import (
    JournalError,
    MigrationFailed,
    MonitorError,
    MonitorLost,
    NotConverging,
    QmpCommandFailed,
    QmpMigrateError,
)
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.model.progress import ProgressMeter
from qmp_migrate.migration.model.reporter import Progress
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.model.switchover_timeline import Timeline
from qmp_migrate.migration.model.watchdog import Watchdog
from qmp_migrate.migration.precopy import failures
from qmp_migrate.migration.precopy.pass_counter import PassCounter
from qmp_migrate.migration.precopy.policy_runner import Steering
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.qemu import states
from qmp_migrate.qemu.migration import MigrationInfo, RunStatus
from qmp_migrate.qemu.monitor import Event, Monitor

POLL_S: Final = 0.25
NEAR_END_POLL_S: Final = 0.025
STOPPED_POLL_S: Final = 2.0
REASON_S: Final = 2.0
WATCH_S: Final = 0.25
"""How often the watchdog looks."""

NEAR_END_S: Final = 0.5
"""What is left takes less than this: poll faster, and make the journal ready for the commit."""

STOPPED_FOR_SWITCHOVER: Final = frozenset({"finish-migrate", "postmigrate"})

EVENTS: Final = ("MIGRATION", "MIGRATION_PASS", "STOP", "RESUME", "SHUTDOWN", "RESET", "GUEST_PANICKED")


class CancelRequested(Exception):
    """Somebody asked for a cancel; the engine rolls back."""


@dataclass(slots=True)
class Copying:
    """One run of the passes.

    Attributes:
        one_pass: The source loses writes in a second pass (`features.loses_writes`): the limit starts where the user
            allows it, so that QEMU stops the guest after the first pass, and a second one fails the migration.
        timeline: What happened when.
        last: The latest ``query-migrate`` of the source that had numbers.
        on_stop: Awaited before the guest is stopped by `stop_guest`, with the reason: writes it down.
        on_postcopy: Awaited before post-copy is asked for, with the reason: writes it down.
        on_postcopy_refused: Awaited when QEMU has refused it.
        on_cancel_refused: Called when a cancel comes after that.
        asked_for_postcopy: It was asked for, or is about to be: no cancel is obeyed any more (DESIGN rule 6).
        suspended: The guest was stopped by us, or is about to be.
        meter: Makes the reports; None: one of its own.
        on_held: Awaited at pre-switchover (`MigrationRequest.pauses`), before the source is let go on; it raises where the
            hand-over must not go on.
        can_postcopy, can_throttle, dirty_ring: What the two QEMUs were wired for; see `Steering`.
        steering: The policy at work.
        connected: Set when the first bytes have travelled: connection and handshake are done.
        steps: What the convergence policy did, with reasons.
        counter: Counts the passes where post-copy may follow; else QEMU's count is right.
    """

    source: Side
    destination: Side
    request: MigrationRequest
    one_pass: bool
    cancel: asyncio.Event
    on_progress: Callable[[Progress], None]
    on_step: Callable[[str], None]
    on_near_end: Callable[[], None]
    on_stopped: Callable[[], None]
    on_held: Callable[[], Awaitable[None]]
    on_stop: Callable[[str], Awaitable[None]]
    on_postcopy: Callable[[str], Awaitable[None]]
    on_postcopy_refused: Callable[[], Awaitable[None]]
    on_cancel_refused: Callable[[], None]
    suspended: bool = False
    meter: ProgressMeter | None = None
    can_postcopy: bool = False
    can_throttle: bool = False
    dirty_ring: int = 0
    asked_for_postcopy: bool = False
    timeline: Timeline = field(default_factory=Timeline)
    last: MigrationInfo = field(default_factory=MigrationInfo)
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    steps: list[str] = field(default_factory=list)
    steering: Steering = field(init=False)
    counter: PassCounter | None = None
    _ended: str | None = None
    _pass: int = 0
    _turning: asyncio.Task[None] | None = None
    _letting_go: asyncio.Task[None] | None = None
    _pass_began: asyncio.Event = field(default_factory=asyncio.Event)
    _queue: asyncio.Queue[tuple[str, Any]] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        if self.can_postcopy:
            self.counter = PassCounter()
        self.steering = Steering(
            self.source,
            self.request,
            tell=self._tell,
            failed=lambda error: self._queue.put_nowait(("source", error)),
            to_postcopy=self.start_postcopy if self.can_postcopy else None,
            stop_guest=self.stop_guest,
            can_throttle=self.can_throttle,
            dirty_ring=self.dirty_ring,
        )

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Listen to both monitors; opened before ``migrate`` is sent, closed after the destination runs."""
        source, destination = await self.source.attach(), await self.destination.attach()
        self._queue = asyncio.Queue()  # after a lost connection: what the old one said is old
        with source.events(*EVENTS) as of_source, destination.events(*EVENTS) as of_destination:
            tasks = [
                asyncio.create_task(self._forward("source", of_source)),
                asyncio.create_task(self._forward("destination", of_destination)),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, side: str, stream: AsyncIterator[Event]) -> None:
        async for event in stream:
            if side == "destination" and event.name == "RESUME":
                self.timeline.resumed = event.at
            elif side == "source" and event.name == "STOP" and self.asked_for_postcopy:
                self.timeline.stopped = event.at  # 7.2: after `postcopy-active`, where `run` has ended already
            self._queue.put_nowait((side, event))
        self._queue.put_nowait((side, None))

    async def run(self, address: str, port: int, *, adopt: bool = False) -> None:
        """Start the migration; return when the source is ``completed`` and the destination has loaded.

        Or when the source is ``postcopy-active`` (`Timeline.postcopy`): then the destination has, or gets, the guest's
        devices and must be continued; what memory it lacks follows.

        Args:
            address: Where the source finds the destination.
            port: Its port.
            adopt: It was started already, by another controller or before the connection was lost: only drive it on.

        Raises:
            CancelRequested: The guest may still run on at the source.
            MigrationFailed: QEMU gave up, or the guest ended itself.
            NotConverging: The policy gave up.
            MonitorLost: A monitor is gone: the state is unknown until both sides are asked again.
        """
        source = await self.source.attach()
        if not adopt:
            self.steering.start(one_pass=self.one_pass)
            self.timeline.started = time.monotonic()
            await qmp.start(source, address, port)
        self.timeline.started = self.timeline.started or time.monotonic()
        meter = self.meter or ProgressMeter(self.request.id)
        if self.asked_for_postcopy:  # by another controller, which may not have come to send it: it may be sent twice
            self._turning = asyncio.create_task(self._ask_again())
        tasks = [
            asyncio.create_task(self._poll(source, adopt=adopt)),
            asyncio.create_task(self._await_cancel()),
            asyncio.create_task(self._watch(address, port)),
        ]
        try:
            while not self._handed_over:
                origin, item = await self._queue.get()
                if origin == "cancel":
                    if not self.asked_for_postcopy:
                        raise CancelRequested
                    self.on_cancel_refused()
                    continue
                if isinstance(item, MigrationInfo):
                    await self._on_numbers(item, meter, source)
                elif isinstance(item, RunStatus):
                    self._on_found(item)
                elif isinstance(item, QmpMigrateError):
                    if isinstance(item, NotConverging) and self.timeline.switching is not None:
                        continue  # it has converged after all
                    raise item
                elif item is None:
                    raise failures.monitor_closed(origin, self._host(origin))
                else:
                    self._on_event(origin, item)
                if self._ended is not None:
                    raise await self._failure(source, self._ended)
        finally:
            tasks += [task for task in (self._letting_go, self._turning) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, self.steering.end(), return_exceptions=True)

    def fail(self, failure: QmpMigrateError) -> None:
        """Have `run` end with a failure that somebody else has seen. Returns at once."""
        self._queue.put_nowait(("source", failure))

    @property
    def _handed_over(self) -> bool:
        both = self.timeline.completed is not None and self.timeline.loaded is not None
        return both or (self.timeline.postcopy is not None and self.timeline.completed is None)

    async def start_postcopy(self, reason: str) -> None:
        """Ask for post-copy: the source stops the guest, and the destination runs it before all of its memory is there.

        It is written down first, since there is no way back (DESIGN rule 6). Nothing is done where QEMU switches already. It
        may be answered by an ordinary end, where what is left was small enough.

        Args:
            reason: For the journal, the user and the result.

        Raises:
            NotConverging: This QEMU has begun a second pass and has lost writes by then (`one_pass`).
            JournalError: It could not be written down; it was not asked for.
            QmpCommandFailed: QEMU has refused it; the guest runs on at the source.
            MonitorError: Whether it begins is unknown.
        """
        if self.asked_for_postcopy or self.timeline.switching is not None:
            return
        if self.one_pass and self._pass > 1:
            raise self._second_pass()
        source = await self.source.attach()
        self.asked_for_postcopy = True  # from here on a cancel is refused
        try:
            await self.on_postcopy(reason)
        except JournalError:
            self.asked_for_postcopy = False
            raise
        self._tell(reason)
        await self._ask_for_postcopy(source)

    async def _ask_for_postcopy(self, source: Monitor) -> None:
        try:
            await source.execute("migrate-start-postcopy")
        except QmpCommandFailed:
            self.asked_for_postcopy = False
            await self.on_postcopy_refused()
            raise

    async def _ask_again(self) -> None:
        try:
            await self._ask_for_postcopy(await self.source.attach())
        except QmpMigrateError as error:
            self._queue.put_nowait(("source", error))

    def _turn_to_postcopy(self) -> None:
        """Mode post-copy: after one whole pass.

        Not at once: each page that the guest touches would have to be fetched, and it touches most of them soon. Not later:
        what it has dirtied since is what it goes on dirtying, so more passes send the same pages again for nothing.
        """
        if self.request.mode == "postcopy" and self._turning is None and self.timeline.switching is None:
            self._turning = asyncio.create_task(self._turn())

    async def _turn(self) -> None:
        try:
            await self.start_postcopy("one pass is over: the destination runs the guest, and what it lacks follows")
        except QmpMigrateError as error:
            self._queue.put_nowait(("source", error))

    async def stop_guest(self, reason: str) -> None:
        """Stop the guest, so that it dirties nothing more and its memory arrives at the rate of the link.

        It is written down first, so that every way back lets it run again. The run state travels along: the destination
        arrives paused as always, and runs after `cont`. Nothing is done where QEMU has stopped the guest itself already.

        Args:
            reason: For the journal, the user and the result.

        Raises:
            NotConverging: This QEMU has begun a second pass and has lost writes by then (`one_pass`).
            JournalError: It could not be written down; the guest was not stopped.
            MonitorError: ``stop`` failed; whether it stands still is unknown.
        """
        if self.suspended or self.timeline.switching is not None:
            return
        if self.one_pass and self._pass > 1:
            raise self._second_pass()
        await self.on_stop(reason)
        self.suspended = True  # before it is sent: the event that follows is of our making
        await (await self.source.attach()).execute("stop")
        self._tell(reason)

    async def _failure(self, source: Monitor, status: str) -> MigrationFailed:
        """Say why QEMU gave up: it tells with the state, not with the event. The rest is on the destination's stderr."""
        why = self.last.error_desc
        with contextlib.suppress(MonitorError):
            why = (await qmp.query(source, timeout=REASON_S)).error_desc or why
        return failures.given_up(status, why, self.source.name)

    def _host(self, origin: str) -> str:
        return self.source.name if origin == "source" else self.destination.name

    async def _await_cancel(self) -> None:
        await self.cancel.wait()
        self._queue.put_nowait(("cancel", None))

    async def _watch(self, address: str, port: int) -> None:
        """End what stands still."""
        watchdog = Watchdog(self.request, self.source.name, address, port, time.monotonic())
        failure: MigrationFailed | None = None
        while failure is None:
            await asyncio.sleep(WATCH_S)
            failure = watchdog.look(
                time.monotonic(),
                transferred=self.last.ram.transferred if self.last.ram else 0,
                connected=self.connected.is_set(),
                stopped=self.timeline.switching,
            )
        self._queue.put_nowait(("source", failure))

    async def _poll(self, source: Monitor, *, adopt: bool) -> None:
        """Put numbers into the queue, as often as they are of use; of an adopted one also what events told before."""
        if adopt:
            with contextlib.suppress(MonitorError):
                self._queue.put_nowait(("source", await qmp.run_status(source)))
                await self.steering.read_back()
        while True:
            try:
                info = await qmp.query(source)
            except MonitorLost:
                return  # the event stream tells
            except MonitorError as error:
                self._queue.put_nowait(("source", error))
                return
            if self.counter is not None:
                info = self.counter.read(info)
            self._queue.put_nowait(("source", info))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval(info)):
                    await self._pass_began.wait()
            self._pass_began.clear()

    def _interval(self, info: MigrationInfo) -> float:
        if self.timeline.switching is not None:
            return STOPPED_POLL_S
        ram = info.ram
        if ram and ram.throughput_bytes_per_s and ram.remaining < ram.throughput_bytes_per_s * NEAR_END_S:
            return NEAR_END_POLL_S if ram.passes <= 1 else NEAR_END_POLL_S * 2
        return min(POLL_S, self.steering.poll_s)

    def _on_event(self, origin: str, event: Event) -> None:
        if origin == "source":
            self._on_source_event(event)
        elif event.name == "MIGRATION" and event.data.get("status") == "completed":
            self.timeline.loaded = event.at
        elif event.name in {"RESUME", "SHUTDOWN"} and self.timeline.completed is None:
            raise failures.too_early(event, self.destination.name)

    def _on_source_event(self, event: Event) -> None:
        match event.name:
            case "MIGRATION":
                self._on_status(str(event.data.get("status")), event.at)
            case "MIGRATION_PASS":
                self._pass_began.set()  # what remains is known best when a pass begins
                # Pass 2 begins with the sync before STOP, pass 3 with the one after it; else memory was sent in between.
                self._pass = int(event.data.get("pass", 0))
                if self.one_pass and self._pass > 2 and self.timeline.stopped is None:
                    raise self._second_pass()
                if self._pass > 1 and self.counter is None:
                    self._turn_to_postcopy()
            case "STOP":
                self.timeline.stopped = event.at
                if not self.suspended:
                    self._switches(event.at)
            case "RESUME":
                self.timeline.stopped = self.timeline.switching = None
                self.suspended = False  # it was ours, and somebody has let it run again: it is copied like any other
            case "RESET":
                self.timeline.resets += 1
            case "SHUTDOWN" if self.timeline.completed is None:
                raise failures.ended(event, self.source.name)
            case "GUEST_PANICKED":
                raise failures.panicked(self.source.name)

    def _on_found(self, status: RunStatus) -> None:
        """Take in that the guest of an adopted migration has stopped already."""
        self.connected.set()
        now = time.monotonic()
        if self.suspended and status.running:
            self.suspended = False  # it was written down, and not done
        if status.status not in STOPPED_FOR_SWITCHOVER and not self.suspended:
            return
        if self.timeline.stopped is None:
            self.timeline.stopped, self.timeline.stop_missed = now, True
        if status.status in STOPPED_FOR_SWITCHOVER:
            self._switches(now)

    def _switches(self, at: float) -> None:
        """Note that QEMU hands the guest over."""
        if self.timeline.switching is None:
            self.connected.set()
            self.timeline.switching = at
            self.on_stopped()

    async def _let_go(self) -> None:
        """Have it proven that the hand-over may go on, and let the source go on."""
        try:
            await self.on_held()
            await (await self.source.attach()).execute("migrate-continue", {"state": "pre-switchover"})
        except QmpMigrateError as error:
            self._queue.put_nowait(("source", error))

    def _on_status(self, status: str, at: float) -> None:
        if status in {"pre-switchover", "device", "completed"} and self.suspended:
            self._switches(at)  # there is no STOP of a guest that stands still
        if status == "pre-switchover":
            if self._letting_go is None:
                self._letting_go = asyncio.create_task(self._let_go())
        elif status == "postcopy-active":
            self._switches(at)  # 7.2 says so before it stops the guest
            self.timeline.postcopy = at
        elif status == "completed":
            self.timeline.completed = at
        elif status in {"failed", "cancelled"}:
            self._ended = status

    async def _on_numbers(self, info: MigrationInfo, meter: ProgressMeter, source: Monitor) -> None:
        if info.status in states.TERMINAL:
            # The event was lost or has not come yet: the state itself counts.
            self.last = info if info.ram else self.last.model_copy(update={"error_desc": info.error_desc})
            if self.timeline.completed is None:
                self._on_status(info.status, time.monotonic())
            if self.timeline.loaded is None:
                await self._ask_destination()
            return
        if info.status in {"pre-switchover", "postcopy-active"}:
            self._on_status(info.status, time.monotonic())
        if info.ram is None or info.status in states.IDLE:
            return
        self.last = info
        if info.ram.transferred > 0:
            self.connected.set()
        if self.timeline.switching is not None:
            return
        elapsed_ms = int((time.monotonic() - self.timeline.started) * 1000)
        self.on_progress(self._with_blackout(meter.read(info, elapsed_ms=elapsed_ms)))
        left_s = info.ram.remaining / info.ram.throughput_bytes_per_s if info.ram.throughput_bytes_per_s else None
        if self.asked_for_postcopy:
            return
        if info.ram.passes > 1:
            self._turn_to_postcopy()
        if self._turning is None and (info.ram.passes > 1 or (left_s is not None and left_s < 2 * NEAR_END_S)):
            self.on_near_end()
        if self.request.mode == "live" and not self.one_pass and not self.suspended:
            self.steering.look(info, elapsed_ms)

    def _with_blackout(self, progress: Progress) -> Progress:
        """Where the guest stands still already, its blackout lasts until all is there; QEMU tells of a limit only."""
        if not self.suspended:
            return progress
        if self.timeline.stopped is None or progress.eta_ms is None:
            return replace(progress, expected_blackout_ms=None)
        so_far_ms = int((time.monotonic() - self.timeline.stopped) * 1000)
        return replace(progress, expected_blackout_ms=so_far_ms + progress.eta_ms)

    async def _ask_destination(self) -> None:
        monitor = await self.destination.attach()
        if (await qmp.query(monitor)).status == "completed":
            self.timeline.loaded = time.monotonic()

    def _second_pass(self) -> NotConverging:
        return failures.second_pass(self.last.ram, self.steering.limit_ms, self.source.name)

    def _tell(self, reason: str) -> None:
        if self.steps[-1:] == [reason]:
            return
        self.steps.append(reason)
        self.on_step(reason)
