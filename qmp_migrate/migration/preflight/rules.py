"""Everything that can be known before a guest is touched. Gathering is in `host_facts`; judging is here, and is pure.

A FAIL refuses the migration (exit code 3), a WARN is told and goes into the result. QEMU itself compares next to
nothing: an extra device or another CPU model on one side completes "successfully", so what is not checked here is not
checked at all.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from qmp_migrate.errors import ConfigError, QmpMigrateError
from qmp_migrate.migration.devices.diff import Present
from qmp_migrate.migration.model.check import Check as Check
from qmp_migrate.migration.model.check import Status as Status
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.preflight import device_rules
from qmp_migrate.migration.preflight.host_facts import BinaryFacts, HostFacts
from qmp_migrate.migration.storage.disk_plan import Judgement
from qmp_migrate.migration.transport.negotiation import Profile
from qmp_migrate.qemu import states
from qmp_migrate.qemu.devices import Devices
from qmp_migrate.qemu.migration import MigrationInfo
from qmp_migrate.settings import HostSettings
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.paths import PathUse
from qmp_migrate.vm.destination import Derived
from qmp_migrate.vm.names import check_socket_path
from qmp_migrate.vm.units import about_size

MEMORY_RESERVE: Final = 64 << 20
"""Bytes that a QEMU needs beside the guest's memory, at least."""

SOUND_POSTCOPY: Final = (10, 0)
"""The latest release whose guests without KVM were never seen to break in post-copy. 11.1 breaks some; others: not tried."""

SAME_CPU_ONLY: Final = frozenset({"host", "max"})
"""CPU models that are whatever the host has: not migration-safe between different hosts."""


@dataclass(frozen=True, slots=True)
class Situation:
    """All that was gathered about one wish.

    Attributes:
        command: The source's argv, from ``/proc``, with what was plugged in and without what was taken out since.
        derived: What the destination would be started with.
        run_state: The guest's.
        info: The source's ``query-migrate``.
        required: The files that the derived command needs.
        paths: For each of them: its state on the destination.
        loses_writes: The source's QEMU loses writes in a second pass.
        guest_at_destination: A live QEMU is in the destination's directory for that name.
        profile: How memory travels; None where the destination's binary cannot be asked what it can do.
        devices: What the guest has now.
        present: What of it differs from the argv that it was started with; None: nobody looked.
        plugged_bytes: Memory that was plugged in.
        flash: The guest's flash images: path at the destination, size at the source and there (None: absent).
        storage: Which disks are copied, and what speaks against it.
    """

    request: MigrationRequest
    source: HostSettings
    destination: HostSettings
    source_facts: HostFacts
    destination_facts: HostFacts
    source_binary: BinaryFacts
    destination_binary: BinaryFacts | QmpMigrateError | None
    command: CommandLine
    derived: Derived
    run_state: str
    info: MigrationInfo
    source_version: str
    required: tuple[PathUse, ...]
    paths: Mapping[str, str]
    guest_at_destination: bool
    loses_writes: bool
    profile: Profile | None = None
    devices: Devices = field(default_factory=Devices)
    present: Present | None = None
    plugged_bytes: int = 0
    flash: tuple[tuple[str, int | None, int | None], ...] = ()
    storage: Judgement = field(default_factory=Judgement)


def judge(s: Situation) -> list[Check]:
    """Return all checks of a situation, in the order in which they are shown."""
    return [
        Check("ssh-source", "ok", f"{s.source_facts.name} answers", host=s.source_facts.name),
        Check("ssh-destination", "ok", f"{s.destination_facts.name} answers", host=s.destination_facts.name),
        *_guest(s),
        *_mode(s),
        *_devices(s),
        *_binary(s),
        *_transport(s),
        *_throttling(s),
        *_derivation(s),
        *_memory(s),
        *s.storage.checks,
        *_files(s),
        *_places(s),
    ]


def failures(checks: list[Check]) -> tuple[str, ...]:
    """Return the failed checks as lines."""
    return tuple(f"{c.text}" + (f" ({c.hint})" if c.hint else "") for c in checks if c.status == "fail")


