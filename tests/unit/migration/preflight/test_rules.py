"""Every check of preflight: when it passes, when it warns, when it refuses, and what it then says."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from qmp_migrate.errors import LaunchFailed
from qmp_migrate.migration.devices.diff import Present
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.preflight.host_facts import BinaryFacts, HostFacts
from qmp_migrate.migration.preflight.rules import Check, Situation, failures, judge
from qmp_migrate.migration.transport.negotiation import Objection, Profile
from qmp_migrate.qemu.migration import MigrationInfo
from qmp_migrate.settings import HostSettings
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.paths import required_paths
from qmp_migrate.vm.destination import derive_destination

MIB = 1 << 20

ARGV = [
    *("/usr/bin/qemu-system-x86_64", "-name", "web1", "-machine", "pc-q35-7.2", "-accel", "tcg", "-cpu", "qemu64"),
    *("-m", "512M", "-kernel", "/srv/vmlinuz", "-drive", "file=/srv/web1.qcow2,format=qcow2,if=virtio"),
]

BINARY = BinaryFacts(
    version="7.2.22",
    machines={"q35": "pc-q35-7.2", "pc-q35-7.2": "pc-q35-7.2", "pc-q35-7.1": "pc-q35-7.1"},
    cpus={"qemu64": (), "host": (), "max": (), "Skylake-Server-v1": ()},
)


def situation(argv: Sequence[str] = ARGV, **changes: Any) -> Situation:
    """Return a situation in which all is well, with what a test changes."""
    command = CommandLine.parse(argv)
    derived = derive_destination(
        command,
        binary="/usr/bin/qemu-system-x86_64",
        source_dir="/run/qmp-migrate/web1",
        dest_dir="/run/qmp-migrate/web1",
    )
    required = tuple(required_paths(derived.command))
    host = HostFacts(
        "a",
        boot_id="boot",
        mem_available=4096 * MIB,
        mem_total=8192 * MIB,
        qemu_stamp="1.2.3",
        run_dir="writable",
        kvm=True,
        cpu_flags=frozenset({"sse2", "avx"}),
        cpu_model="Xeon",
        addresses=(ipaddress.ip_network("10.0.0.11/32"),),
    )
    usual: dict[str, Any] = {
        "request": MigrationRequest("web1", "b", "a"),
        "source": HostSettings(address="10.0.0.11"),
        "destination": HostSettings(address="10.0.0.12"),
        "source_facts": host,
        "destination_facts": replace(host, name="b", addresses=(ipaddress.ip_network("10.0.0.12/32"),)),
        "source_binary": BINARY,
        "destination_binary": BINARY,
        "command": command,
        "derived": derived,
        "run_state": "running",
        "info": MigrationInfo(),
        "source_version": "7.2.22",
        "required": required,
        "paths": {use.path: "writable" for use in required},
        "guest_at_destination": False,
        "loses_writes": False,
    }
    return Situation(**usual | changes)


def at_destination(**changes: Any) -> HostFacts:
    return replace(situation().destination_facts, **changes)


def with_cpu(model: str, accel: str = "tcg") -> list[str]:
    return [{"qemu64": model, "tcg": accel}.get(word, word) for word in ARGV]


def found(s: Situation, id: str) -> list[Check]:
    return [check for check in judge(s) if check.id == id]


def only(s: Situation, id: str, status: str, *words: str) -> Check:
    """Return the one check of an id; all others must be well, and it must say these words."""
    checks = judge(s)
    assert [check for check in checks if check.id != id and check.status != "ok"] == []
    (check,) = [check for check in checks if check.id == id]
    assert check.status == status, check
    for word in words:
        assert word in f"{check.text} {check.hint}", check
    assert check.host in {"a", "b"}
    if status == "fail":
        assert check.hint, check
    return check


def test_where_all_is_well_nothing_is_refused_and_everything_is_told() -> None:
    checks = judge(situation())
    assert {check.status for check in checks} == {"ok"}
    ids = [check.id for check in checks]
    assert ids == [
        *("ssh-source", "ssh-destination", "guest", "idle", "blocked", "qemu", "machine", "cpu", "argv", "memory"),
        *("files", "run-dir", "sockets", "name", "address"),
    ]
    assert failures(checks) == ()
    assert checks[0].to_dict() == {"id": "ssh-source", "status": "ok", "text": "a answers", "hint": "", "host": "a"}


def test_a_refusal_is_told_in_lines_with_what_to_do() -> None:
    lines = failures(judge(situation(run_state="shutdown", guest_at_destination=True)))
    assert lines == (
        "web1 is shutdown on a (start it again first)",
        "b already runs a guest named web1 (stop that guest, or give this one another name)",
    )


# -- the guest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["paused", "suspended"])
def test_a_guest_that_stands_still_arrives_so(state: str) -> None:
    only(situation(run_state=state), "guest", "warn", f"will arrive {state}")


@pytest.mark.parametrize(
    "state", ["shutdown", "guest-panicked", "internal-error", "io-error", "inmigrate", "prelaunch", "postmigrate"]
)
def test_one_that_has_ended_or_is_on_its_way_is_refused(state: str) -> None:
    check = only(situation(run_state=state), "guest", "fail", f"web1 is {state} on a")
    assert ("cont" in check.hint) == (state == "postmigrate")


@pytest.mark.parametrize("status", ["setup", "active", "postcopy-paused", "a-status-of-2030"])
def test_one_migration_at_a_time(status: str) -> None:
    only(situation(info=MigrationInfo(status=status)), "idle", "fail", status)


@pytest.mark.parametrize("status", ["none", "failed", "cancelled", "completed"])
def test_an_earlier_one_is_no_obstacle(status: str) -> None:
    assert {check.status for check in judge(situation(info=MigrationInfo(status=status)))} == {"ok"}


def test_a_guest_that_another_controller_holds_is_refused_with_its_name() -> None:
    held = at_destination(locked_by="root@ctl pid 17 migration m1")
    only(situation(destination_facts=held), "lock", "fail", "on b: root@ctl pid 17 migration m1")
    both = situation(destination_facts=held, source_facts=replace(situation().source_facts, locked_by="me"))
    assert [check.host for check in found(both, "lock")] == ["a", "b"]


def test_devices_that_cannot_be_migrated_are_named_by_qemu() -> None:
    info = MigrationInfo(blocked_reasons=("device nvme0 is non-migratable", "another"))
    checks = found(situation(info=info), "blocked")
    assert [check.status for check in checks] == ["fail", "fail"]
    assert "nvme0" in checks[0].text


def test_devices_that_changed_since_the_start_are_told_or_refused() -> None:
    command = CommandLine.parse(ARGV)
    assert found(situation(present=Present(command, ("disk1 was plugged in",))), "devices")[0].status == "ok"
    refused = found(situation(present=Present(command, refusals=("edu x1: cannot",))), "devices")
    assert [(check.status, check.host) for check in refused] == [("fail", "a")]
    needs = situation(plugged_bytes=4096 * MIB)
    assert found(needs, "memory")[0].status == "fail", "memory that was plugged in is needed there, too"


def test_a_device_that_the_older_qemu_cannot_receive_is_refused() -> None:
    argv = [*ARGV, "-device", "nvme,id=nv0,drive=x"]
    only(situation(argv), "devices", "fail", "QEMU 7.2.22 cannot receive nvme nv0", "11.1")


def test_flash_images_must_have_one_size() -> None:
    store, code = ("/srv/VARS.fd", 540672, 540672), ("/usr/share/CODE.fd", 3653632, 4194304)
    only(situation(flash=(store, code)), "files", "fail", "CODE.fd", "4194304 bytes on b", "3653632 on a", "same file")
    assert found(situation(flash=(store, ("/srv/absent", 1, None))), "files")[0].status == "ok"


def test_a_source_that_allows_one_pass_only_says_what_that_means() -> None:
    request = MigrationRequest("web1", "b", downtime_limit_ms=450)
    only(situation(loses_writes=True, request=request), "passes", "warn", "450 ms", "7.2.22", "--downtime-limit")


# -- the binary ---------------------------------------------------------------------------------------------------


def test_a_host_without_qemu() -> None:
    s = situation(destination_facts=at_destination(qemu_stamp=""), destination_binary=None)
    only(s, "qemu", "fail", "/usr/bin/qemu-system-x86_64 is not an executable file on b", "`qemu` setting")


def test_a_qemu_that_does_not_start() -> None:
    error = LaunchFailed("it ended at once", hint="is the accelerator there?", host="b")
    only(situation(destination_binary=error), "qemu", "fail", "it ended at once", "is the accelerator there?")


@pytest.mark.parametrize(
    ("source", "destination", "warns"),
    [("7.2.22", "7.2.22", False), ("7.2.22", "10.0.2", False), ("10.0.2", "7.2.22", True), ("9.2.0", "10.0.0", False)],
)
def test_newer_to_older_is_told(source: str, destination: str, warns: bool) -> None:
    s = situation(source_version=source, destination_binary=replace(BINARY, version=destination))
    if warns:
        only(s, "version", "warn", "older", destination, source)
    else:
        assert not found(s, "version")


def test_a_machine_type_that_is_not_there() -> None:
    binary = replace(BINARY, machines={"pc-q35-6.2": "pc-q35-6.2"})
    only(situation(destination_binary=binary), "machine", "fail", "pc-q35-7.2", "7.2.22", "until it is powered off")


def test_then_the_newest_that_are_there_are_named() -> None:
    names = ["pc-q35-10.0", "pc-q35-9.2", "pc-q35-9.1", "pc-q35-2.4"]
    binary = replace(BINARY, machines={name: name for name in names} | {"q35": "pc-q35-10.0"})
    (check,) = found(situation(destination_binary=binary), "machine")
    told = check.hint.partition("the newest there: ")[2]
    assert sorted(told.split(", ")) == ["pc-q35-10.0", "pc-q35-9.1", "pc-q35-9.2"]


def test_a_machine_type_that_will_go() -> None:
    binary = replace(BINARY, deprecated=frozenset({"pc-q35-7.2"}))
    only(situation(destination_binary=binary), "machine", "warn", "deprecated")


def test_a_machine_type_that_is_not_told_at_all() -> None:
    argv = [word for word in ARGV if word not in {"-machine", "pc-q35-7.2"}]
    (check,) = found(situation(argv), "machine")
    assert check.status == "fail"


# -- the CPU --------------------------------------------------------------------------------------------------------


def test_a_named_model_that_both_hosts_can_give() -> None:
    only(situation(with_cpu("Skylake-Server-v1,-hle")), "cpu", "ok", "Skylake-Server-v1 is complete on b")


def test_a_model_that_the_other_qemu_does_not_know() -> None:
    only(situation(with_cpu("EPYC-Turin-v1")), "cpu", "fail", "does not know the CPU model EPYC-Turin-v1")


def test_features_that_the_guest_may_use_now_and_would_lose() -> None:
    lacking = tuple(f"avx512{letter}" for letter in "abcdefgh")
    binary = replace(BINARY, cpus=BINARY.cpus | {"Skylake-Server-v1": lacking})
    s = situation(with_cpu("Skylake-Server-v1"), destination_binary=binary)
    only(s, "cpu", "fail", "b cannot give avx512a", "and 2 more", "choose a model that both hosts have")


def test_features_that_neither_host_gives_are_not_lost() -> None:
    binary = replace(BINARY, cpus=BINARY.cpus | {"Skylake-Server-v1": ("avx512f",)})
    s = situation(with_cpu("Skylake-Server-v1"), source_binary=binary, destination_binary=binary)
    only(s, "cpu", "ok", "incomplete on both hosts (avx512f)")


def test_features_that_the_guest_would_gain_are_told() -> None:
    binary = replace(BINARY, cpus=BINARY.cpus | {"Skylake-Server-v1": ("avx512f",)})
    (check,) = found(situation(with_cpu("Skylake-Server-v1"), source_binary=binary), "cpu")
    assert "both hosts" not in check.text
    assert "avx512f" in check.text


@pytest.mark.parametrize(
    ("there", "status", "says"),
    [
        ({}, "ok", "same CPU"),
        ({"cpu_flags": frozenset({"sse2", "avx", "avx2"})}, "ok", "same CPU"),
        ({"cpu_model": "EPYC"}, "fail", "the CPU of a (Xeon); b has another"),
        ({"cpu_flags": frozenset({"sse2"})}, "fail", "lacks avx"),
    ],
)
def test_the_hosts_own_cpu_is_for_hosts_with_the_same_one(there: dict[str, Any], status: str, says: str) -> None:
    checks = judge(situation(with_cpu("host", "kvm"), destination_facts=at_destination(**there)))
    (check,) = [check for check in checks if check.id == "cpu"]
    assert check.status == status
    assert says in check.text
    # Also between equals it is told: microcode, kernel and QEMU count too, and nobody compares them.
    assert any(check.status == "warn" and "-cpu host" in check.text for check in checks)


def test_an_emulated_cpu_does_not_depend_on_the_host() -> None:
    (check,) = found(situation(with_cpu("max"), destination_facts=at_destination(cpu_model="EPYC")), "cpu")
    assert check.status == "ok"


def test_without_a_model_the_machine_type_decides() -> None:
    argv = [word for word in ARGV if word not in {"-cpu", "qemu64"}]
    only(situation(argv), "cpu", "ok", "default CPU model")


# -- the command line -----------------------------------------------------------------------------------------------


def test_what_the_derivation_says_is_passed_on() -> None:
    derived = replace(situation().derived, refusals=("-device vfio-pci: stays here",), warnings=("-vnc: tell clients",))
    checks = found(situation(derived=derived), "argv")
    assert [(check.status, check.text) for check in checks] == [
        ("fail", "-device vfio-pci: stays here"),
        ("warn", "-vnc: tell clients"),
    ]


def test_kvm_must_be_there_for_a_guest_that_runs_under_it() -> None:
    without = at_destination(kvm=False)
    only(situation(destination_facts=without), "argv", "ok")
    (check,) = found(situation(with_cpu("qemu64", "kvm"), destination_facts=without), "accel")
    assert check.status == "fail"
    assert "/dev/kvm cannot be used on b" in check.text


@pytest.mark.parametrize(("free", "status"), [(512 + 64, "ok"), (512 + 63, "fail"), (0, "fail")])
def test_memory_for_the_guest_and_its_qemu(free: int, status: str) -> None:
    s = situation(destination_facts=at_destination(mem_available=free * MIB))
    check = only(s, "memory", status)
    assert ("not enough memory" in check.text) == (status == "fail")


def test_a_memory_size_that_is_not_understood_is_told() -> None:
    argv = ["half a gig" if word == "512M" else word for word in ARGV]
    only(situation(argv), "memory", "warn", "not understood")


# -- files and places -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "state", "says"),
    [
        ("/srv/web1.qcow2", "absent", "disk /srv/web1.qcow2 is not on b"),
        ("/srv/web1.qcow2", "unreadable", "cannot be read on b"),
        ("/srv/web1.qcow2", "readable", "cannot be written on b"),
        ("/srv/vmlinuz", "absent", "kernel /srv/vmlinuz is not on b"),
        ("/srv/vmlinuz", "unreadable", "cannot be read on b"),
    ],
)
def test_files_that_are_not_there_or_cannot_be_used(path: str, state: str, says: str) -> None:
    only(situation(paths=dict(situation().paths) | {path: state}), "files", "fail", says)


def test_what_is_only_read_needs_no_more() -> None:
    only(situation(paths=dict(situation().paths) | {"/srv/vmlinuz": "readable"}), "files", "ok")


def test_a_file_that_nobody_looked_at_is_not_there() -> None:
    assert [check.status for check in found(situation(paths={}), "files")] == ["fail", "fail"]


@pytest.mark.parametrize(
    ("run_dir", "status"),
    [("writable", "ok"), ("absent", "ok"), ("unwritable", "fail"), ("uncreatable", "fail"), ("", "fail")],
)
def test_a_place_for_the_guests_files(run_dir: str, status: str) -> None:
    only(situation(destination_facts=at_destination(run_dir=run_dir)), "run-dir", status, "/run/qmp-migrate")


def test_a_command_to_copy_is_quoted() -> None:
    s = situation(
        destination=HostSettings(address="10.0.0.12", run_dir="/run/$(id)"),
        destination_facts=at_destination(run_dir="unwritable"),
    )
    assert "'/run/$(id)'" in only(s, "run-dir", "fail").hint


def test_socket_paths_that_no_kernel_takes() -> None:
    s = situation(destination=HostSettings(address="10.0.0.12", run_dir="/run/" + "x" * 100))
    only(s, "sockets", "fail", "107")


def test_a_guest_of_that_name_is_there() -> None:
    only(situation(guest_at_destination=True), "name", "fail", "b already runs a guest named web1")


@pytest.mark.parametrize(
    ("address", "migration_address", "status", "says"),
    [
        ("10.0.0.12", None, "ok", "b can receive on 10.0.0.12"),
        ("b.example", "10.0.0.12", "ok", "b can receive on 10.0.0.12"),
        ("10.0.0.12", "10.9.9.9", "fail", "10.9.9.9 is not an address of b"),
        ("b.example", None, "ok", "is a name"),
        ("10.0.0.12", "[fd00::1]", "fail", "fd00::1 is not an address of b"),
    ],
)
def test_where_memory_is_received(address: str, migration_address: str | None, status: str, says: str) -> None:
    s = situation(destination=HostSettings(address=address, migration_address=migration_address))
    only(s, "address", status, says)


def test_memory_in_the_clear_is_told() -> None:
    only(situation(request=MigrationRequest("web1", "b", encrypt=False)), "encryption", "warn", "in the clear")


def test_what_a_mode_means_is_told() -> None:
    only(situation(request=MigrationRequest("web1", "b", mode="offline")), "mode", "ok", "stands still")
    only(situation(request=MigrationRequest("web1", "b", mode="postcopy")), "mode", "ok", "no cancel")
    assert not found(situation(), "mode")


def test_post_copy_is_refused_where_it_would_lose_writes() -> None:
    request = MigrationRequest("web1", "b", mode="postcopy")
    only(situation(request=request, loses_writes=True), "passes", "fail", "also in post-copy")
    assert not found(situation(request=request), "passes")


@pytest.mark.parametrize(
    ("version", "accel", "warns"),
    [
        ("11.1.3", "tcg", True),
        ("10.1.0", "tcg", True),  # not tried
        ("10.0.2", "tcg", False),
        ("7.2.22", "tcg", False),
        ("", "tcg", False),
        ("11.1.3", "kvm", False),
    ],
)
def test_post_copy_without_kvm_is_warned_of_where_a_guest_was_seen_to_break(
    version: str, accel: str, warns: bool
) -> None:
    argv = [accel if word == "tcg" else word for word in ARGV]
    request = MigrationRequest("web1", "b", mode="postcopy")
    here = situation(argv, request=request, source_version=version)
    assert [check.status for check in found(here, "passes")] == ["warn"] * warns
    assert not found(situation(argv, source_version=version), "passes")


def test_what_post_copy_cannot_have_is_told() -> None:
    request = MigrationRequest("web1", "b", mode="postcopy", guarded=True)
    only(situation(request=request), "guarded", "warn", "protects nothing")


def test_it_says_which_vcpus_would_be_slowed_down() -> None:
    told = Objection("all its vCPUs are: it runs without a dirty ring", "start it with dirty_ring = 4096", "a")
    (check,) = found(situation(profile=Profile(throttling=told)), "throttle")
    assert (check.status, check.host) == ("ok", "a")
    assert check.text == "all its vCPUs are: it runs without a dirty ring; start it with dirty_ring = 4096"
    assert not found(situation(profile=Profile()), "throttle")
    offline = MigrationRequest("web1", "b", "a", mode="offline")
    assert not found(situation(profile=Profile(throttling=told), request=offline), "throttle")
