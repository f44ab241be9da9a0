"""SshHost against a real sshd; what every host must do is tried on LocalHost as well."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from qmp_migrate.errors import (
    AuthenticationFailed,
    ChannelRefused,
    CommandFailed,
    ConnectionLost,
    FileFailed,
    HostKeyError,
    HostUnreachable,
    UsageError,
)
from qmp_migrate.hosts import Host, HostAddress, SshHost, files, make_host, ssh
from tests.support.sshd import Sshd, open_descriptors, running_sshd, short_directory, until

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


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
async def sshd(directory: Path) -> AsyncIterator[Sshd]:
    async with running_sshd(directory / "s") as server:
        yield server


@asynccontextmanager
async def connected(address: HostAddress) -> AsyncIterator[SshHost]:
    host = SshHost(address)
    await host.connect()
    try:
        yield host
    finally:
        await host.close()


@pytest.fixture(params=["ssh", "local"])
async def host(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Host]:
    if request.param == "local":
        made = make_host(HostAddress("l", local=True))
        yield made
        await made.close()
        return
    async with running_sshd(directory / "s") as server, connected(server.address) as made:
        yield made


def ssh_keygen(*words: str | Path) -> None:
    output_of("ssh-keygen", "-q", *map(str, words))


def output_of(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def names(directory: Path) -> list[str]:
    """What is in there, besides the sshd's own directory."""
    return sorted(path.name for path in directory.iterdir() if path.name != "s")


def admit(server: Sshd, key: Path | None) -> None:
    """Let another key in."""
    with Path(f"{server.address.identity_file}.pub").open("a") as file:
        file.write(Path(f"{key}.pub").read_text())


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


async def test_time_limits_leave_no_session_behind(host: Host) -> None:
    # More often than sshd allows sessions on one connection.
    for _ in range(15):
        with pytest.raises(ConnectionLost, match="did not end"):
            await host.run(["sleep", "60"], timeout=0.05)
    assert (await host.run(["echo", "still here"])).text == "still here"


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


@pytest.fixture
async def echo(directory: Path) -> AsyncIterator[Path]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if data == b"hang up\n":
                break
            writer.write(data)
            await writer.drain()
        writer.close()

    path = directory / "echo.sock"
    server = await asyncio.start_unix_server(serve, path)
    yield path
    server.close()
    await server.wait_closed()


async def test_a_socket_carries_everything_both_ways(host: Host, echo: Path) -> None:
    reader, writer = await asyncio.open_connection(sock=await host.open_unix(str(echo)))
    data = os.urandom(3_000_000)
    writer.write(data)
    assert await asyncio.wait_for(reader.readexactly(len(data)), 20) == data
    writer.write(b"hang up\n")
    assert await asyncio.wait_for(reader.read(), 5) == b""  # the other side's end is ours
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


# -- connecting ----------------------------------------------------------------------------------------------------


async def test_an_unknown_host_key_is_refused_and_the_hint_says_how_to_add_it(sshd: Sshd, directory: Path) -> None:
    known = directory / "known"
    with pytest.raises(HostKeyError, match="is not known") as caught:
        await SshHost(sshd.host_address(known_hosts=known)).connect()
    command, _, _ = (caught.value.hint or "").rpartition("it: ")[2].partition(" >>")
    known.write_text(output_of(*command.split()))
    async with connected(sshd.host_address(known_hosts=known)):  # the hint works
        pass


async def test_a_changed_host_key_is_refused_with_other_words(sshd: Sshd, directory: Path) -> None:
    other = directory / "other"
    ssh_keygen("-t", "ed25519", "-N", "", "-f", other)
    key = " ".join(other.with_suffix(".pub").read_text().split()[:2])
    known = directory / "known"
    known.write_text(f"[{sshd.address.address}]:{sshd.address.port} {key}\n")
    with pytest.raises(HostKeyError, match="CHANGED") as caught:
        await SshHost(sshd.host_address(known_hosts=known)).connect()
    assert "ssh-keygen -R" in (caught.value.hint or "")


async def test_a_revoked_host_key_is_refused_although_it_is_known(sshd: Sshd) -> None:
    known = sshd.address.known_hosts
    assert known is not None
    known.write_text(known.read_text() + "@revoked * " + known.read_text().partition(" ")[2])
    with pytest.raises(HostKeyError, match="revoked"):
        await SshHost(sshd.address).connect()


async def test_the_known_one_of_several_host_keys_is_asked_for(directory: Path) -> None:
    rsa = directory / "rsa"
    ssh_keygen("-t", "rsa", "-b", "2048", "-N", "", "-f", rsa)
    async with running_sshd(directory / "s", f"HostKey {rsa}") as server:
        key = " ".join(rsa.with_suffix(".pub").read_text().split()[:2])
        known = directory / "known"
        known.write_text(f"[{server.address.address}]:{server.address.port} {key}\n")
        async with connected(server.host_address(known_hosts=known)) as host:
            assert (await host.run(["true"])).returncode == 0


