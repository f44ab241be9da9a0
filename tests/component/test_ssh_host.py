"""SshHost against a real sshd; what every host must do is tried on LocalHost as well."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from qmp_migrate.errors import (
    ChannelRefused,
    CommandFailed,
    ConnectionLost,
    FileFailed,
    HostUnreachable,
    UsageError,
)
from qmp_migrate.hosts import Host, HostAddress, SshHost, files, make_host
from qmp_migrate.hosts.ssh.paramiko_import import paramiko
from qmp_migrate.hosts.ssh.transport import SshTransport
from tests.support.real.brokers import PATIENCE_S
from tests.support.real.sshd import Sshd, connected, open_descriptors, running_sshd, until

HOSTILE = [
    "",
    "plain",
    "two words",
    "$(id)",
    "`id`",
    "-n",
    "--",
    "it's",
    '"quoted"',
    "back\\slash\\n",
    "line\nbreak",
    "*",
    "~",
    "a;b|c&d>e<f",
    "$HOME ${PATH}",
    "!!",
    "ünïcödé",
    "\x01\x7f",
    "' ; touch /tmp/qm-never; '",
]


@pytest.fixture(params=["ssh", "local"])
async def host(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Host]:
    if request.param == "local":
        made = make_host(HostAddress("l", local=True))
        yield made
        await made.close()
        return
    async with running_sshd(directory / "s") as server, connected(server.address) as made:
        yield made


def output_of(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def names(directory: Path) -> list[str]:
    """What is in there, besides the sshd's own directory."""
    return sorted(path.name for path in directory.iterdir() if path.name != "s")


# -- commands ------------------------------------------------------------------------------------------------------


async def test_words_arrive_as_they_are(host: Host) -> None:
    done = await host.run(["printf", "%s\\0", *HOSTILE])
    assert done.stdout == b"".join(word.encode() + b"\0" for word in HOSTILE)
    done = await host.script('printf "%s\\0" "$@"', HOSTILE)
    assert done.stdout == b"".join(word.encode() + b"\0" for word in HOSTILE)


async def test_a_nul_in_a_word_is_refused_before_anything_runs(host: Host) -> None:
    with pytest.raises(UsageError):
        await host.run(["echo", "a\0b"])


async def test_status_and_both_streams(host: Host) -> None:
    done = await host.script("cat; echo oops >&2; exit 3", input=b"in\0put", check=False)
    assert (done.returncode, done.stdout, done.stderr, done.truncated) == (3, b"in\0put", b"oops\n", False)
    with pytest.raises(CommandFailed) as caught:
        await host.script("echo oops >&2; exit 3")
    assert caught.value.returncode == 3
    assert caught.value.stderr == "oops"
    assert caught.value.host == host.name
    done = await host.script("kill -9 $$", check=False)
    assert done.returncode < 0


async def test_much_output_on_both_streams_and_much_input_do_not_dead_lock(host: Host) -> None:
    # More than any window or pipe holds, in every direction at once.
    source = "cat; head -c 5000000 /dev/zero; head -c 5000000 /dev/zero >&2"
    done = await host.script(source, input=b"x" * 5_000_000, timeout=30)
    assert len(done.stdout) == len(done.stderr) == 1 << 20
    assert done.truncated
    assert done.stdout.startswith(b"xxxx")


async def test_input_that_is_not_read_does_not_matter(host: Host) -> None:
    assert (await host.run(["true"], input=b"x" * 5_000_000)).returncode == 0


DATA, EOF = 94, 96
"""Messages of a channel (RFC 4254)."""


