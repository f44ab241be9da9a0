"""What can be known before a shut-down guest is moved. Nothing is touched; a QEMU without a machine tells of its images."""

from __future__ import annotations

from dataclasses import replace

from qmp_migrate.aio import gather_all
from qmp_migrate.errors import ConfigError, QmpMigrateError
from qmp_migrate.migration.cold import definition, storage_qemu
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.model.check import Check
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.preflight.host_facts import (
    BinaryFacts,
    HostFacts,
    accelerator,
    gather_host,
    path_states,
    probe_binary,
)
from qmp_migrate.migration.preflight.planner import Plan, join_path_maps
from qmp_migrate.migration.storage.disk_plan import Judgement
from qmp_migrate.migration.storage.inspection import survey_disks
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.paths import PathUse, required_paths
from qmp_migrate.vm.destination import Derived, derive_destination, path_mapper


async def look(request: MigrationRequest, source: Side, destination: Side, journal: Journal) -> Plan:
    """Look at the definition and at both hosts, and judge.

    Args:
        request: What is wanted; how memory travels means nothing here.
        source: Where it is defined, and proven not to run.
        destination: Where it goes.
        journal: Remembers what binaries can do.

    Raises:
        GuestUnknown: It is not defined there.
        FileFailed, TransportError, RemoteError, MonitorError: Something could not be read or asked.
    """
    command = definition.bootable(await definition.read(source))
    here, there = await gather_all(
        gather_host(source.host, source.settings, request.vm),
        gather_host(destination.host, destination.settings, request.vm),
    )
    accel = accelerator(command)
    binary = await _probe(destination, there, accel, journal)
    of_source = await _probe(source, here, accel, journal)
    derived = _derive(command, source, destination, of_source if isinstance(of_source, BinaryFacts) else None)
    storage = Judgement()
    if request.copy_storage is not None and not derived.refusals:
        asked = storage_qemu.place(source, request.id)
        maps = join_path_maps(source.settings, destination.settings)
        async with storage_qemu.running(asked, storage_qemu.argv(asked, command)):
            storage = await survey_disks(
                request.copy_storage,
                asked,
                destination,
                command=command,
                derived=derived.command,
                map_path=path_mapper(maps, source.directory, destination.directory),
                same_machine=here.boot_id == there.boot_id,
            )
    required = () if derived.refusals else tuple(required_paths(derived.command))
    paths = await path_states(destination.host, [use.path for use in required])
    checks = judge(request, here, there, binary, derived, required, paths, storage)
    return Plan(checks, derived, running=False, one_pass=False, ram_bytes=0, copies=storage.copies)


async def _probe(side: Side, facts: HostFacts, accel: str, journal: Journal) -> BinaryFacts | str:
    if not facts.qemu_stamp:
        return f"{side.settings.qemu} is not an executable file on {side.name}"
    try:
        return await probe_binary(side.host, side.settings, facts, accel, journal)
    except QmpMigrateError as error:
        return error.message


def _derive(command: CommandLine, source: Side, destination: Side, binary: BinaryFacts | None) -> Derived:
    """Derive what is to be defined at the destination: bootable, in its terms."""
    machine, cpu = command.machine, command.cpu
    pinned = None
    if binary is not None:
        pinned = binary.machines.get(machine) if machine else binary.default_machine
    try:
        derived = derive_destination(
            command,
            binary=destination.settings.qemu,
            source_dir=source.directory,
            dest_dir=destination.directory,
            path_map=join_path_maps(source.settings, destination.settings),
            machine=pinned,
            cpu=binary.cpu_aliases.get(cpu) if binary and cpu else None,
            address_map={source.migration_address: destination.migration_address},
        )
    except ConfigError as error:
        return Derived(command, (), (), (error.message,))
    changes = tuple(line for line in derived.changes if not line.startswith("-S "))
    return replace(derived, command=definition.bootable(derived.command), changes=changes)


def judge(
    request: MigrationRequest,
    here: HostFacts,
    there: HostFacts,
    binary: BinaryFacts | str,
    derived: Derived,
    required: tuple[PathUse, ...],
    paths: dict[str, str],
    storage: Judgement,
) -> list[Check]:
    """Return the checks: what a guest that is only to be there, and to start one day, needs."""
    where, vm = there.name, request.vm
    checks = [Check("guest", "ok", f"{vm} is shut down on {here.name}: its definition moves", host=here.name)]
    for facts in (here, there):
        if facts.locked_by:
            text = f"another controller holds {vm} on {facts.name}: {facts.locked_by}"
            checks.append(Check("lock", "fail", text, "try again later", facts.name))
    if there.guest_directory:
        hint = (
            f"look at it: qmp-migrate vm list; what is left of an earlier one: qmp-migrate doctor {where} --leftovers"
        )
        checks.append(Check("name", "fail", f"{where} has a guest named {vm}, or what is left of one", hint, where))
    if there.run_dir not in {"writable", "absent"}:
        checks.append(Check("run-dir", "fail", f"the run_dir of {where} cannot be written", "", where))
    machine = derived.command.machine
    if isinstance(binary, str):
        checks.append(Check("qemu", "fail", binary, "install QEMU there, or correct the host's `qemu` setting", where))
    elif machine is not None and machine not in binary.machines:
        text = f"QEMU {binary.version} on {where} does not know the machine type {machine}"
        checks.append(Check("machine", "fail", text, "a guest keeps its machine type; a newer QEMU may know it", where))
    else:
        checks.append(Check("qemu", "ok", f"QEMU {binary.version} on {where} knows its machine type", host=where))
    checks += [Check("argv", "fail", text, host=where) for text in derived.refusals]
    checks += [Check("argv", "warn", text, host=where) for text in derived.warnings]
    if "kvm" in derived.command.accelerators and not there.kvm:
        checks.append(Check("accel", "fail", f"/dev/kvm cannot be used on {where}", "", where))
    for use in required:
        state = paths.get(use.path, "absent")
        wrong = state in {"absent", "unreadable"} or (use.writable and state != "writable")
        if wrong and use.path not in storage.judged:
            hint = "put it there, share the storage, map it with the host's path_map, or copy disks with --copy-storage"
            checks.append(Check("files", "fail", f"{use.kind} {use.path} on {where} is {state}", hint, where))
    return [*checks, *storage.checks]
