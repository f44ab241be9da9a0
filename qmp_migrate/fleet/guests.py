"""Guests on hosts: find, list, start, stop. A guest is found by asking the hosts, never by remembering."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid as uuids
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog

from qmp_migrate.errors import (
    ChannelRefused,
    CommandFailed,
    ConfigError,
    FileFailed,
    GuestExists,
    GuestUnknown,
    HostUnreachable,
    LaunchFailed,
    LockBusy,
    MigrationFailed,
    MonitorBusy,
    MonitorLost,
    MonitorTimeout,
    QmpMigrateError,
    TransportError,
)
from qmp_migrate.hosts.process import ProcessId, identify, launch, list_all, wait_gone
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.cold import definition
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.migration.endpoint.cleanup import remove_guest_directory
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.preflight.host_facts import BinaryFacts, HostFacts, gather_host, probe_binary
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.qemu import states
from qmp_migrate.qemu.timeouts import ENDING_S, HUNG_END_S

if TYPE_CHECKING:  # only `start` needs a spec: moving a guest does not
    from qmp_migrate.vm.spec.guest_spec import DiskSpec, GuestSpec

QUIT_S: Final = 20.0
_ENDING_S: Final = 2.0
_LOOK_S: Final = 0.5

_MAKE_DISK: Final = script("storage/make_disk")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest as it is now.

    Attributes:
        state: QEMU's run state; ``busy`` where another client holds the monitor, ``ended`` where its QEMU has ended,
            ``unknown`` where it does not answer.
        migration: ``query-migrate`` status while a migration is under way, else None.
        memory_bytes, vcpus: 0 where QEMU could not be asked.
        warnings: What of its spec was left out when it was started.
    """

    name: str
    host: str
    state: str
    pid: int | None
    migration: str | None = None
    memory_bytes: int = 0
    vcpus: int = 0
    uuid: str | None = None
    directory: str = ""
    warnings: tuple[str, ...] = ()


_CLAIMS: Final = frozenset(
    {"running", "paused", "suspended", "io-error", "guest-panicked", "internal-error", "watchdog", "debug"}
)


def conflicts(guests: Sequence[Guest]) -> list[dict[str, Any]]:
    """Return the names that more than one host has, ``events.conflict/1`` each; a guest in a migration is not in two places.

    Args:
        guests: Of all hosts.
    """
    from qmp_migrate.bus.consume.name_conflicts import conflict_document

    places: dict[str, list[Guest]] = {}
    for guest in guests:
        if guest.migration is None and guest.state in _CLAIMS:
            places.setdefault(guest.name, []).append(guest)
    return [
        conflict_document(vm, {guest.host: guest.uuid for guest in found})
        for vm, found in sorted(places.items())
        if len({guest.host for guest in found}) > 1
    ]


async def look_for(sides: Sequence[Side]) -> tuple[list[Side], list[str]]:
    """Return the sides on which the guest's QEMU lives, and one line for each host that could not be asked."""

    async def ask(side: Side) -> Side | str | None:
        try:
            await side.host.connect()
            side.process = await identify(side.host, side.directory)
        except (TransportError, CommandFailed) as error:
            return str(error)
        return side if side.process is not None else None

    answers = await asyncio.gather(*(ask(side) for side in sides))
    return [a for a in answers if isinstance(a, Side)], [a for a in answers if isinstance(a, str)]


