"""Says whether a guest survived, from what the guest itself wrote (the test guests of ``vm-images/``, Linux and bare).

The test guest counts ticks, rewrites and verifies its memory, and keeps a journal on its disk; it tells all of that
on its serial line. :func:`judge` reads the serial logs of the hosts in the order in which they owned the guest and
returns a :class:`Verdict`. Its disk is compared with that by :func:`qmp_migrate.rig.guest.disk_journal.check_journal`.

The logs are taken as one stream of bytes: a line may be cut anywhere by the switchover, its first half in one log and
the rest in the next. Lines carry a check code, so half a line is never taken for a whole one, and kernel messages are
cut out wherever they stand, also in the middle of a line. What each line means is written in
``vm-images/README.md``. Everything here is pure: bytes in, values out.

    verdict = judge([source_log, destination_log])
    assert verdict.survived, verdict.reasons
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

_MIB = 1 << 20
_PAGE_BYTES = 4096
_DAY_S = 86400

# The kernel writes to the serial console with interrupts off: its records are whole, and end in CR LF; ours end in LF.
_KERNEL_RECORD = re.compile(rb"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? [^\n]*\r\n")
_LINE = re.compile(r"QM (?P<kind>[A-Z]+)(?P<rest>(?: .*)?) #(?P<check>[0-9a-f]{4})")
_N = r"(\d{1,20})"
_TICKS = re.compile(rf" {_N}(?:-{_N})? {_N} {_N} {_N}")
_SWEEP = re.compile(rf" {_N} (ok|bad) pages={_N} since={_N}(?: bad={_N})?")
_WALL = re.compile(rf" {_N} {_N} {_N}")
_JOURNAL = re.compile(rf" {_N} {_N}")
_COMPUTED = re.compile(rf" {_N} {_N} {_N}")


@dataclass(frozen=True, slots=True)
class Ready:
    """What the guest was set to do, as it said itself when it began.

    Attributes:
        ws_mib: Working set in MiB.
        rate_mib_s: Dirty rate that is aimed at, MiB per second; ``None``: as much as the machine gives.
        tick_ms: Tick period in milliseconds.
        seed: Seed of the memory pattern.
        verify: Whether the guest verifies its memory.
        disk: Device of the disk journal, or ``None``.
    """

    ws_mib: int
    rate_mib_s: int | None
    tick_ms: int
    seed: int
    verify: bool
    disk: str | None


@dataclass(frozen=True, slots=True)
class Computed:
    """How far a vCPU that only computes had come (bare guest, ``qm.compute``).

    Attributes:
        cpu: Number of the vCPU.
        mono_ns: When, on the guest's own clock, nanoseconds.
        rounds: Rounds it had computed by then, since the guest began.
    """

    cpu: int
    mono_ns: int
    rounds: int


@dataclass(frozen=True, slots=True)
class TickFault:
    """A place where the ticks do not go on.

    Attributes:
        expected: The tick number that had to come.
        found: The one that came: higher, ticks are missing; lower, ticks are repeated (an old state runs).
    """

    expected: int
    found: int

    def __str__(self) -> str:
        if self.found > self.expected:
            return f"ticks {self.expected} to {self.found - 1} are missing"
        return f"tick {self.found} came again where {self.expected} was due"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the logs prove.

    Attributes:
        ready: The guest's settings, or ``None`` if it never got ready.
        boots: How many times the guest started; more than once means that it was reset.
        first_tick: First tick number in the logs; 0 where there is none.
        last_tick: Last tick number.
        tick_faults: Where ticks are missing or repeated.
        ticks_after_handover: Ticks in lines that began in the last log; all ticks where there is one log.
        largest_gap_ms: Longest time between two ticks on the guest's own clock, milliseconds. That clock stands still
            while the guest is stopped, so this is what the guest suffered while it *ran*; it includes the tick period.
        blackout_ms: Longest time, in milliseconds, that the wall clock moved on while the guest's own clock stood still,
            between two looks at it that are about a second apart: the blackout as the guest can see it. ``None``
            where the guest has not seen its wall clock change twice. Exact to about a millisecond where the hosts'
            clocks agree, to five where the bare guest's host is busy.
        written_pages: Pages of 4 KiB that the guest has written, counted by itself, since it began.
        achieved_mib_s: Dirty rate that was held between the first and the last tick line, MiB per second of the guest's
            own time; ``None`` with fewer than two lines.
        sweeps_ok: Whole verifications of the working set that found nothing.
        sweeps_ok_after_handover: Those of them that also began after the hand-over.
        corruption: Every line in which the guest reports damage, as it is.
        journal: Sequence numbers of disk journal records that the guest was told are on the disk, in order.
        journal_after_handover: How many of them were acknowledged in the last log.
        largest_disk_ms: Longest time a journal write took on the guest's own clock, milliseconds.
        computed: What the vCPUs that only compute have done, in the order in which the guest told it.
        ended: How the guest ended itself (``poweroff``, ``reboot``, ``panic``), or ``None``.
        kernel: What the guest's kernel wrote first while the guest worked, or ``None``. Only emergencies reach the serial
            line then: an oops, a lock-up, a panic.
        damaged_lines: Lines of the guest that are not whole or not understood, as they are.
        reasons: Why the guest did not survive; empty if it did.
    """

    ready: Ready | None
    boots: int
    first_tick: int
    last_tick: int
    tick_faults: tuple[TickFault, ...]
    ticks_after_handover: int
    largest_gap_ms: float
    blackout_ms: float | None
    written_pages: int
    achieved_mib_s: float | None
    sweeps_ok: int
    sweeps_ok_after_handover: int
    corruption: tuple[str, ...]
    journal: tuple[int, ...]
    journal_after_handover: int
    largest_disk_ms: float
    computed: tuple[Computed, ...]
    ended: str | None
    kernel: str | None
    damaged_lines: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def survived(self) -> bool:
        """True if nothing speaks against it: same memory, same count, same disk, and it goes on after the hand-over."""
        return not self.reasons


