"""A controller that is frozen or cut off loses its locks, and everything else that it had on the host, before others."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from qmp_migrate.errors import LockBusy
from qmp_migrate.hosts import HeldLock, Host, HostAddress, SshHost, Timing, lock, make_host
from qmp_migrate.hosts.lock import end_holder
from tests import ROOT
from tests.support.real.brokers import PATIENCE_S
from tests.support.real.sshd import Sshd, until

# Holds a lock and a socket with a short lease; says when the lock is lost, and how its next call ends.
CONTROLLER = """
import asyncio, sys
from pathlib import Path
from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.hosts import HostAddress, Timing, make_host

async def main():
    address, port, key, known, path, unix, marker = sys.argv[1:]
    address = HostAddress(
        "a", address, int(port), identity_file=Path(key), known_hosts=Path(known), local=not key,
        timing=Timing(lease_s=1, beat_s=0.2),
    )
    host = make_host(address)
    await host.connect()
    held = await host.hold_lock(path, owner="the other controller")
    sock = await host.open_unix(unix)
    print("held", flush=True)
    await held.lost.wait()
    print("lost", flush=True)
    try:
        await host.run(["touch", marker])
        print("did it", flush=True)
    except QmpMigrateError as error:
        print(type(error).__name__, flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def me() -> AsyncIterator[Host]:
    """A second controller, which is on the host itself."""
    host = make_host(HostAddress("l", local=True))
    yield host
    await host.close()


class Monitor:
    """A UNIX socket on the host that serves one client, as a QEMU's monitor does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self.client = self._listening

    def accept(self) -> None:
        self.client, _ = self._listening.accept()
        self.client.setblocking(False)

    @property
    def ended(self) -> bool:
        """Whether the client's end was seen."""
        try:
            return self.client.recv(1) == b""
        except BlockingIOError:
            return False

    @property
    def peer(self) -> int:
        """The process at the other end."""
        pid: int = struct.unpack("3i", self.client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid

    def close(self) -> None:
        self.client.close()
        self._listening.close()


@pytest.fixture
def monitor(directory: Path) -> Iterator[Monitor]:
    opened = Monitor(directory / "qmp.sock")
    yield opened
    opened.close()


@asynccontextmanager
async def controller(
    sshd: Sshd, monitor: Monitor, *, over_ssh: bool = True
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another controller that holds ``vm.lock`` and has the monitor beside it open."""
    directory = monitor.path.parent
    address = sshd.address
    argv = [address.address, str(address.port), str(address.identity_file) if over_ssh else ""]
    argv += [str(address.known_hosts), str(directory / "vm.lock"), str(monitor.path), str(directory / "marker")]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", CONTROLLER, *argv, stdout=subprocess.PIPE)
    try:
        assert await said(process) == "held"
        monitor.accept()
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def said(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode().strip()


async def taken(host: Host, path: Path) -> HeldLock:
    """Take the lock as soon as it is free."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await host.hold_lock(str(path), owner="me")
            except LockBusy:
                await asyncio.sleep(0.02)


async def test_a_frozen_controller_has_nothing_left_when_its_lock_is_free(
    sshd: Sshd, directory: Path, monitor: Monitor, me: Host
) -> None:
    async with controller(sshd, monitor) as other:
        other.send_signal(signal.SIGSTOP)
        with pytest.raises(LockBusy, match="the other controller"):
            await me.hold_lock(str(directory / "vm.lock"), owner="me")
        assert not monitor.ended
        await taken(me, directory / "vm.lock")
        assert monitor.ended
        assert not sshd.sessions()
        other.send_signal(signal.SIGCONT)
        assert await said(other) == "lost"
        assert await said(other) == "ConnectionLost"
        assert not (directory / "marker").exists()
    later = SshHost(sshd.address)  # the one that listens was left alone
    await later.connect()
    await later.close()


async def test_the_lock_stays_until_the_connection_is_proven_gone(
    sshd: Sshd, directory: Path, monitor: Monitor, me: Host
) -> None:
    async with controller(sshd, monitor) as other:
        (session,) = sshd.sessions()[-1:]
        other.send_signal(signal.SIGSTOP)
        sshd.signal_sessions(signal.SIGSTOP)  # does not obey SIGTERM any more
        held = await taken(me, directory / "vm.lock")
        assert monitor.ended
        assert not session.is_running() or session.status() == psutil.STATUS_ZOMBIE
        await held.release()


async def test_a_controller_that_only_ends_takes_no_connection_with_it(sshd: Sshd, directory: Path) -> None:
    # Two holders on one connection: one of them is told to end, the connection and the other one stay.
    host = SshHost(sshd.address)
    await host.connect()
    held = [
        await host.hold_lock(str(directory / f"{number}.lock"), owner="me")
        for number in range(lock.LOCKS_PER_HOLDER + 1)
    ]
    await host._locks._holders[0].close()
    assert held[0].lost.is_set()
    await taken(host, directory / "0.lock")
    assert not held[-1].lost.is_set()
    assert (await host.run(["echo", "here"])).text == "here"
    await host.close()


async def test_on_this_machine_only_the_lock_ends(sshd: Sshd, directory: Path, monitor: Monitor, me: Host) -> None:
    async with controller(sshd, monitor, over_ssh=False) as other:
        other.send_signal(signal.SIGSTOP)
        await taken(me, directory / "vm.lock")
        assert not monitor.ended
        other.send_signal(signal.SIGCONT)
        assert await said(other) == "lost"


async def test_a_login_over_ssh_outlives_the_locks_of_a_controller_that_was_started_in_it(
    sshd: Sshd, directory: Path, monitor: Monitor
) -> None:
    # An operator logs in on a host and moves guests from there: for the controller this host is local.
    login = SshHost(sshd.address)
    await login.connect()
    argv = ["", "0", "", "", str(directory / "vm.lock"), str(monitor.path), str(directory / "marker")]
    here = ROOT
    run = ["env", f"PYTHONPATH={here}", sys.executable, "-c", CONTROLLER, *argv]
    running = asyncio.create_task(login.run(run, timeout=30))
    await asyncio.to_thread(monitor.accept)
    frozen = psutil.Process(monitor.peer)
    frozen.suspend()
    await until(lambda: not _is_locked(directory / "vm.lock"), "the end of the lock")
    frozen.resume()
    assert (await running).text.splitlines() == ["held", "lost", "did it"]
    await login.close()


def _is_locked(path: Path) -> bool:
    return subprocess.run(["flock", "-n", str(path), "true"]).returncode != 0


@pytest.mark.parametrize("transport", ["ssh", "local"])
async def test_a_beat_every_second_as_long_as_the_lock_is_held(transport: str, sshd: Sshd, directory: Path) -> None:
    host = SshHost(sshd.address) if transport == "ssh" else make_host(HostAddress("l", local=True))
    await host.connect()
    beat = directory / "vm.beat"
    held = await host.hold_lock(str(directory / "vm.lock"), owner="me")
    plain = await host.hold_lock(str(directory / "plain"), owner="me")
    seen = [beat.read_text()]
    begin = _uptime()
    while len(seen) < 3:
        text = beat.read_text()  # never absent, never a part
        assert text.endswith("\n")
        assert 0 <= _uptime() - float(text) < 10
        if text != seen[-1]:
            seen.append(text)
        await asyncio.sleep(0.005)
    assert 1 < _uptime() - begin < 20  # loosely: the machine may do other things, too
    assert [float(text) for text in seen] == sorted(float(text) for text in seen)
    await held.release()
    await plain.release()
    assert set(os.listdir(directory)) <= {"s"}
    await host.close()


async def test_the_beat_of_a_dead_controller_stays_still_and_the_next_one_goes_on(
    sshd: Sshd, directory: Path, monitor: Monitor, me: Host
) -> None:
    async with controller(sshd, monitor) as other:
        other.kill()
        await other.wait()
    await until(lambda: not _is_locked(directory / "vm.lock"), "the end of the lock")
    old = (directory / "vm.beat").read_text()
    held = await taken(me, directory / "vm.lock")
    assert float((directory / "vm.beat").read_text()) >= float(old)
    await held.release()
    assert not (directory / "vm.beat").exists()


async def test_a_frozen_controller_has_no_beat(sshd: Sshd, directory: Path, monitor: Monitor) -> None:
    async with controller(sshd, monitor) as other:
        other.send_signal(signal.SIGSTOP)
        await until(lambda: _uptime() - float((directory / "vm.beat").read_text()) > 0.8, "a beat that is old")


async def test_our_own_holder_of_before_gives_way_with_its_connection(
    sshd: Sshd, directory: Path, monitor: Monitor
) -> None:
    # The network changed: we have noticed, the host has not.
    path = directory / "vm.lock"
    before, now = SshHost(sshd.address), SshHost(sshd.address)
    await asyncio.gather(before.connect(), now.connect())
    held = await before.hold_lock(str(path), owner="me, since 12:00")
    sock = await before.open_unix(str(monitor.path))
    monitor.accept()
    assert not await end_holder(now, str(path), "me, since 12:01")
    assert not held.lost.is_set()
    assert await end_holder(now, str(path), "me, since 12:00")
    assert monitor.ended
    assert not _is_locked(path)
    await asyncio.wait_for(held.lost.wait(), PATIENCE_S)
    again = await now.hold_lock(str(path), owner="me, since 12:00")
    sock.close()
    # On the connection that asks, only the holder ends.
    assert await end_holder(now, str(path), "me, since 12:00")
    assert not _is_locked(path)
    await asyncio.wait_for(again.lost.wait(), PATIENCE_S)
    assert (await now.run(["echo", "here"])).text == "here"
    await asyncio.gather(before.close(), now.close())


def test_we_give_up_before_the_host_does() -> None:
    timing = Timing()
    assert max(timing.beat_s, timing.idle_beat_s) + lock._ANSWER_S < timing.lease_s


def _uptime() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])
