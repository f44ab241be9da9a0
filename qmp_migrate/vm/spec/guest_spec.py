"""A guest written down: the SPEC.toml of those who have no QEMU command line yet (DESIGN §6).

::

    name = "web1"
    machine = "pc-q35-7.2"
    memory = "512MiB"
    vcpus = 1

    [[disk]]
    path = "web1.qcow2"
    size = "10GiB"

    [[nic]]
    kind = "tap"
    bridge = "br0"

An unknown key is an error that names the nearest known one and the line; a typo must not be a setting that is silently
not made. `qmp_migrate.vm.spec.argv.build_argv` turns a spec into a command line.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from difflib import get_close_matches
from typing import Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qmp_migrate.errors import SpecError, UsageError
from qmp_migrate.vm.commandline.command_line import CommandLine, is_versioned
from qmp_migrate.vm.spec.field_types import (
    CpuModel,
    Endpoint,
    GuestName,
    GuestUuid,
    HostPath,
    InterfaceName,
    KernelText,
    MacAddress,
    SerialNumber,
    Word,
)
from qmp_migrate.vm.spec.toml_lines import line_of
from qmp_migrate.vm.units import ByteSize, format_size

FINDINGS: Final = 8
"""So many faults of a spec are told at once."""
TEXT_LIMIT: Final = 64 * 1024
"""Longest spec that is read, in characters."""
LINE_LIMIT: Final = 1000
"""Longest spec that is read, in lines."""
MEMORY_MINIMUM: Final = 1 << 20
MEMORY_GRAIN: Final = 8 << 10
MEMORY_MAXIMUM: Final = 1 << 46
"""64 TiB, more than any host that QEMU runs on: above it somebody mistook the unit."""
VCPUS_MAXIMUM: Final = 4096
DIRTY_RING_MINIMUM: Final = 1024
DIRTY_RING_MAXIMUM: Final = 65536
"""What libvirt allows; Linux itself takes no more than 65536 entries."""

_OWN_KEYS: Final = {
    "name": "name",
    "uuid": "uuid",
    "machine": "machine",
    "cpu": "cpu",
    "m": "memory",
    "smp": "vcpus",
    "accel": "accel",
    "enable-kvm": 'accel = "kvm"',
    "kernel": "kernel",
    "initrd": "initrd",
    "append": "append",
    "bios": "firmware",
    "": "[[disk]]",
}
"""Options that a key of the spec stands for."""
_NOT_OURS_TO_GIVE: Final = {
    "qmp": "qmp-migrate makes the monitors itself",
    "qmp-pretty": "qmp-migrate makes the monitors itself",
    "incoming": "qmp-migrate gives it to the destination of a migration",
    "S": "qmp-migrate starts the guest when it is ready",
    "daemonize": "qmp-migrate watches over the process itself",
    "pidfile": "qmp-migrate writes its own",
    "preconfig": "a guest that is set up over QMP before its start cannot be moved",
    "snapshot": "a guest with temporary disks cannot be moved",
    "loadvm": "start the guest, or restore it, not both",
    "virtfs": "QEMU cannot move a guest with a 9p file system",
    "add-fd": "an open file cannot be handed to a QEMU on another host",
    "readconfig": "what that file says could not be seen; write it into the spec",
    "h": "it would end QEMU at once",
    "version": "it would end QEMU at once",
}


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DiskSpec(_Table):
    """``[[disk]]``: one disk.

    Attributes:
        path: Image file or block device.
        format: ``raw`` or ``qcow2``; taken from the path's ending (``.raw``, ``.img``, ``.qcow2``) where absent. Never
            guessed from the content: a guest could write what would be guessed.
        interface: How the guest sees it.
        cache: Host cache. ``none`` is what storage shared by hosts needs to stay coherent.
        size: Size in bytes to make it with when it is absent.
        readonly: The guest cannot write to it.
        serial: Serial number that the guest sees.
    """

    path: HostPath
    format: Literal["raw", "qcow2"] | None = None
    interface: Literal["virtio", "scsi", "ide"] = "virtio"
    cache: Literal["none", "writeback", "writethrough", "directsync", "unsafe"] = "none"
    size: ByteSize | None = None
    readonly: bool = False
    serial: SerialNumber | None = None

    _ENDINGS: ClassVar[dict[str, Literal["raw", "qcow2"]]] = {".raw": "raw", ".img": "raw", ".qcow2": "qcow2"}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.format is None and posixpath.splitext(self.path)[1] not in self._ENDINGS:
            raise ValueError('format is not given and the path does not tell; write format = "qcow2" or "raw"')
        if self.interface == "ide" and self.readonly:
            raise ValueError('an IDE disk cannot be read-only; use interface = "virtio" or "scsi"')
        if self.readonly and self.size is not None:
            raise ValueError("a read-only disk is not made; leave size out")
        return self

    @property
    def image_format(self) -> Literal["raw", "qcow2"]:
        """The image format, given or told by the path's ending."""
        return self.format or self._ENDINGS[posixpath.splitext(self.path)[1]]