def _guest(s: Situation) -> list[Check]:
    name, where = s.request.vm, s.source_facts.name
    checks = []
    if s.run_state in states.RUNNING_STATES:
        checks.append(Check("guest", "ok", f"{name} runs on {where} (QEMU {s.source_version})", host=where))
    elif s.run_state in {"paused", "suspended"}:
        checks.append(
            Check("guest", "warn", f"{name} is {s.run_state} on {where}: it will arrive {s.run_state}", host=where)
        )
    else:
        hint = "cont it, or start it anew" if s.run_state == "postmigrate" else "start it again first"
        checks.append(Check("guest", "fail", f"{name} is {s.run_state} on {where}", hint, where))
    if states.under_way(s.info.status):
        text = f"a migration of {name} is already under way ({s.info.status})"
        checks.append(Check("idle", "fail", text, "wait for it, or cancel it", where))
    else:
        checks.append(Check("idle", "ok", "no migration of it is under way", host=where))
    locked = {f.name: f.locked_by for f in (s.source_facts, s.destination_facts) if f.locked_by}
    for host, who in locked.items():
        checks.append(
            Check("lock", "fail", f"another controller holds {name} on {host}: {who}", "try again later", host)
        )
    if s.loses_writes and s.request.mode != "postcopy":
        text = (
            f"QEMU {s.source_version} without KVM loses what the guest writes in a second pass: it is moved in one pass, "
            f"with a pause of up to {s.request.downtime_limit_ms} ms, or not at all"
        )
        hint = "QEMU 9.0 and later, or KVM, can do better; a guest that dirties a lot needs a longer --downtime-limit"
        checks.append(Check("passes", "warn", text, hint, where))
    if s.info.blocked_reasons:
        checks += [
            Check("blocked", "fail", text, hint, where)
            for text, hint in device_rules.blocked(s.info.blocked_reasons, s.devices)
        ]
    else:
        checks.append(Check("blocked", "ok", "every device of it can be migrated", host=where))
    return checks


def _devices(s: Situation) -> list[Check]:
    if s.present is None:
        return []
    where = s.source_facts.name
    return [Check("devices", status, text, host=where) for status, text in device_rules.changed(s.present)]


def _mode(s: Situation) -> list[Check]:
    """Say what the mode means for the guest, and what keeps it from being used."""
    where = s.source_facts.name
    if s.request.mode == "offline":
        text = "the guest stands still while its memory travels"
        return [
            Check("mode", "ok", text if s.run_state in states.RUNNING_STATES else "the guest is paused", host=where)
        ]
    if s.request.mode != "postcopy":
        return []
    text = "once post-copy has begun there is no cancel, and if either QEMU or its host dies the guest is lost"
    checks = [Check("mode", "ok", text, host=where)]
    if s.loses_writes:
        text = (
            f"QEMU {s.source_version} without KVM loses what the guest writes after the first pass, also in post-copy"
        )
        checks.append(Check("passes", "fail", text, "--mode offline loses nothing; so do QEMU 9.0 and KVM", where))
    elif "kvm" not in s.command.accelerators and _newer(s.source_version, SOUND_POSTCOPY):
        text = (
            f"post-copy from QEMU {s.source_version} without KVM now and then gives the guest wrong memory: its kernel "
            "panics at the destination, and no QEMU says so"
        )
        hint = "--mode live or offline; QEMU up to 10.0 was never seen to do so"
        checks.append(Check("passes", "warn", text, hint, where))
    if s.request.guarded:
        text = "the guardian does not act where post-copy may begin: --guarded protects nothing here"
        checks.append(Check("guarded", "warn", text, "leave it out", where))
    files = [value for value in s.command.values("object") if value.startswith("memory-backend-file")]
    if files or s.command.has("mem-path"):
        text = "its memory is in a file: post-copy takes that only on tmpfs or hugetlbfs"
        checks.append(Check("memory-backend", "warn", text, "QEMU refuses it before the guest is touched", where))
    return checks


def _newer(version: str, than: tuple[int, int]) -> bool:
    """Tell whether a QEMU is of a later release; False where it does not say which it is."""
    match version.split(".")[:2]:
        case [major, minor] if major.isdecimal() and minor.isdecimal():
            return (int(major), int(minor)) > than
    return False


