"""A rig whose hosts are machines, without starting one: what is refused before anything is touched, and command lines.

That machines boot, lose their power and come back is shown by `tests/system/test_vm_hosts.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qmp_migrate.errors import HostUnknown, RigError, UsageError
from qmp_migrate.rig import lab
from qmp_migrate.rig.addresses import RigHost
from qmp_migrate.rig.guest.images import GuestImage
from qmp_migrate.rig.state import Part, RigState, load
from qmp_migrate.rig.vm_hosts import machines, power
from tests.support.real.sshd import short_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def rig(directory: Path) -> RigState:
    """A rig of machines, all of which are off."""
    hosts = tuple(
        RigHost(name, f"127.0.0.{number}", 2200, Path("/run/qmp-migrate"), "root", f"10.77.0.{number}", 8.0)
        for number, name in enumerate("ab", 2)
    )
    parts = (Part("hub", "hub"), *(power.machine_part(host.name) for host in hosts))
    state = RigState(directory, False, hosts, parts, broker_url="mqtt://127.0.0.1:1883", complete=True, machines=True)
    state.save()
    return state


def image(directory: Path) -> machines.HostImage:
    return machines.HostImage(directory / "vmlinux", directory / "initrd.img", directory / "root.ext4", "3.11")


def test_what_the_rig_is_is_kept(rig: RigState) -> None:
    assert load(rig.directory) == rig


async def test_without_an_image_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMP_MIGRATE_IMAGES", str(tmp_path))
    with pytest.raises(RigError) as caught:
        await machines.up(tmp_path / "rig")
    assert "make host-image" in (caught.value.hint or "")
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240


async def test_a_directory_with_too_long_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "find_host_image", lambda: image(tmp_path))
    monkeypatch.setattr(machines, "find_images", lambda kind: GuestImage(tmp_path / "vmlinuz"))
    with pytest.raises(RigError, match="too long"):
        await machines.up(tmp_path / ("x" * 100))
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240


def test_an_image_in_part_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMP_MIGRATE_IMAGES", str(tmp_path))
    (tmp_path / "host").mkdir()
    files = [tmp_path / "host" / name for name in ("vmlinux", "initrd.img", "root.ext4")]
    (tmp_path / "host" / "manifest.json").write_text(json.dumps({"python": "3.11"}))
    for file in files:
        with pytest.raises(RigError, match="is not there"):
            machines.find_host_image()
        file.touch()
    assert machines.find_host_image() == image(tmp_path / "host")


@pytest.mark.parametrize(
    ("host", "action", "silent", "error"),
    [
        ("a", "explode", False, UsageError),
        ("a", "on", True, UsageError),
        ("z", "off", False, HostUnknown),
        ("a", "hang", False, RigError),
        ("a", "resume", False, RigError),
        ("a", "reset", False, RigError),
    ],
)
async def test_what_cannot_be_done_to_a_host_is_said(
    rig: RigState, host: str, action: str, silent: bool, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await power.act(rig.directory, host, action, silent=silent)


async def test_a_host_that_is_off_can_be_switched_off_again(rig: RigState) -> None:
    await power.act(rig.directory, "a", "off")
    assert await power.survey(rig) == {
        "a": power.MachineStatus("off", agent=False),
        "b": power.MachineStatus("off", agent=False),
    }


@pytest.mark.parametrize(("position", "network"), [("sideways", "both"), ("up", "wireless")])
async def test_links_that_make_no_sense_are_refused(rig: RigState, position: str, network: str) -> None:
    with pytest.raises(UsageError, match="not a valid"):
        await power.link(rig.directory, "a", position, network)


async def test_a_host_that_is_off_has_no_link(rig: RigState) -> None:
    with pytest.raises(RigError, match="is off"):
        await power.link(rig.directory, "a", "up")


async def test_hosts_that_are_no_machines_have_no_power(rig: RigState) -> None:
    replace(rig, machines=False).save()
    with pytest.raises(UsageError, match="no machines"):
        await power.act(rig.directory, "a", "off")


async def test_no_rig_no_power(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="no rig"):
        await power.link(tmp_path, "a", "up")


async def test_a_rig_of_the_other_kind_is_left_alone(rig: RigState) -> None:
    with pytest.raises(RigError, match="whose hosts are machines"):
        await lab.up(rig.directory)


async def test_the_guests_of_this_computer_are_not_a_rig_of_machines(rig: RigState) -> None:
    """RUN_DIR of such a host is a path in it: on this computer it belongs to somebody else, or to nobody."""
    assert await lab.down(rig.directory) == ()


@pytest.mark.parametrize(("accel", "agents"), [("kvm", True), ("tcg", False)])
def test_the_command_line(rig: RigState, tmp_path: Path, accel: str, agents: bool) -> None:
    argv = machines.machine_argv(
        rig,
        rig.hosts[1],
        image(tmp_path / "with,comma"),
        qemu="/usr/bin/qemu-system-x86_64",
        accel="kvm" if accel == "kvm" else "tcg",
        agents=agents,
    )
    words = argv[argv.index("-append") + 1].split()
    assert {"rig.host=b", "rig.address=10.77.0.3/24"} <= set(words)
    assert ("rig.mqtt=mqtt://10.0.2.2:1883" in words) is agents
    assert ("rig.kvm=1" in words) is (accel == "kvm")
    assert any(word.startswith("if=none,id=root,") and "with,,comma" in word for word in argv)
    assert "user,id=control,hostfwd=tcp:127.0.0.3:2200-10.0.2.15:22" in argv
