"""The command line of a guest as it is now: what it was started with, and what was plugged in and taken out since. Pure.

A guest is its command line (DESIGN §4), so a device that was plugged in is written down as the options that make it, and one
that was taken out leaves with what stood behind it. From the result the destination's command line is derived as from any
other; there it is an ordinary command line, so a guest can be moved again and again.

Places must not move: QEMU gives a device without ``addr=`` the next free slot, so one device less would shift those after it.
Then all that remain are pinned where they are now. What was plugged in comes last and in JSON: QEMU makes JSON devices after
all others, so they cannot take the slot of one of these either.

What cannot be built again with certainty is refused, by name and with the reason (docs/adr).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.migration.devices import hotplug_args, removable_media
from qmp_migrate.qemu.devices import ANONYMOUS, PERIPHERAL, Device, Devices
from qmp_migrate.vm.commandline import properties
from qmp_migrate.vm.commandline.command_line import CommandLine, Option
from qmp_migrate.vm.commandline.option_table import TAKES_JSON

_BACKED: Final = ("drive", "netdev", "memdev", "iothread", "rng")
"""Properties of a device that name what stands behind it."""

_BELOW: Final = ("file", "backing", "data-file")
"""Properties of a block node that name the node it stands on."""

_NETWORK_OPTIONS: Final = ("netdev", "nic", "net")


@dataclass(frozen=True, slots=True)
class Present:
    """A guest's command line as it is now.

    Attributes:
        command: To derive the destination's from. Not to be used where there are refusals.
        changes: What was plugged in, taken out and changed since the guest was started, one line each.
        warnings: What will be different at the destination, one line each.
        refusals: Why the guest cannot be moved as it is, one line each.
    """

    command: CommandLine
    changes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """The devices that a command line makes: id, or place among those without one, to the option's place in it."""

    named: Mapping[str, int]
    anonymous: Sequence[int]

    def paths(self) -> dict[str, int]:
        """Return the same by QEMU's path of the device."""
        named = {f"{PERIPHERAL}/{name}": index for name, index in self.named.items()}
        return named | {f"{ANONYMOUS}/device[{number}]": index for number, index in enumerate(self.anonymous)}


def given_devices(command: CommandLine) -> Given:
    """Return the devices that a command line makes, those without an id in the order in which QEMU makes them.

    First come the ``-device`` in ``key=value`` notation, then virtio disks of ``-drive``, then the ``-device`` in JSON.

    Raises:
        UsageError: An option's JSON cannot be read.
    """
    named: dict[str, int] = {}
    plain: list[int] = []
    drives: list[int] = []
    json: list[int] = []
    for index, option in enumerate(command.options):
        if option.name == "device":
            identifier = option.properties().get("id")
            if identifier is not None:
                named[identifier] = index
            else:
                (json if (option.value or "").lstrip().startswith("{") else plain).append(index)
        elif option.name == "drive" and option.properties().get("if") == "virtio":
            drives.append(index)
    return Given(named, (*plain, *drives, *json))


def as_it_is(command: CommandLine, devices: Devices) -> Present:
    """Return the command line of a guest as it is now.

    Args:
        command: What it was started with.
        devices: What it has.
    """
    try:
        work = _Comparison(command, devices)
        work.compare()
    except QmpMigrateError as error:
        return Present(command, refusals=(f"{error.message}; {error.hint}",))
    return work.result()