async def one_place(name: str, found: Sequence[Side], unreachable: Sequence[str]) -> Side:
    """Return the one side where a guest is.

    The destination of a migration is a QEMU of that name too. While the migration is under way the guest is locked; what
    an interrupted one left waits for memory that will not come (``inmigrate``), and is not the guest.

    Raises:
        GuestUnknown: On none of the hosts.
        HostUnreachable: On none of those that answered, and not all did.
        LockBusy: It is being migrated.
        ConfigError: On more than one: two guests share a name, which is shown and never merged.
    """
    if not found and unreachable:
        raise HostUnreachable(
            f"no host that answers has a guest named {name!r}",
            hint=f"these could not be asked: {'; '.join(unreachable)}",
        )
    if not found:
        raise GuestUnknown(f"no host has a guest named {name!r}", hint="see: qmp-migrate vm list")
    if len(found) == 1:
        return found[0]
    for side in found:
        who = await guest_locks.holder(side)
        if who is not None:
            raise LockBusy(f"{name} is held by another controller: {who}", hint="try again later", host=side.name)
    seen = await asyncio.gather(*(look_at(side) for side in found))
    guests = [side for side, guest in zip(found, seen, strict=True) if guest.state != "inmigrate"]
    if len(guests) == 1:
        return guests[0]
    hosts = ", ".join(sorted(side.name for side in found))
    raise ConfigError(
        f"{name!r} is on more than one host: {hosts}",
        hint="say which one with --from HOST; if a migration of it was interrupted, see: qmp-migrate status",
    )


async def unknown(name: str, sides: Sequence[Side]) -> GuestUnknown | None:
    """Return what is to be told of a guest that runs nowhere, but is still defined on a host; None where it is not."""
    for side in sides:
        with contextlib.suppress(QmpMigrateError):
            if await definition.is_defined(side):
                return GuestUnknown(
                    f"{name} is shut down: its QEMU on {side.name} has ended",
                    hint=f"start it again: qmp-migrate vm start {name} --on {side.name}",
                    host=side.name,
                )
    return None


async def list_host(side_of: Any, host_name: str) -> list[Guest]:
    """Return all guests of one host.

    Args:
        side_of: Makes a `Side` for a guest's name on this host.
        host_name: The host.

    Raises:
        TransportError, CommandFailed: It cannot be asked.
    """
    any_side: Side = side_of("any")
    await any_side.host.connect()
    found = await list_all(any_side.host, any_side.settings.run_dir)

    async def describe(name: str, process: ProcessId | None) -> Guest:
        side: Side = side_of(name)
        side.process = process
        return await look_at(side)

    guests = await asyncio.gather(*(describe(name, process) for name, process in sorted(found.items())))
    return list(guests)


async def look_at(side: Side) -> Guest:
    """Ask one guest's QEMU what it is. Never raises: what cannot be learnt is said in `Guest.state`."""
    base: dict[str, Any] = {"name": side.vm, "host": side.name, "directory": side.directory}
    if side.process is None:
        return Guest(**base, state="ended", pid=None)
    base["pid"] = side.process.pid
    try:
        monitor = await side.attach()
        status = await qmp.run_status(monitor, timeout=2)
        info = await qmp.query(monitor, timeout=2)
        memory = await monitor.execute("query-memory-size-summary", timeout=2)
        vcpus = await monitor.execute("query-cpus-fast", timeout=2)
        uuid = await monitor.execute("query-uuid", timeout=2)
        return Guest(
            **base,
            state=status.status,
            migration=info.status if states.under_way(info.status) else None,
            memory_bytes=int(memory.get("base-memory", 0)) + int(memory.get("plugged-memory", 0)),
            vcpus=len(vcpus),
            uuid=str(uuid.get("UUID")),
        )
    except MonitorBusy:
        return Guest(**base, state="busy")
    except (QmpMigrateError, AttributeError, TypeError, ValueError):
        return Guest(**base, state="unknown")
    finally:
        await side.detach()


