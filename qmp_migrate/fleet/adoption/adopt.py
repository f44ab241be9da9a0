"""Take in a guest that somebody else has started, so that it is as good as one of ours.

A guest is its QEMU's command line (ADR 1), so little is missing: a directory ``RUN_DIR/NAME`` that says which process it
is, and monitors where everybody looks for them. QEMU cannot be given another QMP monitor while it runs (no version up to
11.1 has a command for that; a chardev can be added, a monitor on it cannot), so the ones that it has are used: ``qmp.sock``
and ``agent.sock`` are links to its first and second QMP socket (ADR 23). Nothing about the guest is changed. Its next QEMU,
at the destination, has both of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

from qmp_migrate.errors import (
    AdoptionRefused,
    GuestExists,
    InvalidName,
    MonitorBusy,
    MonitorError,
    MonitorTimeout,
    QmpMigrateError,
    TransportError,
)
from qmp_migrate.fleet.adoption.unmanaged import Foreign, choose, list_qemus
from qmp_migrate.hosts.process import identify
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.devices.query import devices_now
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.model.check import Check
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.qemu import states
from qmp_migrate.qemu.monitor import Monitor
from qmp_migrate.vm.commandline.absolute_paths import relative_paths
from qmp_migrate.vm.host_dependencies import host_bound
from qmp_migrate.vm.names import validate_name

GREETING_S: Final = 3.0
RESTARTING: Final = frozenset({"always", "on-success"})
"""A QEMU that has handed its guest over ends with status 0: these would start it again."""

_ADOPT: Final = script("adoption/adopt")

_RELEASE: Final = script("adoption/release")


@dataclass(slots=True)
class Adoption:
    """What is known of a guest that is to be taken in, and what speaks against it.

    Attributes:
        name: What it is called from now on.
        foreign: Its QEMU.
        checks: What was found, as `check` shows it; a FAIL refuses.
        monitors: Its QMP sockets that answer: the controller's, then the agent's where there is a second one.
        done: It is taken in.
        already: It was before.
    """

    name: str
    foreign: Foreign
    checks: list[Check] = field(default_factory=list)
    monitors: list[str] = field(default_factory=list)
    done: bool = False
    already: bool = False

    @property
    def refused(self) -> bool:
        """Whether a check has failed."""
        return any(check.status == "fail" for check in self.checks)


async def look(side: Side, target: str, *, name: str | None, force: bool) -> Adoption:
    """Look at a guest that is to be taken in; touches nothing but its monitors, for a moment.

    Args:
        side: Its host; the guest's name is put into it.
        target: A pid, or the path of a monitor.
        name: What it shall be called; None: as its ``-name`` says.
        force: Also where libvirt has started it.

    Raises:
        AdoptionRefused: There is no such QEMU, it has no name that can be used, or the name is another guest's here.
        TransportError, CommandFailed: The host cannot be asked.
    """
    foreign = choose(await list_qemus(side.host), target, side.name)
    side.vm = _name(foreign, name, side.name)
    adoption = Adoption(side.vm, foreign)
    there = await identify(side.host, side.directory)
    if there == foreign.process:
        adoption.already = True
        return adoption
    if there is not None:
        raise GuestExists(
            f"another guest on {side.name} is called {side.vm} (pid {there.pid})", hint="--name NAME", host=side.name
        )
    adoption.checks += _owner_checks(foreign, side.name, force=force)
    bound = host_bound(foreign.command)
    adoption.checks += [Check("argv", "fail", text, "", side.name) for text in bound.refusals]
    adoption.checks += [Check("argv", "warn", text, "", side.name) for text in bound.warnings]
    await _try_monitors(side, adoption)
    return adoption


def _name(foreign: Foreign, given: str | None, host: str) -> str:
    if given is not None:
        return validate_name(given, "guest name")
    own = foreign.command.name
    if own is None:
        raise AdoptionRefused(
            f"the QEMU with pid {foreign.process.pid} on {host} has no name", hint="give it one: --name NAME", host=host
        )
    try:
        return validate_name(own, "guest name")
    except InvalidName as error:
        raise AdoptionRefused(f"{error.message}: {error.hint}", hint="give it one: --name NAME", host=host) from error


def _owner_checks(foreign: Foreign, host: str, *, force: bool) -> list[Check]:
    checks = []
    if foreign.of_libvirt:
        text = "libvirt has started it, and would take its end for a crash"
        checks.append(
            Check("libvirt", "warn" if force else "fail", text, "move it with virsh migrate, or --force", host)
        )
    if foreign.unit:
        text = f"it runs in the systemd unit {foreign.unit}"
        hint = f"before it is moved: systemctl disable {foreign.unit}, or the next boot starts a second copy"
        if foreign.restart in RESTARTING:
            text += f" with Restart={foreign.restart}: its end at this host would start a second copy here"
            hint = f"systemctl edit {foreign.unit}: [Service] Restart=no; then systemctl daemon-reload"
        checks.append(Check("unit", "fail" if foreign.restart in RESTARTING else "warn", text, hint, host))
    if not foreign.cwd and (relative := relative_paths(foreign.command)):
        text = f"its command line names files relative to a directory that nobody can tell: {', '.join(relative[:5])}"
        checks.append(
            Check("cwd", "fail", text, "log in as its user, or as root; else start it with absolute paths", host)
        )
    return checks


async def _try_monitors(side: Side, adoption: Adoption) -> None:
    """Find out which of its QMP sockets answer; the first one also tells how the guest is."""
    foreign, host = adoption.foreign, side.name
    for path in foreign.monitor_paths:
        try:
            monitor = await Monitor.connect(
                await side.host.open_unix(path), label=f"{adoption.name}@{host}", host=host, timeout=GREETING_S
            )
        except (MonitorBusy, MonitorTimeout) as error:
            text = f"the monitor {path} is held by another client: {error.message}"
            adoption.checks.append(Check("monitor", "warn", text, f"who: ss -xp | grep {path}, on {host}", host))
            continue
        except (MonitorError, TransportError, OSError) as error:
            text = f"the monitor {path} cannot be used: {error}"
            adoption.checks.append(Check("monitor", "warn", text, "does the SSH user have the right to?", host))
            continue
        try:
            if not adoption.monitors:
                side.monitor = monitor
                adoption.checks += await _guest_checks(side, adoption)
                side.monitor = None
        finally:
            await monitor.close()
        adoption.monitors.append(path)
        if len(adoption.monitors) == 2:
            break
    if not adoption.monitors:
        others = "; ".join(foreign.other_monitors) or "none at all"
        text = f"it has no QMP monitor on a UNIX socket that answers (others: {others})"
        hint = "QEMU cannot be given one while it runs: start it once with -qmp unix:/run/NAME.sock,server=on,wait=off"
        adoption.checks.append(Check("monitor", "fail", text, hint, host))
    elif len(adoption.monitors) == 1:
        text = f"it has one monitor that answers, {adoption.monitors[0]}: the agent has none, and looks from outside"
        adoption.checks.append(Check("monitor", "warn", text, "at its destination it will have two of its own", host))
    else:
        text = f"monitors: {adoption.monitors[0]} for the controller, {adoption.monitors[1]} for the agent"
        adoption.checks.append(Check("monitor", "ok", text, host=host))


async def _guest_checks(side: Side, adoption: Adoption) -> list[Check]:
    monitor, host = side.monitor, side.name
    assert monitor is not None
    try:
        status = await qmp.run_status(monitor)
        info = await qmp.query(monitor)
        _, now = await devices_now(side, adoption.foreign.command)
    except QmpMigrateError as error:
        return [Check("guest", "fail", f"it does not answer: {error.message}", "try again", host)]
    checks = [
        Check("guest", "ok", f"{adoption.name} is {status.status}, pid {adoption.foreign.process.pid}", host=host)
    ]
    if states.under_way(info.status):
        text = f"a migration of it is under way ({info.status})"
        checks.append(Check("idle", "fail", text, "wait for it, or cancel it", host))
    if now.changes:
        text = f"its devices are not those of its command line any more: {'; '.join(now.changes)}"
        checks.append(Check("devices", "ok", text, "", host))
    checks += [Check("devices", "warn", text, "", host) for text in (*now.refusals, *now.warnings)]
    return checks


async def adopt(side: Side, adoption: Adoption) -> None:
    """Take the guest in: write down, under its lock, which process it is and where its monitors are.

    Raises:
        AdoptionRefused: A check has failed.
        LockBusy: A controller holds a guest of that name here.
        CommandFailed, FileFailed, TransportError: It could not be written.
    """
    if adoption.already:
        return
    failed = [check for check in adoption.checks if check.status == "fail"]
    if failed:
        raise AdoptionRefused(
            f"{adoption.name} cannot be taken in: {failed[0].text}", hint=failed[0].hint or None, host=side.name
        )
    process = adoption.foreign.process
    lock = await guest_locks.hold(side, "adopt")
    try:
        second = adoption.monitors[1] if len(adoption.monitors) > 1 else ""
        words = [side.directory, adoption.monitors[0], second, adoption.foreign.cwd, *process.words]
        await side.host.script(_ADOPT, words, input=json.dumps(list(adoption.foreign.argv)).encode())
        if await identify(side.host, side.directory) != process:
            raise AdoptionRefused(
                f"the QEMU with pid {process.pid} has ended meanwhile", hint="see: qmp-migrate vm list", host=side.name
            )
    finally:
        await lock.release()
    adoption.done = True


async def release(side: Side) -> str:
    """Forget a guest that was taken in; it runs on as it is.

    Returns:
        ``released``, ``absent`` (there is no guest of that name), ``ours`` (we have started it: it stays).

    Raises:
        LockBusy: A controller holds it.
        CommandFailed, TransportError: It could not be done.
    """
    lock = await guest_locks.hold(side, "release")
    try:
        return (await side.host.script(_RELEASE, [side.directory])).text
    finally:
        await lock.release()
