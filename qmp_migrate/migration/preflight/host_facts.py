"""What a host and its QEMU binary are like: one script and, once per binary, one probe QEMU. Changes nothing.

Gathering costs one round trip per host. What a binary can do (machine types, CPU models) is asked from the binary itself
through a QEMU without a machine (about 0.2 s) and remembered in the journal under everything that could change the
answer: the file's size, time and inode, the accelerator and the boot of the host.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from qmp_migrate.errors import CommandFailed, LaunchFailed, UsageError
from qmp_migrate.hosts import Host
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.transport.negotiation import Abilities
from qmp_migrate.qemu import features
from qmp_migrate.settings import HostSettings
from qmp_migrate.vm.commandline.absolute_paths import with_absolute_paths
from qmp_migrate.vm.commandline.command_line import CommandLine

PROBE_S: Final = 20.0

_FACTS: Final = script("preflight/facts")

_PATHS: Final = script("preflight/access_to_files")


_SIZES: Final = script("preflight/sizes_of_files")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What one host is like; sizes in bytes.

    Attributes:
        qemu_stamp: Size, time and inode of the QEMU binary; ``""`` where it is not there.
        run_dir: ``writable``, ``unwritable``, ``absent`` (but can be made) or ``uncreatable``.
        guest_directory: ``RUN_DIR/NAME`` exists.
        locked_by: Who holds the guest's lock here; None: nobody.
        cmdline: The argv of the guest's QEMU here, from ``/proc``, with paths that mean the same from anywhere.
        addresses: Networks whose addresses this host has as its own.
        userfaultfd: How this host lets programs use it, as it is written there: post-copy needs it.
    """

    name: str
    boot_id: str = ""
    mem_available: int = 0
    mem_total: int = 0
    qemu_stamp: str = ""
    run_dir: str = ""
    guest_directory: bool = False
    locked_by: str | None = None
    kvm: bool = False
    cmdline: tuple[str, ...] = ()
    cpu_flags: frozenset[str] = frozenset()
    cpu_model: str = ""
    addresses: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    userfaultfd: str = ""

    def has_address(self, address: str) -> bool | None:
        """Tell whether an IP address is this host's own; None where that cannot be told.

        It cannot for a host name, which only the host resolves, and where the kernel's tables could not be read.
        """
        try:
            wanted = ipaddress.ip_address(address)
        except ValueError:
            return None
        return any(wanted in network for network in self.addresses) if self.addresses else None


@dataclass(frozen=True, slots=True)
class BinaryFacts:
    """What a QEMU binary can do.

    Attributes:
        version: For example ``7.2.22``.
        machines: Machine types, aliases included: name to the versioned name it stands for.
        default_machine: What a command line without ``-machine`` gets; None where the binary has no default.
        deprecated: Machine types that will go.
        cpus: CPU models: name to the features that this host cannot give it.
        cpu_aliases: CPU model alias to the versioned model.
        abilities: What it can do in a migration.
    """

    version: str = ""
    machines: dict[str, str] = field(default_factory=dict)
    default_machine: str | None = None
    deprecated: frozenset[str] = frozenset()
    cpus: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cpu_aliases: dict[str, str] = field(default_factory=dict)
    abilities: Abilities = field(default_factory=lambda: Abilities(""))


async def gather_host(host: Host, settings: HostSettings, vm: str, *, pid: int | None = None) -> HostFacts:
    """Look at a host.

    Raises:
        CommandFailed: Its shell could not do it.
        TransportError: It could not be reached.
    """
    words = [settings.run_dir, vm, settings.qemu, str(pid) if pid is not None else ""]
    return parse_host(host.name, (await host.script(_FACTS, words)).text)


