"""Look at the passes as the policy wants to see them, ask it what to do, and do that at the source.

The policy decides (`ladder.next_step` or one of `reference_policies`); here its step becomes a QMP command. Nothing here
waits for QEMU on the way of the events: a QEMU that begins to switch just then answers later, or never.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from qmp_migrate.errors import MonitorError, NotConverging, QmpCommandFailed, QmpMigrateError
from qmp_migrate.migration.convergence import policies
from qmp_migrate.migration.convergence.ladder import LAST_KINDS, Allowed, Sample, Step
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.model import policy_terms
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.qemu import dirty_limit, dirty_rate
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.qemu.migration import MigrationInfo

Rung: TypeAlias = Callable[[str], Awaitable[None]]

STOPPED_FOR_SWITCHOVER: Final = frozenset({"finish-migrate", "postmigrate"})
"""Run states of a source that hands its guest over."""

POLICY_POLL_S: Final = 0.25
"""How often a policy that goes by passes is asked whether time is up."""

MEASURE_INTERVAL_S: Final = 5.0
"""What the vCPUs dirty is measured so often, until they are limited."""

MEASURE_ATTEMPTS: Final = 3
"""QEMU measures for one at a time: somebody else may be at it."""


@dataclass(slots=True)
class Steering:
    """One migration's policy at work.

    Attributes:
        source: Where steps are taken.
        request: What is wanted; `tune` changes it on the way.
        tell: Told each step's reason once it is in force.
        to_postcopy: Turns to post-copy, with the reason; None: it is not possible.
        stop_guest: Stops the guest for the rest of the copy, with the reason; None: it is not possible.
        can_throttle: The source was wired so that the guest can be slowed down.
        dirty_ring: Entries of each vCPU's dirty ring, where their dirty rate can be limited; 0: it cannot.
        limit_ms, bandwidth_bytes_per_s, throttle_percent: What QEMU was told last.
        dirty_limit_bytes_per_s: Likewise, for each vCPU; 0: no limit.
        vcpu_dirty_bytes_per_s: What each vCPU dirties without a limit; empty: not known yet.
        failed: Called with what ends the migration: `NotConverging`, or what a last rung raised.
    """

    source: Side
    request: MigrationRequest
    tell: Callable[[str], None]
    failed: Callable[[Exception], None]
    to_postcopy: Rung | None = None
    stop_guest: Rung | None = None
    can_throttle: bool = False
    dirty_ring: int = 0
    limit_ms: int = 0
    bandwidth_bytes_per_s: int = 0
    throttle_percent: int = 0
    dirty_limit_bytes_per_s: int = 0
    vcpu_dirty_bytes_per_s: tuple[int, ...] = ()
    _samples: list[Sample] = field(default_factory=list)
    _acting: asyncio.Task[None] | None = None
    _measuring: asyncio.Task[None] | None = None
    _decided: bool = False

    def start(self, *, one_pass: bool = False) -> None:
        """Know what the source was wired with."""
        parameters = policy_terms.parameters(self.request, one_pass=one_pass)
        self.limit_ms, self.bandwidth_bytes_per_s = parameters["downtime-limit"], parameters["max-bandwidth"]

    async def read_back(self) -> None:
        """Know what the source was told: of a migration that another controller has begun. Raises `MonitorError`."""
        monitor = await self.source.attach()
        now = await monitor.execute("query-migrate-parameters")
        self.limit_ms = int(now["downtime-limit"])
        self.bandwidth_bytes_per_s = int(now.get("max-bandwidth", 0))
        most = int(now.get("max-cpu-throttle", 0))
        self.throttle_percent = most if self.can_throttle and most > 1 else 0
        if self.dirty_ring:
            self.dirty_limit_bytes_per_s = await dirty_limit.read(monitor)

    @property
    def poll_s(self) -> float:
        """How often the policy wants to look."""
        interval = policies.find(self.request.policy).interval_ms
        return POLICY_POLL_S if interval is None else interval(self._samples) / 1000

    def look(self, info: MigrationInfo, elapsed_ms: int) -> None:
        """Take in what QEMU says now, and act on it; returns at once."""
        ram = info.ram
        if ram is None or self._decided or not ram.throughput_bytes_per_s or self._busy:
            return
        if self._measuring is None and self.allowed.dirty_ring_bytes and not self.dirty_limit_bytes_per_s:
            self._measuring = asyncio.create_task(self._measure())
        policy = policies.find(self.request.policy)
        last = self._samples[-1] if self._samples else None
        if policy.interval_ms is not None and last is not None:
            if elapsed_ms - last.elapsed_ms < policy.interval_ms(self._samples):
                return
        elif last is not None and not last.begins_pass:
            self._samples.pop()  # of what is seen within a pass only the latest counts
        begins = last is None or ram.passes > last.pass_number
        self._samples.append(
            Sample(
                pass_number=ram.passes,
                remaining_bytes=ram.remaining,
                bandwidth_bytes_per_s=ram.throughput_bytes_per_s,
                limit_ms=self.limit_ms,
                elapsed_ms=elapsed_ms,
                transferred_bytes=ram.transferred,
                total_bytes=ram.total,
                throttle_percent=info.throttle_percent,
                asked_throttle_percent=self.throttle_percent,
                max_bandwidth_bytes_per_s=self.bandwidth_bytes_per_s,
                begins_pass=begins,
                vcpu_dirty_bytes_per_s=self.vcpu_dirty_bytes_per_s,
                dirty_limit_bytes_per_s=self.dirty_limit_bytes_per_s,
            )
        )
        self._obey(policy.decide(self._samples, self.allowed))

    @property
    def allowed(self) -> Allowed:
        """How far the policy may go here and now."""
        return policy_terms.allowed(
            self.request,
            postcopy=self.to_postcopy is not None,
            stop=self.stop_guest is not None,
            throttle=self.can_throttle,
            dirty_ring=self.dirty_ring,
        )

    @property
    def _busy(self) -> bool:
        return self._acting is not None and not self._acting.done()

    async def _measure(self) -> None:
        """Measure what each vCPU dirties, again and again until there is a limit; without that there will be none."""
        failed = 0
        while not self.dirty_limit_bytes_per_s:
            try:
                self.vcpu_dirty_bytes_per_s = await dirty_rate.measure_vcpus(await self.source.attach())
            except QmpMigrateError as error:
                failed += 1
                if failed == MEASURE_ATTEMPTS and not self.vcpu_dirty_bytes_per_s:
                    self.dirty_ring = 0
                    self.tell(f"the dirty rate of its vCPUs cannot be measured, so none is limited: {error.message}")
                    return
            await asyncio.sleep(MEASURE_INTERVAL_S if self.vcpu_dirty_bytes_per_s else POLICY_POLL_S)

    def _obey(self, step: Step) -> None:
        if step.kind == "none":
            return
        self._decided = step.kind in LAST_KINDS
        if step.kind == "give-up" or (step.kind == "postcopy" and self.to_postcopy is None):
            self.tell(step.reason)
            raise NotConverging(
                f"the guest dirties memory faster than it can be moved: {step.reason}",
                hint=step.hint
                or "allow a longer pause (--downtime-limit), more --bandwidth, or make the guest quieter",
                host=self.source.name,
            )
        self._acting = asyncio.create_task(self._act(step))

    async def _give_up(self, step: Step) -> None:
        """Give up, unless QEMU has just stopped the guest: then it is on its way, and a cancel would only cost a pause."""
        with contextlib.suppress(MonitorError):
            status = await qmp.run_status(await self.source.attach())
            if status.status in STOPPED_FOR_SWITCHOVER:
                return
        self.tell(step.reason)
        self.failed(
            NotConverging(
                f"the guest dirties memory faster than it can be moved: {step.reason}",
                hint=step.hint
                or "allow a longer pause (--downtime-limit), more --bandwidth, or make the guest quieter",
                host=self.source.name,
            )
        )

    async def _act(self, step: Step) -> None:
        if step.kind == "give-up" or (step.kind == "postcopy" and self.to_postcopy is None):
            await self._give_up(step)
            return
        rung = {"postcopy": self.to_postcopy, "stop": self.stop_guest}.get(step.kind)
        try:
            if rung is not None:
                self.tell(step.reason)
                await rung(step.reason)
                return
            await self.change(
                limit_ms=step.limit_ms or None,
                bandwidth_bytes_per_s=step.bandwidth_bytes_per_s if step.kind == "raise-bandwidth" else None,
                throttle_percent=step.throttle_percent or None,
                dirty_limit_bytes_per_s=step.dirty_limit_bytes_per_s or None,
            )
            self.tell(step.reason)
        except QmpCommandFailed as error:
            if step.kind == "limit-dirty-rate":
                self.dirty_ring = 0  # all vCPUs can still be slowed down
            self.tell(f"not done: {step.reason}: {error.message}")
        except QmpMigrateError as error:
            if rung is not None:
                self.failed(error)  # else: it switches already, or is gone: events tell

    async def change(
        self,
        *,
        limit_ms: int | None = None,
        bandwidth_bytes_per_s: int | None = None,
        throttle_percent: int | None = None,
        dirty_limit_bytes_per_s: int | None = None,
    ) -> None:
        """Tell the source new values; None: as it is. A throttle of 0 % also lifts a dirty limit.

        Raises:
            QmpCommandFailed: QEMU refuses one.
            MonitorError: It does not answer now.
        """
        monitor = await self.source.attach()
        if dirty_limit_bytes_per_s is not None:
            await dirty_limit.limit_vcpus(monitor, dirty_limit_bytes_per_s)
            self.dirty_limit_bytes_per_s = dirty_limit_bytes_per_s
        elif throttle_percent == 0 and self.dirty_limit_bytes_per_s:
            await dirty_limit.lift(monitor)
            self.dirty_limit_bytes_per_s = 0
        parameters: dict[str, int] = {}
        if limit_ms is not None:
            parameters["downtime-limit"] = limit_ms
        if bandwidth_bytes_per_s is not None:
            parameters["max-bandwidth"] = bandwidth_bytes_per_s
        if throttle_percent is not None:
            parameters |= throttle(throttle_percent)
        if not parameters:
            return
        await monitor.execute("migrate-set-parameters", parameters)
        self.limit_ms = self.limit_ms if limit_ms is None else limit_ms
        self.throttle_percent = self.throttle_percent if throttle_percent is None else throttle_percent
        if bandwidth_bytes_per_s is not None:
            self.bandwidth_bytes_per_s = bandwidth_bytes_per_s

    async def end(self) -> None:
        """Leave off; what was being told to QEMU may or may not arrive."""
        tasks = [task for task in (self._acting, self._measuring) if task is not None]
        self._measuring = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def throttle(percent: int) -> dict[str, int]:
    """Return the parameters under which QEMU's auto-converge goes to this throttle, and stays there.

    It acts when a pass ends, at most once a second, and on every second pass that dirtied more than the threshold; so the
    threshold is 1 %. From an idle state it goes to ``cpu-throttle-initial``, from another throttle by ``-increment`` to
    ``max-cpu-throttle``, also downwards (``migration/ram.c``, 7.2 to 11.1).

    Args:
        percent: 0 to 99; QEMU's least is 1.
    """
    percent = max(1, percent)
    return {
        "cpu-throttle-initial": percent,
        "cpu-throttle-increment": 99,
        "max-cpu-throttle": percent,
        "throttle-trigger-threshold": 1,
    }
