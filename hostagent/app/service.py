"""The agent's main loop: guests come and go, the broker comes and goes, and the agent goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from hostagent.discovery.guests import Guest, discover
from hostagent.discovery.unmanaged import ForeignQemus, ForeignWatch
from hostagent.failover.service import Handovers
from hostagent.guardian.guardian import Guardian
from hostagent.publisher import Publisher
from hostagent.qmp_state.exit_reason import ending
from hostagent.telemetry.dirty_rate_sampler import sample
from hostagent.telemetry.host_info import QemuCatalogue, read_info
from hostagent.telemetry.load import LoadMeter
from hostagent.watch.guest_watcher import GuestWatch
from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.messages.registry import HostLoad
from qmp_migrate.bus.messages.session import package_version
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.errors import BusError, ConfigError

DISCOVER_S: Final = 0.4
"""How often RUN_DIR is looked at: a guest that comes is seen within a second, one that goes at once (pidfd)."""
LAST_WORDS_S: Final = 1.0
LAST_WORDS_LOOK_S: Final = 0.02
"""How long a QEMU that has ended is listened to, since its monitor ends, too; and how often that is looked at."""
INFO_S: Final = 60.0
FIRST_CONNECT_S: Final = 3.0
"""How long `ready` waits for the broker. It is said without one too."""
RESTART_S: Final = 1.0

log = structlog.get_logger("hostagent")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an agent is told when it starts.

    Attributes:
        host: Name of the host on the bus.
        run_dir: Where the guests' directories are.
        broker: The broker.
        topics: The topics in use.
        interval_s: Seconds between load reports.
        guardian_limit_s: Seconds without a sign of life after which a controller counts as gone; 0: nobody is guarded.
        qemus: QEMU binaries to tell about, besides those that run.
        dirty_rate_s: Seconds between two samples of each guest's dirty rate; 0: none.
        metrics: Address and port to serve metrics on; ``None``: they are not served.
        metrics_textfile: Where they are written with each load report; ``None``: nowhere.
        foreign: Tell of QEMUs, too, that something else has started.
    """

    host: str
    run_dir: Path
    broker: BrokerAddress
    topics: Topics
    interval_s: float
    guardian_limit_s: float
    qemus: tuple[str, ...] = ()
    foreign: bool = True
    dirty_rate_s: float = 0.0
    metrics: tuple[str, int] | None = None
    metrics_textfile: Path | None = None


