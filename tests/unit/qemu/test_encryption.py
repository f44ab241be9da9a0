"""One key per migration, put in force, proven to be in force, and taken out again."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from qmp_migrate.errors import MonitorError, QmpCommandFailed
from qmp_migrate.qemu import encryption
from qmp_migrate.qemu.monitor import Monitor
from tests.support.fakes.fake_qemu import Fails, FakeQemu
from tests.support.fakes.monitors import connected


@pytest.fixture
async def qemu() -> AsyncIterator[FakeQemu]:
    async with FakeQemu() as fake:
        fake.on("object-add", {})
        fake.on("object-del", {})
        yield fake


@pytest.fixture
async def monitor(qemu: FakeQemu) -> AsyncIterator[Monitor]:
    async with connected(qemu) as there:
        yield there


def test_a_key_file_is_one_line_that_gnutls_reads() -> None:
    content = encryption.make_key_file()
    assert re.fullmatch(rb"qmp-migrate:[0-9a-f]{64}\n", content)


def test_no_two_keys_are_alike() -> None:
    assert len({encryption.make_key_file() for _ in range(100)}) == 100


async def test_each_side_gets_its_end(qemu: FakeQemu, monitor: Monitor) -> None:
    await encryption.add_credentials(monitor, "tls-m1", "/run/x/tls-m1", "client")
    await encryption.add_credentials(monitor, "tls-m1", "/run/x/tls-m1", "server")
    client, server = qemu.asked("object-add")
    assert client == {
        "qom-type": "tls-creds-psk",
        "id": "tls-m1",
        "dir": "/run/x/tls-m1",
        "endpoint": "client",
        "username": "qmp-migrate",
    }
    assert server["endpoint"] == "server"
    assert "username" not in server
    assert "loaded" not in server  # 10.0 refuses it


async def test_a_qemu_without_tls_says_so_and_what_can_be_done(qemu: FakeQemu, monitor: Monitor) -> None:
    desc = "Invalid parameter type 'tls-creds-psk', expected: an object type"
    qemu.on("object-add", Fails(desc))
    with pytest.raises(QmpCommandFailed) as caught:
        await encryption.add_credentials(monitor, "tls-m1", "/run/x/tls-m1", "server")
    error = caught.value
    assert desc in error.message
    assert (error.command, error.desc, error.host) == ("object-add", desc, "a")
    assert "--no-encrypt" in (error.hint or "")


async def test_encryption_in_force_is_believed_when_it_is_seen(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.parameters["tls-creds"] = "tls-m1"
    await encryption.verify(monitor, "tls-m1")


@pytest.mark.parametrize(
    "parameters",
    [{"tls-creds": ""}, {"tls-creds": "tls-m0"}, {"tls-creds": None}, {}, None, [], "tls-m1"],
    ids=["off", "yesterday's", "null", "unknown", "nothing", "list", "text"],
)
async def test_and_not_otherwise(qemu: FakeQemu, monitor: Monitor, parameters: object) -> None:
    qemu.on("query-migrate-parameters", parameters)
    with pytest.raises(MonitorError, match="not in force") as caught:
        await encryption.verify(monitor, "tls-m1")
    assert "nothing was sent" in (caught.value.hint or "")
    assert caught.value.host == "a"


async def test_afterwards_nothing_of_it_is_left(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.parameters["tls-creds"] = "tls-m1"
    await encryption.remove_credentials(monitor, "tls-m1")
    assert qemu.parameters["tls-creds"] == ""
    assert qemu.asked("object-del") == [{"id": "tls-m1"}]
    # The other way round QEMU refuses: the object is in use.
    names = [asked.name for asked in qemu.log]
    assert names.index("migrate-set-parameters") < names.index("object-del")
