"""Taking a rig down, and looking what of it is alive: by what is there, not by what should be."""

from __future__ import annotations

import asyncio
import shutil

from qmp_migrate.errors import RigError
from qmp_migrate.hosts import process
from qmp_migrate.hosts.local import LocalHost
from qmp_migrate.hosts.process import ProcessId
from qmp_migrate.rig import sshd
from qmp_migrate.rig.directory import give_back
from qmp_migrate.rig.state import FILE, Part, RigState

#: Seconds for a part to end before it is killed.
END_S = 5.0


async def take_down(machine: LocalHost, state: RigState) -> tuple[str, ...]:
    """End everything of a rig and remove its files.

    First ends those through which somebody could start something, then guests, then the rest.

    Args:
        machine: This machine.
        state: The rig, as planned: what of it runs is found out.

    Returns:
        The names of what was alive: parts, and guests as ``HOST/NAME``.

    Raises:
        RigError: A process does not end.
    """
    ended = [*await _end_role(machine, state, "sshd"), *await _end_role(machine, state, "machine")]
    guests = await guests_of(machine, state)
    await asyncio.gather(*(_kill(machine, name, identity) for name, identity in guests.items()))
    ended += guests
    ended += await _end_role(machine, state, "agent")
    ended += [*await _end_role(machine, state, "broker"), *await _end_role(machine, state, "hub")]
    await asyncio.to_thread(_remove_files, state)
    return tuple(ended)


async def _end_role(machine: LocalHost, state: RigState, role: str) -> list[str]:
    parts = [part for part in state.parts if part.role == role]
    found = await asyncio.gather(*(identify(machine, state, part) for part in parts))
    live = {part.name: identity for part, identity in zip(parts, found, strict=True) if identity}
    sessions = await asyncio.to_thread(sshd.sessions, state.hosts, live.values()) if role == "sshd" else []
    await asyncio.gather(*(_end(machine, name, identity) for name, identity in live.items()))
    await asyncio.to_thread(sshd.end_sessions, sessions)
    return list(live)


async def _end(machine: LocalHost, name: str, identity: ProcessId) -> None:
    if not await process.terminate(machine, identity, END_S):
        await _kill(machine, name, identity)


async def _kill(machine: LocalHost, name: str, identity: ProcessId) -> None:
    if not await process.kill(machine, identity):
        raise RigError(
            f"{name} (process {identity.pid}) does not end, not even by SIGKILL",
            hint="it waits in the kernel, most likely for storage; run `qmp-migrate rig down` again later",
        )


async def identify(machine: LocalHost, state: RigState, part: Part) -> ProcessId | None:
    """Return the live process of one part, or ``None``."""
    return await process.identify(machine, str(state.part_directory(part.name)))


async def guests_of(machine: LocalHost, state: RigState) -> dict[str, ProcessId]:
    """Find the live QEMUs in all RUN_DIRs; the keys are HOST/NAME. Guests in machines are no processes of this one."""
    if state.machines:
        return {}
    lists = await asyncio.gather(*(process.list_all(machine, str(host.run_dir)) for host in state.hosts))
    return {
        f"{host.name}/{name}": identity
        for host, guests in zip(state.hosts, lists, strict=True)
        for name, identity in guests.items()
        if identity is not None
    }


def _remove_files(state: RigState) -> None:
    directory = state.directory
    for name in ("ssh", "parts", *(host.name for host in state.hosts)):
        shutil.rmtree(directory / name, ignore_errors=True)
    for pattern in ("qmp-migrate.toml", "guest*.toml", "journal.sqlite*", "lab.ext4", f"{FILE}*"):  # rig.json last
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)
    if state.created:
        give_back(directory)
