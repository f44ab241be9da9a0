"""What can be known before a guest is restored: the file, its document, the host, the images. Judging is `judge`, pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from qmp_migrate.errors import (
    CommandFailed,
    ConfigError,
    FileFailed,
    GuestExists,
    PreflightRefused,
    QmpMigrateError,
)
from qmp_migrate.hosts.process import identify
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.preflight.host_facts import BinaryFacts, HostFacts, gather_host, path_states, probe_binary
from qmp_migrate.migration.preflight.planner import join_path_maps
from qmp_migrate.migration.savefile import scripts
from qmp_migrate.migration.savefile.file_format import FOOTER_BYTES, Document, document_length, opened
from qmp_migrate.migration.savefile.image_stamps import Change, Stamp, changes, take_stamps
from qmp_migrate.settings import HostSettings
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.paths import PathUse, required_paths
from qmp_migrate.vm.destination import Derived, derive_destination, map_path
from qmp_migrate.vm.units import about_size

MEMORY_RESERVE: Final = 64 << 20
SAME_CPU_ONLY: Final = frozenset({"host", "max"})


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What is known of one restore.

    Attributes:
        document: The state file's.
        stamp: ``device:inode:size`` of the file: the one that was looked at.
        argv: The command line to start.
        warnings: What is to be told.
    """

    document: Document
    stamp: str
    argv: tuple[str, ...]
    warnings: tuple[str, ...] = ()


async def read_document(side: Side, path: str) -> tuple[Document, str]:
    """Read a state file's document, and look at the file.

    Raises:
        FileFailed: It is not there, or no (whole) state file.
        ConfigError: It is damaged, or of a newer program.
        TransportError: The host cannot be asked.
    """
    try:
        done = await side.host.script(scripts.FOOTER, [path, str(FOOTER_BYTES)])
        stamp, _, footer = done.stdout.partition(b"\n")
        found = document_length(footer)
        if found is None:
            raise FileFailed(
                f"{path} is no state file of qmp-migrate, or not all of one",
                hint="its last line must begin with qmp-migrate-state/1: tail -n 1 FILE",
                host=side.name,
            )
        length, digest = found
        text = await side.host.script(scripts.DOCUMENT, [path, str(length + FOOTER_BYTES), str(length)])
    except CommandFailed as error:
        raise FileFailed(f"{path} cannot be read: {error.stderr.strip() or error}", host=side.name) from error
    return opened(text.stdout, digest), stamp.decode("ascii", "replace")


async def look(
    document: Document,
    stamp: str,
    path: str,
    side: Side,
    origin: HostSettings | None,
    journal: Journal,
    *,
    force: bool,
) -> RestorePlan:
    """Look at the host and the images and judge them.

    Args:
        document: As `read_document` gave it.
        stamp: Likewise.
        path: The file.
        side: Where the guest is to be.
        origin: Settings of the host that it was saved on, where there are such.
        journal: Remembers what binaries can do.
        force: Restore although the images have changed.

    Raises:
        PreflightRefused: It cannot be restored there; nothing was touched.
        GuestExists: A guest of that name is there.
        TransportError, RemoteError: Something could not be asked.
    """
    if await identify(side.host, side.directory) is not None:
        raise GuestExists(
            f"a guest named {document.vm} is already on {side.name}",
            hint="a guest is restored once: stop that one first, if it is another one",
            host=side.name,
        )
    facts = await gather_host(side.host, side.settings, document.vm)
    command = CommandLine.parse(document.argv)
    refusals: list[str] = []
    binary: BinaryFacts | None = None
    if not facts.qemu_stamp:
        refusals.append(f"{side.settings.qemu} is not an executable file on {side.name}")
    else:
        try:
            binary = await probe_binary(side.host, side.settings, facts, document.accel, journal)
        except QmpMigrateError as error:
            refusals.append(error.message)
    path_map = join_path_maps(origin, side.settings) if origin is not None else dict(side.settings.path_map)
    derived = _derive(command, document, side, path_map)
    required = () if derived.refusals else tuple(required_paths(derived.command))
    states = await path_states(side.host, [use.path for use in required])
    images = await _images_now(document, side, path_map)
    found = changes(document.images, images)
    more, warnings = judge(document, facts, binary, derived, required, states, found, force=force)
    refusals += more
    if refusals:
        raise PreflightRefused(
            f"{document.vm} cannot be restored from {path} on {side.name}: {refusals[0]}"
            + (f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""),
            failures=tuple(refusals),
            hint="nothing was touched"
            + ("; --force restores it over images that have changed" if any(c.grave for c in found) else ""),
            host=side.name,
        )
    return RestorePlan(document, stamp, tuple(derived.command.argv()), tuple(warnings))