class HostAgent:
    """One agent for one host. `run` does everything.

    Args:
        config: What it was told.

    Raises:
        InvalidName: The host name is no name.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._publisher = Publisher(config.broker, config.topics, config.host, interval_s=config.interval_s)
        self._watches: dict[str, tuple[GuestWatch | ForeignWatch, asyncio.Task[None]]] = {}
        self._foreign = ForeignQemus(config.run_dir, lambda what: log.warning("qemus-hidden", reason=what))
        self._ends = _ProcessEnds(self._look_now)
        self._handovers = Handovers(
            config.host, config.run_dir, self._publisher, config.topics, config.guardian_limit_s, self._watch_of
        )
        self._meter = LoadMeter(config.host)
        self._last_load: HostLoad | None = None
        self._metrics_failure = ""
        self._look = asyncio.Event()
        self._scan_failure = ""

    @property
    def summary(self) -> str:
        """How we are, in one line: what `systemctl status` shows, and `host setup` waits for."""
        link = "connected" if self._publisher.client.connected else "not connected"
        return f"host {self._config.host}, broker {link}, guests {len(self._watches)}"

    async def run(self, stop: asyncio.Event, *, ready: Callable[[bool], None]) -> None:
        """Serve until told to stop; then say ``stopped``, disconnect, and leave every guest as it is.

        Args:
            stop: Set it to end.
            ready: Called once, when the guests that were there are known; True if the broker is connected.
        """
        limit_s = self._config.guardian_limit_s
        log.info("guardian-on" if limit_s else "guardian-off", limit_s=limit_s)
        self._look_for_guests()
        self._publisher.client.start()
        async with self._background() as tasks, self._metrics_served():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_CONNECT_S):
                    await self._publisher.client.tried.wait()
            ready(self._publisher.client.connected)
            log.info("agent-ready", host=self._config.host, guests=sorted(self._watches), tasks=len(tasks))
            await stop.wait()
        log.info("agent-stopped", host=self._config.host)

    @contextlib.asynccontextmanager
    async def _metrics_served(self) -> AsyncIterator[None]:
        if self._config.metrics is None:
            yield
            return
        from qmp_migrate.exposition import is_loopback, serving

        address, port = self._config.metrics
        if not is_loopback(address):
            log.warning("metrics-for-everybody", address=address, port=port, hint="whoever reaches it can read them")
        async with serving(address, port, self._render_metrics):
            log.info("metrics-served", address=address, port=port)
            yield

    def _render_metrics(self) -> bytes:
        from prometheus_client import CollectorRegistry

        from hostagent.telemetry.prometheus import AgentCollector
        from qmp_migrate.exposition import text_of

        registry, client = CollectorRegistry(auto_describe=False), self._publisher.client
        collector = AgentCollector(
            package_version(),
            lambda: self._last_load,
            lambda: [watch.state for watch, _ in self._watches.values()],
            lambda: (client.connected, client.waiting, client.dropped),
            lambda: self._publisher.events,
        )
        registry.register(collector)
        return text_of(registry)

    @contextlib.asynccontextmanager
    async def _background(self) -> AsyncIterator[list[asyncio.Task[None]]]:
        loops = [self._discover, self._report_load, self._report_info, self._clear_strangers]
        if self._config.guardian_limit_s:
            loops.append(self._handovers.run)
        if self._config.dirty_rate_s:
            loops.append(self._sample_dirty_rates)
        tasks = [asyncio.create_task(self._keep_going(loop), name=loop.__name__) for loop in loops]
        try:
            yield tasks
        finally:
            everything = [*tasks, *(task for _, task in self._watches.values())]
            for task in everything:
                task.cancel()
            if everything:
                await asyncio.wait(everything, timeout=2.0)
            self._ends.close()
            await self._publisher.client.close()

    async def _keep_going(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run one of the loops for ever: a failure in one place must not make the host disappear."""
        while True:
            try:
                await loop()
            except Exception:
                log.exception("agent-task-failed", task=loop.__name__, next="it is started again")
            await asyncio.sleep(RESTART_S)

    # -- guests -------------------------------------------------------------------------------------------------

    async def _discover(self) -> None:
        while True:
            all_heard = self._look_for_guests()
            self._look.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DISCOVER_S if all_heard else LAST_WORDS_LOOK_S):
                    await self._look.wait()

    def _watch_of(self, vm: str) -> GuestWatch | None:
        found = self._watches.get(vm)
        return found[0] if found is not None and isinstance(found[0], GuestWatch) else None

    def _look_now(self) -> None:
        self._look.set()

    def _look_for_guests(self) -> bool:
        """Take in which guests have come and gone; return whether each of those that have ended was heard to its end."""
        all_heard = True
        for name, (watch, _) in list(self._watches.items()):
            if (ended_s := self._ends.ended_for(watch.guest)) is None:
                continue
            if isinstance(watch, GuestWatch) and watch.monitor is not None and ended_s < LAST_WORDS_S:
                all_heard = False  # what QEMU has said before it ended is still on its way to us
            else:
                self._remove(name)
        try:
            ours = frozenset(name for name, (watch, _) in self._watches.items() if not watch.guest.foreign)
            fresh = discover(self._config.run_dir, ours)
            self._scan_failure = ""
        except OSError as error:
            if str(error) != self._scan_failure:
                self._scan_failure = str(error)
                log.warning("run-dir-unreadable", run_dir=str(self._config.run_dir), reason=str(error))
            return all_heard
        for guest in fresh:
            self._adopted(guest)
            self._add(guest)
        if self._config.foreign:
            pids = frozenset(watch.guest.pid for watch, _ in self._watches.values())
            for guest in self._foreign.scan(pids, frozenset(self._watches)):
                self._add(guest)
        return all_heard

    def _adopted(self, guest: Guest) -> None:
        """A foreign guest has become one of ours, or gives way to one of ours with its name: it is not gone."""
        for name, (watch, task) in list(self._watches.items()):
            if watch.guest.foreign and (watch.guest.pid == guest.pid or name == guest.name):
                task.cancel()
                self._ends.remove(watch.guest)
                del self._watches[name]
                if name != guest.name:
                    self._publisher.guest_gone(name)
                self._publisher.own_event("guest-adopted", guest.name, {"pid": guest.pid})

    def _add(self, guest: Guest) -> None:
        limit_s = self._config.guardian_limit_s
        guardian = Guardian(guest, self._publisher, limit_s) if limit_s else None
        watch: GuestWatch | ForeignWatch = (
            ForeignWatch(self._config.host, guest, self._publisher)
            if guest.foreign
            else GuestWatch(self._config.host, guest, self._publisher, guardian)
        )
        task = asyncio.create_task(self._keep_going(watch.run), name=f"guest {guest.name}")
        self._watches[guest.name] = watch, task
        self._ends.add(guest)
        self._publisher.expect(guest.name)
        told = {"pid": guest.pid, "origin": "foreign" if guest.foreign else "ours"}
        self._publisher.own_event("guest-appeared", guest.name, told)
        log.info("guest-appeared", vm=guest.name, **told)

    def _remove(self, name: str) -> None:
        watch, task = self._watches.pop(name)
        task.cancel()
        watch.flush()
        self._ends.remove(watch.guest)
        told = {
            "pid": watch.guest.pid,
            "last_runstate": watch.state.runstate,
            "last_role": watch.state.role,
            "shutdown_reason": watch.shutdown_reason,
            "reason": ending(
                shutdown_reason=watch.shutdown_reason,
                role=watch.state.role,
                migration_status=watch.state.migration_status,
                watched=watch.state.monitor == "connected",
            ),
        }
        self._publisher.own_event("guest-gone", name, told)
        self._publisher.guest_gone(name)
        log.info("guest-gone", vm=name, **told)

    # -- the host -----------------------------------------------------------------------------------------------

    async def _report_load(self) -> None:
        meter = self._meter
        await asyncio.sleep(min(1.0, self._config.interval_s))  # the first one is early: nobody likes to wait
        while True:
            self._last_load = meter.read([watch.guest for watch, _ in self._watches.values()])
            self._publisher.load(self._last_load)
            self._write_metrics()
            await asyncio.sleep(self._config.interval_s)

    def _write_metrics(self) -> None:
        path = self._config.metrics_textfile
        if path is None:
            return
        from qmp_migrate.exposition import write_textfile

        try:
            write_textfile(path, self._render_metrics())
            self._metrics_failure = ""
        except ConfigError as error:
            if error.message != self._metrics_failure:
                self._metrics_failure = error.message
                log.warning("metrics-not-written", reason=error.message, hint=error.hint)

    async def _sample_dirty_rates(self) -> None:
        def ours() -> list[GuestWatch]:
            return [watch for watch, _ in self._watches.values() if isinstance(watch, GuestWatch)]

        await sample(ours, self._meter.dirty, self._config.dirty_rate_s)

    async def _report_info(self) -> None:
        catalogue, told = QemuCatalogue(), None
        while True:
            running = [watch.guest.argv[0] for watch, _ in self._watches.values()]
            qemus = await catalogue.read([*self._config.qemus, *(path for path in running if path.startswith("/"))])
            info = await asyncio.to_thread(read_info, self._config.host, qemus)
            if told is None or info.model_copy(update={"at": told.at}) != told:
                told = info
                self._publisher.info(info)
            await asyncio.sleep(INFO_S)

    async def _clear_strangers(self) -> None:
        try:
            await self._publisher.clear_strangers()
        except BusError as error:
            log.warning("stale-guests-stay", reason=error.message, hint=error.hint)
            await asyncio.Event().wait()  # a matter of the broker's access list: asking again does not help


