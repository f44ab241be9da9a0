"""One guest, watched through a monitor of the agent's own.

Commands that change nothing are sent (``query-…`` and the greeting's ``qmp_capabilities``), and a single other one:
``migrate_cancel``, by the guardian (`hostagent.guardian`), in ``pre-switchover``, where the controller is gone. Every
wait has a limit, and each guest is watched by a task of its own: one that hangs holds up nobody. Events are hints (DESIGN
rule 8): they are passed on at once, but what the guest's state *is* comes from asking, after each event, after each
reconnect, and now and then. While a migrating guest switches over, nothing is asked and nothing is passed on for a moment
(`hostagent.watch.holdoff`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from functools import partial
from typing import Any, Final

import structlog

from hostagent.discovery.guests import Guest
from hostagent.guardian.guardian import Guardian
from hostagent.publisher import Publisher
from hostagent.qmp_state.replies import facts_of, migration_status_of, runstate_of
from hostagent.qmp_state.role import role_of
from hostagent.watch.holdoff import Quiet
from qmp_migrate.bus.messages.field_types import now
from qmp_migrate.bus.messages.registry import HostVm
from qmp_migrate.errors import MonitorError, MonitorTimeout, QmpCommandFailed
from qmp_migrate.qemu.monitor import Event, EventStream, Monitor
from qmp_migrate.qemu.states import under_way

QUERY_TIMEOUT_S: Final = 5.0
IDLE_QUERY_S: Final = 30.0
BUSY_QUERY_S: Final = 1.0
"""How often the state is asked for without an event: while nothing happens, and while a migration is under way."""
QUERY_PAUSE_S: Final = 0.1
"""A guest that makes many events is still asked no more often than this."""
FIRST_RETRY_S: Final = 0.2
MAX_RETRY_S: Final = 5.0
EVENTS_PER_S: Final = 100
"""Events of one guest that are passed on per second; a guest must not be able to crowd out the others."""
DULL_EVENTS: Final = frozenset({"RTC_CHANGE", "VSERPORT_CHANGE", "NIC_RX_FILTER_CHANGED", "BALLOON_CHANGE"})
"""Events that a guest causes as it likes and that say nothing about its life."""

log = structlog.get_logger("hostagent")


class GuestWatch:
    """Watches one guest until cancelled.

    Args:
        host: Name of this host.
        guest: The guest.
        publisher: Where its state and events go.
        guardian: What takes it back from a controller that is gone; ``None``: nobody does.

    Attributes:
        guest: The guest.
        shutdown_reason: What the guest's QEMU said when it shut down, or ``None``.
        monitor: The connection to it, while there is one.
    """

    def __init__(self, host: str, guest: Guest, publisher: Publisher, guardian: Guardian | None) -> None:
        self.guest = guest
        self.shutdown_reason: str | None = None
        self.monitor: Monitor | None = None
        self._publisher = publisher
        self._guardian = guardian
        self._quiet = Quiet()
        self._migration: str | None = None
        self._changes = 0
        self._arrived = not any(word in ("-incoming", "--incoming") for word in guest.argv)
        self._asked = asyncio.Event()
        self._budget = _Budget(EVENTS_PER_S)
        self._told = False
        self._state = HostVm(
            host=host,
            vm=guest.name,
            at=now(),
            monitor="waiting",
            runstate="unknown",
            role="idle",
            migration_status=None,
            uuid=None,
            vcpus=None,
            memory_bytes=None,
            qemu_version=None,
            pid=guest.pid,
            started_at=guest.started_at,
            origin="foreign" if guest.foreign else "ours",
        )

    @property
    def has_run(self) -> bool:
        """Whether the guest was seen to run here, or was started here in the first place."""
        return self._arrived

    @property
    def state(self) -> HostVm:
        """What is known of the guest."""
        return self._state

    async def run(self) -> None:
        """Watch for ever: connect, ask, listen, and again when the monitor is lost."""
        try:
            await self._run()
        finally:
            self.flush()

    def flush(self) -> None:
        """Publish at once what is held back, because nothing may follow: the guest is gone, or the agent goes."""
        self._quiet.end()

    async def _run(self) -> None:
        retry_s, said = FIRST_RETRY_S, False
        while True:
            try:
                monitor = await self._connect()
            except (MonitorError, OSError) as error:
                if retry_s > FIRST_RETRY_S:  # a QEMU that is just starting has no monitor yet
                    self._learn(monitor="waiting")
                if not said and retry_s >= 1.0:
                    said = True
                    log.warning("guest-monitor-unreachable", vm=self.guest.name, reason=str(error))
                await asyncio.sleep(retry_s)
                retry_s = min(MAX_RETRY_S, retry_s * 2)
                continue
            retry_s, said = FIRST_RETRY_S, False
            self.monitor = monitor
            try:
                await self._watch(monitor)
            finally:
                self.monitor = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(QUERY_TIMEOUT_S):
                        await monitor.close()
            await asyncio.sleep(FIRST_RETRY_S)  # a QEMU that ends closes its monitor a moment earlier
            if self.guest.alive:
                self._learn(monitor="waiting")

    async def _connect(self) -> Monitor:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(str(self.guest.monitor_path))  # at once or never: a full backlog is an error here
        except BaseException:
            sock.close()
            raise
        return await Monitor.connect(sock, label=f"{self.guest.name} (agent)", timeout=QUERY_TIMEOUT_S)

    async def _watch(self, monitor: Monitor) -> None:
        with monitor.events() as events:
            listening = asyncio.create_task(self._listen(events), name=f"events of {self.guest.name}")
            tasks = {listening, asyncio.create_task(self._ask(monitor), name=f"state of {self.guest.name}")}
            self._migrates(None)  # what was so before is not known to be so any more
            if self._guardian is not None:
                tasks.add(asyncio.create_task(self._guardian.run(monitor), name=f"guardian of {self.guest.name}"))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                if (error := task.exception()) is not None and not isinstance(error, MonitorError):
                    raise error

    # -- events -------------------------------------------------------------------------------------------------

    async def _listen(self, events: EventStream) -> None:
        async for event in events:
            self._heed(event)
            self._asked.set()
            if event.name not in DULL_EVENTS:
                self._quiet.say(partial(self._pass_on, event))

    def _heed(self, event: Event) -> None:
        if event.name == "SHUTDOWN":
            self.shutdown_reason = str(event.data.get("reason", ""))
        if event.name not in ("STOP", "RESUME", "MIGRATION"):
            return
        self._changes += 1
        if event.name == "RESUME":
            self._arrived = True
        elif event.name == "MIGRATION":
            self._migrates(migration_status_of(event.data))
        elif self._migration is not None and under_way(self._migration):
            self._quiet.begin()

    def _migrates(self, status: str | None) -> None:
        self._migration = status
        if self._guardian is not None:
            self._guardian.notice(status)

    def _pass_on(self, event: Event) -> None:
        self._publisher.qmp_event(
            self.guest.name, event.name, event.data, seconds=event.seconds, publish=self._budget.spend()
        )

    # -- state --------------------------------------------------------------------------------------------------

    async def _ask(self, monitor: Monitor) -> None:
        facts: dict[str, Any] = {}
        while True:
            await self._quiet.over()
            self._asked.clear()
            try:
                facts = facts or await self._ask_facts(monitor)
                if state := await self._ask_state(monitor):
                    self._learn(**facts, **state)
            except MonitorTimeout:
                # Unknown, not dead (rule 5): QEMU's main loop may stall for long around a switchover.
                self._learn(monitor="waiting")
            await asyncio.sleep(QUERY_PAUSE_S)
            pause = BUSY_QUERY_S if self._migration is not None and under_way(self._migration) else IDLE_QUERY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._asked.wait()

    async def _ask_facts(self, monitor: Monitor) -> dict[str, Any]:
        questions = ("query-version", "query-uuid", "query-cpus-fast", "query-memory-size-summary")
        return facts_of(*[await _query(monitor, question) for question in questions])

    async def _ask_state(self, monitor: Monitor) -> dict[str, Any] | None:
        """Ask; ``None`` where an event says that it has changed meanwhile: an answer may be older than that."""
        changes = self._changes
        runstate = runstate_of(await _query(monitor, "query-status"))
        if changes != self._changes:
            return None  # the event may have been a STOP, after which nothing is to be asked
        migration_status = migration_status_of(await _query(monitor, "query-migrate"))
        if changes != self._changes:
            return None
        self._migrates(migration_status)
        if runstate == "running":
            self._arrived = True
        return {
            "monitor": "connected",
            "runstate": runstate,
            "migration_status": migration_status,
            "role": role_of(runstate=runstate, migration_status=migration_status, arrived=self._arrived),
        }

    def _learn(self, **facts: Any) -> None:
        """Take in what was found out, and publish it if it is news.

        Nothing is published before something is known: what an agent before us said stays until then.
        """
        changed = {name: value for name, value in facts.items() if getattr(self._state, name) != value}
        if not changed and self._told:
            return
        self._state = HostVm.model_validate({**dict(self._state), **changed, "at": now()})
        self._told = True
        self._quiet.say(partial(self._publisher.guest, self._state))


async def _query(monitor: Monitor, command: str) -> object:
    """Ask; ``None`` where this QEMU does not have the command or cannot answer it now."""
    try:
        answer: object = await monitor.execute(command, timeout=QUERY_TIMEOUT_S)
    except QmpCommandFailed:
        return None
    return answer


class _Budget:
    """So many a second, with a second's worth at once."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._left = float(per_s)
        self._at = time.monotonic()

    def spend(self) -> bool:
        at = time.monotonic()
        self._left = min(self._per_s, self._left + (at - self._at) * self._per_s)
        self._at = at
        if self._left < 1:
            return False
        self._left -= 1
        return True
