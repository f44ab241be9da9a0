"""What the project promises, against the medians that were measured. Pure; a target that is missed is told, no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.report.summary import Spread, Summary
from bench.scenarios import BULK, CORE, PACED, Scenario


@dataclass(frozen=True, slots=True)
class Target:
    """One promise and what came of it.

    Attributes:
        name: What is promised.
        limit: The bound, in `unit`.
        at_least: The value must reach the limit; else it must stay below.
        inclusive: The limit itself is good.
        unit: For people.
        values: What was measured, by scenario.
    """

    name: str
    limit: float
    unit: str
    values: dict[str, float]
    at_least: bool = False
    inclusive: bool = True

    @property
    def worst(self) -> tuple[str, float] | None:
        """The scenario with the worst value, and the value; None: nothing was measured."""
        if not self.values:
            return None
        pick = min if self.at_least else max
        name = pick(self.values, key=self.values.__getitem__)
        return name, self.values[name]

    @property
    def met(self) -> bool | None:
        """Whether the worst value keeps the promise; None: nothing was measured."""
        if self.worst is None:
            return None
        value = self.worst[1]
        if value == self.limit:
            return self.inclusive
        return value > self.limit if self.at_least else value < self.limit

    @property
    def word(self) -> str:
        """``met``, ``NOT MET`` or ``not measured``."""
        return {True: "met", False: "NOT MET", None: "not measured"}[self.met]


def judge(summary: Summary, help_ms: Spread | None) -> list[Target]:
    """Return every target of the project with what was measured.

    Args:
        summary: What was measured.
        help_ms: How long ``qmp-migrate --help`` takes, milliseconds; None: not measured.
    """

    def median(contender: str, metric: str) -> Callable[[str], float | None]:
        return lambda scenario: summary.median(scenario, contender, metric)

    ours, raw = median("command", "blackout_ms"), median("raw", "blackout_ms")
    return [
        Target("blackout of qmp-migrate above raw QEMU's", 5, "ms", _each(CORE, _difference(ours, raw))),
        Target("whole command above QEMU's own total-time", 1500, "ms", _each(CORE, median("command", "overhead_ms"))),
        Target(
            "whole command, as a part of what virsh takes",
            0.7,
            "x",
            _each(CORE, _ratio(median("command", "wall_ms"), median("virsh", "wall_ms"))),
            inclusive=False,
        ),
        Target(
            "library with open connections above QEMU's own total-time",
            300,
            "ms",
            _each(CORE, median("library", "overhead_ms")),
        ),
        Target(
            "throughput, as a part of raw QEMU's",
            0.95,
            "x",
            _each(BULK, _ratio(median("command", "throughput_mib_s"), median("raw", "throughput_mib_s"))),
            at_least=True,
        ),
        Target(
            "controller's CPU while copying",
            3,
            "% of a core",
            _each([PACED], median("command", "controller_cpu_percent")),
            inclusive=False,
        ),
        Target("qmp-migrate --help", 400, "ms", {"--help": help_ms.median} if help_ms else {}, inclusive=False),
    ]


def _difference(
    one: Callable[[str], float | None], other: Callable[[str], float | None]
) -> Callable[[str], float | None]:
    def difference(scenario: str) -> float | None:
        left, right = one(scenario), other(scenario)
        return None if left is None or right is None else left - right

    return difference


def _ratio(one: Callable[[str], float | None], other: Callable[[str], float | None]) -> Callable[[str], float | None]:
    def ratio(scenario: str) -> float | None:
        left, right = one(scenario), other(scenario)
        return None if left is None or not right else left / right

    return ratio


def _each(scenarios: Sequence[Scenario], value: Callable[[str], float | None]) -> dict[str, float]:
    found = {scenario.name: value(scenario.name) for scenario in scenarios}
    return {name: number for name, number in found.items() if number is not None}
