"""QEMUs of this host that something else has started: found in ``/proc``, looked at from outside.

Their monitors belong to somebody else and serve one client at a time. So none is ever held: one is taken for a moment, with
short limits, now and then, and where it is busy that is respected. What happens in between is told by the process: that it
comes and goes is seen within a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from hostagent.discovery.guests import Guest, command_line, start_ticks
from hostagent.publisher import Publisher
from hostagent.qmp_state.replies import facts_of, migration_status_of, runstate_of
from qmp_migrate.bus.messages.field_types import now
from qmp_migrate.bus.messages.registry import HostVm
from qmp_migrate.errors import InvalidName, MonitorError, UsageError
from qmp_migrate.qemu.monitor import Monitor
from qmp_migrate.vm.commandline.chardevs import monitors
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.names import validate_name

LOOKS: Final = 4
"""How often a new process is looked at: it may still become a QEMU by its exec."""
SETTLED_S: Final = 0.4
"""A QEMU is told of once it is this old: what only answers a question (`--version`), or goes to the background with
`-daemonize`, is no guest."""
GLANCE_S: Final = 10.0
"""How often a foreign monitor is taken for a moment."""
GREETING_S: Final = 0.5
ASK_S: Final = 1.0
_PROGRAMS: Final = ("qemu-system-", "qemu-kvm")

log = structlog.get_logger("hostagent")


class ForeignQemus:
    """Finds them.

    Args:
        run_dir: Where our own guests are; what is below it is ours.
        hidden: Told once what cannot be seen.
    """

    def __init__(self, run_dir: Path, hidden: Callable[[str], None]) -> None:
        self._run_dir = run_dir
        self._hidden = hidden
        self._looks: dict[int, int] = {}
        self._said = False

    def scan(self, known_pids: frozenset[int], names: frozenset[str]) -> list[Guest]:
        """Return those that are new.

        Args:
            known_pids: QEMUs that are known already, ours and foreign.
            names: Names in use.
        """
        try:
            pids = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
        except OSError as error:
            self._say(f"/proc cannot be read: {error}")
            return []
        found: list[Guest] = []
        for pid in pids - known_pids:
            looks = self._looks.get(pid, 0)
            if looks < LOOKS and (guest := self._look(pid, names | {guest.name for guest in found})) is not None:
                if time.time() - guest.started_at.timestamp() < SETTLED_S:
                    continue  # not a look that counts
                self._looks.pop(pid, None)
                found.append(guest)
            elif looks < LOOKS:
                self._looks[pid] = looks + 1
        self._looks = {pid: looks for pid, looks in self._looks.items() if pid in pids}
        if not self._said and 1 not in pids:
            self._say("processes of other users are hidden (hidepid): their QEMUs cannot be seen")
        return found

    def _say(self, what: str) -> None:
        if not self._said:
            self._said = True
            self._hidden(what)

    def _look(self, pid: int, names: frozenset[str]) -> Guest | None:
        argv = command_line(pid)
        if not argv or not _is_qemu(argv) or any(f"{self._run_dir}/" in word for word in argv):
            return None
        try:
            ticks = start_ticks(pid)
            command = CommandLine.parse(argv)
            paths = [
                found.chardev.path
                for found in monitors(command)
                if found.mode == "control" and found.chardev.server and found.chardev.path
            ]
        except (OSError, UsageError):
            return None
        if ticks is None or command.machine == "none" or not command.options:
            return None
        own = self._absolute(pid, paths)
        name = _name(command.name, pid, names)
        return Guest(name, self._run_dir / name, pid, ticks, argv, monitors=own, foreign=True)

    def _absolute(self, pid: int, paths: list[str]) -> tuple[str, ...]:
        cwd = ""
        with contextlib.suppress(OSError):
            cwd = os.readlink(f"/proc/{pid}/cwd")
        return tuple(str(Path(cwd, path)) for path in paths if path.startswith("/") or cwd)


def _is_qemu(argv: tuple[str, ...]) -> bool:
    """Tell whether a command line is QEMU's, also one that a dynamic loader of its own has started."""
    programs = [os.path.basename(word) for word in argv[:8]]
    return programs[0] == "kvm" or any(program.startswith(_PROGRAMS) for program in programs)


def _name(given: str | None, pid: int, names: frozenset[str]) -> str:
    """Return its own name where it has one that is a name and not another's; else one after its process."""
    with contextlib.suppress(InvalidName):
        if given is not None and validate_name(given, "guest name") not in names:
            return given
    return f"qemu-{pid}"


class ForeignWatch:
    """Looks at one foreign guest from outside.

    Args:
        host: Name of this host.
        guest: The guest.
        publisher: Where its state goes.

    Attributes:
        guest: The guest.
        shutdown_reason: None: its events are not ours.
        monitor: None: it is never held.
    """

    has_run = True

    def __init__(self, host: str, guest: Guest, publisher: Publisher) -> None:
        self.guest = guest
        self.shutdown_reason: str | None = None
        self.monitor: Monitor | None = None
        self._publisher = publisher
        self._said = False
        self._facts: dict[str, Any] = {}
        self.state = HostVm(
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
            origin="foreign",
        )

    async def run(self) -> None:
        """Look now and then, for ever."""
        self._publisher.guest(self.state)
        while True:
            for path in self.guest.monitors:
                if await self._glance(path):
                    break
            await asyncio.sleep(GLANCE_S)

    def flush(self) -> None:
        """Nothing is held back."""

    async def _glance(self, path: str) -> bool:
        """Take a monitor for a moment; return whether it answered."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(path)  # at once or never
            monitor = await Monitor.connect(sock, label=f"{self.guest.name} (glance)", timeout=GREETING_S)
        except (MonitorError, OSError) as error:
            sock.close()
            if not self._said:
                self._said = True
                log.info("foreign-monitor-left-alone", vm=self.guest.name, monitor=path, reason=str(error))
            return False
        try:
            if not self._facts:
                questions = ("query-version", "query-uuid", "query-cpus-fast", "query-memory-size-summary")
                self._facts = facts_of(*[await monitor.execute(word, timeout=ASK_S) for word in questions])
            told = {
                "runstate": runstate_of(await monitor.execute("query-status", timeout=ASK_S)),
                "migration_status": migration_status_of(await monitor.execute("query-migrate", timeout=ASK_S)),
            }
        except MonitorError:
            return False
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_S):
                    await monitor.close()
        fresh = {**dict(self.state), **self._facts, **told}
        if fresh != dict(self.state):
            self.state = HostVm.model_validate({**fresh, "at": now()})
            self._publisher.guest(self.state)
        return True
