"""What can be known before a guest is saved: whether QEMU and the place can do it, and what the file will have to say.

Changes nothing on the host, except that a file of one block is written and removed to see whether direct I/O works there.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable
from typing import Any, Final

from qmp_migrate.errors import CommandFailed, ConfigError, PreflightRefused
from qmp_migrate.hosts.process import identify
from qmp_migrate.migration.devices.query import devices_now
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.preflight import device_rules
from qmp_migrate.migration.preflight.host_facts import gather_host, probe_binary
from qmp_migrate.migration.savefile import scripts
from qmp_migrate.migration.savefile.file_format import Document
from qmp_migrate.migration.savefile.image_stamps import open_images, other_disks
from qmp_migrate.migration.savefile.save import SavePlan
from qmp_migrate.migration.savefile.save_request import SaveRequest, chosen_format
from qmp_migrate.qemu import features, states
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.destination import derive_destination
from qmp_migrate.vm.units import about_size

SAVED_STATES: Final = frozenset({"running", "paused", "suspended"})


def knows_file_uri(schema: Iterable[Any]) -> bool:
    """Tell from ``query-qmp-schema`` whether a QEMU knows ``file:``: the transports of migration are an enumeration."""
    transports = {"socket", "exec", "rdma"}
    for entry in schema:
        if entry.get("meta-type") == "enum":
            values = set(entry.get("values", ())) | {m.get("name") for m in entry.get("members", ())}
            if transports <= values:
                return "file" in values
    return False


async def look(request: SaveRequest, side: Side, journal: Journal) -> SavePlan:
    """Look at the guest and at the place, and judge both.

    Raises:
        PreflightRefused: It cannot be saved, or not there; nothing was touched.
        MonitorError, TransportError, RemoteError: Something could not be asked.
    """
    side.process = side.process or await identify(side.host, side.directory)
    assert side.process is not None
    monitor = await side.attach()
    here = await gather_host(side.host, side.settings, request.vm, pid=side.process.pid)
    devices, now = await devices_now(side, CommandLine.parse(here.cmdline))
    command = now.command
    run, info = await qmp.run_status(monitor), await qmp.query(monitor)
    known = await features.probe(monitor)
    file_uri = knows_file_uri(await monitor.execute("query-qmp-schema"))
    accel = next((name for name in command.accelerators if name in {"kvm", "tcg"}), "tcg")
    binary = await probe_binary(side.host, side.settings, here, accel, journal)
    uuid = (await monitor.execute("query-uuid")).get("UUID")

    refusals = [f"{text} ({hint})" for text, hint in device_rules.blocked(info.blocked_reasons, devices)]
    refusals += now.refusals
    elsewhere = await other_disks(monitor)
    warnings = list(now.warnings)
    if elsewhere or any((await open_images(monitor)).values()):
        warnings.append("its disks are not in the file: nothing may write to them until it is restored")
    if run.status not in SAVED_STATES:
        refusals.append(f"{request.vm} is {run.status}: only a guest that runs or is paused can be saved")
    if states.under_way(info.status):
        refusals.append(f"a migration of {request.vm} is under way ({info.status})")
    form = chosen_format(request.format, has_mapped_ram=known.has_capability("mapped-ram"))
    if form is None:
        refusals.append(f"QEMU {known.version} has no mapped-ram: leave --format out")
    if not file_uri and _no_spawn(command):
        refusals.append(
            f"QEMU {known.version} writes a file only through a program that it starts, and -sandbox spawn=deny forbids that"
        )
    derived = _itself(command, side)
    refusals += derived
    free, how, words = await _place(request, side)
    refusals += words
    if free is not None and free < command.memory_bytes:
        warnings.append(
            f"{about_size(free)} are free there, and its memory is {about_size(command.memory_bytes)}: it may not fit"
        )
    warnings += [f"nobody will be able to tell whether {name} was written to" for name in elsewhere]
    if refusals:
        raise PreflightRefused(
            f"{request.vm} cannot be saved to {request.path}: {refusals[0]}"
            + (f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""),
            failures=tuple(refusals),
            hint="nothing was touched",
            host=side.name,
        )
    assert form is not None
    machine, cpu = command.machine, command.cpu
    document = Document(
        id=request.id,
        vm=request.vm,
        saved_at=time.time(),
        host=side.name,
        directory=side.directory,
        addresses=side.migration_address,
        qemu=known.version,
        argv=tuple(command.argv()),
        machine=binary.machines.get(machine, machine) if machine else binary.default_machine,
        cpu=binary.cpu_aliases.get(cpu) if cpu else None,
        cpu_model=here.cpu_model,
        cpu_flags=tuple(sorted(here.cpu_flags)),
        cpu_lacking=tuple(binary.cpus.get(cpu or "", ())),
        accel=accel,
        running=run.running,
        memory_bytes=command.memory_bytes,
        format=form,
        channels=request.channels if form == "mapped-ram" and known.has_capability("multifd") else 0,
        state_bytes=0,
        state_sum="",
        uuid=str(uuid) if uuid else None,
    )
    direct = how == "direct" and "direct-io" in known.parameters
    return SavePlan(document, file_uri, direct, tuple(warnings))


def _itself(command: CommandLine, side: Side) -> tuple[str, ...]:
    """Return what ties the guest to its host: what could not move cannot be restored either."""
    try:
        return derive_destination(
            command, binary=side.settings.qemu, source_dir=side.directory, dest_dir=side.directory
        ).refusals
    except ConfigError as error:
        return (error.message,)


def _no_spawn(command: CommandLine) -> bool:
    return any(re.search(r"(^|,)spawn=deny(,|$)", value) for value in command.values("sandbox"))


async def _place(request: SaveRequest, side: Side) -> tuple[int | None, str, list[str]]:
    scripts.link_path(side.directory, side.name)
    try:
        state, free, how = (await side.host.script(scripts.PLACE, [request.path, request.part])).text.split()
    except (CommandFailed, ValueError) as error:
        return None, "", [getattr(error, "stderr", "").strip() or str(error)]
    refusals = [f"{shlex.quote(request.path)} is there already"] if state == "exists" else []
    return (int(free) if free.isdigit() else None), how, refusals