def parse_host(name: str, text: str) -> HostFacts:
    """Parse what the facts script printed; unknown lines are skipped."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        found[key] = value.strip()
    cmdline = _decoded(found.get("cmdline", ""))
    return HostFacts(
        name=name,
        boot_id=found.get("boot_id", ""),
        mem_available=_number(found.get("mem_available")) * 1024,
        mem_total=_number(found.get("mem_total")) * 1024,
        qemu_stamp=found.get("qemu", ""),
        run_dir=found.get("run_dir", ""),
        guest_directory="guest_directory" in found,
        locked_by=found.get("locked"),
        kvm="kvm" in found,
        cmdline=_absolute(
            tuple(word.decode("utf-8", "surrogateescape") for word in cmdline.split(b"\0")[:-1]),
            _decoded(found.get("cwd", "")).decode("utf-8", "surrogateescape").rstrip("\n"),
        ),
        cpu_flags=frozenset(found.get("cpu_flags", "").split()),
        cpu_model=found.get("cpu_model", ""),
        userfaultfd=found.get("userfaultfd", ""),
        addresses=(
            *parse_fib_trie(_decoded(found.get("fib", "")).decode("ascii", "replace")),
            *parse_if_inet6(_decoded(found.get("if6", "")).decode("ascii", "replace")),
        ),
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _absolute(argv: tuple[str, ...], cwd: str) -> tuple[str, ...]:
    """Return an argv whose relative paths are put in terms of the process's working directory."""
    if not argv:
        return argv
    try:
        return tuple(with_absolute_paths(CommandLine.parse(argv), cwd).argv())
    except UsageError:
        return argv  # the derivation says which option cannot be read


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def parse_fib_trie(text: str) -> tuple[ipaddress.IPv4Network, ...]:
    """Return the IPv4 networks that are local, from ``/proc/net/fib_trie`` (leaf, then ``/32 host LOCAL``)."""
    local, leaf = set[ipaddress.IPv4Network](), ""
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == "|--":
            leaf = words[1]
        elif len(words) == 3 and words[1:] == ["host", "LOCAL"] and leaf:
            local.add(ipaddress.IPv4Network(f"{leaf}{words[0]}", strict=False))
    return tuple(sorted(local))


def parse_if_inet6(text: str) -> tuple[ipaddress.IPv6Network, ...]:
    """Return the host's IPv6 addresses, from ``/proc/net/if_inet6``."""
    words = (line.split() for line in text.splitlines())
    return tuple(ipaddress.IPv6Network(bytes.fromhex(w[0])) for w in words if w and len(w[0]) == 32)


async def path_states(host: Host, paths: Sequence[str]) -> dict[str, str]:
    """Return ``absent``, ``unreadable``, ``readable`` or ``writable`` for each path on a host."""
    if not paths:
        return {}
    lines = (await host.script(_PATHS, list(paths))).text.splitlines()
    return dict(zip(paths, lines, strict=True))


async def file_sizes(host: Host, paths: Sequence[str]) -> list[int | None]:
    """Return the size of each file on a host, in bytes; None where there is none."""
    if not paths:
        return []
    lines = (await host.script(_SIZES, list(paths))).text.splitlines()
    return [int(line) if line.isdecimal() else None for line in lines]


def accelerator(command: CommandLine) -> str:
    """Return the accelerator of a guest, as ``-accel`` takes it: not every host's KVM has dirty rings."""
    accel = next((name for name in command.accelerators if name in {"kvm", "tcg"}), "tcg")
    return f"kvm,dirty-ring-size={command.dirty_ring}" if accel == "kvm" and command.dirty_ring else accel


async def probe_binary(
    host: Host, settings: HostSettings, facts: HostFacts, accel: str, journal: Journal
) -> BinaryFacts:
    """Ask a QEMU binary what it can do, or the journal if it was asked before.

    Raises:
        LaunchFailed: The binary does not start.
    """
    what = f"{settings.qemu}/{facts.qemu_stamp}/{accel}/{facts.boot_id}/{facts.userfaultfd}"
    key = f"binary-3/{host.name}/{what}"
    known = await journal.probe(key)
    if known is None:
        known = await _ask_binary(host, settings.run_dir, settings.qemu, accel)
        await journal.remember_probe(key, known)
    return BinaryFacts(
        version=known["version"],
        machines=dict(known["machines"]),
        default_machine=known["default_machine"],
        deprecated=frozenset(known["deprecated"]),
        cpus={name: tuple(lacking) for name, lacking in known["cpus"].items()},
        cpu_aliases=dict(known["cpu_aliases"]),
        abilities=Abilities(
            host=host.name,
            version=known["version"],
            capabilities=frozenset(known["capabilities"]),
            parameters=frozenset(known["parameters"]),
            compressions=frozenset(known["compressions"]),
            no_postcopy=known["no_postcopy"],
        ),
    )


