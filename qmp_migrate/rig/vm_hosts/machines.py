"""A lab whose hosts are machines: each one has a kernel, a clock, a boot id, a network and a disk of its own.

Every host is a virtual machine of the image that ``make host-image`` builds, started without root. SSH to it goes to a
port on a loopback address (QEMU's user network); the hosts meet each other at a hub. Guests in it are nested. What belongs
to this lab (keys, test guests, the agent's code) is on a read-only disk that all hosts share.

state = await up(default_directory())
…
await down(state.directory)

::

    DIR/lab.ext4                   the shared disk
    DIR/a/data.ext4                the disk of host a: what survives its power
    DIR/parts/machine-a/           its QEMU: console.log, qmp.sock, argv.json, log
    DIR/parts/hub/hub.sock         where the hosts' network cards are plugged in
"""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import importlib.util
import json
import os
import shutil
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from qmp_migrate.errors import CommandFailed, RigError
from qmp_migrate.hosts import process
from qmp_migrate.hosts.base import UNIX_PATH_LIMIT
from qmp_migrate.rig import directory as directories
from qmp_migrate.rig import lab, sshd
from qmp_migrate.rig.addresses import RigHost, address_of, host_names
from qmp_migrate.rig.configuration import guest_text, settings_text
from qmp_migrate.rig.down import take_down
from qmp_migrate.rig.guest.accelerator_probe import Accelerator, probe_accel
from qmp_migrate.rig.guest.images import GUEST_KINDS, GuestImage, GuestKind, cache_directory, find_images
from qmp_migrate.rig.state import Part, RigState, load
from qmp_migrate.rig.vm_hosts import power

_DATA_BYTES: Final = 4 << 30
_MEMORY: Final = "1G"
_EMULATED_FACTOR: Final = 8.0
"""An emulated processor is that much slower, at times; guests in it are emulated twice."""
_GUESTS: Final = Path("/lab/guests")
"""Where the test guests' files are in a host."""
_APPEND: Final = (
    "console=ttyS0 quiet no_timer_check random.trust_cpu=on mitigations=off audit=0 apparmor=0 selinux=0 cryptomgr.notests "
    "tsc=reliable"
)


@dataclass(frozen=True, slots=True)
class HostImage:
    """What host machines are started from; absolute paths.

    Attributes:
        kernel: An uncompressed kernel, for QEMU's ``-kernel``.
        initrd: For QEMU's ``-initrd``.
        root: The read-only root, shared by all.
        python: Which Python it has libraries for, ``MAJOR.MINOR``; empty: for none, so no agent runs in it.
    """

    kernel: Path
    initrd: Path
    root: Path
    python: str


def find_host_image() -> HostImage:
    """Find the image of the host machines, in ``host`` below the directories that `find_images` looks into.

    Raises:
        RigError: It is not built, or only in part.
    """
    named = os.environ.get("QMP_MIGRATE_IMAGES")
    directories = [Path(named)] if named else [Path("build/images"), cache_directory() / "images"]
    for directory in (path.absolute() / "host" for path in directories):
        with contextlib.suppress(OSError, ValueError, KeyError):
            python = str(json.loads((directory / "manifest.json").read_text("utf-8"))["python"])
            image = HostImage(directory / "vmlinux", directory / "initrd.img", directory / "root.ext4", python)
            if image.kernel.is_file() and image.initrd.is_file() and image.root.is_file():
                return image
    looked_at = ", ".join(str(directory.absolute() / "host") for directory in directories)
    raise RigError(f"the host machines' image is not there (looked in {looked_at})", hint="run `make host-image`")


async def up(directory: Path, hosts: int = 2, *, guest: GuestKind = "linux", agents: bool = True) -> RigState:
    """Bring a rig up whose hosts are machines; where the same one is up already, return it as it is.

    Returns once every host answers on SSH. Their agents come by themselves, later: `lab.status` tells.

    Args:
        directory: Where to put it: absent, empty, or with a rig in it.
        hosts: How many hosts, 1 to 26.
        guest: Which test guest ``guest.toml`` starts.
        agents: Start an agent in each, where the image has libraries for one.

    Raises:
        UsageError: That number of hosts is not possible, or there is no such guest.
        RigError: An image is not built, the directory cannot be used, another rig is in it, or a part did not come up.
            Nothing is left running then.
    """
    names = host_names(hosts)
    lab.check_guest(guest)
    qemu = lab.find_qemu()
    image = await asyncio.to_thread(find_host_image)
    guests = {kind: await asyncio.to_thread(find_images, kind) for kind in GUEST_KINDS}
    directory, created = directories.take(directory)
    with directories.exclusive(directory):
        present = load(directory)
        if present is not None:
            return await _still_up(present, names, guest)
        async with AsyncExitStack() as undo:
            if created:
                undo.callback(directories.give_back, directory)
            directories.check_empty(directory)
            plan = replace(_plan(directory, created, names), guest=guest)
            raising = _Raising(plan, image, guests, _find_mke2fs(), agents)
            undo.push_async_callback(take_down, raising.machine, raising.state)
            await raising.run(qemu, "")
            undo.pop_all()
        return raising.state