class NicSpec(_Table):
    """``[[nic]]``: one network interface.

    Attributes:
        kind: ``user`` (NAT in QEMU, needs nothing), ``tap`` (a bridge or a tap interface of the host), ``socket``
            (frames over TCP or multicast).
        model: QEMU's device for it.
        mac: MAC address; made from the guest's UUID where absent, so that it stays the same.
        bridge: For ``tap``: bridge to join, with QEMU's bridge helper.
        ifname: For ``tap``: a tap interface that is there already.
        connect: For ``socket``: ``HOST:PORT`` to connect to.
        listen: For ``socket``: ``[HOST]:PORT`` to listen on.
        mcast: For ``socket``: multicast ``GROUP:PORT``.
    """

    kind: Literal["user", "tap", "socket"] = "user"
    model: Word = "virtio-net-pci"
    mac: MacAddress | None = None
    bridge: InterfaceName | None = None
    ifname: InterfaceName | None = None
    connect: Endpoint | None = None
    listen: Endpoint | None = None
    mcast: Endpoint | None = None

    _KEYS: ClassVar[dict[str, tuple[str, ...]]] = {
        "user": (),
        "tap": ("bridge", "ifname"),
        "socket": ("connect", "listen", "mcast"),
    }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        allowed = self._KEYS[self.kind]
        given = [key for keys in self._KEYS.values() for key in keys if getattr(self, key) is not None]
        foreign = [key for key in given if key not in allowed]
        if foreign:
            raise ValueError(f'{foreign[0]} does not go with kind = "{self.kind}"')
        if allowed and len(given) != 1:
            raise ValueError(f'kind = "{self.kind}" needs exactly one of {", ".join(allowed)}')
        return self


class GuestSpec(_Table):
    """A guest, as its SPEC.toml says.

    Attributes:
        name: The guest's name.
        machine: Machine type, best a versioned one; an alias (``q35``) must be pinned when the guest is started
            (`is_pinned` tells), since it is another machine in another QEMU.
        cpu: CPU model with features, as ``-cpu`` takes it.
        memory: Memory in bytes; a multiple of 8 KiB, which is what QEMU would round it up to.
        maxmemory: Memory in bytes that it can grow to, by memory that is plugged in; absent: `memory`.
        vcpus: vCPUs at the start.
        maxcpus: vCPUs that it can grow to; absent: `vcpus`.
        accel: ``kvm``, ``tcg``, or ``auto`` to have the host probed.
        dirty_ring: Entries of KVM's dirty ring for each vCPU, a power of two; one entry is a page of 4 KiB. Absent: KVM logs
            dirty pages in a bitmap. With a ring QEMU can limit how fast each vCPU dirties memory.
        uuid: UUID; absent: made at the start.
        kernel: Kernel to boot directly.
        initrd: Its initial RAM disk.
        append: Its command line.
        firmware: Firmware image for ``-bios``.
        args: Further QEMU options, word by word, put last.
        disk: The disks, in order.
        nic: The network interfaces, in order.
    """

    name: GuestName
    machine: Word = "pc-q35-7.2"
    cpu: CpuModel = "qemu64"
    memory: ByteSize = 512 << 20
    maxmemory: ByteSize | None = None
    vcpus: int = Field(default=1, ge=1, le=VCPUS_MAXIMUM)
    maxcpus: int | None = Field(default=None, ge=1, le=VCPUS_MAXIMUM)
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    dirty_ring: int | None = Field(default=None, ge=DIRTY_RING_MINIMUM, le=DIRTY_RING_MAXIMUM)
    uuid: GuestUuid | None = None
    kernel: HostPath | None = None
    initrd: HostPath | None = None
    append: KernelText | None = None
    firmware: HostPath | None = None
    args: list[str] = Field(default_factory=list)
    disk: list[DiskSpec] = Field(default_factory=list)
    nic: list[NicSpec] = Field(default_factory=list)

    @property
    def is_pinned(self) -> bool:
        """Whether the machine type is a versioned one."""
        return is_versioned(self.machine)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not MEMORY_MINIMUM <= self.memory <= MEMORY_MAXIMUM or self.memory % MEMORY_GRAIN:
            raise ValueError(f"memory: {format_size(self.memory)} is not a multiple of 8KiB between 1MiB and 64TiB")
        if self.maxmemory is not None and not self.memory < self.maxmemory <= MEMORY_MAXIMUM:
            raise ValueError(f"maxmemory: {format_size(self.maxmemory)} is not between memory and 64TiB")
        if self.maxcpus is not None and self.maxcpus < self.vcpus:
            raise ValueError(f"maxcpus: {self.maxcpus} is less than vcpus = {self.vcpus}")
        if self.dirty_ring is not None and self.dirty_ring & (self.dirty_ring - 1):
            raise ValueError(f"dirty_ring: {self.dirty_ring} is not a power of two, for example 4096")
        if self.dirty_ring is not None and self.accel == "tcg":
            raise ValueError('dirty_ring: only KVM has one; leave it out, or write accel = "kvm"')
        if self.kernel is None and (self.initrd is not None or self.append is not None):
            raise ValueError(f"{'initrd' if self.initrd is not None else 'append'}: goes only with a kernel")
        for option in _parse_args(self.args).options:
            if option.name in _OWN_KEYS:
                raise ValueError(f"args: {option.brief}: the key {_OWN_KEYS[option.name]} is there for it")
            if option.name in _NOT_OURS_TO_GIVE:
                raise ValueError(f"args: {option.brief}: {_NOT_OURS_TO_GIVE[option.name]}")
        return self


