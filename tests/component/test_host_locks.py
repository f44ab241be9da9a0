"""Locks on a host: who holds them, what frees them, and that two never hold one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from qmp_migrate.errors import FileFailed, LockBusy, TransportError
from qmp_migrate.hosts import HeldLock, Host, HostAddress, SshHost, Timing, lock, make_host
from tests.support.real.brokers import PATIENCE_S
from tests.support.real.sshd import Sshd, running_sshd, until

CONTROLLER = """
import asyncio, sys
from pathlib import Path
from qmp_migrate.hosts import HostAddress, make_host

async def main():
    address, port, key, known, path = sys.argv[1:]
    address = HostAddress("a", address, int(port), identity_file=Path(key), known_hosts=Path(known), local=not key)
    host = make_host(address)
    await host.connect()
    await host.hold_lock(path, owner="the other controller")
    print("held", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def timing() -> Timing:
    return Timing()


@pytest.fixture(params=["ssh", "local"])
async def hosts(request: pytest.FixtureRequest, directory: Path, timing: Timing) -> AsyncIterator[tuple[Host, Host]]:
    """Two connections to one host, as two controllers have them."""
    pair: tuple[Host, Host]
    if request.param == "local":
        here = HostAddress("l", local=True, timing=timing)
        pair = (make_host(here), make_host(here))
        yield pair
    else:
        async with running_sshd(directory / "s") as server:
            there = replace(server.address, timing=timing)
            pair = (SshHost(there), SshHost(there))
            await asyncio.gather(*(host.connect() for host in pair))
            yield pair
            await asyncio.gather(*(host.close() for host in pair))
    await asyncio.gather(*(host.close() for host in pair))


def owner_line(path: Path) -> str:
    """The first line of a lock file; the second one names the holder's process."""
    owner, process, end = path.read_text().split("\n")
    assert not end
    assert psutil.pid_exists(int(process.split()[0]))
    return owner


def holders(path: Path) -> list[psutil.Process]:
    """All processes that have the lock file open."""
    found = []
    for process in psutil.process_iter():
        links = []
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{process.pid}/fd"):
                with suppress(OSError):  # a descriptor comes and goes with every sign of life
                    links.append(os.readlink(f"/proc/{process.pid}/fd/{fd}"))
        if str(path) in links:
            found.append(process)
    return found


async def test_a_lock_is_held_by_one_says_by_whom_and_leaves_no_file(hosts: tuple[Host, Host], directory: Path) -> None:
    one, other = hosts
    path = directory / "it's a lock"
    held = await one.hold_lock(str(path), owner="root@ctl pid 17, migration m1, since 12:00")
    assert owner_line(path) == "root@ctl pid 17, migration m1, since 12:00"
    for host in hosts:
        with pytest.raises(LockBusy, match=r"root@ctl pid 17, migration m1, since 12:00") as caught:
            await host.hold_lock(str(path), owner="someone else")
        assert caught.value.host == host.name
    assert path.read_text().startswith("root@ctl")
    await held.release()
    await held.release()
    assert not path.exists()
    assert not held.lost.is_set()
    again = await other.hold_lock(str(path), owner="someone else")
    assert owner_line(path) == "someone else"
    await again.release()


async def test_a_file_left_by_a_crash_is_taken_over(hosts: tuple[Host, Host], directory: Path) -> None:
    path = directory / "lock"
    path.write_text("a dead controller\n")
    held = await hosts[0].hold_lock(str(path), owner="me")
    assert owner_line(path) == "me"
    await held.release()


async def test_who_only_looks_is_not_taken_for_a_holder(hosts: tuple[Host, Host], directory: Path) -> None:
    # Asking whether somebody holds a lock locks it for a moment; the file still names a controller that is dead.
    path = directory / "lock"
    path.write_text("a dead controller\n999999999 17\n")
    looking = await asyncio.create_subprocess_exec("flock", str(path), "sleep", "0.3")
    await until(lambda: holders(path), "the look")
    held = await hosts[0].hold_lock(str(path), owner="me")
    await held.release()
    await looking.wait()
    path.write_text("someone's tool\n")
    staying = await asyncio.create_subprocess_exec("flock", str(path), "sh", "-c", "read line", stdin=subprocess.PIPE)
    await until(lambda: holders(path), "a lock that is not of ours")
    with pytest.raises(LockBusy, match="someone's tool"):
        await hosts[0].hold_lock(str(path), owner="me")
    assert staying.stdin is not None
    staying.stdin.close()
    await staying.wait()


async def test_many_locks_on_one_connection(hosts: tuple[Host, Host], directory: Path) -> None:
    most = lock.HOLDERS * lock.LOCKS_PER_HOLDER
    paths = [str(directory / f"lock{number}") for number in range(most)]
    held = await asyncio.gather(*(hosts[0].hold_lock(path, owner="me") for path in paths))
    with pytest.raises(LockBusy, match="holds 28 locks"):
        await hosts[0].hold_lock(str(directory / "more"), owner="me")
    assert (await hosts[0].run(["echo", "sessions are left"])).text == "sessions are left"
    await held[3].release()
    await (await hosts[0].hold_lock(str(directory / "more"), owner="me")).release()
    for one in held:
        await one.release()
    assert (await hosts[0].run(["ls", str(directory)])).text in ("", "s")


async def test_locks_that_cannot_be(hosts: tuple[Host, Host], directory: Path) -> None:
    with pytest.raises(FileFailed):
        await hosts[0].hold_lock(str(directory / "absent" / "lock"), owner="me")
    with pytest.raises(FileFailed):
        await hosts[0].hold_lock(str(directory / "a\nlock"), owner="me")
    held = await hosts[0].hold_lock(str(directory / "lock"), owner="me")  # the holder has survived that
    await held.release()


async def test_cancelling_gives_the_lock_back_and_keeps_the_others(hosts: tuple[Host, Host], directory: Path) -> None:
    held = await hosts[0].hold_lock(str(directory / "kept"), owner="me")
    path = directory / "lock"
    for _ in range(5):
        taking = asyncio.create_task(hosts[0].hold_lock(str(path), owner="me"))
        await asyncio.sleep(0.001)  # into the middle of it, wherever that is
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                other = await hosts[1].hold_lock(str(path), owner="me")
                break
            except LockBusy:
                await asyncio.sleep(0.01)
    await other.release()
    assert not held.lost.is_set()


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.005, 0.02])
async def test_closing_while_locks_are_taken(hosts: tuple[Host, Host], directory: Path, delay: float) -> None:
    host = hosts[0]
    paths = [str(directory / f"lock{number}") for number in range(9)]  # more than one holder is needed for them
    taking = [asyncio.create_task(host.hold_lock(path, owner="me")) for path in paths]
    await asyncio.sleep(delay)
    taking[0].cancel()
    await asyncio.wait_for(host.close(), PATIENCE_S)
    results = await asyncio.wait_for(asyncio.gather(*taking, return_exceptions=True), PATIENCE_S)
    for one in results:
        assert isinstance(one, (HeldLock, TransportError, asyncio.CancelledError))
        assert not isinstance(one, HeldLock) or one.lost.is_set()
    await until(lambda: not any(holders(Path(path)) for path in paths), "the end of the locks")


