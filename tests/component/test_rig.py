"""The rig: comes up whole or not at all, is told apart from everything else, and leaves nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import stat
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qmp_migrate.errors import RigError, UsageError
from qmp_migrate.hosts import HostAddress, SshHost, process
from qmp_migrate.hosts.local import LocalHost
from qmp_migrate.rig import RigState, default_directory, down, lab, sshd, status, up
from qmp_migrate.rig.addresses import host_names, run_dir
from qmp_migrate.rig.directory import exclusive
from qmp_migrate.rig.guest.images import GuestImage
from qmp_migrate.vm.spec.guest_spec import GuestSpec, parse_spec
from tests.support.real.brokers import PATIENCE_S
from tests.support.real.sshd import short_directory, until


@pytest.fixture(autouse=True)
def no_guest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QMP_MIGRATE_IMAGES", str(tmp_path))


@pytest.fixture
def parent() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
async def directory(parent: Path) -> AsyncIterator[Path]:
    """A directory for a rig, which does not exist yet; whatever is in it is taken down."""
    yield parent / "rig"
    await down(parent / "rig")


def alive(state: RigState) -> list[str]:
    return [part.name for part in state.parts if part.process and lives(part.process.pid)]


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def started_under(directory: Path) -> list[list[str]]:
    """The command lines of all processes that mention the directory."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        argv = one.info["cmdline"] or []
        if one.pid != os.getpid() and any(str(directory) in word for word in argv):
            found.append(argv)
    return found


def is_there(directory: Path) -> bool:
    return directory.exists()


def host_address(state: RigState, name: str) -> HostAddress:
    settings: dict[str, Any] = tomllib.loads(state.settings_file.read_text())["hosts"][name]
    return HostAddress(
        name,
        settings["address"],
        settings["port"],
        settings["user"],
        Path(settings["identity_file"]),
        Path(settings["known_hosts"]),
    )


async def test_up_status_down(directory: Path) -> None:
    state = await up(directory, 3)
    assert [host.address for host in state.hosts] == ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    assert sorted(part.name for part in state.parts) == [
        *("agent-a", "agent-b", "agent-c", "broker", "sshd-a", "sshd-b", "sshd-c"),
    ]
    assert permissions(directory) == 0o700
    assert state.warnings
    assert "make images" in state.warnings[0]
    now = await status(directory)
    assert now is not None
    assert now.state == state
    assert all(now.alive.values())
    assert now.guests == {}
    for name in ("a", "b", "c"):
        host = SshHost(host_address(state, name))
        await host.connect()
        assert (await host.script('echo "$SSH_CONNECTION"')).text.split()[2:] == [
            host.address.address,
            str(host.address.port),
        ]
        await host.close()
    assert set(await down(directory) or ()) == {part.name for part in state.parts}
    assert alive(state) == []
    assert started_under(directory) == []
    assert not is_there(directory)
    assert await status(directory) is None
    assert await down(directory) is None


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_down_ends_guests_sessions_locks_and_commands_too(directory: Path) -> None:
    state = await up(directory, 1)
    host = SshHost(host_address(state, "a"))
    await host.connect()
    lock = await host.hold_lock(str(directory / "a" / "run" / "lock"), owner="me")
    running = asyncio.create_task(host.run(["sleep", "617"], timeout=60))
    guest = directory / "a" / "run" / "web1"
    argv = [
        *("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-S"),
        *("-qmp", f"unix:{guest}/qmp.sock,server=on,wait=off"),
    ]
    pid = await process.launch(host, directory=str(guest), argv=argv)
    now = await status(directory)
    assert now is not None
    assert now.guests == {"a/web1": pid}
    await until(lambda: any("617" in argv for argv in command_lines()), "the command")
    ended = await down(directory)
    assert "a/web1" in (ended or ())
    assert not lives(pid.pid)
    await asyncio.wait_for(lock.lost.wait(), PATIENCE_S)
    assert started_under(directory) == []
    assert not any("617" in argv for argv in command_lines())
    await asyncio.gather(running, return_exceptions=True)
    await host.close()


