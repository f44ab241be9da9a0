"""What is promised, against what was measured."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from bench.measure.samples import Numbers, Sample
from bench.report.summary import Spread, Summary
from bench.report.targets import Target, judge
from bench.scenarios import ALL, BULK, CORE, PACED

MIB = 1 << 20


def target(name: str, samples: Iterable[Sample], help_ms: Spread | None = None) -> Target:
    return next(found for found in judge(Summary(samples), help_ms) if name in found.name)


def sample(scenario: str, contender: str, **more: object) -> Sample:
    return Sample(scenario, contender, 1, **more)  # type: ignore[arg-type]


def test_nothing_measured_is_not_met_and_not_missed() -> None:
    assert {found.word for found in judge(Summary([]), None)} == {"not measured"}


@pytest.mark.parametrize(("ours", "word"), [(24.9, "met"), (25.0, "met"), (25.1, "NOT MET")])
def test_blackout_may_be_five_milliseconds_above_raw_s(ours: float, word: str) -> None:
    samples = [sample("idle", "raw", blackout_ms=20.0), sample("idle", "command", blackout_ms=ours)]
    assert target("blackout", samples).word == word


def test_without_raw_there_is_no_blackout_to_compare() -> None:
    assert target("blackout", [sample("idle", "command", blackout_ms=20.0)]).met is None


def test_the_worst_scenario_decides() -> None:
    def pair(scenario: str, overhead_ms: float) -> Sample:
        return sample(scenario, "library", wall_ms=400.0 + overhead_ms, qemu=Numbers(400, 5, 0, MIB, 2))

    found = target("library", [pair("idle", 100), pair("dirtying-tls", 301), pair("idle-tls", 200)])
    assert found.worst == ("dirtying-tls", 301)
    assert found.word == "NOT MET"


@pytest.mark.parametrize(("ours", "word"), [(699.0, "met"), (700.0, "NOT MET")])
def test_the_whole_command_takes_less_than_seven_tenths_of_virsh(ours: float, word: str) -> None:
    samples = [sample("idle", "virsh", wall_ms=1000.0), sample("idle", "command", wall_ms=ours)]
    assert target("virsh", samples).word == word


@pytest.mark.parametrize(("transferred", "word"), [(100, "met"), (95, "met"), (94, "NOT MET")])
def test_throughput_reaches_95_percent_of_raw_s(transferred: int, word: str) -> None:
    samples = [
        sample("bulk", "raw", qemu=Numbers(1000, 5, 0, 100 * MIB, 2)),
        sample("bulk", "command", qemu=Numbers(1000, 5, 0, transferred * MIB, 2)),
    ]
    assert target("throughput", samples).word == word


def test_of_two_throughputs_the_lower_one_is_the_worst() -> None:
    samples = [
        sample(scenario, contender, qemu=Numbers(1000, 5, 0, mib * MIB, 2))
        for scenario, contender, mib in (
            ("bulk", "raw", 100),
            ("bulk", "command", 90),
            ("bulk-tls", "raw", 50),
            ("bulk-tls", "command", 60),
        )
    ]
    assert target("throughput", samples).worst == ("bulk", pytest.approx(0.9))


@pytest.mark.parametrize(("used_ms", "word"), [(299.0, "met"), (300.0, "NOT MET")])
def test_the_controller_computes_for_less_than_3_percent(used_ms: float, word: str) -> None:
    samples = [sample("paced", "command", copying_ms=10_000.0, controller_cpu_ms=used_ms)]
    assert target("CPU", samples).word == word


def test_help_is_judged_by_its_median() -> None:
    assert target("--help", [], Spread(399.0, 100.0, 900.0, 5)).word == "met"
    assert target("--help", [], Spread(400.0, 100.0, 900.0, 5)).word == "NOT MET"


def test_what_is_judged_is_measured_by_those_it_is_judged_on() -> None:
    assert {*CORE, *BULK, PACED} == set(ALL)
    assert all({"raw", "command", "library", "virsh"} == set(scenario.contenders) for scenario in CORE)
    assert all({"raw", "command"} <= set(scenario.contenders) for scenario in BULK)
    assert "command" in PACED.contenders
