"""The destination's command line, derived from the source's.

The destination must build the same machine, device by device in the same order (the order decides PCI addresses), and
must wait for the memory: ``-S -incoming defer``, once (DESIGN rule 2). Everything that belongs to the host is put in
the destination's terms: the guest's own directory, paths by `path_map`, listening addresses by `address_map`. All
else stays to the letter, so a guest that goes there and back has its command line back.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from qmp_migrate.errors import ConfigError
from qmp_migrate.vm.commandline import properties
from qmp_migrate.vm.commandline.command_line import CommandLine, Option, is_versioned
from qmp_migrate.vm.commandline.listen_addresses import rewrite_listeners
from qmp_migrate.vm.commandline.monitor_sockets import with_monitors
from qmp_migrate.vm.commandline.option_table import IMPLIED_KEY
from qmp_migrate.vm.commandline.paths import PathKind, rewrite_paths
from qmp_migrate.vm.host_dependencies import host_bound

_DROPPED: Final = {
    "daemonize": "the launcher watches over the process itself",
    "pidfile": "the launcher writes its own",
    "loadvm": "the state comes from the source",
}
_WAITING: Final = (Option("-S"), Option("-incoming", "defer"))
_GUEST_TEXT: Final = frozenset({"append", "smbios", "fw_cfg", "name"})


@dataclass(frozen=True, slots=True)
class Derived:
    """A destination's command line and what a person should know about it.

    Attributes:
        command: What to start at the destination. Not to be started where there are refusals.
        changes: What differs from the source and why, one line each.
        warnings: What will be different at the destination, or must be ready there, one line each.
        refusals: Why the guest cannot be moved as it is, one line each; empty: it can.
    """

    command: CommandLine
    changes: tuple[str, ...]
    warnings: tuple[str, ...]
    refusals: tuple[str, ...]


def derive_destination(
    source: CommandLine,
    *,
    binary: str,
    source_dir: str,
    dest_dir: str,
    path_map: Mapping[str, str] | None = None,
    machine: str | None = None,
    cpu: str | None = None,
    address_map: Mapping[str, str] | None = None,
) -> Derived:
    """Derive the destination's command line.

    Args:
        source: The source's command line; nothing in it is changed that is not named here.
        binary: QEMU program on the destination.
        source_dir: The guest's directory on the source (``RUN_DIR/NAME``), absolute.
        dest_dir: The guest's directory on the destination, absolute.
        path_map: ``{prefix on the source: prefix on the destination}``; the longest prefix that ends at a slash wins.
        machine: Versioned machine type that the source's alias stands for; ``None`` leaves the type as it is.
        cpu: CPU model that the source's alias stands for; ``None`` leaves the model as it is.
        address_map: ``{address of the source: address of the destination}``, for what listens.

    Returns:
        The command line, the changes, the warnings and the refusals.

    Raises:
        ConfigError: A directory or a mapped prefix is not absolute, or a socket path gets too long.
    """
    bound = host_bound(source)
    if not bound.readable:
        return Derived(source, (), (), bound.refusals)
    paths = _PathMap.of({**(path_map or {}), source_dir: dest_dir})
    work = _Derivation(_normal(source_dir), paths, dict(address_map or {}), list(bound.warnings), list(bound.refusals))
    options = [work.translated(option) for option in source.options if work.keeps(option)]
    options = work.pinned_machine(options, source.machine, machine)
    options = work.pinned_cpu(options, source.cpu, cpu)
    command = with_monitors(CommandLine(binary, tuple(options)), dest_dir)
    for added in command.options[len(options) :]:
        work.changes.append(f"{added.brief}: added, the monitor of the controller or the agent")
    command = CommandLine(binary, (*command.options, *_WAITING))
    work.changes.append("-S -incoming defer: waits for the guest's memory, runs when told")
    work.look_over(command, _normal(dest_dir))
    return Derived(command, tuple(work.changes), tuple(dict.fromkeys(work.warnings)), tuple(work.refusals))


def path_mapper(path_map: Mapping[str, str], source_dir: str, dest_dir: str) -> Callable[[str], str]:
    """Return the function that `derive_destination` puts paths in the destination's terms with; others stay as they are.

    Args:
        path_map: As there.
        source_dir: The guest's directory on the source, absolute.
        dest_dir: The guest's directory on the destination, absolute.

    Raises:
        ConfigError: A prefix is not absolute.
    """
    paths = _PathMap.of({**path_map, source_dir: dest_dir})
    return lambda path: paths.map(path) or path


@dataclass(slots=True)
class _Derivation:
    """One derivation under way: the maps, and what is found out."""

    source_dir: str
    paths: _PathMap
    addresses: Mapping[str, str]
    warnings: list[str]
    refusals: list[str]
    changes: list[str] = field(default_factory=list)

    def keeps(self, option: Option) -> bool:
        """Return whether an option goes along; say so where it does not."""
        if option.name in _DROPPED:
            self.changes.append(f"{option.brief}: dropped, {_DROPPED[option.name]}")
            return False
        if option.name == "incoming" and option.value != "defer":
            self.changes.append(f"{option.brief}: dropped, it was for the way here")
        return option.name not in {"S", "incoming"}

    def translated(self, option: Option) -> Option:
        """Return an option in the destination's terms."""

        def path(old: str, kind: PathKind) -> str:
            new = self.paths.map(old)
            if new is not None:
                if new != old:
                    own = _normal(old).startswith(f"{self.source_dir}/")
                    why = "the guest's directory at the destination" if own else "the path map says so"
                    self.changes.append(f"-{option.name}: {old} → {new}, {why}")
                return new
            if not old.startswith("/"):
                self.warnings.append(f"-{option.name}: {old} counts from the directory that QEMU was started in")
            elif kind == "optional" and option.name not in {"L", "D"}:
                self.warnings.append(
                    f"-{option.name}: {old} is used or made on the destination too; nothing else there may use it"
                )
            return old

        def address(old: str) -> str:
            new = self.addresses.get(old, old)
            if new != old:
                self.changes.append(f"-{option.name}: listens on {new} instead of {old}")
                self.warnings.append(f"-{option.name}: clients must be told the new address {new}")
            else:
                place = f"the address {old}" if old else "every address"
                self.warnings.append(
                    f"-{option.name}: listens on {place}; the destination must have it, and the port free"
                )
            return new

        return rewrite_listeners(rewrite_paths(option, path), address)

    def pinned_machine(self, options: list[Option], present: str | None, machine: str | None) -> list[Option]:
        """Put the versioned machine type in place of an alias; order and other properties stay."""
        if machine is None or machine == present:
            if machine is None and (present is None or not is_versioned(present)):
                self.warnings.append(f"machine type {present or 'not given'}: may mean another machine in another QEMU")
            return options
        if present is None:
            self.changes.append(f"-machine {machine}: added, what the source's QEMU took by default")
            return [Option("-machine", f"type={machine}"), *options]
        if is_versioned(present):
            self.refusals.append(f"-machine {present}: cannot become {machine}, the guest would see other hardware")
            return options
        self.changes.append(f"-machine: {present} → {machine}, the alias means another machine in another QEMU")

        def pin(key: str, value: str) -> str:
            return machine if key == "type" else value

        return [
            option.with_value(properties.rewrite(option.value or "", pin, implied=IMPLIED_KEY["machine"]))
            if option.name == "machine"
            else option
            for option in options
        ]

    def pinned_cpu(self, options: list[Option], present: str | None, cpu: str | None) -> list[Option]:
        """Put the CPU model in place of its alias; features stay."""
        if cpu is None or cpu == present:
            return options
        if present is None:
            self.changes.append(f"-cpu {cpu}: added, what the source's QEMU took by default")
            return [Option("-cpu", cpu), *options]
        if re.search(r"-v[0-9]+$", present) or present in {"host", "max"}:
            self.refusals.append(f"-cpu {present}: cannot become {cpu}, the guest would see another CPU")
            return options
        self.changes.append(f"-cpu: {present} → {cpu}, the alias may mean another CPU in another QEMU")
        last = max(index for index, option in enumerate(options) if option.name == "cpu")
        features = (options[last].value or "").removeprefix(present)
        options = [*options[:last], options[last].with_value(cpu + features), *options[last + 1 :]]
        return [_renamed_vcpu(option, present, cpu) if option.name == "device" else option for option in options]

    def look_over(self, command: CommandLine, dest_dir: str) -> None:
        """Warn about options that still name the source's directory, in words that are not understood here."""
        if f"{dest_dir}/".startswith(f"{self.source_dir}/"):
            return
        left = re.compile(re.escape(self.source_dir) + r"(?![A-Za-z0-9_.-])")
        for option in command.options:
            if option.name not in _GUEST_TEXT and left.search(option.value or ""):
                self.warnings.append(f"{option.brief}: still names {self.source_dir}, left as it is")


