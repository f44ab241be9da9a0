"""QMP's migration commands: what is set is read back, what QEMU says is understood, and nonsense is an error of ours."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.errors import MonitorError, QmpCommandFailed
from qmp_migrate.qemu import features, migration, states
from qmp_migrate.qemu.monitor import Monitor
from tests.support.data.recorded_replies import ACTIVE_7_2, COMPLETED_10_0, LISTENING, V7_2, V10_0, Release
from tests.support.fakes.fake_qemu import Fails, FakeQemu
from tests.support.fakes.monitors import connected

NONSENSE: list[Any] = [None, 17, "yes", [], [1], {"status": None}, {"status": {"is": "active"}}]


@pytest.fixture(params=[V7_2, V10_0], ids=["7.2", "10.0"])
def release(request: pytest.FixtureRequest) -> Release:
    return request.param


@pytest.fixture
async def qemu(release: Release) -> AsyncIterator[FakeQemu]:
    async with FakeQemu(release) as fake:
        yield fake


@pytest.fixture
async def monitor(qemu: FakeQemu) -> AsyncIterator[Monitor]:
    async with connected(qemu) as there:
        yield there


# -- features -----------------------------------------------------------------------------------------------------


async def test_features_are_what_the_binary_says(release: Release, monitor: Monitor) -> None:
    known = await features.probe(monitor)
    assert known.version == ".".join(map(str, release.numbers))
    assert known.package == release.package
    assert known.has_capability("return-path")
    assert known.has_capability("mapped-ram") is (release is V10_0)
    assert not any(known.capabilities.values())
    assert known.parameters["downtime-limit"] == 300


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        *itertools.product(
            ["query-version", "query-migrate-capabilities", "query-migrate-parameters"], [None, 17, "yes", [1]]
        ),
        ("query-version", {"qemu": {"major": 7}}),
        ("query-migrate-capabilities", [{"capability": "events"}]),
        ("query-migrate-capabilities", {"events": False}),
    ],
)
async def test_features_of_what_is_no_qemu(qemu: FakeQemu, monitor: Monitor, command: str, reply: Any) -> None:
    qemu.on(command, reply)
    with pytest.raises(MonitorError, match="not as QEMU does") as caught:
        await features.probe(monitor)
    assert caught.value.host == "a"


@pytest.mark.parametrize(
    ("release", "kvm", "memory", "loses"),
    [
        (V7_2, False, 512 << 20, True),
        (V7_2, False, (512 << 20) + 4096, False),  # not a whole number of 64 pages: synced page by page
        (V7_2, True, 512 << 20, False),
        (V10_0, False, 512 << 20, False),
    ],
    indirect=["release"],
)
async def test_only_tcg_before_9_0_loses_writes(
    qemu: FakeQemu, monitor: Monitor, kvm: bool, memory: int, loses: bool
) -> None:
    qemu.on("query-kvm", {"enabled": kvm, "present": True})
    assert await features.loses_writes(monitor, memory) is loses


async def test_a_qemu_that_may_have_dropped_the_question_is_not_asked_it() -> None:
    """11.0 deprecates `query-kvm`: what is newer than 9.0 must not need it."""
    async with FakeQemu(V10_0) as qemu, connected(qemu) as monitor:
        assert await features.loses_writes(monitor, 512 << 20) is False
        assert not qemu.asked("query-kvm")


async def test_nonsense_about_what_it_loses_is_an_error_of_ours() -> None:
    for command, reply in itertools.product(("query-migrate-capabilities", "query-kvm"), (None, 17, ["yes"])):
        async with FakeQemu(V7_2) as qemu, connected(qemu) as monitor:
            qemu.on("query-kvm", {"enabled": False, "present": True})
            qemu.on(command, reply)
            with pytest.raises(MonitorError):
                await features.loses_writes(monitor, 512 << 20)


# -- capabilities and parameters ------------------------------------------------------------------------------------


async def test_capabilities_are_set_both_ways_and_read_back(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.capabilities["xbzrle"] = True  # what an earlier attempt left
    known = await features.probe(monitor)
    await migration.set_capabilities(monitor, known, {"events": True, "return-path": True})
    assert {name for name, on in qemu.capabilities.items() if on} == {"events", "return-path"}
    (change,) = qemu.asked("migrate-set-capabilities")
    assert {entry["capability"] for entry in change["capabilities"]} == {"events", "return-path", "xbzrle"}


async def test_capabilities_that_are_right_are_left_alone(qemu: FakeQemu, monitor: Monitor) -> None:
    known = await features.probe(monitor)
    await migration.set_capabilities(monitor, known, {"events": False})
    assert not qemu.asked("migrate-set-capabilities")


async def test_a_capability_that_is_lacking_is_named_before_anything_is_set(qemu: FakeQemu, monitor: Monitor) -> None:
    known = await features.probe(monitor)
    with pytest.raises(MonitorError, match="no migration capability warp-drive"):
        await migration.set_capabilities(monitor, known, {"events": True, "warp-drive": True})
    assert not qemu.asked("migrate-set-capabilities")
    await migration.set_capabilities(monitor, known, {"warp-drive": False})  # lacking is as good as off


async def test_a_capability_that_does_not_take_is_an_error(qemu: FakeQemu, monitor: Monitor) -> None:
    known = await features.probe(monitor)
    qemu.on("migrate-set-capabilities", {})
    with pytest.raises(MonitorError, match="did not take: events, return-path"):
        await migration.set_capabilities(monitor, known, {"events": True, "return-path": True})


async def test_capabilities_cannot_be_set_during_a_migration(qemu: FakeQemu, monitor: Monitor) -> None:
    known = await features.probe(monitor)
    qemu.on("migrate-set-capabilities", Fails("There's a migration process in progress"))
    with pytest.raises(QmpCommandFailed, match="in progress"):
        await migration.set_capabilities(monitor, known, {"events": True})


@pytest.mark.parametrize("reply", [None, 17, "yes", [1], [{"state": True}], [{"capability": "events"}]])
async def test_capabilities_of_what_is_no_qemu(qemu: FakeQemu, monitor: Monitor, reply: Any) -> None:
    known = await features.probe(monitor)
    qemu.on("query-migrate-capabilities", reply)
    with pytest.raises(MonitorError):
        await migration.set_capabilities(monitor, known, {"events": True})


async def test_parameters_are_set_and_read_back(qemu: FakeQemu, monitor: Monitor) -> None:
    await migration.set_parameters(monitor, {"downtime-limit": 10, "max-bandwidth": 0, "tls-creds": ""})
    assert (qemu.parameters["downtime-limit"], qemu.parameters["max-bandwidth"]) == (10, 0)
    with pytest.raises(QmpCommandFailed, match="0 to 2000 seconds"):
        await migration.set_parameters(monitor, {"downtime-limit": 2_000_001})


@pytest.mark.parametrize("reply", [None, 17, [], {}, {"downtime-limit": 300}, {"downtime-limit": "10"}])
async def test_a_parameter_that_does_not_take_is_an_error(qemu: FakeQemu, monitor: Monitor, reply: Any) -> None:
    qemu.on("query-migrate-parameters", reply)
    with pytest.raises(MonitorError) as caught:
        await migration.set_parameters(monitor, {"downtime-limit": 10})
    assert caught.value.host == "a"


# -- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "port", "last", "uri"),
    [
        ("10.0.0.2", 49152, None, "tcp:10.0.0.2:49152"),
        ("10.0.0.2", 0, None, "tcp:10.0.0.2:0"),
        ("2001:db8::2", 49152, 49215, "tcp:[2001:db8::2]:49152,to=49215"),
        ("b.example", 49152, 49215, "tcp:b.example:49152,to=49215"),
    ],
)
def test_a_uri_is_built_from_fields(address: str, port: int, last: int | None, uri: str) -> None:
    assert migration.uri(address, port, last_port=last) == uri


@given(st.ip_addresses(), st.integers(0, 65535))
def test_a_uri_is_tcp_and_holds_its_address(address: ipaddress.IPv4Address, port: int) -> None:
    scheme, _, rest = migration.uri(str(address), port).partition(":")
    host, _, number = rest.rpartition(":")
    assert (scheme, ipaddress.ip_address(host.strip("[]")), int(number)) == ("tcp", address, port)


async def test_listening_tells_the_port_that_was_given(release: Release, qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("migrate-incoming", {})
    qemu.on("query-migrate", {**release.waiting, **LISTENING})
    assert await migration.listen(monitor, "127.0.0.1", None) == 40107
    assert await migration.listen(monitor, "::1", (49152, 49215)) == 40107
    assert [asked["uri"] for asked in qemu.asked("migrate-incoming")] == ["tcp:127.0.0.1:0", "tcp:[::1]:49152,to=49215"]


@pytest.mark.parametrize(
    "desc",
    [
        "Failed to find an available port: Address already in use",
        "Failed to bind socket: Cannot assign requested address",
        "address resolution failed for b.example:0: Name or service not known",
    ],
)
async def test_where_it_cannot_listen_the_settings_are_named(qemu: FakeQemu, monitor: Monitor, desc: str) -> None:
    qemu.on("migrate-incoming", Fails(desc))
    with pytest.raises(QmpCommandFailed) as caught:
        await migration.listen(monitor, "10.0.0.2", (49152, 49153))
    error = caught.value
    assert error.desc == desc
    assert "10.0.0.2, ports 49152-49153" in error.message
    assert "migration_ports" in (error.hint or "")
    assert (error.command, error.host) == ("migrate-incoming", "a")


@pytest.mark.parametrize("addresses", [[], [{"type": "unix", "path": "/run/x"}], [{"port": "", "type": "inet"}]])
async def test_a_destination_that_hides_its_port_cannot_be_used(
    qemu: FakeQemu, monitor: Monitor, addresses: list[Any]
) -> None:
    qemu.on("migrate-incoming", {})
    qemu.on("query-migrate", {"socket-address": addresses})
    with pytest.raises(MonitorError, match="does not tell where it listens"):
        await migration.listen(monitor, "10.0.0.2", None)


# -- asking -------------------------------------------------------------------------------------------------------


async def test_an_idle_qemu_says_nothing_which_is_none(monitor: Monitor) -> None:
    info = await migration.query(monitor)
    assert info.status == "none"
    assert (info.ram, info.expected_downtime_ms, info.error_desc, info.blocked_reasons) == (None, None, None, ())


async def test_numbers_of_the_first_pass(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("query-migrate", ACTIVE_7_2)
    info = await migration.query(monitor)
    assert (info.status, info.total_ms, info.setup_ms, info.expected_downtime_ms) == ("active", 91, 27, 300)
    assert (info.downtime_ms, info.throttle_percent) == (0, 0)
    ram = info.ram
    assert ram is not None
    assert (ram.total, ram.transferred, ram.remaining, ram.passes) == (134750208, 343501, 34328576, 1)
    assert (ram.throughput_bytes_per_s, ram.dirty_bytes_per_s) == (0, 0)


async def test_numbers_at_the_end(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("query-migrate", COMPLETED_10_0)
    info = await migration.query(monitor)
    assert (info.status, info.total_ms, info.downtime_ms, info.setup_ms) == ("completed", 99, 50, 16)
    assert info.ram is not None
    assert info.ram.throughput_bytes_per_s == 11_352_698  # 90.8 Mbit/s, in bytes


async def test_rates_are_bytes(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("query-migrate", {"status": "active", "ram": {"mbps": 800, "dirty-pages-rate": 10, "page-size": 65536}})
    ram = (await migration.query(monitor)).ram
    assert ram is not None
    assert (ram.throughput_bytes_per_s, ram.dirty_bytes_per_s) == (100_000_000, 655_360)


@pytest.mark.parametrize(
    ("reply", "desc"),
    [
        ({"status": "failed"}, None),  # 7.2 mostly says no more
        ({"status": "failed", "error-desc": "Sibling indicated error 1"}, "Sibling indicated error 1"),
    ],
)
async def test_a_failed_one(qemu: FakeQemu, monitor: Monitor, reply: Any, desc: str | None) -> None:
    qemu.on("query-migrate", reply)
    info = await migration.query(monitor)
    assert (info.status, info.error_desc, info.ram) == ("failed", desc, None)


async def test_what_cannot_be_migrated_is_told_before(qemu: FakeQemu, monitor: Monitor) -> None:
    reason = "State blocked by non-migratable device '0000:00:03.0/nvme'"
    qemu.on("query-migrate", {"blocked-reasons": [reason]})
    info = await migration.query(monitor)
    assert (info.status, info.blocked_reasons) == ("none", (reason,))


async def test_members_and_statuses_of_a_later_qemu_are_no_error(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("query-migrate", {"status": "teleporting", "remaining": 5, "ram": {"total": 1, "entropy": {"a": 1}}})
    info = await migration.query(monitor)
    assert info.status == "teleporting"
    assert states.under_way(info.status)


@pytest.mark.parametrize("status", ["none", "cancelled", "failed", "completed"])
def test_these_are_not_under_way(status: str) -> None:
    assert not states.under_way(status)


@pytest.mark.parametrize("reply", [*NONSENSE, {"status": "active", "ram": 5}, {"ram": {"total": "much"}}])
async def test_nonsense_about_a_migration_is_an_error_of_ours(qemu: FakeQemu, monitor: Monitor, reply: Any) -> None:
    qemu.on("query-migrate", reply)
    with pytest.raises(MonitorError, match="web1@a gave an answer that is not QEMU's") as caught:
        await migration.query(monitor)
    assert caught.value.host == "a"


@pytest.mark.parametrize("reply", [*NONSENSE, {"status": "running"}, {"running": True}])
async def test_nonsense_about_the_run_state_is_an_error_of_ours(qemu: FakeQemu, monitor: Monitor, reply: Any) -> None:
    qemu.on("query-status", reply)
    with pytest.raises(MonitorError, match="not QEMU's"):
        await migration.run_status(monitor)


async def test_the_run_state(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("query-status", {"status": "postmigrate", "singlestep": False, "running": False})
    status = await migration.run_status(monitor)
    assert (status.status, status.running) == ("postmigrate", False)


# -- acting -------------------------------------------------------------------------------------------------------


async def test_start_sends_nothing_that_a_later_qemu_has_dropped(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("migrate", {})
    await migration.start(monitor, "10.0.0.2", 40107)
    assert qemu.asked("migrate") == [{"uri": "tcp:10.0.0.2:40107"}]  # no blk, inc, detach


async def test_cancel_and_announce(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("migrate_cancel", {})
    qemu.on("announce-self", {})
    await migration.cancel(monitor)
    await migration.announce(monitor)
    assert qemu.asked("migrate_cancel") == [{}]
    assert qemu.asked("announce-self") == [{"initial": 50, "max": 550, "rounds": 5, "step": 100}]