def _derive(command: CommandLine, document: Document, side: Side, path_map: Mapping[str, str]) -> Derived:
    try:
        return derive_destination(
            command,
            binary=side.settings.qemu,
            source_dir=document.directory,
            dest_dir=side.directory,
            path_map=path_map,
            machine=document.machine,
            cpu=document.cpu,
            address_map={document.addresses: side.migration_address},
        )
    except ConfigError as error:
        return Derived(command, (), (), (error.message,))


async def _images_now(document: Document, side: Side, path_map: Mapping[str, str]) -> dict[str, Stamp]:
    """Return what is found of the saved images, by the path that they had."""
    here = {stamp.path: map_path(stamp.path, path_map) for stamp in document.images}
    found = await take_stamps(side.host, dict.fromkeys(here.values(), False))
    by_path = {stamp.path: stamp for stamp in found}
    return {was: replace(by_path[path], path=was) for was, path in here.items()}


def judge(
    document: Document,
    facts: HostFacts,
    binary: BinaryFacts | None,
    derived: Derived,
    required: tuple[PathUse, ...],
    paths: Mapping[str, str],
    images: list[Change],
    *,
    force: bool,
) -> tuple[list[str], list[str]]:
    """Return the reasons against restoring, and the warnings.

    Args:
        document: The state file's.
        facts: The host.
        binary: What its QEMU can do; None: that is refused already.
        derived: The command line.
        required: Files that it needs.
        paths: State of each of them on the host.
        images: What is different about the images.
        force: Images that have changed are only warned of.
    """
    refusals, warnings = list(derived.refusals), list(derived.warnings)
    if binary is not None:
        _judge_binary(document, facts, binary, derived, refusals, warnings)
    if document.accel == "kvm" and not facts.kvm:
        refusals.append(f"/dev/kvm cannot be used on {facts.name}")
    if facts.run_dir in {"unwritable", "uncreatable"}:
        refusals.append(f"the run_dir of {facts.name} cannot be written")
    need = document.memory_bytes + MEMORY_RESERVE
    if need > facts.mem_available:
        refusals.append(f"not enough memory: {about_size(need)} needed, {about_size(facts.mem_available)} free")
    for use in required:
        state = paths.get(use.path, "absent")
        if state in {"absent", "unreadable"} or (use.writable and state != "writable"):
            refusals.append(f"{use.kind} {use.path} on {facts.name} is {state}")
    for change in images:
        grave = change.grave and not force
        (refusals if grave else warnings).append(change.text)
    return refusals, warnings


def _judge_binary(
    document: Document,
    facts: HostFacts,
    binary: BinaryFacts,
    derived: Derived,
    refusals: list[str],
    warnings: list[str],
) -> None:
    machine, model = derived.command.machine, derived.command.cpu
    if machine is None or machine not in binary.machines:
        refusals.append(f"QEMU {binary.version} on {facts.name} does not know the machine type {machine}")
    elif machine in binary.deprecated:
        warnings.append(f"machine type {machine} is deprecated in QEMU {binary.version}")
    if _numbers(binary.version) < _numbers(document.qemu):
        warnings.append(f"the state was written by QEMU {document.qemu}, {facts.name} has the older {binary.version}")
    if model in SAME_CPU_ONLY:
        lacking = set(document.cpu_flags) - facts.cpu_flags
        if document.accel == "kvm" and (lacking or document.cpu_model != facts.cpu_model):
            refusals.append(f"-cpu {model} was the CPU of {document.host} ({document.cpu_model}); this one is another")
    elif model is not None and model not in binary.cpus:
        refusals.append(f"QEMU on {facts.name} does not know the CPU model {model}")
    elif model is not None:
        lacking = set(binary.cpus[model]) - set(document.cpu_lacking)
        if lacking:
            refusals.append(f"CPU model {model}: {facts.name} cannot give {', '.join(sorted(lacking)[:6])}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