class _Raising(lab.Raising):
    """The same for hosts that are machines."""

    def __init__(
        self, state: RigState, image: HostImage, guests: dict[GuestKind, GuestImage], mke2fs: str, agents: bool
    ) -> None:
        super().__init__(state)
        self._image = image
        self._guest_images = guests
        self._mke2fs = mke2fs
        self._agents = agents
        self._accel: Accelerator = "tcg"

    async def run(self, qemu: str, program: str) -> None:
        """Bring it up; an sshd of this computer is not needed."""
        self.state.save()  # first of all: from now on `rig down` knows what to look for
        self._keys.mkdir(mode=0o700)
        await sshd.make_key(self.machine, self._key)
        for host in self.state.hosts:
            await self._host_key(host)
        await self._together(
            self._broker(),
            self._hub(),
            self._lab_disk(),
            self._probe_linux(qemu),
            *map(self._data_disk, self.state.hosts),
        )
        if self._accel == "tcg":
            hosts = tuple(replace(host, time_factor=_EMULATED_FACTOR) for host in self.state.hosts)
            self.state = replace(self.state, hosts=hosts)
        await self._together(*(self._boot(host, qemu) for host in self.state.hosts))
        text = settings_text(
            self.state,
            identity_file=self._key,
            known_hosts=self._known_hosts,
            qemu="/usr/bin/qemu-system-x86_64",
        )
        self.state.settings_file.write_text(text, "utf-8")
        for file, kind, name in (
            (self.state.guest_file, self.state.guest, "web1"),
            (self.state.bare_guest_file, "bare", "bare1"),
        ):
            file.write_text(guest_text(name=name, accel="tcg", image=self._inside(kind)), "utf-8")
        self.state = replace(self.state, complete=True)
        self.state.save()

    async def _host_key(self, host: RigHost) -> None:
        part = self.state.part_directory(power.machine_part(host.name).name)
        part.mkdir(mode=0o700, parents=True)
        public = await sshd.make_key(self.machine, part / "host_key")
        with self._known_hosts.open("a", encoding="ascii") as file:
            file.write(sshd.known_hosts_line(host.address, host.port, public))

    async def _hub(self) -> None:
        directory = self.state.part_directory("hub")
        argv = [*lab.python("qmp_migrate.rig.vm_hosts.hub"), str(directory / "hub.sock")]
        identity = await process.launch(
            self.machine, directory=str(directory), argv=argv, timeout=lab.START_S, ready="hub.sock", log="log"
        )
        self.state = self.state.with_process("hub", identity)

    def _inside(self, kind: GuestKind) -> GuestImage:
        """Return where a test guest's files are in a host."""
        image = self._guest_images[kind]
        return GuestImage(_GUESTS / image.kernel.name, _GUESTS / image.initrd.name if image.initrd else None)

    async def _probe_linux(self, qemu: str) -> None:
        self._accel = await probe_accel(qemu, self._guest_images["linux"])

    async def _lab_disk(self) -> None:
        tree = self.state.directory / "parts" / "lab"
        await asyncio.to_thread(self._fill_lab, tree)
        await self._mkfs(self.state.directory / "lab.ext4", 96 << 20, "-d", str(tree), "-O", "^has_journal", "-m", "0")
        await asyncio.to_thread(shutil.rmtree, tree)

    def _fill_lab(self, tree: Path) -> None:
        (tree / "ssh").mkdir(mode=0o700, parents=True)
        shutil.copy(f"{self._key}.pub", tree / "ssh" / "authorized_keys")
        for host in self.state.hosts:
            key = self.state.part_directory(power.machine_part(host.name).name) / "host_key"
            shutil.copy(key, tree / "ssh" / host.name)
        (tree / "guests").mkdir()
        for file in (file for image in self._guest_images.values() for file in image.files):
            shutil.copy(file, tree / "guests" / file.name)
        if not self._agents:
            return
        if self._image.python != f"{sys.version_info[0]}.{sys.version_info[1]}":
            warning = "no agents: the host machines' image has no libraries of this Python (make host-image)"
            self.state = replace(self.state, warnings=(warning,))
            self._agents = False
            return
        for package in ("qmp_migrate", "hostagent"):
            found = importlib.util.find_spec(package)
            assert found is not None
            assert found.origin is not None
            shutil.copytree(Path(found.origin).parent, tree / "lib" / package)
        # Byte code that is there has come along; compiling the rest here is quicker than on an emulated processor.
        compileall.compile_dir(tree / "lib", quiet=2)

    async def _data_disk(self, host: RigHost) -> None:
        (self.state.directory / host.name).mkdir(mode=0o700)
        await self._mkfs(_data(self.state, host), _DATA_BYTES)

    async def _mkfs(self, path: Path, size: int, *options: str) -> None:
        with path.open("xb") as file:
            file.truncate(size)
        try:
            await self.machine.run(
                [self._mke2fs, "-q", "-t", "ext4", "-E", "root_owner=0:0", *options, str(path)], timeout=60
            )
        except CommandFailed as error:
            raise RigError(f"{path} cannot be made: {error.message}", hint="is the disk full?") from error

    async def _boot(self, host: RigHost, qemu: str) -> None:
        argv = machine_argv(self.state, host, self._image, qemu=qemu, accel=self._accel, agents=self._agents)
        identity = await power.launch(self.machine, self.state, host.name, argv)
        self.state = self.state.with_process(power.machine_part(host.name).name, identity)
        await power.wait_ready(self.machine, self.state, host)