class _ProcessEnds:
    """Notices at once when a process ends, through pidfds; by looking where the kernel has none to give."""

    def __init__(self, noticed: Callable[[], None]) -> None:
        self._noticed = noticed
        self._descriptors: dict[Guest, int] = {}
        self._ended: dict[Guest, float] = {}

    def add(self, guest: Guest) -> None:
        try:
            descriptor = os.pidfd_open(guest.pid)
        except OSError:
            return
        self._descriptors[guest] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._end, guest)
        if not guest.alive:  # it ended, and its pid may be another's, between being found and being opened
            self._end(guest)

    def ended_for(self, guest: Guest) -> float | None:
        """For how many seconds it has been known that a guest has ended; ``None``: it has not."""
        if guest not in self._ended:
            if guest in self._descriptors or guest.alive:
                return None
            self._ended[guest] = time.monotonic()
        return time.monotonic() - self._ended[guest]

    def remove(self, guest: Guest) -> None:
        self._ended.pop(guest, None)
        self._close(guest)

    def close(self) -> None:
        for guest in list(self._descriptors):
            self._close(guest)

    def _end(self, guest: Guest) -> None:
        self._ended.setdefault(guest, time.monotonic())
        self._close(guest)
        self._noticed()

    def _close(self, guest: Guest) -> None:
        descriptor = self._descriptors.pop(guest, None)
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)


def write_ready_file(path: Path, *, host: str, connected: bool) -> None:
    """Tell whoever started the agent that it serves: JSON with pid, host and whether the broker is connected.

    Raises:
        ConfigError: The file cannot be written.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    document = {"pid": os.getpid(), "host": host, "connected": connected}
    try:
        fresh.write_text(json.dumps(document) + "\n", encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write the ready file: {error}", hint="check --ready-file") from error
