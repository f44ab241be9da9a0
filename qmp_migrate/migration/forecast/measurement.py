"""A forecast, from measuring to comparing: ask the guest, the link and the journal, `predict`, and hold it against the fact.

Nothing that the guest notices is done: its QEMU hashes some of its pages for a few seconds, and two QEMUs without a guest
send each other some MiB.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Final

from qmp_migrate.errors import MonitorError, QmpCommandFailed, QmpMigrateError, RemoteError
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.forecast import link_probe
from qmp_migrate.migration.forecast import prediction as model
from qmp_migrate.migration.forecast.dirty_curve import DirtyCurve, without_bursts
from qmp_migrate.migration.forecast.link_probe import Probed
from qmp_migrate.migration.forecast.prediction import Forecast, Link, Workload
from qmp_migrate.migration.journal.store import Journal, MigrationRecord
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.preflight.planner import Plan
from qmp_migrate.qemu import dirty_rate, features
from qmp_migrate.qemu.dirty_rate import LEAST_BLOCK, RESOLUTION_BYTES_PER_S, Dirtied

SYNC_MS_PER_GIB: Final = 5.0
SLOW_SYNC_MS_PER_GIB: Final = 700.0
"""For each GiB that is found dirty. The slow one: before QEMU 9.0, without KVM, where memory is no multiple of 256 KiB."""

DEVICES_MS: Final = 12.0
"""Device state: saving, sending and loading that of a small machine, and the controller's part."""

RELEASE_MS: Final = 250.0
"""Locks, journal, proof that it runs, and the end of the source."""

LONGEST_MEASURE_S: Final = 10
"""A guest whose working set was not seen whole is measured once more, for so long at most."""

BURST: Final = 0.7
"""A measurement of which less than this share is left was taken in a burst."""

VALID_S: Final = 3600.0
"""An older forecast is none of this migration: guests change what they do."""

EARLIER: Final = 5
"""So many earlier migrations between the two hosts count."""

_PRESENT: Final = script("forecast/present")


_RAN: Final = script("forecast/time_run")


@dataclass(frozen=True, slots=True)
class Earlier:
    """What earlier migrations between the two hosts were like.

    Attributes:
        count: How many.
        bytes_per_s: The most that one of them reached: others had a limit of their own.
        around_ms: What they took beside QEMU's own time, median.
    """

    count: int
    bytes_per_s: float
    around_ms: float


