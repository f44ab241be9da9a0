"""A migration that takes no time: QEMU's passes, its switchover rule and its auto-converge, with a policy that steers them.

What is played is ``migration/ram.c`` and ``migration.c`` (7.2 to 11.1): a pass sends what the last sync found; when less
than the threshold remains (bandwidth times ``downtime-limit``), the bitmap is read again; if what remains then fits, the
guest is stopped. Auto-converge looks when the bitmap is read, once a second at most, and acts on every second time that more
than the threshold was dirtied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from qmp_migrate.migration.convergence import policies, vcpu_dirty_limit
from qmp_migrate.migration.convergence.ladder import LAST_KINDS, Sample, Step
from qmp_migrate.migration.model import policy_terms
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.precopy.policy_runner import throttle

MIB = 1 << 20
SWITCH_MS = 5.0
"""Devices, the controller's `cont`: what a blackout takes beside memory."""

SLICE_MS = 50.0
"""``MAX_WAIT`` of ``ram.c``."""

POLL_MS = 250.0
LEAST_PASS_MS = 1.0
MOST_PASSES = 20000
MOST_MS = 24 * 3600 * 1000.0


@dataclass(frozen=True)
class Guest:
    """What is moved over which link.

    Attributes:
        ram: All of its memory, bytes.
        link: What the link carries, bytes per second.
        dirty: What it writes, bytes per second.
        working_set: What it writes to, again and again; 0: all of its memory.
        obeys: How far a throttle slows its writing down: 1 in proportion, 0 not at all.
        vcpus: What each vCPU writes, by its dirty ring, bytes per second.
        ring: Entries of each vCPU's dirty ring; 0: none.
        reacts_ms: How much later than QEMU the controller sees what happened.
    """

    ram: int = 256 * MIB
    link: int = 32 * MIB
    dirty: int = 0
    working_set: int = 0
    obeys: float = 1.0
    vcpus: tuple[int, ...] = ()
    ring: int = 0
    reacts_ms: float = 3.0


@dataclass
class Ended:
    """How it ended.

    Attributes:
        how: ``switched``, ``postcopy``, ``stop`` or ``give-up``.
        total_ms: From ``migrate`` to the guest's running at the destination with all of its memory, or to giving up.
        blackout_ms: The guest stands still.
        lost_ms: Guest time lost to throttling, beside the blackout.
        passes: How many had begun.
        most_throttle: Percent.
        dirty_limit: Of each vCPU; 0: none.
    """

    how: str
    total_ms: float
    blackout_ms: float
    passes: int
    limit_ms: int
    lost_ms: float = 0.0
    most_throttle: int = 0
    dirty_limit: int = 0
    steps: list[Step] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def last(self) -> Step:
        return self.steps[-1]


