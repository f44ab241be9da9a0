"""Processes on a host: launched, recognised, killed, and never mistaken for another one. Over SSH and without."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qmp_migrate.errors import ChannelRefused, CommandFailed, GuestExists, LaunchFailed, LockBusy, UsageError
from qmp_migrate.hosts import Host, HostAddress, SshHost, make_host
from qmp_migrate.hosts.process import (
    ProcessId,
    identify,
    is_alive,
    kill,
    kill_closed,
    launch,
    list_all,
    terminate,
    wait_gone,
)
from tests.support.real.brokers import PATIENCE_S
from tests.support.real.sshd import running_sshd, short_directory, until

# Stands in for a QEMU: says something, makes its socket, then waits.
GUEST = 'echo "to stdout"; echo "to stderr" >&2; : >qmp.sock; exec sleep 600'


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path
        for record in path.glob("**/pid"):
            with suppress(OSError, ValueError):
                os.kill(int(record.read_text().split()[0]), signal.SIGKILL)


@pytest.fixture(params=["ssh", "local"])
async def host(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Host]:
    if request.param == "local":
        yield make_host(HostAddress("l", local=True))
        return
    async with running_sshd(directory / "s") as server:
        made = SshHost(server.address)
        await made.connect()
        yield made
        await made.close()


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def is_zombie(pid: int) -> bool:
    return state(pid) == "Z"


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_real_qemu_from_start_to_end(host: Host, directory: Path) -> None:
    guest = directory / "web 1"
    argv = [
        *("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-S"),
        *("-name", "it's $(id)\n*", "-qmp", f"unix:{guest}/qmp.sock,server=on,wait=off"),
    ]
    pid = await launch(host, directory=str(guest), argv=argv)
    assert (pid.start_time, pid.boot_id) == (start_time(pid.pid), boot_id())
    assert command_line(pid.pid) == argv
    assert json.loads((guest / "argv.json").read_text()) == argv
    assert mode(guest) == 0o700
    assert all(mode(guest / name) & 0o077 == 0 for name in ("argv.json", "pid", "qemu.log"))
    reader, writer = await asyncio.open_connection(sock=await host.open_unix(f"{guest}/qmp.sock"))
    assert b"QMP" in await asyncio.wait_for(reader.readline(), PATIENCE_S)
    writer.close()
    assert await identify(host, str(guest)) == pid
    assert await is_alive(host, pid)
    with pytest.raises(GuestExists, match=str(pid.pid)):
        await launch(host, directory=str(guest), argv=argv)
    assert await is_alive(host, pid)
    assert await wait_gone(host, pid, 0.1) is False
    assert await kill(host, pid) is True
    assert state(pid.pid) in ("", "Z")
    assert await is_alive(host, pid) is False
    assert await wait_gone(host, pid, 0) is True
    assert await kill(host, pid) is True  # gone is gone
    assert await identify(host, str(guest)) is None
    again = await launch(host, directory=str(guest), argv=argv)  # over what the first one left
    assert again != pid
    assert await terminate(host, again, 10) is True


async def test_it_is_detached_from_us(host: Host, directory: Path) -> None:
    guest = directory / "g"
    pid = await launch(host, directory=str(guest), argv=["sh", "-c", GUEST])
    fds = Path(f"/proc/{pid.pid}/fd")
    assert os.getsid(pid.pid) == pid.pid
    assert os.readlink(fds / "0") == "/dev/null"
    assert os.readlink(fds / "1") == os.readlink(fds / "2") == str(guest / "qemu.log")
    assert sorted(os.listdir(fds)) == ["0", "1", "2"]
    assert os.readlink(f"/proc/{pid.pid}/cwd") == str(guest)
    assert (guest / "qemu.log").read_text() == "to stdout\nto stderr\n"
    await host.close()
    assert state(pid.pid) == "S"


async def test_a_failed_launch_says_why_and_leaves_nothing(host: Host, directory: Path) -> None:
    guest = directory / "g"
    with pytest.raises(LaunchFailed, match="unsupported machine type") as caught:
        await launch(host, directory=str(guest), argv=["qemu-system-x86_64", "-machine", "nosuch"])
    assert "nosuch" in caught.value.stderr or "unsupported" in caught.value.stderr
    assert caught.value.host == host.name
    assert not guest.exists()
    with pytest.raises(LaunchFailed, match=r"not found|No such file") as caught:
        await launch(host, directory=str(guest), argv=[f"{directory}/absent"])
    assert "installed" in (caught.value.hint or "")
    with pytest.raises(LaunchFailed, match="status 0"):
        await launch(host, directory=str(guest), argv=["true"])
    with pytest.raises(LaunchFailed, match="signal 9"):
        await launch(host, directory=str(guest), argv=["sh", "-c", "kill -9 $$"])
    assert not guest.exists()


async def test_one_that_never_gets_ready_is_killed(host: Host, directory: Path) -> None:
    guest = directory / "g"
    note = directory / "note"
    begun = time.monotonic()
    with pytest.raises(LaunchFailed, match=r"within 0\.5 s"):
        await launch(host, directory=str(guest), argv=["sh", "-c", f"echo $$ >{note}; exec sleep 600"], timeout=0.5)
    assert time.monotonic() - begun < 5
    assert state(int(note.read_text())) == ""
    assert not guest.exists()


async def test_a_failed_launch_keeps_the_log_of_the_one_before(host: Host, directory: Path) -> None:
    guest = directory / "g"
    assert await kill(host, await launch(host, directory=str(guest), argv=["sh", "-c", GUEST]))
    with pytest.raises(LaunchFailed) as caught:
        await launch(host, directory=str(guest), argv=["sh", "-c", "echo second; exit 1"])
    assert caught.value.stderr == "second"
    assert (guest / "qemu.log").read_text() == "to stdout\nto stderr\nsecond\n"
    assert not (guest / "pid").exists()
    assert not (guest / "qmp.sock").exists()


async def test_of_two_launches_at_once_one_wins(host: Host, directory: Path) -> None:
    guest = directory / "g"
    argv = ["sh", "-c", f"echo $$ >>{directory}/started; sleep 0.2; {GUEST}"]
    results = await asyncio.gather(
        *(launch(host, directory=str(guest), argv=argv) for _ in range(4)), return_exceptions=True
    )
    won = [one for one in results if isinstance(one, ProcessId)]
    assert len(won) == 1
    assert all(isinstance(one, (ProcessId, LockBusy, GuestExists)) for one in results)
    assert (directory / "started").read_text().split() == [str(won[0].pid)]


async def test_what_cannot_be_launched_is_refused(host: Host, directory: Path) -> None:
    with pytest.raises(ChannelRefused, match="bytes cannot be used"):
        await launch(host, directory="/tmp/" + "x" * 100, argv=["true"])
    with pytest.raises(UsageError, match="too long"):
        await launch(host, directory=str(directory / "g"), argv=["true", "x" * 100_000])
    (directory / "file").write_text("")
    with pytest.raises(CommandFailed):
        await launch(host, directory=str(directory / "file" / "g"), argv=["true"])


async def test_another_process_with_the_same_pid_is_not_it(host: Host, directory: Path) -> None:
    pid = await launch(host, directory=str(directory / "g"), argv=["sh", "-c", GUEST])
    others = [
        ProcessId(pid.pid, pid.start_time + 1, pid.boot_id),
        ProcessId(pid.pid, pid.start_time, "00000000-0000-0000-0000-000000000000"),  # before a reboot
    ]
    for other in others:
        assert await is_alive(host, other) is False
        assert await wait_gone(host, other, 0) is True
        assert await kill(host, other) is True
        assert await terminate(host, other, 1) is True
    assert await is_alive(host, pid) is True
    record = directory / "g" / "pid"
    record.write_text(f"{pid.pid} {pid.start_time + 1} {pid.boot_id}\n")
    assert await identify(host, str(directory / "g")) is None
    assert await identify(host, str(directory / "absent")) is None
    record.write_text("garbage\n")
    with pytest.raises(CommandFailed):
        await identify(host, str(directory / "g"))
    record.write_text(f"{pid.pid} {pid.start_time} {pid.boot_id}\n")


async def test_all_guests_of_a_host(host: Host, directory: Path) -> None:
    run_dir = directory / "run"
    assert await list_all(host, str(run_dir)) == {}
    run_dir.mkdir()
    assert await list_all(host, str(run_dir)) == {}
    live = await launch(host, directory=str(run_dir / "web1"), argv=["sh", "-c", GUEST])
    gone = await launch(host, directory=str(run_dir / "web 2"), argv=["sh", "-c", GUEST])
    await kill(host, gone)
    (run_dir / "none").mkdir()
    (run_dir / "link").symlink_to("web1")
    assert await list_all(host, str(run_dir)) == {"web1": live, "web 2": None}
    (run_dir / "none" / "pid").write_text("garbage\n")
    with pytest.raises(CommandFailed, match="damaged"):
        await list_all(host, str(run_dir))
    await kill(host, live)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
async def test_what_cannot_be_looked_into_is_not_called_absent(host: Host, directory: Path) -> None:
    run_dir = directory / "run"
    pid = await launch(host, directory=str(run_dir / "g"), argv=["sh", "-c", GUEST])
    for closed in (run_dir, run_dir / "g"):
        closed.chmod(0)
        try:
            with pytest.raises(CommandFailed):
                await identify(host, str(run_dir / "g"))
        finally:
            closed.chmod(0o700)
    run_dir.chmod(0)
    try:
        with pytest.raises(CommandFailed):
            await list_all(host, str(run_dir))
    finally:
        run_dir.chmod(0o700)
    assert await kill(host, pid)


async def test_a_name_with_parentheses_is_read_right(host: Host, directory: Path) -> None:
    program = directory / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    process = await asyncio.create_subprocess_exec(str(program), "600")
    try:
        pid = ProcessId(process.pid, start_time(process.pid), boot_id())
        assert await is_alive(host, pid) is True
    finally:
        process.kill()
        await process.wait()
    assert await is_alive(host, pid) is False


async def test_a_zombie_is_dead_unless_a_thread_of_it_lives(host: Host) -> None:
    loader = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(600,)).start(); "
    exit_this_thread = "ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[__import__('os').uname().machine], 0)"
    for code, lives in (("pass", False), (loader + exit_this_thread, True)):
        process = _popen(sys.executable, "-c", code)
        await until(functools.partial(is_zombie, process.pid), "the zombie")
        pid = ProcessId(process.pid, start_time(process.pid), boot_id())
        assert await is_alive(host, pid) is lives
        if lives:
            assert await wait_gone(host, pid, 0.1) is False
            assert await kill(host, pid) is True
        process.wait()


LATE = """
import socket, time
late = socket.socket(socket.AF_UNIX)
late.bind("qmp.sock")
time.sleep(0.5)
late.listen()
time.sleep(600)
"""


async def test_one_is_ready_only_once_somebody_listens_at_its_socket(host: Host, directory: Path) -> None:
    """On a busy machine a QEMU may lose its turn between making its socket and listening at it."""
    pid = await launch(host, directory=str(directory / "g"), argv=[sys.executable, "-c", LATE])
    (await host.open_unix(str(directory / "g" / "qmp.sock"))).close()
    assert await kill(host, pid)


HOLDER = """
import fcntl, os, struct, sys, time
image = os.open(sys.argv[1], os.O_RDWR)
os.set_inheritable(image, True)
for byte in (100, 201):
    fcntl.fcntl(image, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, byte, 1, 0))
