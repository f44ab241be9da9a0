"""Look at a guest's disks on both hosts, for `disk_plan.judge`. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.model.request import StorageCopy
from qmp_migrate.migration.storage import disk_plan, image_stat
from qmp_migrate.migration.storage.disk_plan import Judgement, Seen
from qmp_migrate.qemu import images, storage
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.disks import disks


async def survey_disks(
    how: StorageCopy,
    source: Side,
    destination: Side,
    *,
    command: CommandLine,
    derived: CommandLine,
    map_path: Callable[[str], str],
    same_machine: bool,
) -> Judgement:
    """Say which disks would be copied, and what speaks against it.

    Args:
        how: ``full`` or ``top``.
        source: Where the guest runs.
        destination: Where it goes; no QEMU of it is there yet.
        command: The source's command line.
        derived: The destination's.
        map_path: From the source's paths to the destination's.
        same_machine: Both hosts are one machine.

    Raises:
        MonitorError, TransportError, RemoteError: Something could not be asked.
    """
    monitor = await source.attach()
    ports = destination.settings.ports
    seen = Seen(
        how,
        devices=await images.devices(monitor),
        here=disks(command),
        there=disks(derived),
        map_path=map_path,
        source=source.name,
        destination=destination.name,
        same_machine=same_machine,
        busy=frozenset((await storage.mirrors(monitor)).keys()),
        one_port=ports is not None and ports[0] == ports[1],
    )
    here, there = disk_plan.paths_to_look_at(seen)
    of_source, of_destination = await asyncio.gather(
        image_stat.look_at(source.host, here), image_stat.look_at(destination.host, there)
    )
    seen = replace(seen, source_files=of_source, destination_files=of_destination)
    compared = disk_plan.paths_to_compare(seen)
    if compared:
        ours, theirs = await asyncio.gather(
            image_stat.digests(source.host, [a for a, _ in compared]),
            image_stat.digests(destination.host, [b for _, b in compared]),
        )
        seen = replace(seen, source_digests=ours, destination_digests=theirs)
    return disk_plan.judge(seen)
