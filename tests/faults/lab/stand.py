"""Where cases run: a rig, cables in its networks, and ways to end, freeze and restart its parts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil

from qmp_migrate.fleet.controller import Controller
from qmp_migrate.hosts.local import LocalHost
from qmp_migrate.hosts.process import launch
from qmp_migrate.rig import state as rig_state
from qmp_migrate.rig.sshd import known_hosts_line
from qmp_migrate.settings import MqttSettings, load
from qmp_migrate.vm.spec.guest_spec import parse_spec
from tests.support.real.lab import Guest, Lab, rig
from tests.support.real.tcp_proxy import Cable

MEMORY: Final = f"{128 * 1024 + 8}KiB"
"""Small, and not a multiple of 256 KiB: see `tests.support.real.lab.MEMORY`."""

WATCHDOG: Final = {"connect": "8s", "stall": "6s", "switchover": "5s"}
"""Shorter than the defaults, so that a run of all cases takes less than a night; some cases use the defaults."""

PROCESS_S: Final = 10.0

_T = TypeVar("_T")


@dataclass
class Stand:
    """One rig with what belongs to it. Made by `stand`.

    Attributes:
        lab: The rig.
        migration: The cable through which guest memory goes to host ``b``.
        control: The cables through which the controller reaches each host.
        migration_listen: Where host ``b``'s QEMU listens for guest memory.
    """

    lab: Lab
    migration: Cable
    control: dict[str, Cable]
    migration_listen: tuple[str, int]
    qemu: dict[str, str] = field(default_factory=dict)

    def settings(self, **more: Any) -> Path:
        """Write the settings of one case: the rig's own, through the cables.

        Args:
            more: Sections to change further, as `Lab.config` takes them.
        """
        sections: dict[str, Any] = {"watchdog": dict(WATCHDOG)}
        for name, cable in self.control.items():
            address, port = cable.address
            sections[f"hosts_{name}"] = {"address": address, "port": port} | (
                {"qemu": self.qemu[name]} if name in self.qemu else {}
            )
        here, there = str(self.spies("a")), str(self.spies("b"))
        listen, port = self.migration_listen
        sections["hosts_a"] |= {"path_map": {there: here}}
        sections["hosts_b"] |= {
            "path_map": {here: there},
            "migration_address": self.migration.address[0],
            "migration_listen": listen,
            "migration_ports": f"{port}-{port}",
        }
        for section, keys in more.items():
            sections[section] = sections.get(section, {}) | keys
        return self.lab.config(**sections)

    def spies(self, host: str) -> Path:
        """Return the directory of the harness' own monitor sockets of a host."""
        path = self.lab.files / f"spy-{host}"
        path.mkdir(exist_ok=True)
        return path

    @contextlib.contextmanager
    def guest(self, *, append: str, disk: bool = True, seed: int = 1, **keys: Any) -> Iterator[Guest]:
        """Start a test guest on host ``a``; gone afterwards, wherever it went, with all its files."""
        name = f"f{uuid.uuid4().hex[:8]}"
        image = self.lab.files / f"{name}.img" if disk else None
        extra = ""
        append = f"{append} qm.seed={seed}"
        if image is not None:
            append += " qm.disk=/dev/vda"
            extra = f'[[disk]]\npath = "{image}"\nformat = "raw"\nsize = "4MiB"\n'
        sock = self.spies("a") / f"{name}.sock"
        args = ["-chardev", f"socket,id=spy,path={sock},server=on,wait=off", "-mon", "chardev=spy,mode=control"]
        args += keys.pop("args", [])
        spec = self.lab.spec(name, append=append, extra=extra, **{"memory": MEMORY, "args": args, **keys})
        guest = Guest(self.lab, name, spec, image)
        try:
            parsed = parse_spec(spec.read_text(), source=str(spec), base_dir=str(spec.parent))
            self.ask(self.settings(), lambda controller: controller.start(parsed, on="a"))
            yield guest
        finally:
            remove(guest)
            for path in (spec, image, sock, self.spies("b") / f"{name}.sock"):
                if path is not None:
                    path.unlink(missing_ok=True)

    def ask(self, settings: Path, work: Callable[[Controller], Awaitable[_T]]) -> _T:
        """Use the library for what is not under test: it saves the start of a Python."""

        async def call() -> _T:
            quiet = load(settings).model_copy(update={"mqtt": MqttSettings()})
            async with Controller.open(quiet) as controller:
                return await work(controller)

        return asyncio.run(call())

    # -- the rig's parts ------------------------------------------------------------------------------------------

    def pid(self, part: str) -> int:
        """Return the process of a part: ``broker``, ``sshd-a``, ``agent-b``, …"""
        return int((self.lab.directory / "parts" / part / "pid").read_text().split()[0])

    def processes(self, part: str) -> list[psutil.Process]:
        """Return a part's process and, of an sshd, those that serve its connections."""
        main = psutil.Process(self.pid(part))
        return [main, *main.children(recursive=False)] if part.startswith("sshd") else [main]

    def kill(self, part: str, *, sessions_only: bool = False) -> None:
        """SIGKILL a part, an sshd with all its sessions."""
        processes = self.processes(part)[1 if sessions_only else 0 :]
        # The sessions' own children (shells, lock holders) notice by their closed pipes, as on a real host.
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, PROCESS_S)

    def freeze(self, part: str) -> None:
        """SIGSTOP a part, an sshd with all its sessions."""
        for process in self.processes(part):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self, part: str) -> None:
        """SIGCONT what was frozen."""
        for process in self.processes(part):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def restart(self, part: str) -> None:
        """Start a part again that was killed, at the same address."""
        directory = self.lab.directory / "parts" / part
        argv: list[str] = json.loads((directory / "argv.json").read_text())
        ready = "log" if part.startswith("sshd") else "ready"
        (directory / ready).unlink(missing_ok=True)
        if part == "broker" and "--port" not in argv:
            url = rig_state.load(self.lab.directory).broker_url  # type: ignore[union-attr]
            argv += ["--port", url.rpartition(":")[2]]
        asyncio.run(launch(LocalHost("rig"), directory=str(directory), argv=argv, ready=ready, log="log"))
        if part.startswith("sshd"):
            self._wait_port(part)

    def _wait_port(self, part: str) -> None:
        host = next(h for h in rig_state.load(self.lab.directory).hosts if part == f"sshd-{h.name}")  # type: ignore[union-attr]
        end = time.monotonic() + PROCESS_S
        while time.monotonic() < end:
            with socket.socket() as sock:
                if sock.connect_ex((host.address, host.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError(f"{part} did not come back")

    def heal(self) -> None:
        """Repair everything: cables, frozen and killed parts."""
        for cable in (self.migration, *self.control.values()):
            cable.up()
        for part in ("broker", "sshd-a", "sshd-b", "agent-a", "agent-b"):
            self.heal_part(part)

    def heal_part(self, part: str) -> None:
        """Thaw a part that is frozen, start one that is dead."""
        try:
            alive = psutil.Process(self.pid(part)).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            alive = False
        if alive:
            self.thaw(part)
        else:
            self.restart(part)

    def controller(self, settings: Path, *words: str, traps: list[str], bug: str = "") -> ControllerProcess:
        """Start the real command line with traps; see `tests.faults.lab.controller`."""
        return ControllerProcess.start(settings, list(words), traps, bug)


@dataclass
class ControllerProcess:
    """A controller under way, and the line to its traps."""

    process: subprocess.Popen[str]
    channel: socket.socket
    log: Path
    _lines: Any = None

    @classmethod
    def start(cls, settings: Path, words: list[str], traps: list[str], bug: str) -> ControllerProcess:
        """See `Stand.controller`."""
        ours, theirs = socket.socketpair()
        log = settings.with_suffix(".log")
        argv = [sys.executable, "-m", "tests.faults.lab.controller", str(theirs.fileno()), ",".join(traps), bug]
        with theirs, log.open("w") as err:
            process = subprocess.Popen(
                [*argv, "--config", str(settings), "-v", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"},
            )
        return cls(process, ours, log, ours.makefile("r"))

    def reached(self, trap: str, seconds: float) -> bool:
        """Wait until it stands in a trap; False where it has ended instead."""
        self.channel.settimeout(seconds)
        line = self._lines.readline()
        if not line:
            return False
        found = json.loads(line)["trap"]
        assert found == trap, f"trap {found}, not {trap}"
        return True

    def go(self) -> None:
        """Let it go on."""
        with contextlib.suppress(OSError):
            self.channel.sendall(b"go\n")

    def end(self, seconds: float) -> tuple[int | None, str]:
        """Wait for its end; return its exit code (None: it does not end) and its output."""
        try:
            out, _ = self.process.communicate(timeout=seconds)
            return self.process.returncode, out
        except subprocess.TimeoutExpired:
            return None, ""

    def close(self) -> None:
        """End it where it still lives."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._lines.close()
        self.channel.close()


def remove(guest: Guest) -> None:
    """End every QEMU of a guest and remove its directories, by force."""
    for pid in qemus(guest.name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            psutil.wait_procs([psutil.Process(pid)], PROCESS_S) if psutil.pid_exists(pid) else None
    for host in ("a", "b"):
        shutil.rmtree(guest.directory(host), ignore_errors=True)
        for path in (guest.lab.run_dir(host) / ".locks").glob(f"{guest.name}.*"):
            path.unlink(missing_ok=True)


def qemus(name: str) -> dict[int, str]:
    """Return the QEMUs of a guest on this machine that are not dead: pid and process state."""
    found = {}
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if f"guest={name}" in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found[process.pid] = process.info["status"]
    return found


@contextlib.contextmanager
def stand(number: int = 0, qemu: dict[str, str] | None = None) -> Iterator[Stand]:
    """Bring up a rig with cables; several with different numbers may be up at a time.

    Args:
        number: Which one; decides about addresses.
        qemu: QEMU binaries of hosts where they differ from the installed one.
    """
    with tempfile.TemporaryDirectory(prefix="qf-") as base, rig(Path(base) / "rig") as lab:
        found = rig_state.load(lab.directory)
        assert found is not None
        with contextlib.ExitStack() as stack:
            control = {}
            for index, host in enumerate(found.hosts):
                cable = Cable((host.address, host.port), (f"127.0.{10 + number}.{index + 2}", 0))
                control[host.name] = stack.enter_context(cable)
                parts = (lab.directory / f"parts/sshd-{host.name}/host_key.pub").read_text()
                with (lab.directory / "ssh/known_hosts").open("a") as file:
                    file.write(known_hosts_line(*cable.address, parts))
            # One port on two addresses: QEMU's, and the cable's that leads there.
            listen = f"127.0.{10 + number}.13"
            port = _free_on(listen, f"127.0.{10 + number}.23")
            migration = stack.enter_context(Cable((listen, port), (f"127.0.{10 + number}.23", port)))
            yield Stand(lab, migration, control, (listen, port), qemu or {})


def _free_on(*addresses: str) -> int:
    for port in range(24100, 25100):
        with contextlib.ExitStack() as stack:
            try:
                for address in addresses:
                    stack.enter_context(socket.create_server((address, port)))
                return port
            except OSError:
                continue
    raise AssertionError("no free port")