def _renamed_vcpu(option: Option, present: str, cpu: str) -> Option:
    """Return a vCPU that was plugged in (``-device qemu64-x86_64-cpu,…``) as one of the pinned model: QEMU takes no other."""
    kind = re.compile(re.escape(present) + r"-([a-z0-9_]+-cpu)")

    def rename(key: str, value: str) -> str:
        match = kind.fullmatch(value) if key == "driver" else None
        return f"{cpu}-{match[1]}" if match else value

    return option.with_value(properties.rewrite(option.value or "", rename, implied="driver", takes_json=True))


@dataclass(frozen=True, slots=True)
class _PathMap:
    """Path prefixes and what stands for them, longest first."""

    prefixes: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, mapping: Mapping[str, str]) -> _PathMap:
        """Check and sort a mapping.

        Raises:
            ConfigError: A prefix is not absolute.
        """
        for path in (*mapping, *mapping.values()):
            if not path.startswith("/") or "\0" in path:
                raise ConfigError(f"{path!r} in a path map is not an absolute path", hint="start it with a slash")
        clean = {_normal(old): _normal(new) for old, new in mapping.items()}
        return cls(tuple(sorted(clean.items(), key=lambda item: len(item[0]), reverse=True)))

    def map(self, path: str) -> str | None:
        """Return the destination's path, or ``None`` for a path under no prefix."""
        if not path.startswith("/"):
            return None
        normal = _normal(path)
        for old, new in self.prefixes:
            if normal == old or normal.startswith(f"{old.rstrip('/')}/"):
                return path if new == old else _normal(f"{new}/{normal[len(old.rstrip('/')) :]}")
        return None


def map_path(path: str, path_map: Mapping[str, str]) -> str:
    """Return the name that a path has on another host.

    Args:
        path: Absolute.
        path_map: As in `derive_destination`.

    Raises:
        ConfigError: A mapped prefix is not absolute.
    """
    return _PathMap.of(path_map).map(path) or path


def _normal(path: str) -> str:
    """Return an absolute path without ``.``, ``..`` and doubled slashes (POSIX lets a double one lead)."""
    return "/" + posixpath.normpath(path).lstrip("/")