@dataclass(frozen=True, slots=True)
class ForecastReport:
    """A forecast, with what it rests on.

    Attributes:
        at: When it was made, seconds since the epoch.
        dirtied: What the guest was measured to dirty.
        probed: What the link was measured to carry; None where it could not be tried out.
        earlier: What the journal knows; None: nothing.
        warnings: What could not be measured, and what was taken instead.
    """

    request: MigrationRequest
    source: str
    at: float
    forecast: Forecast
    guest: Workload
    link: Link
    dirtied: tuple[Dirtied, ...]
    probed: Probed | None
    earlier: Earlier | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return ``migration.forecast/1``."""
        return {
            "schema": "migration.forecast/1",
            "vm": self.request.vm,
            "source": self.source,
            "destination": self.request.destination,
            "mode": self.request.mode,
            "policy": self.request.policy,
            "at": self.at,
            **self.forecast.to_dict(),
            "measured": {
                "ram_bytes": self.guest.ram_bytes,
                "present_bytes": self.guest.present_bytes,
                "dirtied": [asdict(one) for one in self.dirtied],
                "dirty_bytes_per_s": int(self.guest.dirty.rate),
                "vcpu_dirty_bytes_per_s": list(self.guest.vcpus),
                "working_set_bytes": _whole(self.guest.dirty.working_set),
                "link_bytes_per_s": int(self.link.bytes_per_s),
                "probe": asdict(self.probed) if self.probed else None,
                "earlier": asdict(self.earlier) if self.earlier else None,
            },
            "warnings": list(self.warnings),
        }


def _whole(size: float | None) -> int | None:
    return None if size is None else int(size)


async def make(
    plan: Plan, source: Side, destination: Side, request: MigrationRequest, journal: Journal
) -> ForecastReport:
    """Measure and predict; the forecast is remembered for the migration that follows.

    Args:
        plan: Of `make_plan`.
        source: Where the guest is.
        destination: Where it would go.
        request: How it would go there.
        journal: Knows earlier migrations.

    Raises:
        QmpMigrateError: The link could not be tried out, and nothing was ever moved over it; or the guest cannot be measured.
    """
    warnings: list[str] = []
    # One after the other: what the probe sends would slow the guest down that is measured, and the other way round.
    earlier = earlier_migrations(await journal.migrations(limit=200), source.name, destination.name, request)
    probed: Probed | None = None
    try:
        probed = await link_probe.probe(source, destination, request, plan.profile)
    except QmpMigrateError as error:
        if earlier is None:
            raise
        warnings.append(f"the link could not be tried out: {error.message}")
    link = replace(link_from(probed, earlier), can_postcopy=plan.profile.postcopy)
    guest, dirtied = await _measure_guest(plan, source, request, link, warnings)
    report = ForecastReport(
        request=request,
        source=source.name,
        at=time.time(),
        forecast=model.predict(guest, link, request),
        guest=guest,
        link=link,
        dirtied=tuple(dirtied),
        probed=probed,
        earlier=earlier,
        warnings=tuple(warnings),
    )
    remembered = {**report.to_dict(), "asked": terms(request)}
    await journal.remember_probe(_key(request.vm, source.name, destination.name), remembered)
    return report


async def _measure_guest(
    plan: Plan, source: Side, request: MigrationRequest, link: Link, warnings: list[str]
) -> tuple[Workload, list[Dirtied]]:
    monitor = await source.attach()
    known, virtual = await asyncio.gather(features.probe(monitor), features.uses_kvm(monitor))
    present = await _present(source, plan.ram_bytes, warnings)
    dirtied: list[Dirtied] = []
    busy = 1.0
    vcpus: tuple[int, ...] = ()
    if plan.running:
        if plan.ram_bytes < LEAST_BLOCK and not virtual:
            warnings.append("what a guest of less than 128 MiB dirties cannot be measured: taken as nothing")
        ran_before = await _ran(source)
        dirtied = await dirty_rate.measure(monitor, plan.ram_bytes, kvm=virtual)
        busy = busiest(ran_before, await _ran(source))
        if virtual and dirtied[-1].kind == "page-sampling":
            vcpus = await _vcpus(source, warnings)
        bulk_s = present / min(link.bytes_per_s, request.bandwidth_bytes_per_s or link.bytes_per_s)
        longer_s = min(LONGEST_MEASURE_S, round(bulk_s))
        if _curve(dirtied, present, vcpus).working_set is None and longer_s >= 1.5 * dirtied[-1].seconds:
            # It dirties ever more: see whether it still does so after the time that the first pass takes.
            dirtied.append(await dirty_rate.measure_longer(monitor, plan.ram_bytes, longer_s, dirtied[-1].kind))
    dirty = _curve(dirtied, present, vcpus)
    if dirty.flat_at_once and dirty.points[0][0] >= 1:
        warnings.append(
            "all that the guest dirties it dirties within a second, and this QEMU measures no shorter times: "
            "what a short pass leaves is a guess"
        )
    if any(calm[1] < BURST * found.size_bytes for calm, found in zip(_steady(dirtied), dirtied, strict=True)):
        warnings.append("the guest had a burst of writing while it was measured; it is left out")
    slow = not virtual and not known.has_capability("mapped-ram") and plan.ram_bytes % features.SYNC_WORD_BYTES
    guest = Workload(
        ram_bytes=plan.ram_bytes,
        present_bytes=present,
        dirty=dirty,
        running=plan.running,
        one_pass=plan.one_pass,
        busy=busy,
        vcpus=vcpus,
        dirty_ring=plan.profile.dirty_ring if vcpus else 0,
        sync_ms_per_gib=SLOW_SYNC_MS_PER_GIB if slow else SYNC_MS_PER_GIB,
        disk_bytes=await _disk_bytes(source, warnings) if request.copy_storage else 0,
    )
    return guest, dirtied


async def _ran(source: Side) -> tuple[float, list[float]]:
    """Return the time, and how long each vCPU has run so far, seconds; nothing where nobody can see that."""
    assert source.process is not None
    try:
        vcpus = await (await source.attach()).execute("query-cpus-fast")
        threads = [str(int(vcpu["thread-id"])) for vcpu in vcpus]
        done = await source.host.script(_RAN, [str(source.process.pid), *threads])
        ticks, *ran = (int(line) for line in done.text.splitlines())
        return time.monotonic(), [one / ticks for one in ran]
    except (MonitorError, RemoteError, KeyError, TypeError, ValueError):
        return time.monotonic(), []


def busiest(before: tuple[float, list[float]], after: tuple[float, list[float]]) -> float:
    """Return the part of the time in which the busiest vCPU ran; 1 where nobody knows. Pure.

    Args:
        before: The time, and what each had run, seconds.
        after: The same, later.
    """
    passed = after[0] - before[0]
    ran = [late - early for early, late in zip(before[1], after[1], strict=False)]
    return min(1.0, max(0.01, max(ran) / passed)) if ran and passed > 0 else 1.0


def _steady(dirtied: Sequence[Dirtied]) -> list[tuple[float, float]]:
    return without_bursts([(one.seconds, float(one.size_bytes)) for one in dirtied], RESOLUTION_BYTES_PER_S)


def _curve(dirtied: Sequence[Dirtied], present_bytes: int, vcpus: Sequence[int] = ()) -> DirtyCurve:
    """Return what the guest dirties: in what is there; memory that it never touched it will hardly begin to rewrite now.

    Where dirty rings have counted what the vCPUs write, no more than that can be dirty.
    """
    most = float(sum(vcpus)) if vcpus else math.inf
    return DirtyCurve.of([(seconds, min(size, most * seconds)) for seconds, size in _steady(dirtied)], present_bytes)


async def _vcpus(source: Side, warnings: list[str]) -> tuple[int, ...]:
    """Return what each vCPU of a guest under KVM writes, bytes per second, by its dirty ring; empty where it has none."""
    try:
        return await dirty_rate.measure_vcpus(await source.attach())
    except QmpCommandFailed:
        return ()
    except MonitorError as error:
        warnings.append(f"what each vCPU writes could not be measured: {error.message}")
        return ()


async def _present(source: Side, ram_bytes: int, warnings: list[str]) -> int:
    """Return how much of the guest's memory is there at all: what was never touched is all zeros."""
    assert source.process is not None
    try:
        done = await source.host.script(_PRESENT, [str(source.process.pid), str(ram_bytes // 1024)])
        return min(ram_bytes, int(done.text) * 1024) or ram_bytes
    except (RemoteError, ValueError):
        warnings.append("nobody can see how much of the guest's memory is all zeros: all of it is counted")
        return ram_bytes


async def _disk_bytes(source: Side, warnings: list[str]) -> int:
    """Return what is in the guest's writable disks."""
    monitor = await source.attach()
    try:
        disks = await monitor.execute("query-block")
        images = [disk["inserted"] for disk in disks if "inserted" in disk]
        return sum(int(one["image"].get("actual-size", 0)) for one in images if not one.get("ro"))
    except (MonitorError, KeyError, TypeError) as error:
        warnings.append(f"nobody can see how large the guest's disks are: they are not counted ({error})")
        return 0


def earlier_migrations(
    records: Sequence[MigrationRecord], source: str, destination: str, request: MigrationRequest
) -> Earlier | None:
    """Return what earlier migrations of the same kind were like, between the same hosts. Pure.

    Args:
        records: Newest first.
        source: The host that sends.
        destination: The host that receives.
        request: What is wanted now.
    """
    alike = [
        record.result
        for record in records
        if (record.source, record.destination, record.outcome) == (source, destination, "completed")
        and record.result
        and record.mode == request.mode
        and record.request.get("encrypt", True) == request.encrypt
        and record.request.get("channels", 1) == request.channels
        and record.request.get("compress") == request.compress
        and not record.request.get("copy_storage")
    ][:EARLIER]
    rates = [r["throughput_bytes_per_s"] for r in alike if r.get("throughput_bytes_per_s")]
    around = [r["total_ms"] - r["qemu"]["total_ms"] for r in alike if r["qemu"].get("total_ms")]
    if not rates or not around:
        return None
    return Earlier(len(alike), max(rates), max(0.0, median(around)))


def link_from(probed: Probed | None, earlier: Earlier | None) -> Link:
    """Return the link as it was found to be: the probe tells of now, the journal of what the controller needs. Pure.

    Raises:
        ValueError: Neither is there.
    """
    if probed is not None:
        around = earlier.around_ms if earlier else probed.launch_ms + probed.wire_ms + RELEASE_MS
        return Link(probed.bytes_per_s, probed.setup_ms, around, DEVICES_MS + probed.answer_ms)
    if earlier is None:
        raise ValueError("neither tried out nor known")
    return Link(earlier.bytes_per_s, around_ms=earlier.around_ms)


def _key(vm: str, source: str, destination: str) -> str:
    return f"forecast/{vm}/{source}/{destination}"


def terms(request: MigrationRequest) -> dict[str, Any]:
    """Return what a forecast depends on: another wish is another migration."""
    as_written: dict[str, Any] = json.loads(json.dumps({"mode": request.mode, **request.asked}))
    return as_written


async def remembered(journal: Journal, request: MigrationRequest, source: str) -> dict[str, Any] | None:
    """Return the latest forecast of this very migration, or None where there is none, or only an old one."""
    found = await journal.probe(_key(request.vm, source, request.destination))
    if not isinstance(found, dict) or time.time() - found.get("at", 0) > VALID_S:
        return None
    return found if found.get("asked") == terms(request) else None
