"""Two real QEMUs under one RUN_DIR, the source held in ``pre-switchover``: what a guarded migration looks like to an agent.

The guest is the firmware alone (no kernel, no disk), which boots nowhere but runs. The test plays the controller: it speaks
QMP to both sides, and writes the beat file as a holder of locks does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from qmp_migrate.bus.messages.session import boot_id
from qmp_migrate.qemu.monitor import Monitor
from tests.support.real.brokers import until

OTHER_QEMU: Final = os.environ.get("QMP_MIGRATE_TEST_QEMU", "")
"""A second QEMU binary to test with; without it there is the installed one only."""


def binaries() -> list[str]:
    """Return the QEMU binaries to test with."""
    found = shutil.which("qemu-system-x86_64")
    return [path for path in (found, OTHER_QEMU) if path]


class HeldPair:
    """See the module.

    Args:
        run_dir: RUN_DIR of the source; the destination is a host of its own, beside it.
        binary: The QEMU of both.

    Attributes:
        monitor: The controller's monitor of the source.
        beat: The beat file of the guest's lock.
    """

    def __init__(self, run_dir: Path, binary: str) -> None:
        self._binary = binary
        self._run_dir = run_dir
        self._elsewhere = run_dir.with_name("elsewhere")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._monitors: list[Monitor] = []
        self.beat = run_dir / ".locks" / "web1.beat"
        self.beat.parent.mkdir(parents=True)

    async def start(self, *, postcopy: bool = False) -> None:
        """Start both and begin the migration; return when the source waits in ``pre-switchover``."""
        await self.boot()
        self.destination = await self._launch(self._elsewhere, "-S", "-incoming", "defer")
        await self.hold(self.monitor, self.destination, postcopy=postcopy)

    async def boot(self) -> None:
        """Start the source alone."""
        self.monitor = await self._launch(self._run_dir)

    async def arrive(self) -> None:
        """Start the source as the destination of an earlier migration, and let the guest arrive and run there."""
        first = await self._launch(self._elsewhere)
        self.monitor = await self._launch(self._run_dir, "-S", "-incoming", "defer")
        await self.hold(first, self.monitor)
        await first.execute("migrate-continue", {"state": "pre-switchover"})
        await self.until_status("completed", of=first)
        await self.monitor.execute("cont")
        await first.execute("quit")
        self._processes[0].wait(10)

    async def hold(self, source: Monitor, destination: Monitor, *, postcopy: bool = False) -> None:
        """Migrate from one to the other, up to ``pre-switchover``."""
        both = ["return-path", "events", *(["postcopy-ram"] if postcopy else [])]
        await _enable(destination, *both)
        await _enable(source, *both, "pause-before-switchover")
        where = f"unix:{self._run_dir}/stream"
        await destination.execute("migrate-incoming", {"uri": where})
        await source.execute("migrate", {"uri": where})
        await self.until_status("pre-switchover", of=source)

    async def hold_again(self) -> None:
        """Start another destination and migrate there, up to ``pre-switchover``."""
        shutil.rmtree(self._elsewhere, ignore_errors=True)
        self.destination = await self._launch(self._elsewhere, "-S", "-incoming", "defer")
        await self.hold(self.monitor, self.destination)

    async def until_status(self, status: str, *, of: Monitor | None = None) -> None:
        """Wait for a migration status of the source (or of another one)."""

        async def so() -> bool:
            reply = await (of or self.monitor).execute("query-migrate")
            return bool(reply.get("status") == status)

        await until(so, f"migration {status}", timeout=60)

    async def now(self) -> tuple[str, str]:
        """Return the run state and the migration status of the source."""
        runs: Any = await self.monitor.execute("query-status")
        migrates: Any = await self.monitor.execute("query-migrate")
        return runs["status"], migrates.get("status", "none")

    async def until_running(self, timeout: float) -> float:
        """Wait until the source runs; return `time.monotonic` of when it was seen."""

        async def so() -> bool:
            return bool((await self.monitor.execute("query-status"))["running"])

        await until(so, "the guest runs on", timeout=timeout)
        return time.monotonic()

    def write_beat(self, text: str | None = None) -> None:
        """Write the host's uptime, or something else, as the holder of the lock does."""
        fresh = self.beat.with_suffix(".new")
        fresh.write_text(text if text is not None else Path("/proc/uptime").read_text().split()[0] + "\n")
        fresh.replace(self.beat)

    @contextlib.contextmanager
    def beating(self, every_s: float = 0.2) -> Iterator[None]:
        """Write the beat every so many seconds, in a thread: what else the test does must not hold it up."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(every_s):
                self.write_beat()

        self.write_beat()
        thread = threading.Thread(target=beat)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    async def stop(self) -> None:
        """End everything."""
        for monitor in self._monitors:
            await monitor.close()
        for process in self._processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(10)

    async def _launch(self, run_dir: Path, *words: str) -> Monitor:
        directory = run_dir / "web1"
        directory.mkdir(parents=True)
        argv = [self._binary, "-M", "pc", "-m", "32", "-nodefaults", "-display", "none", "-accel", "tcg", *words]
        for monitor in ("qmp", "agent"):
            argv += ["-qmp", f"unix:{directory}/{monitor}.sock,server=on,wait=off"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)  # noqa: ASYNC220
        self._processes.append(process)
        sock = socket.socket(socket.AF_UNIX)
        path = str(directory / "qmp.sock")
        # QEMU makes the socket's file a moment before it listens on it.
        await until(lambda: process.poll() is not None or sock.connect_ex(path) == 0, "QEMU is there", timeout=60)
        if process.poll() is not None:
            sock.close()
            pytest.fail(f"QEMU ended with {process.returncode}")
        monitor = await Monitor.connect(sock, label=f"web1@{run_dir.name}", timeout=20)
        self._monitors.append(monitor)
        # Only now, as `vm start` does: an agent that finds the guest finds its monitor too.
        (directory / "argv.json").write_text(json.dumps(argv))
        (directory / "pid").write_text(f"{process.pid} {_start_ticks(process.pid)} {boot_id()}\n")
        return monitor


def _start_ticks(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


async def _enable(monitor: Monitor, *capabilities: str) -> None:
    wanted = [{"capability": name, "state": True} for name in capabilities]
    await monitor.execute("migrate-set-capabilities", {"capabilities": wanted})
