"""The probe of the link, with real QEMUs: what it finds, and that it leaves nothing, also where it fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qmp_migrate.errors import LaunchFailed, MigrationFailed
from qmp_migrate.hosts.local import LocalHost
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.forecast import link_probe
from qmp_migrate.migration.forecast.link_probe import probe
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.transport.negotiation import Profile, Setting
from qmp_migrate.settings import HostSettings

REQUEST = MigrationRequest("web1", "b", "a")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_is_left(directory: Path) -> Iterator[None]:
    yield
    for name in ("a", "b"):
        assert not list((directory / name).glob("**/*"))
    ours = [process.cmdline() for process in psutil.process_iter() if _cwd(process).startswith(str(directory))]
    assert not ours


def _cwd(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""


def side(directory: Path, name: str, **settings: str) -> Side:
    known = {"address": "127.0.0.1", "qemu": "/usr/bin/qemu-system-x86_64"} | settings
    return Side(LocalHost(name), HostSettings(run_dir=str(directory / name), **known), "web1")


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("encrypt", [True, False])
async def test_it_takes_the_way_that_memory_will_take(directory: Path, encrypt: bool, channels: int) -> None:
    multifd = Setting(
        frozenset({"events", "return-path"} | ({"multifd"} if channels > 1 else set())),
        {"multifd-channels": channels} if channels > 1 else {},
    )
    found = await probe(
        side(directory, "a"),
        side(directory, "b"),
        MigrationRequest("web1", "b", "a", encrypt=encrypt, channels=channels),
        Profile(channels=channels, source=multifd, destination=multifd),
    )
    assert found.bytes_per_s > MIB
    assert found.encrypted is encrypt
    assert 0 < found.sent_bytes < 100 * MIB


async def test_what_a_policy_needs_of_a_guest_does_not_hold_it_up(directory: Path) -> None:
    held = Setting(frozenset({"events", "return-path", "pause-before-switchover", "auto-converge", "postcopy-ram"}))
    profile = Profile(postcopy=True, source=held, destination=held)
    assert (await probe(side(directory, "a"), side(directory, "b"), REQUEST, profile)).bytes_per_s > MIB


async def test_an_address_where_nobody_listens_is_told(directory: Path) -> None:
    elsewhere = side(directory, "b", migration_address="127.0.0.9", migration_listen="127.0.0.1")
    with pytest.raises(MigrationFailed, match=r"does not get from a to b \(127.0.0.9"):
        await probe(side(directory, "a"), elsewhere, REQUEST, Profile())


async def test_what_is_no_qemu_is_told(directory: Path) -> None:
    with pytest.raises(LaunchFailed, match="cannot be run to probe the link"):
        await probe(side(directory, "a"), side(directory, "b", qemu="/bin/false"), REQUEST, Profile())


async def test_what_a_power_cut_left_goes_with_the_next_one(directory: Path) -> None:
    left = directory / "a" / ".p0a1b2c"
    (left / "tls-probe-1").mkdir(parents=True)
    for name in ("fill", "log", "tls-probe-1/keys.psk"):
        (left / name).touch()
    os.utime(left, (1, 1))
    await probe(side(directory, "a"), side(directory, "b"), REQUEST, Profile())


async def test_a_slow_link_is_cut_off(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_probe, "SENDING_S", 0.0)
    monkeypatch.setattr(link_probe, "BUFFERS_S", 0.0)
    found = await probe(side(directory, "a"), side(directory, "b"), REQUEST, Profile())
    assert found.bytes_per_s > MIB
