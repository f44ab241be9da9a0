"""One measurement, as it is written to ``build/bench.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Numbers:
    """``query-migrate`` of the source once it is completed: milliseconds and bytes as the names say."""

    total_ms: int
    downtime_ms: int
    setup_ms: int
    transferred_bytes: int
    passes: int

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Numbers:
        """Take them from QEMU's answer; what it does not say is 0."""
        ram = info.get("ram") or {}
        return cls(
            total_ms=int(info.get("total-time", 0)),
            downtime_ms=int(info.get("downtime", 0)),
            setup_ms=int(info.get("setup-time", 0)),
            transferred_bytes=int(ram.get("transferred", 0)),
            passes=int(ram.get("dirty-sync-count", 0)),
        )

    @classmethod
    def told(cls, result: Mapping[str, Any]) -> Numbers:
        """Take them from ``migration.result/1``."""
        qemu = result["qemu"]
        return cls(
            total_ms=qemu["total_ms"],
            downtime_ms=qemu["downtime_ms"],
            setup_ms=qemu["setup_ms"],
            transferred_bytes=result["transferred_bytes"],
            passes=result["passes"],
        )


@dataclass(slots=True)
class Sample:
    """What one migration by one contender took.

    Attributes:
        scenario, contender, round: Which one; rounds count from 1.
        error: Why there are no numbers; None: it went through.
        wall_ms: The whole action, as its user waits for it.
        qemu: The source QEMU's own figures.
        blackout_ms: STOP at the source to RESUME at the destination, on the QEMUs' clocks.
        handover_ms: The part of it after the source had said ``completed``: what the controller adds; below 0 where the
            destination did not wait for it.
        told_blackout_ms: What qmp-migrate told its user about the same; None for the others.
        copying_ms: ``active`` to STOP at the source.
        controller_cpu_ms: What the controller's process computed meanwhile; None where there is none.
        guest_went_on: The guest's own count went on at the destination.
        guest_rate_mib_s: What the guest really dirtied, by its own count.
        stages: For qmp-migrate, where the time went, milliseconds, in order.
        load1: Load average of the machine when it began.
    """

    scenario: str
    contender: str
    round: int
    error: str | None = None
    wall_ms: float = 0.0
    qemu: Numbers | None = None
    blackout_ms: float | None = None
    handover_ms: float | None = None
    told_blackout_ms: float | None = None
    copying_ms: float | None = None
    controller_cpu_ms: float | None = None
    guest_went_on: bool | None = None
    guest_rate_mib_s: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    load1: float = 0.0

    @property
    def overhead_ms(self) -> float | None:
        """The whole action without QEMU's own ``total-time``."""
        return self.wall_ms - self.qemu.total_ms if self.qemu else None

    @property
    def throughput_mib_s(self) -> float | None:
        """Transferred over total without set-up, MiB per second."""
        if self.qemu is None or self.qemu.total_ms <= self.qemu.setup_ms:
            return None
        return self.qemu.transferred_bytes / 2**20 * 1000 / (self.qemu.total_ms - self.qemu.setup_ms)

    @property
    def controller_cpu_percent(self) -> float | None:
        """Of one core, while copying."""
        if self.controller_cpu_ms is None or not self.copying_ms:
            return None
        return 100 * self.controller_cpu_ms / self.copying_ms

    def to_dict(self) -> dict[str, Any]:
        """Return it with what follows from it."""
        return {
            **asdict(self),
            "overhead_ms": self.overhead_ms,
            "throughput_mib_s": self.throughput_mib_s,
            "controller_cpu_percent": self.controller_cpu_percent,
        }