async def start(side: Side, spec: GuestSpec, journal: Journal) -> Guest:
    """Start a guest on a host.

    Raises:
        GuestExists: One of that name is there.
        LaunchFailed: QEMU did not start; carries its standard error.
        ConfigError, FileFailed: Something the spec asks for is not on the host.
    """
    from qmp_migrate.vm.spec.argv import build_argv

    host, settings = side.host, side.settings
    await host.connect()
    facts = await gather_host(host, settings, spec.name)
    if not facts.qemu_stamp:
        raise LaunchFailed(
            f"{settings.qemu} is not an executable file",
            hint="install QEMU on that host (Debian: apt-get install qemu-system-x86), or correct its `qemu` setting",
            host=side.name,
        )
    if facts.run_dir in {"unwritable", "uncreatable"}:
        raise FileFailed(
            f"{settings.run_dir} cannot be written",
            hint=f"as root there: install -d -m 700 -o {settings.user or 'USER'} {settings.run_dir}",
            host=side.name,
        )
    accel, binary = await _choose_accel(side, spec, facts, journal)
    machine = binary.machines.get(spec.machine)
    if machine is None:
        raise LaunchFailed(
            f"QEMU {binary.version} does not know the machine type {spec.machine!r}",
            hint=f"see: {settings.qemu} -machine help",
            host=side.name,
        )
    spec = spec.model_copy(update={"machine": machine, "cpu": _pin_cpu(spec.cpu, binary)})
    lock = await guest_locks.hold(side, "vm start")
    try:
        if (await identify(host, side.directory)) is not None:
            raise GuestExists(
                f"a guest named {spec.name} is already there",
                hint="choose another name, or stop that one: qmp-migrate vm stop",
                host=side.name,
            )
        for disk in spec.disk:
            await _make_disk(side, disk)
        command = build_argv(
            spec,
            binary=settings.qemu,
            directory=side.directory,
            accel=accel,
            uuid=spec.uuid or str(uuids.uuid4()),
        )
        side.process = await launch(host, directory=side.directory, argv=command.argv(), timeout=side.launch_limit_s)
        await see_it_up(side)
        return replace(await look_at(side), warnings=_left_out(spec, accel, side.name))
    finally:
        with contextlib.suppress(QmpMigrateError):
            await lock.release()


def _left_out(spec: GuestSpec, accel: Literal["kvm", "tcg"], host: str) -> tuple[str, ...]:
    """Return what of a spec its accelerator on a host leaves out, one line each."""
    if accel == "tcg" and spec.dirty_ring is not None:
        return (f"dirty_ring is left out: KVM cannot be used on {host}, and TCG has no dirty ring",)
    return ()


async def see_it_up(side: Side) -> None:
    """Wait for QEMU's greeting: it makes its socket first, and may not like its command line only after that.

    Raises:
        LaunchFailed: It has ended; carries its standard error. Nothing is left of it.
        MonitorError: It lives, but does not answer.
    """
    try:
        await side.attach()
    except (MonitorLost, ChannelRefused) as error:
        assert side.process is not None
        if not await wait_gone(side.host, side.process, _ENDING_S):
            raise
        stderr = await side.stderr_tail()
        await remove_guest_directory(side)
        raise LaunchFailed(
            f"QEMU ended before its monitor answered: {stderr.splitlines()[-1] if stderr else 'it wrote nothing'}",
            stderr=stderr,
            hint="QEMU's own words say what it did not like",
            host=side.name,
        ) from error


def _pin_cpu(cpu: str, binary: BinaryFacts) -> str:
    """Replace a CPU model's alias by what it stands for here; features behind it stay."""
    model, comma, features = cpu.partition(",")
    return binary.cpu_aliases.get(model, model) + comma + features


async def _choose_accel(
    side: Side, spec: GuestSpec, facts: HostFacts, journal: Journal
) -> tuple[Literal["kvm", "tcg"], BinaryFacts]:
    """Choose the accelerator: what the spec says, or KVM where a QEMU really starts with it, else TCG."""
    if spec.accel == "tcg" or (spec.accel == "auto" and not facts.kvm):
        return "tcg", await probe_binary(side.host, side.settings, facts, "tcg", journal)
    with_ring = f"kvm,dirty-ring-size={spec.dirty_ring}" if spec.dirty_ring is not None else "kvm"
    try:
        return "kvm", await probe_binary(side.host, side.settings, facts, with_ring, journal)
    except LaunchFailed:
        if spec.accel == "kvm":
            raise
        return "tcg", await probe_binary(side.host, side.settings, facts, "tcg", journal)