class Simulation:
    """One migration; `run` plays it."""

    def __init__(self, guest: Guest, request: MigrationRequest, *, postcopy: bool = False, stop: bool = True) -> None:
        self.guest, self.request = guest, request
        self.policy = policies.find(request.policy)
        self.can_throttle = policy_terms.wants_throttle(request)
        self.allowed = policy_terms.allowed(
            request, postcopy=postcopy, stop=stop, throttle=self.can_throttle, dirty_ring=guest.ring
        )
        self.parameters = policy_terms.parameters(request)
        self.now = 0.0
        self.remaining = float(guest.ram)
        self.transferred = 0.0
        self.passes = 1
        self.throttle = self.asked = self.limit = 0
        self.high = 0
        self.period_at, self.period_dirty, self.period_sent = 0.0, 0.0, 0.0
        self.synced_at = 0.0
        self.written = 0.0  # by the guest since the last sync
        self.next_look = 0.0
        self.samples: list[Sample] = []
        self.ended = Ended("", 0, 0, 1, 0)
        self.ended.samples = self.samples

    @property
    def rate(self) -> float:
        """Bytes per second."""
        cap = self.parameters["max-bandwidth"]
        return min(self.guest.link, cap) if cap else self.guest.link

    @property
    def threshold(self) -> float:
        return self.rate * self.parameters["downtime-limit"] / 1000

    def run(self) -> Ended:
        pending = True  # the beginning of a pass that the policy has not seen
        look_at = self.guest.reacts_ms
        while self.now < MOST_MS and self.passes < MOST_PASSES:
            look = max(self.now, look_at if self.policy.interval_ms is None else self.next_look)
            sync = self.now + self._until_sync()
            if sync <= look:
                self._pass_time(sync)
                if self._sync():
                    return self._end("switched", SWITCH_MS + self.remaining * 1000 / self.rate)
                if not pending:
                    pending, look_at = True, self.now + self.guest.reacts_ms
                continue
            self._pass_time(look)
            step = self._look(begins=pending)
            pending, look_at = False, self.now + POLL_MS
            if step.kind in LAST_KINDS:
                return self._last(step)
        raise AssertionError(f"{self.request.policy} does not end: pass {self.passes}, {self.ended.steps[-3:]}")

    def _until_sync(self) -> float:
        """Milliseconds: QEMU compares what remains with the threshold each `SLICE_MS`, or when there is nothing to send."""
        if self.remaining < self.threshold:
            return 0.0
        slices = math.floor((self.remaining - self.threshold) * 1000 / self.rate / SLICE_MS) + 1
        return min(slices * SLICE_MS, self.remaining * 1000 / self.rate + LEAST_PASS_MS)

    def _pass_time(self, until: float) -> None:
        seconds = (until - self.now) / 1000
        sent = min(self.remaining, self.rate * seconds)
        self.remaining -= sent
        self.transferred += sent
        rate = self.guest.dirty * (1 - self.guest.obeys * self.throttle / 100)
        if self.limit:
            rate = min(rate, vcpu_dirty_limit.dirtied(self.guest.vcpus, self.limit))
        self.written += rate * seconds
        self.ended.lost_ms += self.throttle / 100 * (until - self.now)
        self.now = until

    def _sync(self) -> bool:
        size = self.guest.working_set or self.guest.ram
        dirtied = min(float(size), self.written)
        self.written = 0.0
        both = self.remaining + dirtied
        if self.passes > 1:  # what was not sent is of the working set, too: what is both counts once
            both = max(self.remaining, min(both, float(size)))
        self.remaining = min(self.guest.ram, both)
        self.period_dirty += dirtied
        self.passes += 1
        if self.now > self.period_at + 1000:
            if self.can_throttle:
                self._auto_converge(self.transferred - self.period_sent)
            self.period_at, self.period_dirty, self.period_sent = self.now, 0.0, self.transferred
        return self.remaining <= self.threshold

    def _auto_converge(self, sent: float) -> None:
        if self.period_dirty <= sent * self.parameters["throttle-trigger-threshold"] / 100:
            return
        self.high += 1
        if self.high < 2:
            return
        self.high = 0
        more = self.throttle + self.parameters["cpu-throttle-increment"]
        self.throttle = min(more, self.parameters["max-cpu-throttle"])
        if more == self.parameters["cpu-throttle-increment"]:
            self.throttle = self.parameters["cpu-throttle-initial"]
        self.ended.most_throttle = max(self.ended.most_throttle, self.throttle)

    def _look(self, *, begins: bool) -> Step:
        if self.policy.interval_ms is None and self.samples and not self.samples[-1].begins_pass:
            self.samples.pop()
        self.samples.append(
            Sample(
                pass_number=self.passes,
                remaining_bytes=int(self.remaining),
                bandwidth_bytes_per_s=int(self.rate),
                limit_ms=self.parameters["downtime-limit"],
                elapsed_ms=int(self.now),
                transferred_bytes=int(self.transferred),
                total_bytes=self.guest.ram,
                throttle_percent=self.throttle,
                asked_throttle_percent=self.asked,
                max_bandwidth_bytes_per_s=self.parameters["max-bandwidth"],
                begins_pass=begins,
                vcpu_dirty_bytes_per_s=self.guest.vcpus,
                dirty_limit_bytes_per_s=self.limit,
            )
        )
        if self.policy.interval_ms is not None:
            self.next_look = self.now + self.policy.interval_ms(self.samples)
        step = self.policy.decide(self.samples, self.allowed)
        if step.kind != "none":
            self.ended.steps.append(step)
        if step.kind == "raise-downtime-limit":
            self.parameters["downtime-limit"] = step.limit_ms
        elif step.kind == "raise-bandwidth":
            self.parameters["max-bandwidth"] = step.bandwidth_bytes_per_s
        elif step.kind == "throttle":
            self.asked = step.throttle_percent
            self.parameters |= throttle(step.throttle_percent)
        elif step.kind == "limit-dirty-rate":
            self.limit = step.dirty_limit_bytes_per_s
        return step

    def _last(self, step: Step) -> Ended:
        size = self.guest.working_set or self.guest.ram
        left = min(float(self.guest.ram), self.remaining + min(float(size), self.written)) * 1000 / self.guest.link
        if step.kind == "give-up":
            return self._end("give-up", 0)
        if step.kind == "stop":
            return self._end("stop", SWITCH_MS + left)
        self.now += left
        return self._end("postcopy", SWITCH_MS)

    def _end(self, how: str, blackout_ms: float) -> Ended:
        ended = self.ended
        if self.limit and blackout_ms:  # it sleeps on until it sees that it is to stop
            blackout_ms += vcpu_dirty_limit.stall_ms(self.guest.vcpus, self.limit, self.guest.ring * 4096)
        ended.dirty_limit = self.limit
        ended.how, ended.blackout_ms, ended.total_ms = how, blackout_ms, self.now + blackout_ms
        ended.passes, ended.limit_ms = self.passes, self.parameters["downtime-limit"]
        return ended


def migrate(
    guest: Guest, policy: str = "default", *, postcopy: bool = False, stop: bool = True, **wanted: object
) -> Ended:
    """Play one migration."""
    request = MigrationRequest("web1", "b", policy=policy, **wanted)  # type: ignore[arg-type]
    return Simulation(guest, request, postcopy=postcopy, stop=stop).run()
