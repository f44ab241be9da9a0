"""A guest is its QEMU command line: read without loss, asked what the guest is.

`CommandLine.parse` takes any argv, also one that somebody else started (``/proc/PID/cmdline``), and gives back exactly
the same words. It knows which options take an argument (`option_table`), that ``-opt`` and ``--opt`` are one,
that a word without a dash is an IDE disk image, and that an argument may itself start with a dash (``-append -x``).

What the disks, character devices and network backends are is in `disks`, `chardevs` and
`netdevs`; options without a grammar of their own (``-pidfile``, ``-L``, ``-snapshot``) are asked for by
name: `CommandLine.value`, `CommandLine.values`, `CommandLine.has`.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from qmp_migrate.errors import InvalidQuantity, UsageError
from qmp_migrate.vm.commandline import properties
from qmp_migrate.vm.commandline.option_table import FLAGS, IMPLIED_KEY, TAKES_JSON, WITH_VALUE
from qmp_migrate.vm.commandline.properties import Properties
from qmp_migrate.vm.units import parse_qemu_size

MIB: Final = 1 << 20
DEFAULT_MEMORY: Final = 128 * MIB
"""What QEMU gives a PC without ``-m``, in bytes."""

ALIASES: Final = {"M": "machine", "help": "h"}
"""Options with two names, and the one used here."""

UNVERSIONED: Final = frozenset({"pc", "q35", "isapc", "microvm", "none", "virt", "pseries", "s390-ccw-virtio"})
"""Machine types that mean something else in the next QEMU (aliases), or promise nothing across versions."""

_SECRET: Final = re.compile(r"""\b((?:password|data)"?\s*[=:]\s*)("[^"]*"|(?:[^,}]|,,)*)""")
_LOADER: Final = re.compile(r"ld(-linux|-musl)?(-[A-Za-z0-9_-]+)?\.so(\.[0-9]+)?")
_LOADER_VALUES: Final = frozenset(
    {"--library-path", "--preload", "--argv0", "--audit", "--inhibit-rpath", "--glibc-hwcaps-prepend"}
)


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a command line.

    Attributes:
        flag: As it is written (``-m``, ``--m``), or ``""`` for a disk image without an option.
        value: Its argument, or ``None`` where the option takes none.
    """

    flag: str
    value: str | None = None

    @property
    def name(self) -> str:
        """The option's one name, without dashes: ``machine`` for ``-M``; ``""`` for a bare disk image."""
        bare = self.flag[2:] if self.flag.startswith("--") else self.flag[1:]
        return ALIASES.get(bare, bare)

    @property
    def has_properties(self) -> bool:
        """Whether its argument is ``key=value,…`` or JSON."""
        return self.name in IMPLIED_KEY and self.value is not None

    def properties(self) -> Properties:
        """Read its argument as properties.

        Raises:
            UsageError: It starts like JSON and is not.
        """
        return properties.read(
            self.value or "", implied=IMPLIED_KEY.get(self.name, ""), takes_json=self.name in TAKES_JSON
        )

    def with_value(self, value: str) -> Option:
        """Return the same option with another argument."""
        return replace(self, value=value)

    @property
    def brief(self) -> str:
        """The option in at most 80 characters, for messages; passwords and secrets' data are masked."""
        words = " ".join(word for word in (self.flag, self.value) if word)
        masked = _SECRET.sub(r"\1***", words)
        return masked if len(masked) <= 80 else masked[:77] + "..."


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A QEMU command line.

    Attributes:
        binary: The program, as it is written.
        options: All options, in order: the order decides the guest's PCI addresses.
        loader: Words before the binary where it was started through a dynamic loader of its own
            (``ld-linux… --library-path DIR``), as an unpacked QEMU is; else empty.
    """

    binary: str
    options: tuple[Option, ...] = ()
    loader: tuple[str, ...] = ()

    @classmethod
    def parse(cls, argv: Sequence[str]) -> CommandLine:
        """Read an argv.

        Args:
            argv: All words, the program first.

        Raises:
            UsageError: No words at all, a word with a NUL, or an option whose argument is missing.
        """
        words = list(argv)
        if any("\0" in word for word in words):
            raise UsageError("a command line holds a NUL character", hint="pass the words of the argv one by one")
        start = _loader_length(words)
        if start >= len(words) or not words[start]:
            raise UsageError("the command line is empty", hint="the first word is the QEMU program")
        options = []
        position = start + 1
        while position < len(words):
            option, used = _read_option(words, position)
            options.append(option)
            position += used
        return cls(words[start], tuple(options), tuple(words[:start]))

    @classmethod
    def from_proc(cls, cmdline: bytes) -> CommandLine:
        """Read the content of ``/proc/PID/cmdline``: words ended by NUL, in any encoding.

        Raises:
            UsageError: It is empty (a kernel thread, or a process that has ended), or no command line of QEMU's form.
        """
        return cls.parse([os.fsdecode(word) for word in cmdline.removesuffix(b"\0").split(b"\0")])

    def argv(self) -> list[str]:
        """Return the words again; ``CommandLine.parse(argv).argv() == argv`` for every argv that can be read."""
        words = [*self.loader, self.binary]
        for option in self.options:
            words += [word for word in (option.flag or None, option.value) if word is not None]
        return words

    def named(self, *names: str) -> tuple[Option, ...]:
        """Return the options of these names, in order (names without dashes)."""
        return tuple(option for option in self.options if option.name in names)

    def has(self, name: str) -> bool:
        """Return whether an option is there: ``has("snapshot")``, ``has("S")``."""
        return any(option.name == name for option in self.options)

    def values(self, name: str) -> tuple[str, ...]:
        """Return the arguments of all options of one name, in order: ``values("L")``."""
        return tuple(option.value for option in self.options if option.name == name and option.value is not None)

    def value(self, name: str) -> str | None:
        """Return the argument of the last option of one name (``value("pidfile")``), or ``None``."""
        return next(reversed(self.values(name)), None)

    def unknown(self) -> tuple[Option, ...]:
        """Return options that neither of the known QEMUs has (a patched one, a later one)."""
        return tuple(
            option
            for option in self.options
            if option.flag and option.name not in WITH_VALUE and option.name not in FLAGS
        )

    def _merged(self, *names: str) -> Properties:
        """Join the properties of all options of these names: QEMU merges repeated ones, the last value wins."""
        return Properties(tuple(item for option in self.named(*names) for item in option.properties().items))

    @property
    def name(self) -> str | None:
        """The guest's name (``-name``), or ``None``."""
        return self._merged("name").get("guest")

    @property
    def uuid(self) -> str | None:
        """The guest's UUID (``-uuid``) as it is written, or ``None``."""
        return self.value("uuid")

    @property
    def memory_bytes(self) -> int:
        """Memory the guest starts with, in bytes (``-m``, ``-machine memory.size=``); QEMU's default where not given.

        Raises:
            InvalidQuantity: It is no size.
        """
        given = self._merged("m").get("size")
        if given is not None:
            return parse_qemu_size(given, unit=MIB)
        given = self._merged("machine").get("memory.size")
        return DEFAULT_MEMORY if given is None else parse_qemu_size(given)

    @property
    def max_memory_bytes(self) -> int:
        """Memory the guest can grow to, in bytes; the present one where it cannot.

        Raises:
            InvalidQuantity: It is no size.
        """
        given = self._merged("m").get("maxmem") or self._merged("machine").get("memory.max-size")
        return self.memory_bytes if given is None else parse_qemu_size(given)

    @property
    def memory_slots(self) -> int:
        """Number of slots for hot-plugged memory."""
        return _number(self._merged("m").get("slots") or self._merged("machine").get("memory.slots") or "0", "slots")

    @property
    def vcpus(self) -> int:
        """Number of vCPUs the guest starts with (``-smp``); where only a topology is given, what QEMU makes of it.

        Raises:
            InvalidQuantity: It is no number.
        """
        return self._smp()[0]

    @property
    def max_vcpus(self) -> int:
        """Number of vCPUs the guest can have.

        Raises:
            InvalidQuantity: It is no number.
        """
        return self._smp()[1]

    def _smp(self) -> tuple[int, int]:
        given = self._merged("smp")
        machine = self._merged("machine")

        def number(key: str) -> int | None:
            text = given.get(key) or machine.get(f"smp.{key}")
            return None if text is None else _number(text, f"-smp {key}")

        topology = 1
        for key in ("sockets", "dies", "clusters", "modules", "cores", "threads"):
            topology *= number(key) or 1
        cpus, maximum = number("cpus"), number("maxcpus")
        maximum = maximum or max(topology, cpus or 1)
        return cpus or maximum, maximum

    @property
    def machine(self) -> str | None:
        """Machine type as it is written (``-machine``, ``-M``), or ``None`` where QEMU chooses."""
        return self._merged("machine").get("type")

    @property
    def cpu(self) -> str | None:
        """CPU model without its features (``-cpu``), or ``None`` where QEMU chooses."""
        given = self.value("cpu")
        return None if given is None else given.partition(",")[0]

    @property
    def accelerators(self) -> tuple[str, ...]:
        """Accelerators in order of preference (``-accel``, ``-machine accel=``, ``-enable-kvm``); ``tcg`` by default."""
        chosen = [option.properties().get("accel") for option in self.named("accel")]
        if not chosen and self.has("enable-kvm"):
            chosen = ["kvm"]
        if not chosen:
            chosen = list((self._merged("machine").get("accel") or "tcg").split(":"))
        return tuple(accel for accel in chosen if accel)

    @property
    def dirty_ring(self) -> int:
        """Entries of KVM's dirty ring for each vCPU (``-accel kvm,dirty-ring-size=``); 0: none."""
        for option in self.named("accel"):
            given = option.properties()
            if given.get("accel") == "kvm":
                return int(size) if (size := given.get("dirty-ring-size") or "").isdecimal() else 0
        return 0

    @property
    def incoming(self) -> str | None:
        """What ``-incoming`` says (``defer``, a URI), or ``None`` for a guest that was booted here."""
        return self.value("incoming")


