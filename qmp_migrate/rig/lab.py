"""A lab of several hosts on one machine: ``rig up``, ``rig status``, ``rig down``.

Every host is a loopback address with an sshd, a RUN_DIR and an agent of its own; one broker serves all. The processes
are detached: they outlive the command and the terminal, and are found again by pid, start time and boot id, never by
name. Whatever fails on the way up, everything goes down again.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qmp_migrate.errors import LaunchFailed, QmpMigrateError, RigError, UsageError
from qmp_migrate.hosts import process
from qmp_migrate.hosts.local import LocalHost
from qmp_migrate.hosts.process import ProcessId
from qmp_migrate.rig import directory as directories
from qmp_migrate.rig import namespaces, sshd
from qmp_migrate.rig.addresses import RigHost, address_of, host_names, run_dir
from qmp_migrate.rig.configuration import guest_text, settings_text
from qmp_migrate.rig.down import guests_of, identify, take_down
from qmp_migrate.rig.guest.accelerator_probe import Accelerator, kvm_opens, probe_accel
from qmp_migrate.rig.guest.firmware import find_qboot
from qmp_migrate.rig.guest.images import GUEST_KINDS, GuestKind, find_images
from qmp_migrate.rig.state import Part, RigState, load
from qmp_migrate.rig.vm_hosts import power
from qmp_migrate.rig.vm_hosts.power import MachineStatus

#: Seconds for one part to get ready.
START_S = 20.0


@dataclass(frozen=True, slots=True)
class RigStatus:
    """What of a rig is alive.

    Attributes:
        state: The rig.
        alive: For every part's name, whether its process lives.
        guests: ``HOST/NAME`` of every guest that has a live QEMU there, with its process; none where hosts are machines.
        machines: How each host is, where hosts are machines.
    """

    state: RigState
    alive: dict[str, bool]
    guests: dict[str, ProcessId]
    machines: dict[str, MachineStatus]


async def up(
    directory: Path, hosts: int = 2, *, guest: GuestKind = "linux", own_directories: Sequence[Path] = ()
) -> RigState:
    """Bring a rig up; where the same rig is up already, return it as it is.

    Args:
        directory: Where to put it: absent, empty, or with a rig in it.
        hosts: How many hosts, 1 to 26.
        guest: Which test guest ``guest.toml`` starts.
        own_directories: Directories of which each host has one of its own, empty at first, under the same path.

    Returns:
        The rig. Where a test guest's images are not built, it is up without that guest's spec, and its ``warnings``
        say so: guests of one's own can be started all the same.

    Raises:
        UsageError: That number of hosts is not possible, there is no such guest, or hosts cannot have a directory of
            their own there.
        RigError: The directory cannot be used, another rig is in it, or a part did not come up; with the end of its
            log. Nothing is left running then.
    """
    names = host_names(hosts)
    check_guest(guest)
    own_directories = namespaces.check(own_directories, directory)
    qemu = find_qemu()
    program = sshd.find_sshd()
    directory, created = directories.take(directory)
    with directories.exclusive(directory):
        present = load(directory)
        if present is not None and present.machines:
            raise RigError(
                f"there is a rig in {directory} whose hosts are machines",
                hint="take it down first: qmp-migrate rig down; or use another --dir",
            )
        if present is not None:
            return await still_up(present, names, guest)
        async with AsyncExitStack() as undo:
            if created:
                undo.callback(directories.give_back, directory)
            directories.check_empty(directory)
            raising = Raising(replace(_plan(directory, created, names), guest=guest))
            raising.own_directories = own_directories
            undo.push_async_callback(take_down, raising.machine, raising.state)
            await raising.run(qemu, program)
            undo.pop_all()
        return raising.state


def check_guest(guest: str) -> None:
    """Refuse what is not a test guest.

    Raises:
        UsageError: It is none.
    """
    if guest not in GUEST_KINDS:
        raise UsageError(f"{guest} is not a test guest", hint=f"choose one of: {', '.join(GUEST_KINDS)}")


async def down(directory: Path) -> tuple[str, ...] | None:
    """Take a rig down: its guests, its processes, its files.

    Args:
        directory: Where it is.

    Returns:
        What was alive and was ended, or ``None`` where there is no rig.

    Raises:
        RigError: Something of it resists, or ``rig.json`` cannot be understood.
    """
    if load(directory) is None:
        return None
    with directories.exclusive(directory):
        state = load(directory)  # another `down` may just have ended
        return None if state is None else await take_down(LocalHost("rig"), state)


async def status(directory: Path) -> RigStatus | None:
    """Look which parts of a rig are alive; ``None`` where there is no rig.

    Raises:
        RigError: ``rig.json`` cannot be understood.
    """
    state = load(directory)
    if state is None:
        return None
    machine = LocalHost("rig")
    found = await asyncio.gather(*(identify(machine, state, part) for part in state.parts))
    alive = {part.name: identity is not None for part, identity in zip(state.parts, found, strict=True)}
    return RigStatus(state, alive, await guests_of(machine, state), await power.survey(state))


class Raising:
    """A rig on its way up; where it goes on is in `state`."""

    def __init__(self, state: RigState) -> None:
        self.machine = LocalHost("rig")
        self.state = state
        self.own_directories: Sequence[Path] = ()
        self._keys = state.directory / "ssh"
        self._key = self._keys / "id_ed25519"
        self._known_hosts = self._keys / "known_hosts"

    async def run(self, qemu: str, program: str) -> None:
        """Bring it up: `qemu` and `program` (sshd) are paths."""
        self.state.save()  # first of all: from now on `rig down` knows what to look for
        self._keys.mkdir(mode=0o700)
        for host in self.state.hosts:
            host.run_dir.mkdir(mode=0o700, parents=True)
        await sshd.make_key(self.machine, self._key)
        sshd.prepare_privilege_separation()
        await self._together(
            self._guests(qemu), self._broker(), *(self._sshd(host, program) for host in self.state.hosts)
        )
        await self._together(*(self._agent(host) for host in self.state.hosts))
        text = settings_text(self.state, identity_file=self._key, known_hosts=self._known_hosts, qemu=qemu)
        _write(self.state.settings_file, text)
        self.state = replace(self.state, complete=True)
        self.state.save()

    async def _together(self, *steps: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for step in steps:
                    group.create_task(step)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others failed because this one did, or say the same

    async def _guests(self, qemu: str) -> None:
        accelerators = await asyncio.gather(*(self._probe(qemu, kind) for kind in GUEST_KINDS))
        found = {kind: one for kind, one in zip(GUEST_KINDS, accelerators, strict=True) if one is not None}
        if found and kvm_opens() and set(found.values()) == {"tcg"}:
            self._warn("/dev/kvm opens, but no test guest runs under it: they run without KVM (TCG)")
        qboot = await find_qboot(qemu) if "bare" in found else None
        for file, kind, name in (
            (self.state.guest_file, self.state.guest, "web1"),
            (self.state.bare_guest_file, "bare", "bare1"),
        ):
            if kind in found:
                image = await asyncio.to_thread(find_images, kind)
                firmware = qboot if kind == "bare" else None
                _write(file, guest_text(name=name, accel=found[kind], image=image, firmware=firmware))

    async def _probe(self, qemu: str, kind: GuestKind) -> Accelerator | None:
        try:
            image = await asyncio.to_thread(find_images, kind)
        except RigError as error:
            file = self.state.guest_file if kind == self.state.guest else self.state.bare_guest_file
            if kind in {"bare", self.state.guest}:
                self._warn(f"no {file.name}: {error.message}; {error.hint}")
            return None
        return await probe_accel(qemu, image)

    def _warn(self, text: str) -> None:
        self.state = replace(self.state, warnings=(*self.state.warnings, text))

    async def _broker(self) -> None:
        ready = self.state.part_directory("broker") / "ready"
        await self._start("broker", [*python("qmp_migrate.bus.broker.embedded"), "--ready-file", str(ready)])
        self.state = replace(self.state, broker_url=json.loads(ready.read_text("utf-8"))["url"])

    async def _sshd(self, host: RigHost, program: str) -> None:
        name = f"sshd-{host.name}"
        part = self.state.part_directory(name)
        part.mkdir(mode=0o700, parents=True)
        public = await sshd.make_key(self.machine, part / "host_key")
        with self._known_hosts.open("a", encoding="ascii") as file:
            file.write(sshd.known_hosts_line(host.address, host.port, public))
        config = sshd.write_config(part, address=host.address, port=host.port, authorized_keys=Path(f"{self._key}.pub"))
        await self._start(name, self._at(host, [program, "-D", "-e", "-f", str(config)]))

    async def _agent(self, host: RigHost) -> None:
        name = f"agent-{host.name}"
        ready = self.state.part_directory(name) / "ready"
        options = {"--host": host.name, "--run-dir": str(host.run_dir), "--mqtt": self.state.broker_url}
        argv = [*python("hostagent.app.cli"), "run", *(word for pair in options.items() for word in pair)]
        argv.append("--no-foreign")  # the rig's hosts share one machine: each would tell of the others' guests
        await self._start(name, self._at(host, [*argv, "--ready-file", str(ready)]))

    def _at(self, host: RigHost, argv: list[str]) -> list[str]:
        return namespaces.enter(self.state.directory / host.name / "own", self.own_directories, argv)

    async def _start(self, name: str, argv: Sequence[str]) -> None:
        directory = str(self.state.part_directory(name))
        try:
            identity = await process.launch(
                self.machine, directory=directory, argv=argv, timeout=START_S, ready="ready", log="log"
            )
        except QmpMigrateError as error:
            tail = error.stderr if isinstance(error, LaunchFailed) else ""
            lines = tail.splitlines()[-15:]
            raise RigError(
                f"{name} did not come up: {error.message}",
                hint="\n  ".join(["its log ends with:", *lines]) if lines else error.hint,
            ) from error
        self.state = self.state.with_process(name, identity)


def _plan(directory: Path, created: bool, names: list[str]) -> RigState:
    hosts = tuple(
        RigHost(name, address_of(number), sshd.free_port(address_of(number)), run_dir(directory, name))
        for number, name in enumerate(names)
    )
    parts = (
        Part("broker", "broker"),
        *(Part(f"sshd-{name}", "sshd", name) for name in names),
        *(Part(f"agent-{name}", "agent", name) for name in names),
    )
    return RigState(directory, created, hosts, parts)


async def still_up(state: RigState, names: list[str], guest: GuestKind) -> RigState:
    """Return the rig that is there when it is whole and of the wanted size.

    Raises:
        RigError: It is not.
    """
    now = await status(state.directory)
    dead = sorted(name for name, alive in now.alive.items() if not alive) if now else []
    if dead or not state.complete:
        raise RigError(
            f"there is a rig in {state.directory}, but it is not whole: "
            + (f"{', '.join(dead)} ended" if dead else "it was never finished"),
            hint="take it down first: qmp-migrate rig down",
        )
    if len(names) != len(state.hosts):
        raise RigError(
            f"a rig with {len(state.hosts)} hosts is up in {state.directory}, not one with {len(names)}",
            hint="take it down first: qmp-migrate rig down; or use another --dir",
        )
    if guest != state.guest:
        raise RigError(
            f"a rig whose guest.toml starts the {state.guest} guest is up in {state.directory}, not one with {guest}",
            hint="take it down first: qmp-migrate rig down; or use another --dir",
        )
    return state


def find_qemu() -> str:
    """Return the path of this machine's QEMU.

    Raises:
        RigError: It is not installed.
    """
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        raise RigError("QEMU is not installed", hint="apt-get install -y qemu-system-x86")
    return path


def python(module: str) -> list[str]:
    """Return the argv that runs a module of ours with this Python, installed or from a checkout."""
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    return ["env", f"PYTHONPATH={path}", sys.executable, "-m", module]


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
