"""Power and cables of hosts that are machines: what a management controller and a hand at the switch do to real ones.

await act(directory, "b", "off")
await act(directory, "b", "on")
await link(directory, "a", "down", "control")
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from qmp_migrate.errors import HostUnknown, LaunchFailed, MonitorError, QmpMigrateError, RigError, UsageError
from qmp_migrate.hosts import process
from qmp_migrate.hosts.local import LocalHost
from qmp_migrate.hosts.process import ProcessId
from qmp_migrate.qemu.monitor import Monitor
from qmp_migrate.rig import directory as directories
from qmp_migrate.rig.addresses import RigHost
from qmp_migrate.rig.state import Part, RigState, load

#: Seconds for a machine's QEMU to have its monitor, and for the machine to answer on SSH: a few on an idle computer.
QEMU_S: Final = 30.0
BOOT_S: Final = 180.0
_BANNER_S: Final = 15.0

Power = Literal["on", "off", "hung"]
_ACTIONS: Final = ("off", "on", "reset", "hang", "resume")
_NETWORKS: Final = {"control": ("control",), "hosts": ("hosts",), "both": ("control", "hosts")}


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """How one host is.

    Attributes:
        power: ``on``; ``off``: its processors have no power; ``hung``: they stand still.
        agent: Its agent has said that it serves, since the host was switched on.
    """

    power: Power
    agent: bool


async def survey(state: RigState) -> dict[str, MachineStatus]:
    """Look how each host of a rig is; empty where hosts are no machines.

    Raises:
        MonitorError: The QEMU of one does not answer.
    """
    if not state.machines:
        return {}
    powers = await asyncio.gather(*(_power_of(state, host.name) for host in state.hosts))
    return {
        host.name: MachineStatus(power, power != "off" and _said(state, host.name, "AGENT", 0))
        for host, power in zip(state.hosts, powers, strict=True)
    }


async def act(directory: Path, name: str, action: str, *, silent: bool = False) -> None:
    """Do something to a host's power; to one that is as wanted already, nothing.

    Args:
        directory: Where the rig is.
        name: The host.
        action: One of these. ``off`` cuts the power: what the host had not yet written is lost. ``on`` switches it on and
            waits until it answers on SSH; ``reset`` does both at once. ``hang`` stops its processors, ``resume`` lets them
            go on.
        silent: With ``off``: connections to the host hang, as those to a machine without power do, instead of being
            refused at once, as the operating system of this computer does for a QEMU that has ended.

    Raises:
        UsageError: There is no such host or action, or the rig's hosts are no machines.
        RigError: There is no rig, the host is not in a state for that, or it does not get ready.
        MonitorError: Its QEMU does not answer.
    """
    _one_of("action", action, _ACTIONS)
    if silent and action != "off":
        raise UsageError(f"{action} cannot be silent", hint="--silent is for: rig power HOST off")
    state = _rig(directory)
    with directories.exclusive(state.directory):
        state = _rig(directory)  # as the command before has left it
        power = await _power_of(state, _host(state, name).name)
        match action:
            case "off" if power != "off":
                await (_cut_in_silence(state, name) if silent else _cut(state, name))
            case "on" if power == "off":
                await _switch_on(state, name)
            case "on" if power == "hung":
                raise RigError(f"host {name} hangs", hint=f"qmp-migrate rig power {name} resume, or reset")
            case "reset":
                await _reset(state, name, power)
            case "hang" | "resume":
                async with _monitor(state, name, power) as monitor:
                    await monitor.execute("stop" if action == "hang" else "cont")


async def link(directory: Path, name: str, position: str, network: str = "both") -> None:
    """Plug a host's network cables in, or pull them.

    Args:
        directory: Where the rig is.
        name: The host.
        position: ``up`` or ``down``.
        network: Which: ``control`` (SSH, the broker), ``hosts`` (guests' memory and disks on their way), or ``both``.

    Raises:
        UsageError: There is no such host, position or network, or the rig's hosts are no machines.
        RigError: There is no rig, or the host is off.
        MonitorError: Its QEMU does not answer.
    """
    _one_of("position", position, ("up", "down"))
    _one_of("network", network, _NETWORKS)
    state = _rig(directory)
    with directories.exclusive(state.directory):
        state = _rig(directory)
        async with _monitor(state, name, await _power_of(state, _host(state, name).name)) as monitor:
            await _set_links(monitor, up=position == "up", networks=_NETWORKS[network])


async def launch(machine: LocalHost, state: RigState, name: str, argv: Sequence[str]) -> ProcessId:
    """Start a host's QEMU and wait until its monitor is there.

    Raises:
        RigError: It did not come up; with the end of its log.
    """
    part = _part(name)
    try:
        return await process.launch(
            machine, directory=str(state.part_directory(part)), argv=argv, timeout=QEMU_S, log="log"
        )
    except QmpMigrateError as error:
        tail = error.stderr.strip().splitlines()[-5:] if isinstance(error, LaunchFailed) else []
        raise RigError(
            f"{part} did not come up: {error.message}",
            hint="\n  ".join(["its log ends with:", *tail]) if tail else error.hint,
        ) from error


async def wait_ready(machine: LocalHost, state: RigState, host: RigHost, *, after: int = 0) -> None:
    """Wait until a host that was switched on answers on SSH.

    Args:
        machine: This computer.
        state: The rig.
        host: The host.
        after: How many bytes of its console are older than that.

    Raises:
        RigError: It does not; with the end of its console.
    """
    try:
        async with asyncio.timeout(BOOT_S):
            while not _said(state, host.name, "READY", after):
                await asyncio.sleep(0.2)
                if await process.identify(machine, str(state.part_directory(_part(host.name)))) is None:
                    raise _not_ready(state, host.name, "its QEMU has ended")
            while not await _greets(host):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise _not_ready(state, host.name, f"it does not answer on SSH within {BOOT_S:g} s") from None


async def _switch_on(state: RigState, name: str) -> None:
    machine = LocalHost("rig")
    directory = state.part_directory(_part(name))
    host = _host(state, name)
    if await process.identify(machine, str(directory)) is not None:  # off in silence
        after = _console(state, name).stat().st_size
        async with _monitor(state, name) as monitor:
            await _set_links(monitor, up=True)
            await monitor.execute("cont")
        await wait_ready(machine, state, host, after=after)
        return
    argv = json.loads((directory / "argv.json").read_text("utf-8"))
    state = state.with_process(_part(name), await launch(machine, state, name, argv))
    state.save()
    await wait_ready(machine, state, host)


async def _cut(state: RigState, name: str) -> None:
    machine = LocalHost("rig")
    identity = await process.identify(machine, str(state.part_directory(_part(name))))
    # Not `quit`: a QEMU that is killed writes nothing more, and one that hangs can be killed, too.
    if identity is not None and not await process.kill(machine, identity):
        raise RigError(
            f"the QEMU of host {name} (process {identity.pid}) does not end, not even by SIGKILL",
            hint="it waits in the kernel, most likely for storage; try again later",
        )


async def _cut_in_silence(state: RigState, name: str) -> None:
    """Leave of the machine nothing but its ends of connections: memory and processors are as when it is switched on."""
    async with _monitor(state, name) as monitor:
        await _set_links(monitor, up=False)
        await monitor.execute("stop")
        await monitor.execute("system_reset")
        # The reset is done by QEMU's main loop, after the answer.
        while (await monitor.execute("query-status"))["status"] != "prelaunch":  # noqa: ASYNC110  no event says so
            await asyncio.sleep(0.05)


async def _reset(state: RigState, name: str, power: Power) -> None:
    async with _monitor(state, name, power) as monitor:
        after = _console(state, name).stat().st_size
        await monitor.execute("system_reset")
        await monitor.execute("cont")
    await wait_ready(LocalHost("rig"), state, _host(state, name), after=after)


async def _power_of(state: RigState, name: str) -> Power:
    if await process.identify(LocalHost("rig"), str(state.part_directory(_part(name)))) is None:
        return "off"
    async with _monitor(state, name) as monitor:
        status = (await monitor.execute("query-status"))["status"]
    return {"running": "on", "prelaunch": "off", "shutdown": "off"}.get(status, "hung")  # type: ignore[return-value]


async def _set_links(monitor: Monitor, *, up: bool, networks: Iterable[str] = _NETWORKS["both"]) -> None:
    for network in networks:
        await monitor.execute("set_link", {"name": f"nic-{network}", "up": up})


@contextlib.asynccontextmanager
async def _monitor(state: RigState, name: str, power: Power = "on") -> AsyncIterator[Monitor]:
    off = RigError(f"host {name} is off", hint=f"qmp-migrate rig power {name} on")
    if power == "off":
        raise off
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(state.part_directory(_part(name)) / "qmp.sock"))
    except OSError:
        sock.close()
        raise off from None
    monitor = await Monitor.connect(sock, label=f"host {name}'s QEMU")
    try:
        yield monitor
    finally:
        with contextlib.suppress(MonitorError):
            await monitor.close()


async def _greets(host: RigHost) -> bool:
    """Tell whether the host's sshd says who it is. QEMU takes connections in the host's name before there is one."""
    writer = None
    try:
        async with asyncio.timeout(_BANNER_S):
            reader, writer = await asyncio.open_connection(host.address, host.port)
            return await reader.readexactly(4) == b"SSH-"
    except (OSError, EOFError):
        return False
    finally:
        if writer is not None:
            writer.transport.abort()


def _said(state: RigState, name: str, word: str, after: int) -> bool:
    """Tell whether a host has said something on its console since it was switched on, or beyond so many bytes."""
    try:
        console = _console(state, name).read_bytes()[after:]
    except FileNotFoundError:
        return False
    last_boot = console.rpartition(f"HOST READY {name} ".encode())
    return (last_boot[1] != b"") if word == "READY" else f"HOST {word} {name} ".encode() in last_boot[2]


def _not_ready(state: RigState, name: str, reason: str) -> RigError:
    lines = _console(state, name).read_text("utf-8", "replace").splitlines()[-10:]
    return RigError(f"host {name} did not come up: {reason}", hint="\n  ".join(["its console ends with:", *lines]))


def _one_of(what: str, word: str, words: Iterable[str]) -> None:
    if word not in words:
        raise UsageError(f"{word!r} is not a valid {what}", hint=f"use one of: {', '.join(words)}")


def _rig(directory: Path) -> RigState:
    state = load(directory)
    if state is None:
        raise RigError(f"there is no rig in {directory}", hint="qmp-migrate rig up --hosts-as-vms")
    if not state.machines:
        raise UsageError(
            "the hosts of this rig are no machines: they have neither power nor cables of their own",
            hint="qmp-migrate rig down, then: qmp-migrate rig up --hosts-as-vms",
        )
    return state


def _host(state: RigState, name: str) -> RigHost:
    for host in state.hosts:
        if host.name == name:
            return host
    raise HostUnknown(f"no host is called {name!r}", hint=f"there are: {', '.join(host.name for host in state.hosts)}")


def _part(name: str) -> str:
    return machine_part(name).name


def machine_part(name: str) -> Part:
    """Return the part of a rig that is the machine of one host."""
    return Part(f"machine-{name}", "machine", name)


def _console(state: RigState, name: str) -> Path:
    return state.part_directory(_part(name)) / "console.log"