def _binary(s: Situation) -> list[Check]:
    where, path = s.destination_facts.name, s.destination.qemu
    if not s.destination_facts.qemu_stamp:
        hint = "install QEMU there, or correct the host's `qemu` setting"
        return [Check("qemu", "fail", f"{path} is not an executable file on {where}", hint, where)]
    if not isinstance(s.destination_binary, BinaryFacts):
        error = s.destination_binary
        text = error.message if error else "unknown"
        return [Check("qemu", "fail", f"{path} on {where}: {text}", (error.hint or "") if error else "", where)]
    binary = s.destination_binary
    checks = [Check("qemu", "ok", f"QEMU {binary.version} at {path} on {where}", host=where)]
    if _numbers(binary.version) < _numbers(s.source_version):
        text = f"{where} has the older QEMU ({binary.version} after {s.source_version})"
        checks.append(Check("version", "warn", text, "newer to older is best effort only", where))
    lacking = device_rules.not_received(s.derived.command, binary.version) if not s.derived.refusals else ()
    checks += [Check("devices", "fail", text, hint, where) for text, hint in lacking]
    return [*checks, *_machine(s, binary), *_cpu(s, binary)]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _machine(s: Situation, binary: BinaryFacts) -> list[Check]:
    where = s.destination_facts.name
    wanted = s.derived.command.machine
    if wanted is None or wanted not in binary.machines:
        known = {name for name in binary.machines.values() if name.startswith("pc-q35")}
        versions = ", ".join(sorted(known, key=lambda name: _numbers(name.rpartition("-")[2]))[-3:])
        return [
            Check(
                "machine",
                "fail",
                f"QEMU {binary.version} on {where} does not know the machine type {wanted}",
                f"a guest keeps its machine type until it is powered off; the newest there: {versions}",
                where,
            )
        ]
    if wanted in binary.deprecated:
        return [Check("machine", "warn", f"machine type {wanted} is deprecated on {where}", "it will go there", where)]
    return [Check("machine", "ok", f"machine type {wanted} is known on {where}", host=where)]


def _cpu(s: Situation, binary: BinaryFacts) -> list[Check]:
    where = s.destination_facts.name
    model = s.derived.command.cpu
    if model is None:
        return [Check("cpu", "ok", "the machine type's default CPU model", host=where)]
    if model in SAME_CPU_ONLY:
        lacking = s.source_facts.cpu_flags - s.destination_facts.cpu_flags
        if "kvm" in s.command.accelerators and (lacking or s.source_facts.cpu_model != s.destination_facts.cpu_model):
            text = f"-cpu {model} is the CPU of {s.source_facts.name} ({s.source_facts.cpu_model}); {where} has another"
            if lacking:
                text += f" that lacks {_some(sorted(lacking))}"
            return [Check("cpu", "fail", text, "start the guest with a named CPU model that both hosts have", where)]
        return [Check("cpu", "ok", f"CPU model {model}: both hosts have the same CPU", host=where)]
    if model not in binary.cpus:
        text = f"QEMU on {where} does not know the CPU model {model}"
        return [Check("cpu", "fail", text, "a newer QEMU there may", where)]
    lacking_there = set(binary.cpus[model]) - set(s.source_binary.cpus.get(model, ()))
    if lacking_there:
        text = f"CPU model {model}: {where} cannot give {_some(sorted(lacking_there))}, which the guest may use now"
        hint = "the guest may crash there: choose a model that both hosts have, and restart it once"
        return [Check("cpu", "fail", text, hint, where)]
    gained = set(s.source_binary.cpus.get(model, ())) - set(binary.cpus[model])
    if gained:
        text = f"CPU model {model}: {where} also gives {_some(sorted(gained))}, which the guest has not seen so far"
        return [Check("cpu", "warn", text, "start guests with -cpu MODEL,enforce to rule this out", where)]
    if binary.cpus[model]:
        text = f"CPU model {model} is incomplete on both hosts ({_some(list(binary.cpus[model]))})"
        return [Check("cpu", "ok", text, host=where)]
    return [Check("cpu", "ok", f"CPU model {model} is complete on {where}", host=where)]


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _transport(s: Situation) -> list[Check]:
    """Say how memory travels, or why it cannot as it is asked for; decided by `negotiation`."""
    if s.profile is None:
        return []
    checks = [Check("transport", "fail", each.text, each.hint, each.host) for each in s.profile.refusals]
    checks += [Check("transport", "warn", each.text, each.hint, each.host) for each in s.profile.warnings]
    if s.profile.refusals:
        return checks
    why = f" ({'; '.join(s.profile.reasons)})" if s.profile.reasons else ""
    return [*checks, Check("transport", "ok", f"memory travels over {s.profile}{why}")]


def _throttling(s: Situation) -> list[Check]:
    """Say which vCPUs would be slowed down; decided by `negotiation`."""
    if s.profile is None or s.profile.throttling is None or s.profile.refusals or s.request.mode != "live":
        return []
    each = s.profile.throttling
    return [Check("throttle", "ok", each.text + (f"; {each.hint}" if each.hint else ""), host=each.host)]