_POSTCOPY: Final = {"capabilities": [{"capability": "postcopy-ram", "state": True}]}
_QUESTIONS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("qmp_capabilities", {}),
    ("query-version", {}),
    ("query-machines", {}),
    ("query-cpu-definitions", {}),
    ("query-migrate-capabilities", {}),
    ("query-migrate-parameters", {}),
    ("query-qmp-schema", {}),
    ("migrate-set-capabilities", _POSTCOPY),  # tried: QEMU looks at userfaultfd then, with the rights that it has there
    ("quit", {}),
)


_PROBE: Final = script("preflight/probe_qemu")


def questions() -> bytes:
    """Return what a QEMU is asked that is started for its answers only."""
    return "".join(json.dumps({"execute": name, "arguments": a, "id": name}) for name, a in _QUESTIONS).encode()


async def _ask_binary(host: Host, run_dir: str, binary: str, accel: str) -> dict[str, Any]:
    argv = [binary, "-M", "none", "-nodefaults", "-display", "none", "-S", "-accel", accel, "-qmp", "stdio"]
    argv += ["-incoming", "defer"]
    try:
        done = await host.script(_PROBE, [run_dir, *argv], input=questions(), timeout=PROBE_S)
    except CommandFailed as error:
        raise LaunchFailed(
            f"{binary} cannot be asked what it can do (accelerator {accel})",
            stderr=error.stderr,
            hint="try it by hand on that host; is the accelerator there and allowed?",
            host=host.name,
        ) from error
    answers, refusals = _answers(done.stdout.decode("utf-8", "replace"))
    try:
        version = answers["query-version"]["qemu"]
        machines = answers["query-machines"]
        cpus = answers["query-cpu-definitions"]
        return {
            "version": f"{version['major']}.{version['minor']}.{version['micro']}",
            "machines": {m["name"]: m["name"] for m in machines}
            | {m["alias"]: m["name"] for m in machines if "alias" in m},
            "default_machine": next((m["name"] for m in machines if m.get("is-default")), None),
            "deprecated": [m["name"] for m in machines if m.get("deprecated")],
            "cpus": {cpu["name"]: sorted(set(cpu.get("unavailable-features", []))) for cpu in cpus},
            "cpu_aliases": {cpu["name"]: cpu["alias-of"] for cpu in cpus if "alias-of" in cpu},
            "capabilities": [entry["capability"] for entry in answers["query-migrate-capabilities"]],
            "parameters": list(answers["query-migrate-parameters"]),
            "compressions": sorted(
                features.enum_values(answers["query-qmp-schema"], "migrate-set-parameters", "multifd-compression")
            ),
            "no_postcopy": _no_postcopy(refusals.get("migrate-set-capabilities", ""), done.error_text),
        }
    except (KeyError, TypeError) as error:
        raise LaunchFailed(
            f"{binary} does not answer as a QEMU does ({error!r})",
            stderr=done.error_text,
            hint="does the host's `qemu` setting name a qemu-system-* binary?",
            host=host.name,
        ) from error


def _no_postcopy(refused: str, stderr: str) -> str:
    """Return why post-copy cannot be received: QEMU 7.2 tells the reason on its standard error only."""
    seen = next((line for line in stderr.splitlines() if "userfaultfd" in line.lower()), "")
    reason = seen.partition("postcopy_ram_supported_by_host: ")[2] or seen
    return f"{refused}: {reason}" if refused and reason and reason.lower() not in refused.lower() else refused


def _answers(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what QEMU answered, and what it refused with which words, by the question's id."""
    decoder, found, refused, at = json.JSONDecoder(), dict[str, Any](), dict[str, str](), 0
    while (start := text.find("{", at)) >= 0:
        try:
            message, at = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            at = start + 1
            continue
        if isinstance(message, dict) and "return" in message:
            found[str(message.get("id"))] = message["return"]
        elif isinstance(message, dict) and isinstance(message.get("error"), dict):
            refused[str(message.get("id"))] = str(message["error"].get("desc"))
    return found, refused
