"""A host behind the fence: the same as the host itself while the epoch is ours, and nothing at all afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qmp_migrate.errors import CommandFailed, Fenced, FileFailed, LockBusy
from qmp_migrate.hosts import Host, HostAddress, SshHost, make_host
from qmp_migrate.hosts.fenced import FencedHost
from qmp_migrate.hosts.process import identify, is_alive, kill, launch
from tests.support.real.sshd import running_sshd


@pytest.fixture(params=["ssh", "local"])
async def host(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[FencedHost]:
    """A host behind a fence; the guest's epoch is 7, and ours."""
    epoch = directory / "it's.epoch"
    epoch.write_text("7\n")
    inner: Host
    if request.param == "local":
        inner = make_host(HostAddress("a", local=True))
        yield FencedHost(inner, str(epoch), 7)
        await inner.close()
    else:
        async with running_sshd(directory / "s") as server:
            inner = SshHost(server.address)
            fenced = FencedHost(inner, str(epoch), 7)
            await fenced.connect()
            yield fenced
            await fenced.close()


async def listening(path: Path) -> asyncio.Server:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(greet, path)


async def test_with_our_epoch_all_is_as_without_the_fence(host: FencedHost, directory: Path) -> None:
    assert host.name == host._host.name
    assert (await host.run(["printf", "%s,", "a b", "$c", "'"])).stdout == b"a b,$c,',"
    assert (await host.run(["cat"], input=b"in")).stdout == b"in"
    assert (await host.run(["sh", "-c", "exit 75"], check=False)).returncode == 75  # not a word of the fence
    with pytest.raises(CommandFailed, match="false ended with exit status 1") as caught:
        await host.run(["false"])
    assert caught.value.returncode == 1
    assert (await host.script('echo "$#" "$1" "$0"; cat', ["x y"], input=b"in")).text == "1 x y sh\nin"
    with pytest.raises(CommandFailed, match="a script ended with exit status 3"):
        await host.script("exit 3")
    path = directory / "file"
    await host.write_file(str(path), b"con\0tent", mode=0o640)
    assert path.stat().st_mode & 0o777 == 0o640
    assert await host.read_file(str(path), offset=1, limit=3) == b"on\0"
    with pytest.raises(FileFailed):
        await host.write_file(str(directory / "absent" / "file"), b"")
    async with await listening(directory / "sock"):
        reader, writer = await asyncio.open_unix_connection(sock=await host.open_unix(str(directory / "sock")))
        assert await reader.readline() == b"hello\n"
        writer.close()
    held = await host.hold_lock(str(directory / "lock"), owner="me")
    with pytest.raises(LockBusy):
        await host.hold_lock(str(directory / "lock"), owner="me")
    await held.release()


async def test_processes_are_started_and_ended_behind_it(host: FencedHost, directory: Path) -> None:
    guest = directory / "web1"
    argv = ["sh", "-c", ": >ready; exec sleep 600"]
    process = await launch(host, directory=str(guest), argv=argv, ready="ready")
    assert await identify(host, str(guest)) == process
    (directory / "it's.epoch").write_text("8\n")
    with pytest.raises(Fenced):
        await kill(host, process)
    with pytest.raises(Fenced):
        await launch(host, directory=str(directory / "web2"), argv=argv, ready="ready")
    assert not (directory / "web2").exists()
    assert await is_alive(host._host, process)
    (directory / "it's.epoch").write_text("7\n")
    assert await kill(host, process)


@pytest.mark.parametrize("epoch", ["8\n", "6\n", "70\n", "7 8\n", "\n", None])
async def test_with_another_epoch_nothing_is_done(host: FencedHost, directory: Path, epoch: str | None) -> None:
    path = directory / "it's.epoch"
    path.unlink()
    if epoch is not None:
        path.write_text(epoch)
    mark = directory / "mark"
    other = directory / "other"
    other.write_text("old")
    async with await listening(directory / "sock"):
        for act in (
            host.run(["touch", str(mark)]),
            host.run(["touch", str(mark)], check=False),
            host.script('touch "$1"', [str(mark)]),
            host.script('touch "$1"', [str(mark)], check=False),
            host.write_file(str(mark), b"content"),
            host.write_file(str(other), b"new"),
            host.open_unix(str(directory / "sock")),
        ):
            with pytest.raises(Fenced, match="no longer 7") as caught:
                await act
            assert caught.value.exit_code == 75
            assert caught.value.code == "fenced"
            assert caught.value.host == host.name
            assert caught.value.hint
    assert not mark.exists()
    assert await host.read_file(str(other)) == b"old"
    await (await host.hold_lock(str(directory / "lock"), owner="me")).release()