def command_lines() -> list[list[str]]:
    lines = (one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"]))
    return [argv for argv in lines if argv[:1] == ["sleep"]]


async def test_up_again_is_the_same_rig(directory: Path) -> None:
    state = await up(directory, 1)
    assert await up(directory, 1) == state
    with pytest.raises(RigError, match="1 hosts is up"):
        await up(directory, 2)
    agent = next(part for part in state.parts if part.role == "agent")
    assert agent.process is not None
    psutil.Process(agent.process.pid).kill()
    assert await process.wait_gone(LocalHost("rig"), agent.process, 10)
    now = await status(directory)
    assert now is not None
    assert [name for name, up_ in now.alive.items() if not up_] == ["agent-a"]
    with pytest.raises(RigError, match="agent-a ended"):
        await up(directory, 1)
    assert set(await down(directory) or ()) == {"broker", "sshd-a"}
    assert not is_there(directory)


@pytest.mark.parametrize("part", ["broker", "sshd", "agent"])
async def test_a_part_that_fails_takes_everything_down_and_shows_its_log(
    part: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part == "sshd":
        monkeypatch.setattr(sshd, "_CONFIG", "NoSuchSetting yes\n" + sshd._CONFIG)
        words = "NoSuchSetting"
    else:
        module = {"broker": "qmp_migrate.bus.broker.embedded", "agent": "hostagent.app.cli"}[part]
        original = lab.python
        monkeypatch.setattr(
            lab, "python", lambda name: original("no.such.module") if name == module else original(name)
        )
        words = "No module named"
    with pytest.raises(RigError, match=f"{part}.* did not come up") as caught:
        await up(directory, 2)
    assert words in (caught.value.hint or "")
    assert not is_there(directory)
    assert started_under(directory) == []


async def test_cancelling_on_the_way_up_takes_everything_down(directory: Path) -> None:
    raising = asyncio.create_task(up(directory, 2))
    await until(lambda: (directory / "parts" / "agent-a" / "pid").exists(), "the first agent")
    raising.cancel()
    with pytest.raises(asyncio.CancelledError):
        await raising
    assert not is_there(directory)
    assert started_under(directory) == []


async def test_a_rig_whose_up_was_killed_can_be_taken_down(directory: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from qmp_migrate import rig; "
        "asyncio.run(rig.up(Path(sys.argv[1]), 2))"
    )
    command = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(directory))
    await until(lambda: (directory / "parts" / "agent-a" / "pid").exists(), "the first agent")
    command.kill()
    await command.wait()
    with pytest.raises(RigError, match=r"never finished|ended"):
        await up(directory, 2)
    assert await down(directory)
    assert not is_there(directory)
    await until(lambda: not started_under(directory), "the end of everything")


async def test_a_rig_outlives_the_command_that_made_it(directory: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from qmp_migrate import rig; "
        "asyncio.run(rig.up(Path(sys.argv[1]), 1))"
    )
    # A session of its own that ends with the command, as a terminal does.
    command = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(directory), start_new_session=True)
    assert await command.wait() == 0
    now = await status(directory)
    assert now is not None
    assert all(now.alive.values())
    for part in now.state.parts:
        assert part.process is not None
        assert os.getsid(part.process.pid) == part.process.pid


async def test_directories_that_cannot_be(parent: Path) -> None:
    (parent / "full").mkdir(mode=0o700)
    (parent / "full" / "precious").write_text("")
    with pytest.raises(RigError, match="not empty"):
        await up(parent / "full")
    assert names(parent / "full") == ["precious"]
    (parent / "open").mkdir(mode=0o755)
    with pytest.raises(RigError, match="you alone"):
        await up(parent / "open")
    (parent / "link").symlink_to(parent / "full")
    with pytest.raises(RigError, match="you alone"):
        await up(parent / "link")
    with pytest.raises(RigError, match="too long") as caught:
        await up(parent / ("x" * 80))
    assert "--dir" in (caught.value.hint or "")
    assert names(parent) == ["full", "link", "open"]
    with pytest.raises(UsageError):
        await up(parent / "none", 0)
    with pytest.raises(UsageError):
        await up(parent / "none", 27)
    (parent / "bad").mkdir(mode=0o700)
    (parent / "bad" / "rig.json").write_text("{}")
    for call in (up, down, status):
        with pytest.raises(RigError, match="cannot be used"):
            await call(parent / "bad")


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


async def test_a_directory_that_was_there_stays_and_so_does_what_is_not_ours(parent: Path) -> None:
    there = parent / "rig"
    there.mkdir(mode=0o700)
    await up(there, 1)
    (there / "notes").write_text("mine")
    await down(there)
    assert names(there) == ["notes"]


async def test_two_commands_at_once(directory: Path) -> None:
    await up(directory, 1)
    with exclusive(directory):
        for call in (up, down):
            with pytest.raises(RigError, match="another command"):
                await call(directory)


async def test_missing_programs_are_named(directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RigError, match="QEMU is not installed") as caught:
        await up(directory)
    assert "apt-get install" in (caught.value.hint or "")
    assert not is_there(directory)


