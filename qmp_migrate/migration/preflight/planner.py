"""From a wish to a plan: look at both hosts, derive the destination's command line, judge. Changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from qmp_migrate.aio import gather_all
from qmp_migrate.errors import CommandFailed, ConfigError, GuestUnknown, QmpMigrateError
from qmp_migrate.hosts.process import ProcessId, identify
from qmp_migrate.migration.devices.query import devices_now
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.model import policy_terms
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.preflight import rules
from qmp_migrate.migration.preflight.host_facts import (
    BinaryFacts,
    HostFacts,
    accelerator,
    file_sizes,
    gather_host,
    path_states,
    probe_binary,
)
from qmp_migrate.migration.preflight.rules import Check, Situation
from qmp_migrate.migration.storage.disk_plan import DiskCopy, Judgement
from qmp_migrate.migration.storage.inspection import survey_disks
from qmp_migrate.migration.transport.negotiation import Abilities, Profile, negotiate
from qmp_migrate.qemu import dirty_limit, features
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.qemu.migration import MigrationInfo, RunStatus
from qmp_migrate.settings import HostSettings
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.disks import disks
from qmp_migrate.vm.commandline.paths import required_paths
from qmp_migrate.vm.destination import Derived, derive_destination, path_mapper


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done, and whether it may be.

    Attributes:
        checks: Every check, in the order in which they are shown.
        derived: The destination's command line and what is different about it.
        running: The guest runs now.
        one_pass: The source loses writes in a second pass (`features.loses_writes`): there must be none.
        ram_bytes: The guest's memory.
        profile: How its memory travels.
        copies: Its disks that are copied along.
    """

    checks: list[Check]
    derived: Derived
    running: bool
    one_pass: bool
    ram_bytes: int
    profile: Profile = field(default_factory=Profile)
    copies: tuple[DiskCopy, ...] = ()

    @property
    def refused(self) -> tuple[str, ...]:
        """The failed checks, one line each; empty: it may be done."""
        return rules.failures(self.checks)


async def make_plan(request: MigrationRequest, source: Side, destination: Side, journal: Journal) -> Plan:
    """Look at everything and judge it.

    Raises:
        GuestUnknown: No QEMU of that name runs on the source.
        MonitorError, TransportError, RemoteError: Something could not be asked; nothing was touched.
    """
    if source.process is None:
        source.process = await identify(source.host, source.directory)
    if source.process is None:
        raise GuestUnknown(
            f"no guest {request.vm!r} runs on {source.name}", hint="see: qmp-migrate vm list", host=source.name
        )
    there, here, other, (run, info, abilities, loses_writes, plugged) = await gather_all(
        gather_host(destination.host, destination.settings, request.vm),
        gather_host(source.host, source.settings, request.vm, pid=source.process.pid),
        _identify(destination),
        _ask(source, request),
    )
    found, now = await devices_now(source, CommandLine.parse(here.cmdline))
    command = now.command
    accel = accelerator(command)
    abilities = await _with_dirty_ring(source, abilities, command.dirty_ring)
    source_binary = await probe_binary(source.host, source.settings, here, accel, journal)
    destination_binary = await _try_probe(destination, there, accel, journal)
    derived = _derive(command, source, destination, source_binary)
    required = () if derived.refusals else tuple(required_paths(derived.command))
    paths = await path_states(destination.host, [use.path for use in required])
    profile = None
    if isinstance(destination_binary, BinaryFacts):
        profile = negotiate(
            request,
            abilities,
            replace(destination_binary.abilities, dirty_ring=command.dirty_ring),  # it was asked with that ring
            memory_bytes=command.memory_bytes,
            source_free_bytes=here.mem_available,
            may_throttle=policy_terms.wants_throttle(request),
            may_limit=policy_terms.wants_dirty_limit(request),
            may_turn=policy_terms.wants_postcopy(request),
        )
    flash = () if derived.refusals else await _flash(command, derived.command, source, destination)
    storage = Judgement()
    if request.copy_storage is not None and not derived.refusals:
        maps = join_path_maps(source.settings, destination.settings)
        storage = await survey_disks(
            request.copy_storage,
            source,
            destination,
            command=command,
            derived=derived.command,
            map_path=path_mapper(maps, source.directory, destination.directory),
            same_machine=here.boot_id == there.boot_id,
        )
    situation = Situation(
        request=request,
        source=source.settings,
        destination=destination.settings,
        source_facts=here,
        destination_facts=there,
        source_binary=source_binary,
        destination_binary=destination_binary,
        command=command,
        derived=derived,
        run_state=run.status,
        info=info,
        source_version=abilities.version,
        required=required,
        paths=paths,
        guest_at_destination=other is not None,
        loses_writes=loses_writes and run.running and request.mode != "offline",
        devices=found,
        present=now,
        plugged_bytes=plugged,
        flash=flash,
        profile=profile,
        storage=storage,
    )
    return Plan(
        rules.judge(situation),
        derived,
        run.running,
        situation.loses_writes,
        command.memory_bytes + plugged,
        profile or Profile(),
        storage.copies,
    )


