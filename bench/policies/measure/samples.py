"""One measurement of the shoot-out, as it is written to ``build/bench-policies.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any, Literal, TypeAlias

from bench.policies.measure.guest_log import Inside

Outcome: TypeAlias = Literal["completed", "gave up", "still going", "failed", "not available"]
"""``still going``: at the bound, where it was cancelled. ``not available``: it was refused before anything was touched."""


@dataclass(frozen=True, slots=True)
class Point:
    """What the controller saw at a moment of the migration."""

    at_ms: int
    pass_number: int
    remaining_bytes: int
    transferred_bytes: int
    throttle_percent: int


@dataclass(slots=True)
class Sample:
    """What one migration by one contender came to.

    Attributes:
        scenario, contender, round: Which one; rounds count from 1.
        outcome: How it ended.
        reason: Why, where it did not complete.
        total_ms: From the migration's begin until all is at the destination; else until it was given up or cancelled.
        wall_ms: The whole call, with preflight, launch and release.
        blackout_ms: STOP to RESUME, on QEMU's clock; None where the guest was not stopped.
        bytes: Sent.
        passes: QEMU's count of dirty syncs.
        first_pass_ms: One full copy.
        passes_at_ms: When each pass began.
        throttle_percent: How much the guest was slowed down at most.
        inside: What the guest says; None: its log does not tell.
        survived: The oracle's verdict; None: not looked at.
        damage: Why it says no.
        steps: What the policy did.
        forecast_ms: How long the whole call was expected to take; None: nobody said.
        curve: Its course.
        load1: Load average of the machine when it began.
    """

    scenario: str
    contender: str
    round: int
    outcome: Outcome = "failed"
    reason: str = ""
    total_ms: float | None = None
    wall_ms: float = 0.0
    blackout_ms: float | None = None
    bytes: int | None = None
    passes: int | None = None
    first_pass_ms: float | None = None
    passes_at_ms: list[float] = field(default_factory=list)
    throttle_percent: int = 0
    inside: Inside | None = None
    survived: bool | None = None
    damage: str = ""
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    forecast_ms: float | None = None
    curve: list[Point] = field(default_factory=list)
    load1: float = 0.0

    @property
    def throughput_mib_s(self) -> float | None:
        """Sent over total, MiB per second; None where it did not complete."""
        if self.outcome != "completed" or not self.total_ms or self.bytes is None:
            return None
        return self.bytes / 2**20 * 1000 / self.total_ms

    @property
    def forecast_error(self) -> float | None:
        """How far the forecast was off, as a part of what the call took."""
        if self.forecast_ms is None or self.outcome != "completed" or not self.wall_ms:
            return None
        return abs(self.forecast_ms - self.wall_ms) / self.wall_ms

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Sample:
        """Return the sample that `to_dict` told."""
        known = {name: value for name, value in told.items() if name in cls.__dataclass_fields__}
        known["curve"] = [Point(*point) for point in told["curve"]]
        known["inside"] = None if told["inside"] is None else Inside(**told["inside"])
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return it with what follows from it."""
        return {
            **asdict(self),
            "curve": [astuple(point) for point in self.curve],
            "throughput_mib_s": self.throughput_mib_s,
            "forecast_error": self.forecast_error,
        }