async def _make_disk(side: Side, disk: DiskSpec) -> None:
    if disk.size is None:
        return
    beside = side.settings.qemu.rpartition("/")[0] + "/qemu-img"
    try:
        await side.host.script(_MAKE_DISK, [disk.path, disk.image_format, str(disk.size), beside], timeout=60)
    except CommandFailed as error:
        raise FileFailed(
            f"the disk {disk.path} could not be made: {error.stderr.strip() or error.message}",
            hint="is its directory there and writable, and is qemu-img installed (Debian: qemu-utils)?",
            host=side.name,
        ) from error


async def stop(side: Side, *, force: bool, timeout: float) -> None:
    """Stop a guest and remove its directory.

    Args:
        side: Where it is.
        force: End its QEMU at once; else ask the guest to power off and wait.
        timeout: Seconds the guest has to power off.

    Raises:
        LockBusy: It is being migrated.
        MigrationFailed: It did not power off in time; it runs on.
    """
    lock = await guest_locks.hold(side, "vm stop")
    try:
        if side.process is not None and not await _end(side, force=force, timeout=timeout):
            raise MigrationFailed(
                f"{side.vm} did not power off within {timeout:g} s and runs on",
                safe_at_source=False,
                code="not_stopped",
                hint="it may not listen to the power button: --force ends it at once",
                host=side.name,
            )
        await remove_guest_directory(side)
    finally:
        with contextlib.suppress(QmpMigrateError):
            await lock.release()


async def _end(side: Side, *, force: bool, timeout: float) -> bool:
    assert side.process is not None
    if force:
        return await _quit(side)
    deadline = time.monotonic() + timeout
    try:
        monitor = await side.attach()
        if (await qmp.run_status(monitor)).status == "shutdown":
            return await _let_go(side, deadline)
        await monitor.execute("system_powerdown")
    except (MonitorLost, ChannelRefused):
        # It may be ending by itself at this moment: then there is nothing left to ask for.
        if not await wait_gone(side.host, side.process, _ENDING_S):
            raise
    while not await wait_gone(side.host, side.process, max(0.0, min(_LOOK_S, deadline - time.monotonic()))):
        if side.monitor is not None and side.monitor.shutdown is not None:
            ending = ENDING_S * side.settings.time_factor
            return await wait_gone(side.host, side.process, ending) or await _let_go(side, deadline)
        if time.monotonic() >= deadline:
            return False
    return True


async def _quit(side: Side) -> bool:
    assert side.process is not None
    with contextlib.suppress(QmpMigrateError):
        await (await side.attach()).execute("quit")
    await side.detach()
    return await wait_gone(side.host, side.process, QUIT_S) or await side.kill()


async def _let_go(side: Side, deadline: float) -> bool:
    """End a QEMU whose guest has powered off: one that stays (``-no-shutdown``), or hangs (`qemu.timeouts.HUNG_END_S`).

    Raises:
        MigrationFailed: It writes to its images still, or seems to.
    """
    assert side.process is not None
    try:
        await (await side.attach()).execute("quit", timeout=HUNG_END_S - ENDING_S)
    except MonitorTimeout:
        log.warning("qemu-hangs-at-its-end", guest=side.vm, host=side.name)
    except QmpMigrateError:
        pass  # it may have gone meanwhile
    else:
        if await wait_gone(side.host, side.process, QUIT_S):
            return True
    while held := await side.end_hung():
        if time.monotonic() >= deadline:
            raise MigrationFailed(
                f"{side.vm} has powered off, but its QEMU does not end: it holds {held} open",
                safe_at_source=False,
                code="not_stopped",
                hint="is its storage slow or lost? wait, or --force ends it at once and may lose what it has not written",
                host=side.name,
            )
        await wait_gone(side.host, side.process, max(_LOOK_S, min(QUIT_S, deadline - time.monotonic())))
    return True