async def test_a_key_that_is_not_accepted(sshd: Sshd, directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = directory / "other"
    ssh_keygen("-t", "ed25519", "-N", "", "-f", other)
    with pytest.raises(AuthenticationFailed, match=str(other)) as caught:
        await SshHost(sshd.host_address(identity_file=other)).connect()
    assert caught.value.hint
    with pytest.raises(AuthenticationFailed, match="No such file"):
        await SshHost(sshd.host_address(identity_file=directory / "absent")).connect()
    assert capfd.readouterr().err == ""  # paramiko logs such things with tracebacks


async def test_a_key_with_a_passphrase_says_what_to_do(
    sshd: Sshd, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    locked = directory / "locked"
    ssh_keygen("-t", "ed25519", "-N", "secret", "-f", locked)
    with pytest.raises(AuthenticationFailed, match="ssh-add"):
        await SshHost(sshd.host_address(identity_file=locked)).connect()


async def test_keys_of_the_agent_are_used(sshd: Sshd, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(directory / "agent.sock"))
    monkeypatch.setenv("HOME", str(directory))  # no default keys
    argv = ["ssh-agent", "-D", "-a", str(directory / "agent.sock")]
    agent = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.DEVNULL)
    try:
        await until((directory / "agent.sock").exists, "the agent's socket")
        key = sshd.address.identity_file
        assert key is not None
        output_of("ssh-add", "-q", str(key))
        async with connected(sshd.host_address(identity_file=None)):
            pass
        # An identity file with a passphrase whose key the agent holds unlocked.
        ssh_keygen("-p", "-P", "", "-N", "secret", "-f", key)
        async with connected(sshd.address):
            pass
    finally:
        agent.kill()
        await agent.wait()


async def test_ports_that_are_closed_silent_or_no_ssh(capfd: pytest.CaptureFixture[str]) -> None:
    threads = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(HostUnreachable, match="refused"):
        await SshHost(HostAddress("x", port=port)).connect()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, nobody speaks
        begun = time.monotonic()
        address = HostAddress("x", port=silent.getsockname()[1], connect_timeout_s=0.5)
        with pytest.raises(HostUnreachable, match=r"within 0\.5 s"):
            await SshHost(address).connect()
        assert time.monotonic() - begun < 2
    with socket.create_server(("127.0.0.1", 0)) as half:  # a banner, then nothing; a banner, then the end

        def speak() -> None:
            for seconds in (5.0, 0.0):
                peer, _ = half.accept()
                with peer:
                    peer.settimeout(seconds or None)
                    peer.sendall(b"SSH-2.0-none\r\n")
                    while seconds and peer.recv(65536):
                        pass

        speaker = threading.Thread(target=speak)
        speaker.start()
        for limit in (0.5, 10.0):
            address = HostAddress("x", port=half.getsockname()[1], connect_timeout_s=limit)
            with pytest.raises(HostUnreachable):
                await SshHost(address).connect()
        speaker.join(5)
        assert not speaker.is_alive()
    # Among them a timer of paramiko's that would hold up the exit of the interpreter for as long as it runs.
    await until(lambda: threading.active_count() <= threads, "the end of all threads", timeout=3)
    assert capfd.readouterr().err == ""


async def test_through_a_jump_host(sshd: Sshd, directory: Path, echo: Path) -> None:
    async with running_sshd(directory / "j", address="127.0.0.8") as jump:
        admit(sshd, jump.address.identity_file)
        assert sshd.address.known_hosts is not None
        assert jump.address.known_hosts is not None
        known = directory / "known"
        known.write_text(sshd.address.known_hosts.read_text())
        address = sshd.host_address(
            jump=f"{jump.address.address}:{jump.address.port}",
            identity_file=jump.address.identity_file,
            known_hosts=known,
        )
        with pytest.raises(HostKeyError, match=rf"\[127\.0\.0\.8\]:{jump.address.port}.*is not known"):
            await SshHost(address).connect()
        known.write_text(known.read_text() + jump.address.known_hosts.read_text())
        threads = threading.active_count()
        async with connected(address) as host:
            assert jump.sessions()  # it did go there
            reader, writer = await asyncio.open_connection(sock=await host.open_unix(str(echo)))
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            writer.close()
        await until(lambda: threading.active_count() <= threads, "the end of all threads")


# -- losing the connection -----------------------------------------------------------------------------------------


async def test_everything_pending_learns_of_a_lost_connection_at_once(sshd: Sshd, directory: Path, echo: Path) -> None:
    async with connected(sshd.address) as host:
        running = asyncio.create_task(host.run(["sleep", "60"], timeout=60))
        sock = await host.open_unix(str(echo))
        lock = await host.hold_lock(str(directory / "lock"), owner="me")
        sshd.signal_sessions(signal.SIGKILL)
        with pytest.raises(ConnectionLost, match="ended before") as caught:
            await asyncio.wait_for(running, 3)
        assert caught.value.hint
        with sock:
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), 3) == b""
        await asyncio.wait_for(lock.lost.wait(), 3)
        await lock.release()  # nothing to release, no complaint
        with pytest.raises(ConnectionLost):
            await host.run(["true"])
        await host.connect()
        assert (await host.run(["echo", "back"])).text == "back"
        again = await host.hold_lock(str(directory / "lock"), owner="me again")
        assert not again.lost.is_set()


async def test_an_sshd_that_hangs_is_noticed(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "PING_EVERY_S", 0.1)
    monkeypatch.setattr(ssh, "PING_LIMIT_S", 0.5)
    async with connected(sshd.address) as host:
        running = asyncio.create_task(host.run(["sleep", "60"], timeout=60))
        await until(lambda: len(sshd.sessions()) == 1, "the session")
        sshd.signal_sessions(signal.SIGSTOP)
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(running, 5)


async def test_an_idle_connection_stays(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "PING_EVERY_S", 0.02)
    monkeypatch.setattr(ssh, "PING_LIMIT_S", 2.0)
    async with connected(sshd.address) as host:
        for _ in range(10):
            assert (await host.run(["echo", "x"])).text == "x"
            await asyncio.sleep(0.03)


def test_importing_the_package_does_not_import_paramiko() -> None:
    code = "import sys, qmp_migrate.hosts, qmp_migrate.hosts.process; sys.exit('paramiko' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