def _derive(command: CommandLine, source: Side, destination: Side, binary: BinaryFacts) -> Derived:
    """Derive the destination's command line; what makes that impossible is a refusal like any other."""
    machine, cpu = command.machine, command.cpu
    try:
        return derive_destination(
            command,
            binary=destination.settings.qemu,
            source_dir=source.directory,
            dest_dir=destination.directory,
            path_map=join_path_maps(source.settings, destination.settings),
            machine=binary.machines.get(machine) if machine else binary.default_machine,
            cpu=binary.cpu_aliases.get(cpu) if cpu else None,
            address_map={source.migration_address: destination.migration_address},
        )
    except ConfigError as error:
        return Derived(command, (), (), (error.message,))


async def _identify(side: Side) -> ProcessId | None:
    """Return the live QEMU of that name on the destination; None where its run directory cannot even be looked into."""
    try:
        return await identify(side.host, side.directory)
    except CommandFailed:
        return None  # the check of the run directory says why


async def _flash(
    here: CommandLine, there: CommandLine, source: Side, destination: Side
) -> tuple[tuple[str, int | None, int | None], ...]:
    """Return the guest's flash images with their sizes at the source and at the destination."""
    pairs = [
        (old.path, new.path)
        for old, new in zip(disks(here), disks(there), strict=True)
        if old.role == "pflash" and old.path is not None and new.path is not None
    ]
    if not pairs:
        return ()
    sizes = await asyncio.gather(
        file_sizes(source.host, [old for old, _ in pairs]), file_sizes(destination.host, [new for _, new in pairs])
    )
    return tuple((new, *size) for (_, new), size in zip(pairs, zip(*sizes, strict=True), strict=True))


async def _ask(side: Side, request: MigrationRequest) -> tuple[RunStatus, MigrationInfo, Abilities, bool, int]:
    """Ask the running guest: its binary may have been replaced since it was started."""
    monitor = await side.attach()
    known = await features.probe(monitor)
    compressing = request.compress in {"zlib", "zstd"}
    abilities = Abilities(
        host=side.name,
        version=known.version,
        capabilities=frozenset(known.capabilities),
        parameters=frozenset(known.parameters),
        compressions=await features.multifd_compressions(monitor) if compressing else frozenset(),
        kvm=await features.uses_kvm(monitor),
    )
    memory = await monitor.execute("query-memory-size-summary")
    plugged = int(memory.get("plugged-memory", 0))
    sizes = [int(memory["base-memory"]), *([plugged] if plugged else [])]
    return (
        await qmp.run_status(monitor),
        await qmp.query(monitor),
        abilities,
        any([await features.loses_writes(monitor, size) for size in sizes]),
        plugged,
    )


async def _with_dirty_ring(side: Side, abilities: Abilities, dirty_ring: int) -> Abilities:
    """Say of a running guest that was started with a dirty ring whether the dirty rate of its vCPUs can be limited."""
    if not dirty_ring or not abilities.kvm:
        return abilities
    return replace(abilities, dirty_ring=dirty_ring, no_dirty_limit=await dirty_limit.why_not(await side.attach()))


async def _try_probe(
    side: Side, facts: HostFacts, accel: str, journal: Journal
) -> BinaryFacts | QmpMigrateError | None:
    if not facts.qemu_stamp:
        return None
    try:
        return await probe_binary(side.host, side.settings, facts, accel, journal)
    except QmpMigrateError as error:
        return error


def join_path_maps(source: HostSettings, destination: HostSettings) -> dict[str, str]:
    """Return the map from the source's paths to the destination's.

    A host's ``path_map`` says ``{path elsewhere = path here}``; what the source maps is first taken back to "elsewhere".
    """
    joined = dict(destination.path_map)
    for elsewhere, here in source.path_map.items():
        joined[here] = destination.path_map.get(elsewhere, elsewhere)
    return joined