parent = os.getpid()
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.01)
    time.sleep(0.7)
    os._exit(0)
open("qmp.sock", "w").close()
os.execvp("sleep", ["sleep", "600"])
"""
"""Locks an image as QEMU does. Its child keeps the open file when it is killed, as the kernel does with io_uring."""


async def test_one_that_was_killed_holds_no_image_any_more(host: Host, directory: Path) -> None:
    """Whoever opens it next must not find it locked. Another QEMU with the same locks does not make it wait for ever."""
    image = directory / "disk.img"
    image.touch()
    argv = [sys.executable, "-c", HOLDER, str(image)]
    other = os.open(image, os.O_RDWR)
    try:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 100, 1, 0))
        pid = await launch(host, directory=str(directory / "g"), argv=argv)
        assert is_locked(image, 201)
        assert await kill(host, pid) is True
        assert not is_locked(image, 201)
        assert is_locked(image, 100), "the other one's"
    finally:
        os.close(other)


OPEN = """
import os, socket, sys
directory, what = sys.argv[1:]
keep = []
os.write(os.open(f"{directory}/some.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), b"a log")
os.ftruncate(os.memfd_create("ram"), 4096)
os.open(f"{directory}/disk.img", os.O_RDONLY)
keep.append(socket.create_server(("127.0.0.1", 0)))
keep.append(socket.socket(socket.AF_UNIX))
keep[-1].bind("monitor.sock")
keep[-1].listen()
if what == "disk":
    os.open(f"{directory}/disk.img", os.O_RDWR)
if what == "tcp":
    keep.append(socket.create_connection(keep[0].getsockname()))
if what == "unix":
    keep.append(socket.socket(socket.AF_UNIX))
    keep[-1].connect(f"{directory}/storage.sock")
for open_file in keep:
    os.set_inheritable(open_file.fileno(), True)
for descriptor in range(3, 30):
    try:
        os.set_inheritable(descriptor, True)
    except OSError:
        pass
open("qmp.sock", "w").close()
os.execvp("sleep", ["sleep", "600"])
"""


@pytest.mark.parametrize(
    ("what", "held"),
    [
        ("nothing", ""),
        ("disk", "{directory}/disk.img"),
        ("tcp", "a connection to a server"),
        ("unix", "a connection to a server"),
    ],
)
async def test_one_whose_guest_has_ended_is_killed_only_without_an_image(
    host: Host, directory: Path, what: str, held: str
) -> None:
    """What a QEMU keeps to its end, logs and monitors with their clients, is no reason to let it live."""
    (directory / "disk.img").touch()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(directory / "storage.sock"))
        server.listen()
        pid = await launch(
            host, directory=str(directory / "g"), argv=[sys.executable, "-c", OPEN, str(directory), what]
        )
        client.connect(str(directory / "g" / "monitor.sock"))
        assert await kill_closed(host, pid) == held.format(directory=directory)
        assert await is_alive(host, pid) is bool(held)
        assert await kill(host, pid)
        assert await kill_closed(host, pid) == ""


def is_locked(image: Path, byte: int) -> bool:
    """Tell whether anybody holds a lock on one byte of a file."""
    descriptor = os.open(image, os.O_RDWR)
    try:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, byte, 1, 0)
        return bool(struct.unpack("hhqqi4x", fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def _popen(*argv: str) -> subprocess.Popen[bytes]:
    # Not asyncio's: that one reaps its children, and here a zombie is wanted.
    return subprocess.Popen(argv)