def _derivation(s: Situation) -> list[Check]:
    where = s.destination_facts.name
    checks = [Check("argv", "fail", text, host=where) for text in s.derived.refusals]
    checks += [Check("argv", "warn", text, host=where) for text in s.derived.warnings]
    accel = s.command.accelerators
    if "kvm" in accel and not s.destination_facts.kvm:
        hint = "load the kvm module there and let the SSH user open /dev/kvm"
        checks.append(Check("accel", "fail", f"/dev/kvm cannot be used on {where}", hint, where))
    return checks or [Check("argv", "ok", "its command line can be taken over", host=where)]


def _memory(s: Situation) -> list[Check]:
    where, free = s.destination_facts.name, s.destination_facts.mem_available
    try:
        need = s.command.memory_bytes + s.plugged_bytes + MEMORY_RESERVE
    except QmpMigrateError as error:
        return [Check("memory", "warn", f"its memory size is not understood: {error.message}", host=where)]
    text = f"{about_size(need)} needed on {where}, {about_size(free)} free"
    if need > free:
        return [Check("memory", "fail", f"not enough memory: {text}", "free some there, or choose another host", where)]
    return [Check("memory", "ok", f"memory: {text}", host=where)]


def _files(s: Situation) -> list[Check]:
    where = s.destination_facts.name
    checks = []
    for use in s.required:
        if use.path in s.storage.judged:
            continue
        state = s.paths.get(use.path, "absent")
        if state == "absent":
            hint = "put it there, share the storage, or map it with the host's path_map"
            if use.writable and s.request.copy_storage is None:
                hint = "have it copied with --copy-storage, share the storage, or map it with the host's path_map"
            checks.append(Check("files", "fail", f"{use.kind} {use.path} is not on {where}", hint, where))
        elif state == "unreadable" or (use.writable and state != "writable"):
            what = "read" if state == "unreadable" else "written"
            hint = "give the SSH user of that host access to it"
            checks.append(Check("files", "fail", f"{use.kind} {use.path} cannot be {what} on {where}", hint, where))
    for path, here, there in s.flash:
        if here is not None and there is not None and here != there:
            text = f"firmware image {path} has {there} bytes on {where}, and {here} on {s.source_facts.name}"
            hint = "the guest's flash memory must have the same size: put the same file there"
            checks.append(Check("files", "fail", text, hint, where))
    return checks or [Check("files", "ok", f"all its images and files are on {where}", host=where)]


def _places(s: Situation) -> list[Check]:
    where, settings = s.destination_facts.name, s.destination
    checks = []
    match s.destination_facts.run_dir:
        case "writable":
            checks.append(Check("run-dir", "ok", f"{settings.run_dir} on {where} can be written", host=where))
        case "absent":
            checks.append(Check("run-dir", "ok", f"{settings.run_dir} on {where} can be made", host=where))
        case _:
            hint = f"make it and give it to the SSH user: install -d -m 700 -o USER {shlex.quote(settings.run_dir)}"
            checks.append(Check("run-dir", "fail", f"{settings.run_dir} on {where} cannot be written", hint, where))
    try:
        check_socket_path(f"{settings.run_dir}/{s.request.vm}/agent.sock")
        checks.append(Check("sockets", "ok", "socket paths are short enough", host=where))
    except ConfigError as error:
        checks.append(Check("sockets", "fail", error.message, error.hint or "", where))
    if s.guest_at_destination:
        hint = "stop that guest, or give this one another name"
        checks.append(Check("name", "fail", f"{where} already runs a guest named {s.request.vm}", hint, where))
    else:
        checks.append(Check("name", "ok", f"{where} runs no guest named {s.request.vm}", host=where))
    address = (settings.migration_listen or settings.migration_address or settings.address).strip("[]")
    match s.destination_facts.has_address(address):
        case True:
            checks.append(Check("address", "ok", f"{where} can receive on {address}", host=where))
        case False:
            hint = (
                "set migration_address (or, behind address translation, migration_listen) to one of its own addresses"
            )
            checks.append(Check("address", "fail", f"{address} is not an address of {where}", hint, where))
        case None:
            text = (
                f"{address} is a name, or {where} does not tell its addresses: whether it can receive on it will show"
            )
            checks.append(Check("address", "ok", text, host=where))
    if not s.request.encrypt:
        text = "the guest's memory will travel in the clear, for everyone on the way to read"
        checks.append(Check("encryption", "warn", text, "leave --no-encrypt out", where))
    return checks