def machine_argv(
    state: RigState, host: RigHost, image: HostImage, *, qemu: str, accel: Accelerator, agents: bool
) -> list[str]:
    """Return the command line of one host's QEMU. Pure.

    Args:
        state: The rig; its broker runs.
        host: The host.
        image: What it is started from.
        qemu: The QEMU binary of this computer.
        accel: What was proven to run Linux on this computer.
        agents: Whether an agent is started in it.
    """
    number = state.hosts.index(host)
    words = {"host": host.name, "address": f"{host.migration_address}/24"}
    if accel == "kvm":
        words["kvm"] = "1"
    if agents:
        words["mqtt"] = _inside(state.broker_url)
    append = " ".join([_APPEND, *(f"rig.{key}={value}" for key, value in words.items())])
    control = f"user,id=control,hostfwd=tcp:{host.address}:{host.port}-10.0.2.15:22"
    hub = state.part_directory("hub") / "hub.sock"
    return [
        qemu,
        *("-nodefaults", "-no-user-config", "-display", "none", "-name", f"rig-host-{host.name}"),
        *("-machine", "q35", "-accel", "kvm" if accel == "kvm" else "tcg,tb-size=256"),
        # One emulated processor boots with a quarter less work than two: they wait for each other.
        *("-cpu", "host" if accel == "kvm" else "max", "-smp", "2" if accel == "kvm" else "1", "-m", _MEMORY),
        *("-serial", "file:console.log", "-qmp", "unix:qmp.sock,server=on,wait=off"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", append),
        *_disk("root", image.root, "readonly=on,file.locking=off"),
        *_disk("data", _data(state, host), "discard=unmap"),
        *_disk("lab", state.directory / "lab.ext4", "readonly=on,file.locking=off"),
        *("-netdev", control, "-device", _card("control", 0x77, number)),
        *("-netdev", f"stream,id=hosts,server=off,addr.type=unix,addr.path={hub}"),
        *("-device", _card("hosts", 0x78, number), "-device", "virtio-rng-pci"),
    ]


def _disk(name: str, path: Path, options: str) -> list[str]:
    file = str(path).replace(",", ",,")
    return ["-drive", f"if=none,id={name},format=raw,file={file},{options}", "-device", f"virtio-blk-pci,drive={name}"]


def _card(network: str, kind: int, number: int) -> str:
    return f"virtio-net-pci,netdev={network},id=nic-{network},mac=52:54:00:{kind:02x}:00:{number:02x},romfile="


def _inside(url: str) -> str:
    """Return the address of this computer's broker as a machine sees it: QEMU's user network leads to loopback."""
    return url.replace("//127.0.0.1:", "//10.0.2.2:")


def _data(state: RigState, host: RigHost) -> Path:
    return state.directory / host.name / "data.ext4"


def _plan(directory: Path, created: bool, names: list[str]) -> RigState:
    longest = directory / "parts" / power.machine_part(names[-1]).name / "qmp.sock"
    if len(os.fsencode(longest)) > UNIX_PATH_LIMIT:
        raise RigError(
            f"{directory} is too long: {longest} would pass {UNIX_PATH_LIMIT} bytes",
            hint="choose a shorter --dir, for example /tmp/rig",
        )
    hosts = tuple(
        RigHost(
            name,
            address_of(number),
            sshd.free_port(address_of(number)),
            Path("/run/qmp-migrate"),
            user="root",
            migration_address=f"10.77.0.{number + 2}",
        )
        for number, name in enumerate(names)
    )
    parts = (Part("broker", "broker"), Part("hub", "hub"), *map(power.machine_part, names))
    return RigState(directory, created, hosts, parts, machines=True)


async def _still_up(state: RigState, names: list[str], guest: GuestKind) -> RigState:
    """Return the rig that is there when it is whole and the wanted one.

    Raises:
        RigError: It is not.
    """
    if not state.machines:
        raise RigError(
            f"there is a rig in {state.directory} whose hosts are no machines",
            hint="take it down first: qmp-migrate rig down; or use another --dir",
        )
    off = [name for name, host in (await power.survey(state)).items() if host.power != "on"]
    if off and state.complete:
        raise RigError(
            f"there is a rig in {state.directory}, but {', '.join(off)} is not on",
            hint=f"qmp-migrate rig power {off[0]} on; or: qmp-migrate rig down",
        )
    return await lab.still_up(state, names, guest)


def _find_mke2fs() -> str:
    path = shutil.which("mke2fs", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
    if path is None:
        raise RigError("mke2fs is not installed", hint="apt-get install -y e2fsprogs")
    return path