@pytest.mark.parametrize("data", [b"", b"x"])
async def test_what_is_sent_as_the_command_ends_does_not_end_the_connection(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """sshd ends the whole connection for a message to a channel that is no more: one that was made, and is sent too late."""
    send = SshTransport._send_user_message  # type: ignore[attr-defined]

    def send_late(self: SshTransport, message: paramiko.Message) -> None:
        if message.asbytes()[0] in (DATA, EOF):
            time.sleep(0.1)  # a busy machine: the command ends meanwhile
        send(self, message)

    monkeypatch.setattr(SshTransport, "_send_user_message", send_late)
    async with connected(sshd.address) as host:
        for _ in range(3):
            assert (await host.run(["true"], input=data)).returncode == 0
    assert "nonexistent" not in sshd.log


async def test_what_the_host_says_at_the_end_of_a_connection_is_told(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qmp_migrate.hosts.ssh.transport._Channel", paramiko.Channel)  # as it was before
    send = SshTransport._send_user_message  # type: ignore[attr-defined]

    def send_late(self: SshTransport, message: paramiko.Message) -> None:
        if message.asbytes()[0] == EOF:
            time.sleep(0.1)
        send(self, message)

    monkeypatch.setattr(SshTransport, "_send_user_message", send_late)
    async with connected(sshd.address) as host:
        await host.run(["true"])
        with pytest.raises(ConnectionLost, match="nonexistent channel"):
            await host.run(["true"])


async def test_time_limits_leave_no_session_behind(host: Host) -> None:
    # More often than sshd allows sessions on one connection.
    for _ in range(15):
        with pytest.raises(ConnectionLost, match="did not end"):
            await host.run(["sleep", "60"], timeout=0.05)
    assert (await host.run(["echo", "still here"])).text == "still here"


async def test_a_slow_host_gets_more_time(directory: Path) -> None:
    async with running_sshd(directory / "s") as server, connected(replace(server.address, time_factor=60.0)) as host:
        assert (await host.run(["sh", "-c", "sleep 1; echo late"], timeout=0.5)).text == "late"


async def test_cancelling_leaves_no_session_behind(host: Host) -> None:
    for _ in range(15):
        task = asyncio.create_task(host.run(["sleep", "60"]))
        await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await host.run(["echo", "still here"])).text == "still here"


async def test_more_commands_at_once_than_sshd_has_sessions(host: Host) -> None:
    done = await asyncio.gather(*(host.script('sleep 0.05; echo "$1"', [str(n)]) for n in range(40)))
    assert [one.text for one in done] == [str(n) for n in range(40)]


async def test_a_login_shell_that_greets_is_not_taken_for_the_answer(directory: Path) -> None:
    greeting = 'ForceCommand echo Welcome to this machine; eval "$SSH_ORIGINAL_COMMAND"'
    async with running_sshd(directory / "s", greeting) as server, connected(server.address) as host:
        assert (await host.run(["echo", "answer"])).text == "answer"
        await host.write_file(str(directory / "file"), b"content")
        assert await host.read_file(str(directory / "file")) == b"content"
        lock = await host.hold_lock(str(directory / "lock"), owner="me")
        await lock.release()


# -- files ---------------------------------------------------------------------------------------------------------


async def test_files_are_written_whole_with_their_mode_and_read_in_parts(host: Host, directory: Path) -> None:
    path = directory / "it's a $(file)"
    data = bytes(range(256)) * 4096
    await host.write_file(str(path), data, mode=0o640)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert await host.read_file(str(path)) == data  # exactly the default limit
    assert await host.read_file(str(path), offset=5, limit=10) == data[5:15]
    assert await host.read_file(str(path), offset=len(data)) == b""
    await host.write_file(str(path), b"")
    assert path.read_bytes() == b""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(directory) == [path.name]


async def test_files_that_cannot_be(host: Host, directory: Path) -> None:
    for path in (directory / "absent" / "file", directory):
        with pytest.raises(FileFailed) as caught:
            await host.write_file(str(path), b"x")
        assert caught.value.host == host.name
        with pytest.raises(FileFailed):
            await host.read_file(str(path))


async def test_content_that_arrives_in_part_replaces_nothing(host: Host, directory: Path) -> None:
    path = directory / "file"
    path.write_bytes(b"old")
    # What the script sees when the connection breaks: the end of its input, too early.
    done = await host.script(files.WRITE, [str(path), "0600", "10"], input=b"new", check=False)
    assert done.returncode != 0
    assert path.read_bytes() == b"old"
    assert names(directory) == ["file"]


# -- UNIX sockets --------------------------------------------------------------------------------------------------


async def test_a_socket_carries_everything_both_ways(host: Host, echo: Path) -> None:
    reader, writer = await asyncio.open_connection(sock=await host.open_unix(str(echo)))
    data = os.urandom(3_000_000)
    writer.write(data)
    assert await asyncio.wait_for(reader.readexactly(len(data)), PATIENCE_S) == data
    writer.write(b"hang up\n")
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""  # the other side's end is ours
    writer.close()


async def test_sockets_that_cannot_be(host: Host, directory: Path) -> None:
    with pytest.raises(ChannelRefused, match=r"refused|cannot connect") as caught:
        await host.open_unix(str(directory / "absent.sock"))
    assert caught.value.hint
    assert caught.value.host == host.name
    with pytest.raises(ChannelRefused, match="bytes cannot be used"):
        await host.open_unix("/" + "x" * 107)


async def test_forwarding_that_is_switched_off_says_so(directory: Path, echo: Path) -> None:
    line = "AllowStreamLocalForwarding no"
    async with running_sshd(directory / "s", line) as server, connected(server.address) as host:
        with pytest.raises(ChannelRefused) as caught:
            await host.open_unix(str(echo))
    assert "AllowStreamLocalForwarding" in (caught.value.hint or "")


async def test_200_sockets_leave_no_thread_and_no_descriptor(sshd: Sshd, echo: Path) -> None:
    async with connected(sshd.address) as host:
        (await host.open_unix(str(echo))).close()
        await until(lambda: not _pump_threads(), "the first pump's end")
        descriptors = open_descriptors()
        for _ in range(20):
            for sock in await asyncio.gather(*(host.open_unix(str(echo)) for _ in range(10))):
                sock.close()
        await until(lambda: not _pump_threads(), "the end of all pumps")
        await until(lambda: open_descriptors() <= descriptors, "all descriptors closed")


def _pump_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "-unix-" in thread.name]


async def test_closing_the_host_leaves_nothing(directory: Path, echo: Path) -> None:
    async with running_sshd(directory / "s") as server:
        threads, descriptors = threading.active_count(), open_descriptors()
        host = SshHost(server.address)
        await host.connect()
        await host.run(["true"])
        sock = await host.open_unix(str(echo))
        lock = await host.hold_lock(str(directory / "lock"), owner="me")
        await host.close()
        await host.close()
        assert lock.lost.is_set()
        with sock:
            assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        await until(lambda: threading.active_count() <= threads, "the end of all threads")
        await until(lambda: open_descriptors() <= descriptors, "all descriptors closed")
        with pytest.raises(HostUnreachable, match="not connected"):
            await host.run(["true"])


async def test_nothing_blocks_the_event_loop(sshd: Sshd, echo: Path, directory: Path) -> None:
    with blockbuster_ctx():
        async with connected(sshd.address) as host:
            await host.run(["true"])
            reader, writer = await asyncio.open_connection(sock=await host.open_unix(str(echo)))
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            writer.close()
            lock = await host.hold_lock(str(directory / "lock"), owner="me")
            await lock.release()


def test_importing_the_package_does_not_import_paramiko() -> None:
    code = "import sys, qmp_migrate.hosts, qmp_migrate.hosts.process; sys.exit('paramiko' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