@dataclass(slots=True)
class _Reading:
    """What has been read so far; :meth:`line` takes one line after another."""

    ready: Ready | None = None
    boots: int = 0
    first_tick: int = 0
    last_tick: int = 0
    tick_faults: list[TickFault] = field(default_factory=list)
    ticks_after: int = 0
    handover_tick: int | None = None
    largest_gap_us: int = 0
    first_count: tuple[int, int] | None = None
    last_count: tuple[int, int] = (0, 0)
    wall: tuple[int, int] | None = None
    blackout_ns: int | None = None
    sweeps_ok: int = 0
    sweeps_ok_after: int = 0
    corruption: list[str] = field(default_factory=list)
    journal: list[int] = field(default_factory=list)
    journal_after: int = 0
    largest_disk_us: int = 0
    computed: list[Computed] = field(default_factory=list)
    ended: str | None = None
    damaged: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kernel: str | None = None

    def line(self, text: str, *, after: bool) -> None:
        """Takes one line that starts with ``QM``; `after`: it began in the last log."""
        line = _LINE.fullmatch(text)
        if line is None or int(line["check"], 16) != zlib.crc32(text[:-6].encode()) & 0xFFFF:
            self.damaged.append(text)
            return
        rest = line["rest"]
        understood = True
        match line["kind"]:
            case "T":
                understood = self._ticks(rest, after)
            case "READY":
                understood = self._ready(rest)
            case "V":
                understood = self._sweep(rest)
            case "W":
                understood = self._wall(rest)
            case "J":
                understood = self._journal(rest, after)
            case "C":
                understood = self._compute(rest)
            case "BAD":
                self.corruption.append(text[:-6])
            case "PANIC" | "ERR":
                self.problems.append(f"the guest reports: {text[:-6]}")
            case "END":
                self.ended = rest.strip()
            case "CMD":
                pass
            case _:
                understood = False
        if not understood:
            self.damaged.append(text)

    def _ready(self, rest: str) -> bool:
        words = dict(word.split("=", 1) for word in rest.split() if "=" in word)
        try:
            self.ready = Ready(
                ws_mib=int(words["ws"]),
                rate_mib_s=None if words["rate"] == "unlimited" else int(words["rate"]),
                tick_ms=int(words["tick"]),
                seed=int(words["seed"]),
                verify=words["verify"] == "1",
                disk=None if words["disk"] == "-" else words["disk"],
            )
        except (KeyError, ValueError):
            return False
        if words.get("v") != "1":
            self.problems.append(f"the guest speaks version {words.get('v')} of the contract, we know 1")
        self.boots += 1
        # A new life of the guest: its counts begin again, its disk does not.
        self.last_tick, self.first_count, self.last_count, self.wall = 0, None, (0, 0), None
        return True

    def _ticks(self, rest: str, after: bool) -> bool:
        fields = _TICKS.fullmatch(rest)
        if fields is None:
            return False
        first, last = int(fields[1]), int(fields[2] or fields[1])
        if last < first:
            return False
        mono_ns, written, gap_us = int(fields[3]), int(fields[4]), int(fields[5])
        # A log may begin anywhere if the guest was already running, but only the first may.
        if first != self.last_tick + 1 and (self.last_tick or self.ready):
            self.tick_faults.append(TickFault(expected=self.last_tick + 1, found=first))
        if self.first_count is None:
            self.first_tick = self.first_tick or first
            self.first_count = (mono_ns, written)
        elif mono_ns < self.last_count[0] or written < self.last_count[1]:
            self.problems.append(f"the guest's clock or its count of writes went back at tick {first}")
        self.last_tick, self.last_count = last, (mono_ns, written)
        self.largest_gap_us = max(self.largest_gap_us, gap_us)
        if after:
            self.ticks_after += last - first + 1
            if self.handover_tick is None:
                self.handover_tick = last
        return True

    def _sweep(self, rest: str) -> bool:
        fields = _SWEEP.fullmatch(rest)
        if fields is None:
            return False
        if fields[2] == "bad":
            self.corruption.append(f"QM V{rest}")
            return True
        self.sweeps_ok += 1
        # Not simply "printed in the last log": such a sweep may have read most pages before the hand-over.
        if self.handover_tick is not None and int(fields[4]) >= self.handover_tick:
            self.sweeps_ok_after += 1
        return True

    def _wall(self, rest: str) -> bool:
        fields = _WALL.fullmatch(rest)
        if fields is None:
            return False
        second, mono_ns = int(fields[1]), int(fields[2])
        if self.wall is not None:
            passed_s = (second - self.wall[0] + _DAY_S // 2) % _DAY_S - _DAY_S // 2
            lost_ns = passed_s * 1_000_000_000 - (mono_ns - self.wall[1])
            self.blackout_ns = max(self.blackout_ns or 0, lost_ns)
        self.wall = (second, mono_ns)
        return True

    def _journal(self, rest: str, after: bool) -> bool:
        fields = _JOURNAL.fullmatch(rest)
        if fields is None:
            return False
        seq = int(fields[1])
        if self.journal and seq != self.journal[-1] + 1:
            self.problems.append(f"journal record {seq} was acknowledged where {self.journal[-1] + 1} was due")
        self.journal.append(seq)
        self.journal_after += after
        self.largest_disk_us = max(self.largest_disk_us, int(fields[2]))
        return True

    def _compute(self, rest: str) -> bool:
        fields = _COMPUTED.fullmatch(rest)
        if fields is None:
            return False
        self.computed.append(Computed(cpu=int(fields[1]), mono_ns=int(fields[2]), rounds=int(fields[3])))
        return True

    def reasons(self, logs: int) -> tuple[str, ...]:
        """Everything that speaks against the guest's survival, the plainest first."""
        found = []
        if self.ready is None:
            found.append("the guest never said QM READY")
        if self.boots > 1:
            found.append(f"the guest started {self.boots} times: it was reset")
        if self.ended:
            found.append(f"the guest ended: {self.ended}")
        if self.kernel:
            found.append(f"the guest's kernel reports: {self.kernel}")
        found += self.problems
        found += [f"memory or disk is damaged: {line}" for line in self.corruption]
        found += [str(fault) for fault in self.tick_faults]
        found += [f"a line of the guest is damaged: {line!r}" for line in self.damaged]
        if not self.ticks_after:
            found.append("no tick after the hand-over" if logs > 1 else "no tick")
        if self.ready and self.ready.verify and not self.sweeps_ok_after:
            found.append("no whole verification of the memory after the hand-over")
        if self.ready and self.ready.disk and not self.journal_after:
            found.append("no journal record after the hand-over")
        return tuple(found)

    def verdict(self, logs: int) -> Verdict:
        """The reading so far as a result."""
        achieved = None
        if self.first_count is not None and self.last_count[0] > self.first_count[0]:
            pages = self.last_count[1] - self.first_count[1]
            seconds = (self.last_count[0] - self.first_count[0]) / 1e9
            achieved = pages * _PAGE_BYTES / _MIB / seconds
        return Verdict(
            ready=self.ready,
            boots=self.boots,
            first_tick=self.first_tick,
            last_tick=self.last_tick,
            tick_faults=tuple(self.tick_faults),
            ticks_after_handover=self.ticks_after,
            largest_gap_ms=self.largest_gap_us / 1000,
            blackout_ms=None if self.blackout_ns is None else self.blackout_ns / 1e6,
            written_pages=self.last_count[1],
            achieved_mib_s=achieved,
            sweeps_ok=self.sweeps_ok,
            sweeps_ok_after_handover=self.sweeps_ok_after,
            corruption=tuple(self.corruption),
            journal=tuple(self.journal),
            journal_after_handover=self.journal_after,
            largest_disk_ms=self.largest_disk_us / 1000,
            computed=tuple(self.computed),
            ended=self.ended,
            kernel=self.kernel,
            damaged_lines=tuple(self.damaged),
            reasons=self.reasons(logs),
        )


def judge(logs: Sequence[bytes]) -> Verdict:
    """Read the serial logs of one guest and say whether it survived.

    Args:
        logs: Serial logs in the order in which their hosts owned the guest: one for a guest that stayed, two after one
            migration, and so on. A guest that came back to a host has two logs of it. The hand-over that is meant in
            the result is the one before the last log. An unfinished line at the very end is left out: the guest may
            still be writing it.

    Returns:
        The verdict; it never raises, whatever the bytes are.
    """
    stream = b"".join(logs)
    handover = len(stream) - len(logs[-1]) if len(logs) > 1 else 0
    working_from = stream.find(b"QM READY ")
    ended_at = stream.find(b"QM END ")
    reading = _Reading(handover_tick=0 if len(logs) < 2 else None)

    own: list[bytes] = []
    position = cut_before_handover = 0
    for record in _KERNEL_RECORD.finditer(stream):
        own.append(stream[position : record.start()])
        position = record.end()
        cut_before_handover += max(0, min(record.end(), handover) - record.start())
        working = 0 <= working_from < record.start() and not 0 <= ended_at < record.start()
        if working and reading.kernel is None:
            reading.kernel = _text(record[0].rstrip())
    own.append(stream[position:])
    handover -= cut_before_handover

    position = 0
    for line in b"".join(own).split(b"\n")[:-1]:
        if line.startswith(b"QM "):
            reading.line(_text(line), after=position >= handover)
        position += len(line) + 1
    return reading.verdict(len(logs))


def _text(raw: bytes) -> str:
    return raw.decode("ascii", "backslashreplace")