class _Comparison:
    """One comparison under way. `options` holds an option, or what stands in its place, by its place."""

    def __init__(self, command: CommandLine, devices: Devices) -> None:
        self.command = command
        self.devices = devices
        self.paths = given_devices(command).paths()
        self.options: dict[int, list[Option]] = {index: [option] for index, option in enumerate(command.options)}
        self.added: list[Option] = []
        self.plugged: list[Option] = []
        self.media: list[Option] = []
        self.changes: list[str] = []
        self.warnings: list[str] = []
        self.refusals: list[str] = []

    def compare(self) -> None:
        if not self.devices.devices and self.paths:
            self.refusals.append("QEMU does not tell its devices, so nobody knows what was plugged in")
            return
        gone = {path: index for path, index in self.paths.items() if not self._is_there(path)}
        self._take_out(gone)
        self._media()
        self._boot_vcpus()
        if gone:
            self._pin()
        self._back_ends()
        self._plug_in()

    def result(self) -> Present:
        options = [option for index in sorted(self.options) for option in self.options[index]]
        command = CommandLine(self.command.binary, (*options, *self.added, *self.plugged), self.command.loader)
        return Present(command, tuple(self.changes), tuple(self.warnings), tuple(self.refusals))

    def _is_there(self, path: str) -> bool:
        found = self.devices.devices.get(path)
        return found is not None and not found.hotplugged

    def _present(self, *names: str) -> list[tuple[int, Option]]:
        return [(i, option) for i in sorted(self.options) for option in self.options[i] if option.name in names]

    # -- what was taken out -----------------------------------------------------------------------------------------

    def _take_out(self, gone: Mapping[str, int]) -> None:
        for path, index in gone.items():
            option = self.command.options[index]
            self.options[index] = []
            name = path.rpartition("/")[2]
            self.changes.append(f"{name} ({option.brief}) was unplugged")
            if not self.command.has("nodefaults") and removable_media.media_of([option]):
                self.refusals.append(f"{name} was unplugged, and QEMU would put a CD drive of its own in its place")

    def _back_ends(self) -> None:
        """Leave out disks, network back ends and objects that are no more; a device that still names one is refused."""
        named = {drive.name for drive in self.devices.drives if drive.name}
        for index, option in reversed(self._present("drive", "blockdev", "netdev", "object")):
            given = option.properties()
            name = given.get("node-name") if option.name == "blockdev" else given.get("id")
            known = {
                "drive": named,
                "blockdev": set(self.devices.nodes),
                "netdev": set(self.devices.backends),
                "object": set(self.devices.objects),
            }[option.name]
            if name is None or name in known or option in self.media or _is_kept(option):
                continue
            user = self._user(name)
            if user is not None:
                self.refusals.append(
                    f"{user} has lost {name}, which was taken away from under it: unplug it, or restart the guest"
                )
            else:
                self.options[index] = []
                self.changes.append(f"{option.brief} is no more")
        left = self._present(*_NETWORK_OPTIONS)
        if not left and self.command.named(*_NETWORK_OPTIONS) and not self.command.has("nodefaults"):
            self.added.append(Option("-nic", "none"))  # else QEMU makes an interface of its own

    def _user(self, name: str) -> str | None:
        for _, option in self._present("device", "blockdev"):
            given = option.properties()
            if option.name == "device" and name in {given.get(key) for key in _BACKED}:
                return f"{given.get('driver')} {given.get('id') or ''}".strip()
            if option.name == "blockdev" and name in {given.get(key) for key in _BELOW}:
                return f"block node {given.get('node-name')}"
        return None

    # -- what is where ------------------------------------------------------------------------------------------------

    def _pin(self) -> None:
        """Give every device that remains the place that it has now: one less would shift those after it."""
        for path, index in self.paths.items():
            found = self.devices.devices.get(path)
            if found is None or found.hotplugged or not self.options[index]:
                continue
            option = self.command.options[index]
            place = _place(found)
            if option.name == "drive":
                if "addr" in place:
                    self.refusals.append(
                        f"{option.brief}: its PCI address cannot be kept, now that another device was unplugged; "
                        "restart the guest, with -device virtio-blk-pci,drive= instead of if=virtio"
                    )
                continue
            given = option.properties()
            wanted = {key: value for key, value in place.items() if given.get(key) is None}
            if wanted:
                self.options[index] = [_with(self.options[index][0], wanted)]

    def _boot_vcpus(self) -> None:
        """See that the vCPUs of ``-smp`` are all there: those that were plugged in are devices like others."""
        if not self.devices.cpus:
            return
        present = [cpu for cpu in self.devices.cpus if str(cpu.get("qom-path", "")).startswith("/machine/unattached")]
        started = self.command.vcpus
        count = sum(int(cpu.get("vcpus-count", 1)) for cpu in present)
        if present and count < started:
            self.refusals.append(
                f"{count} of the {started} vCPUs that it was started with are left: QEMU can start with fewer only where the "
                "last ones are missing; plug them in again, or restart the guest with other -smp"
            )

    def _media(self) -> None:
        left = CommandLine(self.command.binary, tuple(option for _, option in self._present(*_names(self.command))))
        found = removable_media.compare(
            left, self.devices, {path: self.command.options[i] for path, i in self.paths.items()}
        )
        for index, options in self.options.items():
            made: list[Option] = []
            for option in options:
                if option in found.replaced:
                    made += found.replaced[option]
                    self.media += found.replaced[option]
                elif option in found.drives:
                    bare = option.with_value(
                        properties.without(option.value or "", frozenset({"drive"}), implied="driver", takes_json=True)
                    )
                    made.append(_with(bare, {"drive": node}) if (node := found.drives[option]) else bare)
                else:
                    made.append(option)
            self.options[index] = made
        self.added += found.added
        self.changes += found.changes
        self.refusals += found.refusals

    # -- what was plugged in ----------------------------------------------------------------------------------------

    def _plug_in(self) -> None:
        plugged = [device for device in self.devices.devices.values() if device.hotplugged]
        for device in sorted(plugged, key=self._depth):
            name = f"{device.driver} {device.id}" if device.id else f"{device.driver} without an id"
            try:
                self._plug(device)
            except hotplug_args.Cannot as error:
                self.refusals.append(
                    f"{name} was plugged in while the guest ran: {error}; unplug it, or restart the guest with it"
                )
            else:
                self.changes.append(f"{name} was plugged in" + (f" at {device.bus}" if device.bus else ""))

    def _plug(self, device: Device) -> None:
        option = hotplug_args.device(device, self.devices)
        given = option.properties()
        before: list[Option] = []
        for name in hotplug_args.objects_of(device):
            if not self._has("object", "id", name):
                before.append(hotplug_args.host_object(name, self.devices))
        if (drive := given.get("drive")) is not None and not self._has("blockdev", "node-name", drive):
            before += self._disk(drive, given.get("id") or drive)
        if (netdev := given.get("netdev")) is not None:
            before += self._network(netdev, device)
        if (
            removable_media.media_of([option])
            and not self.command.has("nodefaults")
            and not removable_media.media_of(self.command.options)
        ):
            raise hotplug_args.Cannot("QEMU would leave out the CD drive that it made by itself")
        self.added += before
        self.plugged.append(option)

    def _disk(self, drive: str, name: str) -> list[Option]:
        """Return the block nodes of a plugged-in disk; one of ``drive_add`` becomes a node of the same name."""
        known = frozenset(
            found
            for _, option in self._present("blockdev")
            if (found := option.properties().get("node-name")) is not None
        ) | frozenset(found for option in self.added if (found := option.properties().get("node-name")) is not None)
        if self._has("drive", "id", drive):
            return []
        top = next((found.node for found in self.devices.drives if found.name == drive), None)
        made = hotplug_args.block(top or drive, self.devices, known=known, name=drive)
        self.warnings.append(f"disk {name}: QEMU does not tell its aio= and discard=, so they will be QEMU's own there")
        return made

    def _network(self, netdev: str, device: Device) -> list[Option]:
        option = hotplug_args.backend(netdev, self.devices, vhost=device.vhost)
        given = next((o for _, o in self._present("netdev") if o.properties().get("id") == netdev), None)
        if given is not None:
            now, then = option.properties(), given.properties()
            if any(now.get(key) != then.get(key) for key in ("type", "ifname", "br")):
                raise hotplug_args.Cannot(f"its network back end {netdev} is another one than the command line's")
            return []
        if not self.command.has("nodefaults") and not self.command.named(*_NETWORK_OPTIONS):
            raise hotplug_args.Cannot("QEMU would leave out the network interface that it made by itself")
        kind = option.properties().get("type")
        if kind == "user":
            self.warnings.append(
                f"network back end {netdev}: what QEMU does not tell of a user-mode network is left out"
            )
        elif kind == "tap" and not device.vhost:
            self.warnings.append(f"network back end {netdev}: not served by vhost now, so it will not be there")
        return [option]

    def _has(self, name: str, key: str, value: str) -> bool:
        present = [option for _, option in self._present(name)] + [o for o in self.added if o.name == name]
        return any(option.properties().get(key) == value for option in present)

    def _depth(self, device: Device) -> int:
        """Return how many plugged-in devices a device stands on: those come first."""
        depth, bus, seen = 0, device.bus, {device.path}
        stands = [other for other in self.devices.devices.values() if other.hotplugged and other.id]
        while True:
            below = next((d for d in stands if _bus_of(d.id or "", bus) and d.path not in seen), None)
            if below is None:
                return depth
            depth, bus = depth + 1, below.bus
            seen.add(below.path)


def _is_kept(option: Option) -> bool:
    """Tell whether an option stays although QEMU does not list what it has made.

    A port of a hub is not listed by its name; a secret may have been taken away once it had been read, and another QEMU has
    to read it again.
    """
    given = option.properties()
    if option.name == "object":
        return not (given.get("qom-type") or "").startswith(("memory-backend-", "iothread", "rng-"))
    return option.name == "netdev" and given.get("type") == "hubport"


def _bus_of(identifier: str, bus: str) -> bool:
    return bus == identifier or bus.startswith(f"{identifier}.")


def _names(command: CommandLine) -> tuple[str, ...]:
    return tuple({option.name for option in command.options})


def _place(found: Device) -> dict[str, str | int]:
    place: dict[str, str | int] = {
        key: value for key, value in found.place.items() if value not in ("", None) and key != "addr"
    }
    devfn = found.place.get("addr")
    if isinstance(devfn, int) and found.bus:
        place["addr"] = hotplug_args.address(devfn)
    return {"bus": found.bus, **place} if place and found.bus else {}


def _with(option: Option, values: Mapping[str, str | int]) -> Option:
    return option.with_value(properties.added(option.value or "", values, takes_json=option.name in TAKES_JSON))
