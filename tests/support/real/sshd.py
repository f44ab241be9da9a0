"""A real sshd for tests: unprivileged, on a loopback address and a free port, with keys of its own.

The same code starts the sshds of the rig; what a test wants different goes into ``lines``, which take the place of the rig's.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from qmp_migrate.hosts import HostAddress, SshHost
from qmp_migrate.hosts.local import LocalHost
from qmp_migrate.hosts.process import ProcessId, kill, launch
from qmp_migrate.rig import sshd as rig_sshd
from tests.support.real.brokers import PATIENCE_S


@dataclass(frozen=True)
class Sshd:
    """A running sshd and what is needed to log in."""

    directory: Path
    address: HostAddress
    process: ProcessId

    def host_address(self, **changes: Any) -> HostAddress:
        return replace(self.address, **changes)

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.directory / "sshd" / "log").read_text()

    def holders(self) -> list[psutil.Process]:
        """All sshd processes that hold a connection: up to two each, with privilege separation (root's too, since 9.8)."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess):
                if process.pid == self.process.pid or not process.name().startswith("sshd"):
                    continue
                here = (self.address.address, self.address.port)
                if any(entry.laddr == here for entry in process.net_connections("tcp4")):
                    found.append(process)
        return found

    def sessions(self) -> list[psutil.Process]:
        """The sshd processes that serve connections, one each, without what they started."""
        holders = {process.pid: process for process in self.holders()}
        parents = set()
        for process in holders.values():
            with suppress(psutil.NoSuchProcess):
                parents.add(process.ppid())
        return [process for pid, process in sorted(holders.items()) if pid not in parents]

    def signal_sessions(self, number: signal.Signals) -> None:
        for process in self.holders():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for UNIX sockets; pytest's own are too long for that."""
    path = Path(tempfile.mkdtemp(prefix="qm-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@asynccontextmanager
async def running_sshd(directory: Path, *lines: str, address: str = "127.0.0.9") -> AsyncIterator[Sshd]:
    """Run an sshd with its files in ``directory`` (absent so far) until the end of the block."""
    machine = LocalHost("test")
    part = directory / "sshd"
    part.mkdir(parents=True, mode=0o700)
    user_key = directory / "user_key"
    await rig_sshd.make_key(machine, user_key)
    host_key = await rig_sshd.make_key(machine, part / "host_key")
    rig_sshd.prepare_privilege_separation()
    port = rig_sshd.free_port(address)
    known_hosts = directory / "known_hosts"
    known_hosts.write_text(rig_sshd.known_hosts_line(address, port, host_key))
    config = rig_sshd.write_config(part, address=address, port=port, authorized_keys=Path(f"{user_key}.pub"))
    ours = {line.split()[0] for line in lines} - {"HostKey"}  # of some keywords the last one wins, not the first
    rest = [line for line in config.read_text().splitlines() if line.partition(" ")[0] not in ours]
    config.write_text("\n".join([*lines, *rest, ""]))
    argv = [rig_sshd.find_sshd(), "-D", "-e", "-f", str(config)]
    process = await launch(machine, directory=str(part), argv=argv, ready="ready", log="log")
    server = Sshd(
        directory,
        HostAddress("a", address, port, identity_file=user_key, known_hosts=known_hosts),
        process,
    )
    try:
        yield server
    finally:
        left = server.holders()
        await kill(machine, process)
        for holder in left:
            with suppress(psutil.NoSuchProcess):
                holder.send_signal(signal.SIGCONT)
                holder.kill()


@asynccontextmanager
async def connected(address: HostAddress) -> AsyncIterator[SshHost]:
    """A connection to a host, closed afterwards."""
    host = SshHost(address)
    await host.connect()
    try:
        yield host
    finally:
        await host.close()


async def until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE_S) -> None:
    """Wait until ``condition()`` is true; fail with ``what`` when it never is."""
    limit = asyncio.get_running_loop().time() + timeout
    while not condition():
        if asyncio.get_running_loop().time() > limit:
            raise AssertionError(f"never came: {what}")
        await asyncio.sleep(0.01)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