def is_versioned(machine: str) -> bool:
    """Return whether a machine type means the same in every QEMU that has it (``pc-q35-7.2``; not ``q35``)."""
    return machine.partition("+")[0] not in UNVERSIONED  # Proxmox adds its own version: pc+pve0


def _number(text: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InvalidQuantity(f"{what} {text[:40]!r} is not a number", hint="see the guest's QEMU command line")
    return int(text)


def _loader_length(words: Sequence[str]) -> int:
    """Return how many words belong to a dynamic loader that starts the program."""
    if not words or not _LOADER.fullmatch(posixpath.basename(words[0])):
        return 0
    position = 1
    while position < len(words) and words[position].startswith("--"):
        position += 2 if words[position] in _LOADER_VALUES else 1
    return position


def _read_option(words: Sequence[str], position: int) -> tuple[Option, int]:
    """Read the option at `position`; return it and the number of words it used."""
    word = words[position]
    if not word.startswith("-"):
        return Option("", word), 1
    bare = word[2:] if word.startswith("--") else word[1:]
    following = words[position + 1] if position + 1 < len(words) else None
    if bare in FLAGS:
        return Option(word), 1
    if bare in WITH_VALUE:
        if following is None:
            raise UsageError(f"option {word} has no argument", hint="the command line ends too early")
        return Option(word, following), 2
    # An option of a QEMU we do not know. A bare disk image behind it is far rarer than an argument of its own.
    if following is not None and not following.startswith("-"):
        return Option(word, following), 2
    return Option(word), 1