async def test_two_never_hold_one_lock(hosts: tuple[Host, Host], directory: Path) -> None:
    # Taking and releasing (which removes the file) as fast as it goes, from two controllers, three times at once each.
    path = str(directory / "lock")
    inside = 0
    turns = 0

    async def compete(host: Host) -> None:
        nonlocal inside, turns
        while turns < 60:
            try:
                held = await host.hold_lock(path, owner="me")
            except LockBusy:
                continue
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            assert inside == 1
            inside -= 1
            turns += 1
            await held.release()

    await asyncio.gather(*(compete(host) for host in hosts for _ in range(3)))
    assert turns >= 60


async def test_a_lock_on_a_file_that_was_removed_meanwhile_is_no_lock(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between opening and locking, another controller releases (removes the file) and a third one takes the lock anew.
    path = directory / "lock"
    flock = shutil.which("flock")
    fake = directory / "bin" / "flock"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\n[ -e {directory}/once ] || {{ rm {path}; : >{path}; : >{directory}/once; }}\nexec {flock} "$@"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    one, other = (make_host(HostAddress("l", local=True)) for _ in range(2))
    await one.hold_lock(str(path), owner="me")
    with pytest.raises(LockBusy):
        await other.hold_lock(str(path), owner="someone else")
    await one.close()
    await other.close()


@pytest.mark.parametrize("transport", ["ssh", "local"])
async def test_a_killed_controller_frees_its_locks(transport: str, sshd: Sshd, directory: Path) -> None:
    path = directory / "lock"
    address = sshd.address
    key = str(address.identity_file) if transport == "ssh" else ""
    argv = [address.address, str(address.port), key, str(address.known_hosts), str(path)]
    controller = await asyncio.create_subprocess_exec(sys.executable, "-c", CONTROLLER, *argv, stdout=subprocess.PIPE)
    try:
        assert controller.stdout is not None
        assert await asyncio.wait_for(controller.stdout.readline(), PATIENCE_S) == b"held\n"
        me = make_host(HostAddress("l", local=True))
        with pytest.raises(LockBusy, match="the other controller"):
            await me.hold_lock(str(path), owner="me")
    finally:
        controller.kill()
        await controller.wait()
    await until(lambda: not holders(path), "the end of the lock")
    held = await me.hold_lock(str(path), owner="me")
    await held.release()
    await me.close()


async def test_a_killed_sshd_session_frees_its_locks_and_they_are_lost(sshd: Sshd, directory: Path) -> None:
    path = directory / "lock"
    host = SshHost(sshd.address)
    await host.connect()
    held = await host.hold_lock(str(path), owner="me")
    assert holders(path)
    sshd.signal_sessions(signal.SIGKILL)
    await asyncio.wait_for(held.lost.wait(), PATIENCE_S)
    await until(lambda: not holders(path), "the end of the lock")
    await host.close()


@pytest.mark.parametrize(
    "timing",
    [Timing(beat_s=600.0)],  # its child waits for one line all the time
    ids=[pytest.HIDDEN_PARAM],
)
async def test_a_killed_holder_frees_its_locks_and_they_are_lost(hosts: tuple[Host, Host], directory: Path) -> None:
    path = directory / "lock"
    held = await hosts[0].hold_lock(str(path), owner="me")
    holder = psutil.Process(int(path.read_text().split()[-2]))
    await until(holder.children, "its child")
    await until(lambda: len(holders(path)) == 1, "the holder alone: its child has closed the lock")
    holder.kill()
    await asyncio.wait_for(held.lost.wait(), PATIENCE_S)
    await until(lambda: not holders(path), "the end of the lock")
    again = await hosts[0].hold_lock(str(path), owner="me again")  # a new holder is started
    await again.release()


async def test_a_holder_that_hears_nothing_ends(sshd: Sshd, directory: Path) -> None:
    # What a cut network looks like to the holder: nobody says anything, nobody hangs up.
    path = directory / "lock"
    host = SshHost(replace(sshd.address, timing=Timing(lease_s=1, beat_s=600.0)))
    await host.connect()
    held = await host.hold_lock(str(path), owner="me")
    await until(lambda: not holders(path), "the end of the lock")
    await asyncio.wait_for(held.lost.wait(), PATIENCE_S)
    await host.close()


async def test_a_holder_that_is_spoken_to_stays(sshd: Sshd, directory: Path) -> None:
    host = SshHost(replace(sshd.address, timing=Timing(lease_s=2, beat_s=0.2)))
    await host.connect()
    held = await host.hold_lock(str(directory / "lock"), owner="me")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(held.lost.wait(), 3.0)
    await host.close()
    assert held.lost.is_set()