def _parse_args(args: list[str]) -> CommandLine:
    try:
        return CommandLine.parse(["qemu", *args])
    except UsageError as error:
        raise ValueError(f"args: {error.message}") from error


def parse_spec(text: str, *, source: str, base_dir: str) -> GuestSpec:
    """Read a guest's spec.

    Args:
        text: The TOML text.
        source: What to call it in messages, usually its path.
        base_dir: Absolute directory that relative paths in it count from, usually the one it lies in.

    Raises:
        SpecError: Not TOML, an unknown key, a wrong type, an absurd value. Says the key, the line and what to do.
    """
    if len(text) > TEXT_LIMIT or text.count("\n") >= LINE_LIMIT:
        raise SpecError(
            f"{source}: a spec has at most {LINE_LIMIT} lines and {TEXT_LIMIT // 1024} KiB",
            hint="is it the right file?",
        )
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers with 5,000 digits, and 1,000 brackets
        at = re.search(r"at line ([0-9]+)", str(error))
        where = f"{source}:{at[1]}" if at else source
        raise SpecError(f"{where}: not TOML: {error}", hint='text goes in quotes: name = "web1"') from None
    try:
        spec = GuestSpec.model_validate(data)
    except ValidationError as error:
        raise _explain(error, text, source) from None
    return _resolved(spec, base_dir)


def _resolved(spec: GuestSpec, base_dir: str) -> GuestSpec:
    def absolute(path: str) -> str:
        return posixpath.normpath(posixpath.join(base_dir, path))

    changed: dict[str, object] = {
        key: absolute(path) for key in ("kernel", "initrd", "firmware") if (path := getattr(spec, key)) is not None
    }
    if spec.firmware is not None and "/" not in spec.firmware:
        del changed["firmware"]  # QEMU finds it among its own
    changed["disk"] = [disk.model_copy(update={"path": absolute(disk.path)}) for disk in spec.disk]
    return spec.model_copy(update=changed)


def _explain(error: ValidationError, text: str, source: str) -> SpecError:
    """Turn pydantic's errors into one of ours: every finding with its key and line, a hint for the first."""
    findings: list[str] = []
    hints: list[str] = []
    for detail in error.errors()[:FINDINGS]:  # looking for a line reads the whole text again
        location = [part for part in detail["loc"] if part not in {"function-after", "constrained-str"}]
        message, hint = _reason(dict(detail), location)
        key, _, rest = message.partition(": ")
        if not location and key in GuestSpec.model_fields:  # found by looking at several keys
            location, message = [key], rest
        line = line_of(text, location) if location else None
        where = f"{source}:{line}" if line else source
        name = ".".join(str(part + 1) if isinstance(part, int) else part for part in location)
        findings.append(f"{where}: {name}: {message}" if name else f"{where}: {message}")
        hints.append(hint)
    return SpecError("; ".join(findings), hint=hints[0])


def _reason(detail: dict[str, Any], location: list[str | int]) -> tuple[str, str]:
    kind, context = detail["type"], detail.get("ctx", {})
    known = _known_keys(location)
    match kind:
        case "extra_forbidden":
            near = get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            return "unknown key" + (f", did you mean {near[0]!r}?" if near else ""), f"known keys: {', '.join(known)}"
        case "missing":
            return "is missing", f"add {location[-1]} = …"
        case "value_error":
            return str(context["error"]), f"correct {location[-1]}" if location else "correct the spec"
        case "greater_than_equal" | "less_than_equal":
            limit = f"less than {context['ge']}" if "ge" in context else f"more than {context['le']}"
            return f"{detail['input']!r} is {limit}", f"correct {location[-1]}"
        case "list_type" if location[-1] in {"disk", "nic"}:
            return "is a list of tables", f"write [[{location[-1]}]], with two brackets, for each of them"
        case "literal_error":
            return f"{detail['input']!r} is not {context['expected']}", "use one of the values named"
        case _:
            expected = str(detail["msg"]).removeprefix("Input should be ")
            shown = repr(detail["input"])
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            return f"{shown} is not {expected}", "text goes in quotes, numbers and true/false do not"


def _known_keys(location: list[str | int]) -> list[str]:
    if len(location) > 1 and location[0] in {"disk", "nic"}:
        return list((DiskSpec if location[0] == "disk" else NicSpec).model_fields)
    return list(GuestSpec.model_fields)
