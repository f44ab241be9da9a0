"""One migration on paper: QEMU's passes, one after the other, with a policy that decides between them. Pure.

What is played is what ``migration/migration.c`` and ``migration/ram.c`` do (7.2 to 11.1): a pass sends what the bitmap held
when it was read, and QEMU reads it again once what is left would fit into ``downtime-limit``; if what it then finds still
fits, the guest is stopped. Throttling begins when the bitmap is read, once a second at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

from qmp_migrate.migration.convergence import vcpu_dirty_limit
from qmp_migrate.migration.convergence.ladder import LAST_KINDS, NOTHING, Sample, Step
from qmp_migrate.migration.convergence.vcpu_dirty_limit import RING_ENTRY_BYTES
from qmp_migrate.migration.forecast.dirty_curve import DirtyCurve
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.vm.units import about_size

Outlook: TypeAlias = Literal["completes", "gives-up", "endless"]

ZERO_PAGES_BYTES_PER_S: Final = 3 << 30
"""How quickly QEMU finds that memory is all zeros."""

ZERO_PAGE_SHARE: Final = 9 / 4096
"""What a zero page costs on the wire."""

PAGE_OVERHEAD: Final = 1 + 8 / 4096

LONGEST_MS: Final = 24 * 3600 * 1000
"""What takes longer than a day is told to have no end."""

LOOKS: Final = 1000
"""Passes and looks within them that are played through at most."""

THROTTLE_PERIOD_MS: Final = 1000

SYNC_MS: Final = 0.5
"""Reading a dirty bitmap of which nothing is set."""

BURST_MS: Final = 50
CAPPED_BURST_MS: Final = 100
"""QEMU sends for so long before it looks at what is left; under a limit of its own it sends all 100 ms."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The guest, as it was measured.

    Attributes:
        ram_bytes: Its memory.
        present_bytes: The part of it that is not all zeros.
        dirty: What it dirties; none for one that is paused.
        running: It runs now.
        one_pass: See `Copying.one_pass`.
        sync_ms_per_gib: How long it stands still when QEMU reads the dirty bitmap, for each GiB that it finds dirty.
        disk_bytes: What is copied of its disks before its memory.
        busy: The part of the time in which its busiest vCPU runs; more than 0.
        vcpus: What each vCPU writes, by its dirty ring, bytes per second; empty: not known.
        dirty_ring: Entries of each vCPU's dirty ring, where what they dirty can be limited; 0: it cannot.
    """

    ram_bytes: int
    present_bytes: int
    dirty: DirtyCurve
    running: bool = True
    one_pass: bool = False
    sync_ms_per_gib: float = 0.0
    disk_bytes: int = 0
    busy: float = 1.0
    vcpus: tuple[int, ...] = ()
    dirty_ring: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """The way between the two hosts.

    Attributes:
        bytes_per_s: What it carries, encrypted as the guest's memory will be.
        setup_ms: Connecting, with the handshake.
        around_ms: What the controller does before QEMU begins and after it has ended.
        handover_ms: Device state, and the ``cont``: the blackout of a guest that dirties nothing.
        can_postcopy: Both ends are set up so that they can turn to post-copy.
    """

    bytes_per_s: float
    setup_ms: float = 20.0
    around_ms: float = 800.0
    handover_ms: float = 15.0
    can_postcopy: bool = False


@dataclass(frozen=True, slots=True)
class Forecast:
    """How it will go. Milliseconds and bytes as the names say.

    Attributes:
        outlook: ``completes``; ``gives-up``: the policy ends it, and the guest stays; ``endless``: nobody ends it.
        why: In words: what the outlook rests on.
        total_ms: From the command to its end.
        blackout_ms: From STOP to RESUME.
        transferred_bytes: On the wire.
        passes: As QEMU counts them.
        steps: What the policy will do, with its reasons.
        needs: What would have to be different for it to complete; empty where it does.
    """

    outlook: Outlook
    why: str
    total_ms: int
    blackout_ms: float
    transferred_bytes: int
    passes: int
    steps: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def converges(self) -> bool:
        """It ends with the guest at the destination."""
        return self.outlook == "completes"

    def to_dict(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        return {**asdict(self), "converges": self.converges, "steps": list(self.steps), "needs": list(self.needs)}


@dataclass(frozen=True, slots=True)
class Rules:
    """What the policy of a migration does: the very functions that the migration itself uses.

    Attributes:
        start_ms: The first ``downtime-limit``.
        bandwidth_bytes_per_s: The ``max-bandwidth`` to begin with; 0: none.
        decide: The next step, from the samples so far.
        interval_ms: When it looks again; None: when a pass begins.
        auto_converge: The parameters of QEMU's own throttling, where it is left to itself.
    """

    start_ms: int
    bandwidth_bytes_per_s: int
    decide: Callable[[Sequence[Sample]], Step]
    interval_ms: Callable[[Sequence[Sample]], int] | None = None
    auto_converge: Mapping[str, int] = field(default_factory=dict)


def play(guest: Workload, link: Link, request: MigrationRequest, rules: Rules) -> Forecast:
    """Return how a migration goes under given rules.

    Args:
        guest: What is moved.
        link: What carries it.
        request: Its mode counts here; the rest is in the rules.
        rules: What is decided on the way.
    """
    if link.bytes_per_s <= 0:
        return Forecast("endless", "nothing travels between the two hosts", LONGEST_MS, 0.0, 0, 0)
    return _Run.of(guest, link, request, rules).play()


@dataclass(slots=True)
class _Run:
    """One migration on paper."""

    guest: Workload
    link: Link
    request: MigrationRequest
    rules: Rules
    limit_ms: float
    cap: float
    elapsed_ms: float
    sent: float = 0.0
    passes: int = 1
    throttle: int = 0
    asked_throttle: int = 0
    dirty_limit: int = 0
    period_ms: float = 0.0
    period_sent: float = 0.0
    high: int = 0
    looks: int = 0
    samples: list[Sample] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, guest: Workload, link: Link, request: MigrationRequest, rules: Rules) -> _Run:
        return cls(
            guest,
            link,
            request,
            rules,
            limit_ms=rules.start_ms,
            cap=rules.bandwidth_bytes_per_s,
            elapsed_ms=link.setup_ms,
        )

    @property
    def bandwidth(self) -> float:
        """Bytes per second, while the guest runs."""
        return min(self.link.bytes_per_s, self.cap) if self.cap else self.link.bytes_per_s

    def dirtied(self, milliseconds: float) -> float:
        """What the guest dirties meanwhile, as bytes on the wire."""
        # Who leaves the processor idle now and then catches up on what a throttle has taken.
        share = min(1.0, (1 - self.throttle / 100) / self.guest.busy) if self.throttle else 1.0
        size = self.guest.dirty.scaled(share).dirtied(milliseconds / 1000)
        if self.dirty_limit:
            size = min(size, vcpu_dirty_limit.dirtied(self.guest.vcpus, self.dirty_limit) * milliseconds / 1000)
        return min(size, self.guest.ram_bytes) * PAGE_OVERHEAD

    def play(self) -> Forecast:
        guest = self.guest
        self._send(guest.disk_bytes)
        begun_ms = self.elapsed_ms
        self.elapsed_ms += self._sync_ms(guest.ram_bytes)  # at first all of it is dirty
        zeros = guest.ram_bytes - guest.present_bytes
        self.elapsed_ms += zeros * 1000 / ZERO_PAGES_BYTES_PER_S
        bulk = guest.present_bytes * PAGE_OVERHEAD + zeros * ZERO_PAGE_SHARE
        if not guest.running or self.request.mode == "offline":
            self._send(bulk)
            self.passes += 2  # as QEMU counts: the bitmap is read before and after the last bytes
            if not guest.running:
                return self._ended("completes", "the guest is paused: it dirties nothing", 0.0)
            blackout = self.elapsed_ms - begun_ms + self.link.handover_ms
            return self._ended("completes", "the guest stands still meanwhile", blackout)
        return self._passes(bulk)

    def _send(self, size: float) -> float:
        took_ms = size * 1000 / self.bandwidth
        self.sent += size
        self.elapsed_ms += took_ms
        return took_ms

    def _still_ms(self, found: float) -> float:
        """The part of the blackout in which nothing of the guest's memory travels."""
        stall_ms = vcpu_dirty_limit.stall_ms(
            self.guest.vcpus, self.dirty_limit, self.guest.dirty_ring * RING_ENTRY_BYTES
        )
        return self._sync_ms(found) + self.link.handover_ms + stall_ms

    def _sync_ms(self, found: float) -> float:
        """Reading the bitmap, where so many bytes are found dirty."""
        return SYNC_MS + self.guest.sync_ms_per_gib * found / 2**30

    def _passes(self, remaining: float) -> Forecast:
        """Pass after pass, the first one with all that is there."""
        bulk_ms = remaining * 1000 / self.bandwidth
        step = self._look(self.guest.ram_bytes, begins=True)  # as QEMU counts: zeros are left to send, too
        while step.kind not in LAST_KINDS:
            begun_ms = self.elapsed_ms
            remaining, step = self._send_a_pass(remaining)
            if step.kind in LAST_KINDS:
                break
            remaining = self._left_after(remaining, self.elapsed_ms - begun_ms)
            self.passes += 1
            self.elapsed_ms += self._sync_ms(remaining)
            self._throttle_down(remaining)
            if self.request.mode == "postcopy":
                return self._postcopy(remaining, "the guest goes on at the destination after the first pass")
            if self._fits(remaining):
                return self._switch(remaining, self._why(bulk_ms))
            if self.guest.one_pass:
                return self._ended("gives-up", self._why_one_pass(remaining), 0.0)
            if self.elapsed_ms > LONGEST_MS or self.looks > LOOKS:
                return self._ended("endless", self._why(bulk_ms), 0.0)
            step = self._look(remaining, begins=True)
        return self._last(step, remaining)

    def _send_a_pass(self, remaining: float) -> tuple[float, Step]:
        """Send until the rest would fit, and let the policy look meanwhile; return the rest, and what it said last."""
        step = NOTHING
        while not self._fits(remaining) and self.looks <= LOOKS:
            sends = self._until_next_look(remaining)
            self._send(sends)
            remaining -= sends
            if self.rules.interval_ms is None or self._fits(remaining):
                break
            step = self._look(remaining, begins=False)
            if step.kind in LAST_KINDS:
                break
        return remaining, step

    def _throttle_down(self, dirtied: float) -> None:
        """Do what QEMU does about the vCPUs when it reads the bitmap."""
        if self.elapsed_ms - self.period_ms < THROTTLE_PERIOD_MS:
            return
        sent, self.period_ms, self.period_sent = self.sent - self.period_sent, self.elapsed_ms, self.sent
        auto = self.rules.auto_converge
        self.high += dirtied * 100 > sent * (auto["throttle-trigger-threshold"] if auto else 1)
        if self.high < 2:  # every second time
            return
        self.high = 0
        if auto:
            more = auto["cpu-throttle-increment"] if self.throttle else auto["cpu-throttle-initial"]
            self.throttle = min(auto["max-cpu-throttle"], self.throttle + more)
        else:
            self.throttle = self.asked_throttle

    def _until_next_look(self, remaining: float) -> float:
        """Return the bytes that are sent until QEMU sees that the rest would fit, or the policy looks again."""
        burst = self.bandwidth * (CAPPED_BURST_MS if self.cap else BURST_MS) / 1000
        sends = math.ceil((remaining - self.bandwidth * self.limit_ms / 1000) / burst) * burst
        if self.rules.interval_ms is not None:
            # Less often the longer it takes: what matters then takes long, too.
            every_ms = max(float(self.rules.interval_ms(self.samples)), self.elapsed_ms / 50)
            sends = min(sends, self.bandwidth * every_ms / 1000)
        return min(remaining, sends)

    def _left_after(self, kept: float, took_ms: float) -> float:
        """What remains when the bitmap is read: what was kept back, and what was dirtied; what is both counts once."""
        again = self.dirtied(took_ms)
        most = self.guest.dirty.working_set
        if most:
            again -= kept * min(1.0, again / max(most, again, kept))
        return kept + again

    def _fits(self, remaining: float) -> bool:
        return remaining * 1000 <= self.bandwidth * self.limit_ms

    def _look(self, remaining: float, *, begins: bool) -> Step:
        """Ask the policy, and do what it says."""
        self.looks += 1
        self.samples.append(
            Sample(
                pass_number=self.passes,
                remaining_bytes=int(remaining),
                bandwidth_bytes_per_s=int(self.bandwidth),
                limit_ms=int(self.limit_ms),
                elapsed_ms=int(self.elapsed_ms),
                transferred_bytes=int(self.sent),
                total_bytes=self.guest.ram_bytes,
                throttle_percent=self.throttle,
                asked_throttle_percent=self.asked_throttle,
                max_bandwidth_bytes_per_s=int(self.cap),
                begins_pass=begins,
                vcpu_dirty_bytes_per_s=self.guest.vcpus,
                dirty_limit_bytes_per_s=self.dirty_limit,
            )
        )
        step = self.rules.decide(self.samples)
        match step.kind:
            case "raise-downtime-limit":
                self.limit_ms = step.limit_ms
            case "raise-bandwidth":
                self.cap = step.bandwidth_bytes_per_s
            case "throttle":
                self.asked_throttle = step.throttle_percent
            case "limit-dirty-rate":
                self.dirty_limit = step.dirty_limit_bytes_per_s
        if step.kind != "none":
            self.steps.append(step.reason)
        return step

    def _last(self, step: Step, remaining: float) -> Forecast:
        match step.kind:
            case "postcopy":
                return self._postcopy(remaining, step.reason)
            case "stop":
                return self._stop(remaining, step.reason)
            case _:
                return self._ended("gives-up", step.reason, 0.0)

    def _stop(self, remaining: float, why: str) -> Forecast:
        """The guest is stopped by us, and QEMU goes on as before: its own limit is in force until all is sent."""
        self.passes += 1
        blackout = self._send(remaining) + self._still_ms(0)
        self.elapsed_ms += self._still_ms(0)
        return self._ended("completes", why, blackout)

    def _switch(self, remaining: float, why: str) -> Forecast:
        self.passes += 1  # QEMU reads the bitmap once more, and counts that
        # QEMU lifts its own limit for the switchover.
        blackout = remaining * 1000 / self.link.bytes_per_s + self._still_ms(0)
        self.sent += remaining
        self.elapsed_ms += blackout
        return self._ended("completes", why, blackout)

    def _postcopy(self, remaining: float, why: str) -> Forecast:
        self.passes += 1
        blackout = self._still_ms(0)
        self.sent += remaining
        self.elapsed_ms += blackout + remaining * 1000 / self.bandwidth
        return self._ended("completes", why, blackout)

    def _why(self, bulk_ms: float) -> str:
        dirty = self.guest.dirty
        if not dirty.points:
            return "it dirties next to nothing"
        within = dirty.dirtied(bulk_ms / 1000)
        told = (
            f"it dirties {about_size(int(dirty.rate))}/s ({about_size(int(within))} while all of it is copied once), "
            f"the link carries {about_size(int(self.bandwidth))}/s"
        )
        if dirty.rate < self.bandwidth:
            return f"{told}: each pass leaves less than the one before"
        most = dirty.working_set
        return (
            f"{told}, but never more than {about_size(int(most))} in all"
            if most
            else f"{told}: passes do not get smaller"
        )

    def _why_one_pass(self, remaining: float) -> str:
        need_ms = math.ceil(remaining * 1000 / self.bandwidth)
        return (
            f"it dirties {about_size(int(remaining))} in the first pass, which takes {need_ms} ms, and this QEMU without KVM "
            "would lose what the guest writes in a second one"
        )

    def _ended(self, outlook: Outlook, why: str, blackout_ms: float) -> Forecast:
        return Forecast(
            outlook,
            why,
            total_ms=int(min(self.elapsed_ms + self.link.around_ms, LONGEST_MS)),
            blackout_ms=round(blackout_ms, 1),
            transferred_bytes=int(self.sent),
            passes=self.passes,
            steps=tuple(self.steps),
        )