def test_the_settings_are_what_the_controller_reads(parent: Path) -> None:
    from qmp_migrate import settings
    from qmp_migrate.rig.configuration import settings_text

    state = dataclasses.replace(lab._plan(parent, True, host_names(2)), broker_url="mqtt://127.0.0.1:1883")
    text = settings_text(state, identity_file=parent / 'a "key"', known_hosts=parent / "known", qemu="/usr/bin/qemu")
    read = settings.parse(text, source="test")
    assert read.hosts["b"].address == "127.0.0.3"
    assert read.hosts["b"].run_dir == str(run_dir(parent, "b"))
    assert read.hosts["a"].identity_file == parent / 'a "key"'
    assert read.mqtt.url == "mqtt://127.0.0.1:1883"


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Images of both guests; the Linux guest runs under TCG alone, the bare one under KVM, too."""

    async def probed(qemu: str, image: GuestImage) -> str:
        return "tcg" if image.kind == "linux" else "kvm"

    for name in ("vmlinuz", "initrd.img", "bare.elf"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(lab, "probe_accel", probed)
    return tmp_path


def read_spec(path: Path) -> GuestSpec:
    return parse_spec(path.read_text(), source=path.name, base_dir="/")


async def test_with_images_there_are_specs_of_the_test_guests(directory: Path, images: Path) -> None:
    state = await up(directory, 1)
    assert state.warnings == ()
    spec = read_spec(state.guest_file)
    assert (spec.name, spec.accel, spec.kernel) == ("web1", "tcg", str(images / "vmlinuz"))
    bare = read_spec(state.bare_guest_file)
    assert (bare.name, bare.accel, bare.kernel, bare.initrd) == ("bare1", "kvm", str(images / "bare.elf"), None)
    assert bare.firmware == "qboot.rom"
    with pytest.raises(RigError, match="starts the linux guest"):
        await up(directory, 1, guest="bare")
    await down(directory)
    assert not is_there(directory)


async def test_the_bare_guest_can_be_chosen(directory: Path, images: Path) -> None:
    (images / "vmlinuz").unlink()
    state = await up(directory, 1, guest="bare")
    assert state.warnings == (), "nobody asked for the Linux guest"
    for file, name in ((state.guest_file, "web1"), (state.bare_guest_file, "bare1")):
        spec = read_spec(file)
        assert (spec.name, spec.accel, spec.kernel) == (name, "kvm", str(images / "bare.elf"))
    assert await up(directory, 1, guest="bare") == state


async def test_a_kvm_that_runs_no_guest_is_told_of_once(
    directory: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def probed(qemu: str, image: GuestImage) -> str:
        return "tcg"

    monkeypatch.setattr(lab, "probe_accel", probed)
    monkeypatch.setattr(lab, "kvm_opens", lambda: True)
    state = await up(directory, 1)
    assert len(state.warnings) == 1
    assert "no test guest runs under it" in state.warnings[0]
    assert read_spec(state.bare_guest_file).accel == "tcg"


async def test_a_guest_that_is_not_known(directory: Path) -> None:
    with pytest.raises(UsageError, match="minix is not a test guest") as caught:
        await up(directory, 1, guest="minix")  # type: ignore[arg-type]
    assert "linux, bare" in (caught.value.hint or "")
    assert not is_there(directory)


def test_the_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert default_directory() == Path("/run/user/1000/qmp-migrate-rig")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_directory() == Path(f"/tmp/qmp-rig-{os.getuid()}")


def test_a_locked_root_account_is_asked_of_pam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow = tmp_path / "shadow"
    shadow.write_text("daemon:*:1::::::\nroot:!:1::::::\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert sshd._root_is_locked(shadow) is True
    shadow.write_text("daemon:!:1::::::\nroot:*:1::::::\n")
    assert sshd._root_is_locked(shadow) is False
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    shadow.write_text("root:!:1::::::\n")
    assert sshd._root_is_locked(shadow) is False


@pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")
async def test_hosts_have_directories_of_their_own(directory: Path, tmp_path: Path) -> None:
    state = await up(directory, own_directories=[tmp_path])
    for name in ("a", "b"):
        host = SshHost(host_address(state, name))
        await host.connect()
        try:
            assert (await host.run(["ls", str(tmp_path)])).text == ""
            await host.run(["sh", "-c", f"echo {name} >{tmp_path}/name"])
            assert (await host.run(["cat", f"{tmp_path}/name"])).text == name
        finally:
            await host.close()
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240


@pytest.mark.parametrize("path", ["relative", "/no/such/directory", "/", "/usr", "/proc", "/tmp"])
async def test_directories_that_hosts_cannot_have_for_their_own(directory: Path, path: str) -> None:
    with pytest.raises(UsageError):
        await up(directory, own_directories=[Path(path)])
    assert not is_there(directory)
