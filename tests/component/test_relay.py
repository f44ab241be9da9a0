"""A key that is bound to the relay, behind a real sshd: what the controller needs works, and nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import paramiko
import pytest

from hostagent.relay.entry import main as entry
from qmp_migrate.errors import ChannelRefused, ConnectionLost, FileFailed, QmpCommandFailed, RelayRefused
from qmp_migrate.hosts import SshHost
from qmp_migrate.hosts.process import identify, kill, launch, list_all
from qmp_migrate.qemu.monitor import Monitor
from tests.support.real.pre_switchover_pair import binaries
from tests.support.real.sshd import Sshd, running_sshd, short_directory

BINARY = binaries()[0]


@dataclass
class Bound:
    """An sshd whose only key is bound to the relay."""

    server: Sshd
    host: SshHost
    run_dir: Path
    directory: Path


def bind(public: Path, settings: Path) -> None:
    """Bind a key to the relay."""
    command = f"{sys.executable} -m hostagent.relay --settings {settings}"
    public.write_text(f'restrict,command="cd {Path.cwd()} && {command}" {public.read_text()}')


@pytest.fixture
async def bound() -> AsyncIterator[Bound]:
    with short_directory() as directory:
        run_dir = directory / "run"
        (run_dir / ".locks").mkdir(parents=True)
        settings = directory / "relay.toml"
        settings.write_text(f'run_dir = "{run_dir}"\nimages = ["{directory}/images"]\nqemus = ["{BINARY}"]\n')
        settings.chmod(0o600)
        async with running_sshd(directory / "s") as server:
            bind(Path(f"{server.address.identity_file}.pub"), settings)
            host = SshHost(server.host_address(relay=True))
            await host.connect()
            try:
                yield Bound(server, host, run_dir, directory)
            finally:
                await host.close()
                for record in run_dir.glob("*/pid"):  # of a test that failed
                    with contextlib.suppress(OSError, ValueError, IndexError):
                        os.kill(int(record.read_text().split()[0]), signal.SIGKILL)


def guest(bound: Bound) -> list[str]:
    directory = bound.run_dir / "web1"
    words = [BINARY, "-nodefaults", "-no-user-config", "-display", "none", "-name", "guest=web1", "-m", "size=16M"]
    words += ["-machine", "type=pc", "-accel", "tcg", "-S"]
    for name in ("qmp", "agent"):
        words += ["-chardev", f"socket,id={name},path={directory}/{name}.sock,server=on,wait=off"]
        words += ["-mon", f"chardev={name},mode=control"]
    return words


async def test_a_guest_is_started_asked_and_ended(bound: Bound) -> None:
    directory = str(bound.run_dir / "web1")
    process = await launch(bound.host, directory=directory, argv=guest(bound))
    assert await identify(bound.host, directory) == process
    assert await list_all(bound.host, str(bound.run_dir)) == {"web1": process}
    sock = await bound.host.open_unix(f"{directory}/qmp.sock")
    monitor = await Monitor.connect(sock, label="web1")
    assert (await monitor.execute("query-status"))["status"] == "prelaunch"
    for command, arguments in (
        ("screendump", {"filename": f"{bound.directory}/x"}),
        ("migrate", {"uri": f"exec:touch {bound.directory}/x"}),
        ("human-monitor-command", {"command-line": "stop"}),
    ):
        with pytest.raises(QmpCommandFailed, match="relay"):
            await monitor.execute(command, arguments)
    assert not (bound.directory / "x").exists()
    await monitor.execute("cont")
    await monitor.close()
    assert await kill(bound.host, process)


async def test_locks_are_held_where_they_belong_and_nowhere_else(bound: Bound) -> None:
    file = bound.run_dir / ".locks" / "web1.lock"
    lock = await bound.host.hold_lock(str(file), owner="a test")
    assert file.exists()
    await lock.release()
    with pytest.raises((FileFailed, ConnectionLost)):
        await bound.host.hold_lock(f"{bound.directory}/elsewhere", owner="a test")
    assert not (bound.directory / "elsewhere").exists()


async def test_what_is_not_the_controllers_is_refused_and_said(bound: Bound) -> None:
    with pytest.raises(RelayRefused, match="not a command of qmp-migrate"):
        await bound.host.run(["id"])
    with pytest.raises(RelayRefused, match="does not know"):
        await bound.host.script(f"touch {bound.directory}/x")
    with pytest.raises(RelayRefused):
        await bound.host.read_file("/etc/passwd")
    with pytest.raises(RelayRefused):
        await bound.host.write_file(f"{bound.directory}/x", b"x")
    for path in ("/run/dbus/system_bus_socket", f"{bound.run_dir}/web1/../../x", f"{bound.run_dir}/web1/other.sock"):
        with pytest.raises(RelayRefused):
            await bound.host.open_unix(path)
    with pytest.raises(ChannelRefused):
        await bound.host.open_unix(f"{bound.run_dir}/absent/qmp.sock")
    with pytest.raises(RelayRefused):
        await launch(
            bound.host, directory=str(bound.run_dir / "web1"), argv=["/bin/sh", "-c", f"touch {bound.directory}/x"]
        )
    evil = [*guest(bound), "-device", "loader,file=/etc/passwd"]
    with pytest.raises(RelayRefused, match="not allowed"):
        await launch(bound.host, directory=str(bound.run_dir / "web1"), argv=evil)
    assert not (bound.directory / "x").exists()
    assert not (bound.run_dir / "web1").exists()


async def test_ssh_gives_nothing_beside_the_relay(bound: Bound) -> None:
    """Subsystems, terminals and shells end in the relay; forwarding and agents are off (`restrict`)."""

    def attempt() -> dict[str, str]:
        address = bound.server.address
        client = paramiko.SSHClient()
        client.load_host_keys(str(address.known_hosts))
        client.connect(address.address, address.port, username="root", key_filename=str(address.identity_file))
        transport = client.get_transport()
        assert transport is not None
        seen = {}
        for name, ask in (
            ("shell", lambda channel: channel.invoke_shell()),
            ("sftp", lambda channel: channel.invoke_subsystem("sftp")),
            ("scp", lambda channel: channel.exec_command("scp -t /tmp")),
            ("command", lambda channel: channel.exec_command("id")),
        ):
            channel = transport.open_session()
            try:
                ask(channel)
                seen[name] = str(channel.recv_exit_status())
            except paramiko.SSHException as error:
                seen[name] = type(error).__name__
            channel.close()
        channel = transport.open_session()
        try:
            channel.get_pty()
            seen["terminal"] = "given"
        except paramiko.SSHException:
            seen["terminal"] = "refused"
        try:
            transport.open_channel("direct-tcpip", ("127.0.0.1", 22), ("127.0.0.1", 0))
            seen["tcp"] = "given"
        except paramiko.SSHException:
            seen["tcp"] = "refused"
        client.close()
        return seen

    seen = await asyncio.to_thread(attempt)
    assert seen["tcp"] == seen["terminal"] == "refused"
    assert {seen[name] for name in ("shell", "sftp", "scp", "command")} <= {"77", "SSHException", "-1"}, seen
    plain = SshHost(bound.server.host_address(relay=False))
    await plain.connect()
    with pytest.raises(ChannelRefused):
        await plain.open_unix(str(bound.run_dir / "x.sock"))
    await plain.close()


def _children_s() -> float:
    """The CPU time of children that have ended: what else the machine does is not in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_it_starts_fast(tmp_path: Path) -> None:
    """Loosely; what it is, is printed."""
    argv = [sys.executable, "-m", "hostagent.relay", "--explain", "id"]
    times = []
    for _ in range(5):
        began = _children_s()
        assert subprocess.run(argv, capture_output=True, check=False).returncode == 77
        times.append(_children_s() - began)
    print(f"\n  a refusal takes {statistics.median(times) * 1000:.0f} ms of a CPU")
    assert min(times) < 1.0
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", *argv[1:]], capture_output=True, text=True, check=False
    ).stderr
    assert not [name for name in ("typer", "pydantic", "paramiko", "structlog") if f" {name}\n" in loaded]
    assert entry(["--help"]) == 0
