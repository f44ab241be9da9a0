"""How SshHost gets to a host, and what it does when it cannot, or no longer: against real sshds."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from qmp_migrate.errors import (
    AuthenticationFailed,
    ConnectionLost,
    HostKeyError,
    HostUnreachable,
)
from qmp_migrate.hosts import HostAddress, SshHost, Timing
from tests.support.real.brokers import PATIENCE_S
from tests.support.real.sshd import Sshd, connected, running_sshd, until


def ssh_keygen(*words: str | Path) -> None:
    output_of("ssh-keygen", "-q", *map(str, words))


def output_of(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def admit(server: Sshd, key: Path | None) -> None:
    """Let another key in."""
    with Path(f"{server.address.identity_file}.pub").open("a") as file:
        file.write(Path(f"{key}.pub").read_text())


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
        assert time.monotonic() - begun < 5
    with socket.create_server(("127.0.0.1", 0)) as half:  # a banner, then nothing; a banner, then the end, each time
        ended = threading.Event()
        answered = 0

        def speak() -> None:
            nonlocal answered
            while True:
                peer, _ = half.accept()
                with peer:
                    if ended.is_set():
                        return
                    peer.sendall(b"SSH-2.0-none\r\n")
                    while not answered and peer.recv(65536):
                        pass
                answered += 1

        speaker = threading.Thread(target=speak)
        speaker.start()
        address = HostAddress("x", port=half.getsockname()[1], connect_timeout_s=0.5)
        with pytest.raises(HostUnreachable):
            await SshHost(address).connect()
        connecting = asyncio.create_task(SshHost(replace(address, connect_timeout_s=600.0)).connect())
        await until(lambda: answered > 2, "it is asked again")
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        ended.set()
        socket.create_connection(half.getsockname()).close()
        speaker.join(PATIENCE_S)
        assert not speaker.is_alive()
    # Among them timers of paramiko's that would hold up the exit of the interpreter for ten minutes.
    await until(lambda: threading.active_count() <= threads, "the end of all threads")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("way", ["direct", "jump"])
async def test_a_host_that_takes_nobody_else_for_now_is_asked_again(way: str, sshd: Sshd, directory: Path) -> None:
    """sshd hangs up on whoever comes while MaxStartups others log in."""
    async with running_sshd(directory / "n", "MaxStartups 1", address="127.0.0.8") as narrow:
        address = narrow.address
        if way == "jump":
            admit(sshd, narrow.address.identity_file)
            known = directory / "known"
            for server in (sshd, narrow):
                assert server.address.known_hosts is not None
                with known.open("a") as file:
                    file.write(server.address.known_hosts.read_text())
            jump = f"{address.address}:{address.port}"
            address = sshd.host_address(jump=jump, identity_file=address.identity_file, known_hosts=known)
        threads = threading.active_count()
        place = (narrow.address.address, narrow.address.port)
        with socket.create_connection(place):  # says nothing, and holds the only place
            connecting = asyncio.create_task(_echo(replace(address, connect_timeout_s=60.0)))
            # OpenSSH 9.2 says "past MaxStartups", 10.0 "Maxstartups"
            await until(lambda: "maxstartups" in narrow.log.lower() or connecting.done(), "it is sent away")
            assert not connecting.done()
        assert await connecting == "here"
        with socket.create_connection(place), pytest.raises(HostUnreachable, match="no SSH") as caught:
            await SshHost(replace(address, connect_timeout_s=3.0)).connect()
        # A machine that is busy enough may not even be sent away once within the limit.
        assert "MaxStartups" in (caught.value.hint or "") or "within 3 s" in str(caught.value)
        await until(lambda: threading.active_count() <= threads, "the end of all threads")


async def _echo(address: HostAddress) -> str:
    async with connected(address) as host:
        return (await host.run(["echo", "here"])).text


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


async def test_everything_pending_learns_of_a_lost_connection_at_once(sshd: Sshd, directory: Path, echo: Path) -> None:
    timing = Timing(ping_every_s=600.0)  # it is not the watchdog that notices
    async with connected(replace(sshd.address, timing=timing)) as host:
        running = asyncio.create_task(host.run(["sleep", "60"], timeout=60))
        sock = await host.open_unix(str(echo))
        lock = await host.hold_lock(str(directory / "lock"), owner="me")
        sshd.signal_sessions(signal.SIGKILL)
        with pytest.raises(ConnectionLost, match="ended before") as caught:
            await asyncio.wait_for(running, PATIENCE_S)
        assert caught.value.hint
        with sock:
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), PATIENCE_S) == b""
        await asyncio.wait_for(lock.lost.wait(), PATIENCE_S)
        await lock.release()  # nothing to release, no complaint
        with pytest.raises(ConnectionLost):
            await host.run(["true"])
        await host.connect()
        assert (await host.run(["echo", "back"])).text == "back"
        again = await host.hold_lock(str(directory / "lock"), owner="me again")
        assert not again.lost.is_set()


async def test_an_sshd_that_hangs_is_noticed(sshd: Sshd) -> None:
    async with connected(replace(sshd.address, timing=Timing(ping_every_s=0.1, ping_limit_s=0.5))) as host:
        running = asyncio.create_task(host.run(["sleep", "60"], timeout=60))
        await until(lambda: len(sshd.sessions()) == 1, "the session")
        sshd.signal_sessions(signal.SIGSTOP)
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(running, PATIENCE_S)


async def test_an_idle_connection_stays(sshd: Sshd) -> None:
    async with connected(replace(sshd.address, timing=Timing(ping_every_s=0.02))) as host:
        for _ in range(10):
            assert (await host.run(["echo", "x"])).text == "x"
            await asyncio.sleep(0.03)
