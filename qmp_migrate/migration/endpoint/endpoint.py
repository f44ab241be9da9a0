"""One side of a migration: a host, the QEMU on it, and the monitor between them. Asks, and never guesses.

`Side.observe` is the only place where "dead", "alive" and "unknown" are told apart: a QEMU that answers is alive, a
process that is proven gone (pid, start time, boot id, from that host) is dead, and everything else is unknown
(DESIGN rule 5).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Final

from qmp_migrate.errors import (
    ChannelRefused,
    Fenced,
    MonitorBusy,
    MonitorError,
    MonitorLost,
    MonitorTimeout,
    QmpMigrateError,
    RemoteError,
    TransportError,
)
from qmp_migrate.hosts import Host
from qmp_migrate.hosts.process import LAUNCH_S, ProcessId, is_alive, kill, kill_closed
from qmp_migrate.qemu.migration import MigrationInfo, query, run_status
from qmp_migrate.qemu.monitor import Event, Monitor
from qmp_migrate.qemu.timeouts import HUNG_END_S
from qmp_migrate.settings import HostSettings

OBSERVE_S: Final = 2.0
"""How long one question to a QEMU may take before its state counts as unknown for now."""

LOOK_S: Final = 8.0
"""How long a whole look may take, connecting to the host included."""

LAST_WORDS_S: Final = 2.0
"""How long the last words of a QEMU that is proven gone may take to arrive."""

LOG_TAIL_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Observation:
    """What one look at a QEMU gave.

    Attributes:
        alive: True/False with proof; None: unknown.
        run_state: ``query-status``; None: no answer.
        info: ``query-migrate``; None: no answer.
        problem: Why something is unknown, for people.
    """

    alive: bool | None
    run_state: str | None = None
    info: MigrationInfo | None = None
    problem: str = ""

    @property
    def status(self) -> str | None:
        """``query-migrate`` status, None when there was no answer."""
        return self.info.status if self.info else None

    def __str__(self) -> str:
        if self.alive is False:
            return "proven gone"
        if self.run_state is None:
            return f"alive, but does not answer ({self.problem})" if self.alive else f"unknown ({self.problem})"
        return f"{self.run_state}, migration {self.status}"


GONE: Final = Observation(alive=False)


@dataclass(slots=True)
class Side:
    """A host and the guest's QEMU there.

    Attributes:
        host: The connection to the host.
        settings: The host's settings.
        vm: The guest's name.
        process: The QEMU's identity; None: none was started there.
        monitor: The monitor in use; None before `attach`.
        unidentified: Why nobody can say whether there is a QEMU, and which; ``""``: `process` tells.
        fenced: A person vouches that this host is switched off: nothing runs there any more, and nothing is asked.
    """

    host: Host
    settings: HostSettings
    vm: str
    process: ProcessId | None = None
    monitor: Monitor | None = None
    unidentified: str = ""
    fenced: bool = False
    _attaching: asyncio.Lock = field(default_factory=asyncio.Lock)
    _shutdown: Event | None = None

    @property
    def name(self) -> str:
        """The host's name."""
        return self.host.name

    @property
    def directory(self) -> str:
        """``RUN_DIR/NAME`` on the host."""
        return f"{self.settings.run_dir}/{self.vm}"

    @property
    def migration_address(self) -> str:
        """Where guest memory is sent to when it goes to this host."""
        return (self.settings.migration_address or self.settings.address).strip("[]")

    @property
    def launch_limit_s(self) -> float:
        """How many seconds a QEMU may take to start on this host."""
        return LAUNCH_S * self.settings.time_factor

    @property
    def migration_listen(self) -> str:
        """What QEMU binds to on this host to receive guest memory."""
        return (self.settings.migration_listen or self.migration_address).strip("[]")

    async def attach(self) -> Monitor:
        """Return the monitor; connect it where there is none or it was lost.

        Raises:
            MonitorBusy: Another client holds it.
            MonitorError, TransportError: It cannot be reached.
        """
        async with self._attaching:
            if self.monitor is not None and not self.monitor.closed.is_set():
                return self.monitor
            if self.monitor is not None:
                await self.monitor.close()
                self._shutdown = self.monitor.shutdown or self._shutdown
            await self.host.connect()
            try:
                self.monitor = await self._connect()
            except MonitorLost:
                # A QEMU that is just starting may send an event before its greeting: once more, and it greets.
                self.monitor = await self._connect()
            return self.monitor

    async def _connect(self) -> Monitor:
        sock = await self.host.open_unix(f"{self.directory}/qmp.sock")
        label = f"{self.vm}@{self.name}"
        return await Monitor.connect(sock, label=label, host=self.name, time_factor=self.settings.time_factor)

    async def detach(self) -> None:
        """Close the monitor; the QEMU goes on."""
        monitor, self.monitor = self.monitor, None
        if monitor is not None:
            await monitor.close()
            self._shutdown = monitor.shutdown or self._shutdown

    async def last_words(self) -> Event | None:
        """Return the ``SHUTDOWN`` event by which a QEMU that is proven gone has said why; None where nobody heard one.

        What it said may come after the proof: they take different ways.
        """
        if self.monitor is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self.monitor.closed.wait()
            self._shutdown = self.monitor.shutdown or self._shutdown
        return self._shutdown

    async def observe(self) -> Observation:
        """Look at the QEMU now. Never raises: what cannot be learnt is unknown, with the reason."""
        if self.fenced:
            return GONE
        if self.process is None:
            return Observation(None, problem=self.unidentified) if self.unidentified else GONE
        limit = LOOK_S * self.settings.time_factor
        try:
            async with asyncio.timeout(limit):
                return await self._observe()
        except TimeoutError:
            return Observation(None, problem=f"{self.name} gave no answer within {limit:g} s")

    async def _observe(self) -> Observation:
        problem = ""
        for _attempt in range(2):
            try:
                monitor = await self.attach()
                # In this order: a switchover between the two must not read as a source that was completed and runs.
                info, status = await asyncio.gather(
                    query(monitor, timeout=OBSERVE_S), run_status(monitor, timeout=OBSERVE_S)
                )
                return Observation(True, status.status, info)
            except (MonitorTimeout, MonitorBusy) as error:
                if self.hangs_at_its_end:
                    return await self._end_hung(str(error))
                return Observation(await self._alive(), problem=str(error))
            except (MonitorLost, ChannelRefused) as error:
                problem = str(error)
                alive = await self._alive()
                if alive is not True:
                    return Observation(alive, problem=problem)
            except (TransportError, MonitorError, OSError) as error:
                problem = str(error)
        return Observation(await self._alive(), problem=problem)

    @property
    def hangs_at_its_end(self) -> bool:
        """Whether a QEMU that did not answer now said ``SHUTDOWN`` long ago: see `qemu.timeouts.ENDING_S`.

        Its guest has ended. That its disks are closed does not follow: writing to slow storage looks the same.
        """
        if self.monitor is None or self.monitor.closed.is_set() or self.monitor.shutdown is None:
            return False
        return time.monotonic() - self.monitor.shutdown.at > HUNG_END_S * self.settings.time_factor

    async def _end_hung(self, problem: str) -> Observation:
        try:
            held = await self.end_hung()
        except QmpMigrateError:
            return Observation(await self._alive(), problem=problem)
        return Observation(True, problem=f"its guest has ended; it holds {held} open") if held else GONE

    async def _alive(self) -> bool | None:
        if self.process is None:
            return False
        try:
            await self.host.connect()
            return await is_alive(self.host, self.process)
        except (TransportError, RemoteError):
            return None

    async def kill(self) -> bool:
        """End the QEMU and prove that it is gone.

        Returns:
            True with proof; False where it could not be proven.

        Raises:
            Fenced: The host refused: another controller has taken the guest over.
        """
        await self.detach()
        if self.process is None or self.fenced:
            return not self.unidentified or self.fenced
        try:
            await self.host.connect()
            return await kill(self.host, self.process)
        except Fenced:
            raise
        except QmpMigrateError:
            return False

    async def end_hung(self) -> str:
        """End a QEMU that `hangs_at_its_end`, where it has closed its images.

        Returns:
            ``""`` with the proof that it is gone; else what keeps it: see `hosts.process.kill_closed`.

        Raises:
            Fenced: The host refused: another controller has taken the guest over.
            TransportError, RemoteError: The outcome is unknown.
        """
        if self.process is None:
            return ""
        await self.host.connect()
        held = await kill_closed(self.host, self.process)
        if not held:
            await self.detach()
        return held

    async def stderr_tail(self) -> str:
        """Return the end of what QEMU wrote to its standard error, ``""`` where it cannot be read."""
        with contextlib.suppress(QmpMigrateError):
            data = await self.host.read_file(f"{self.directory}/qemu.log")
            return data[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip()
        return ""
