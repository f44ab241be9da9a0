"""What the fault suite calls two running copies, a pause and a failed table cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cases.catalogue import CASES, QUICK
from tests.faults.cases.phases import PHASES, span
from tests.faults.cases.trial import Result
from tests.faults.execution.report import figures, write
from tests.faults.lab.spy import Interval, Spy, Watch, overlaps


def watch(source: list[tuple[float, float]], destination: list[tuple[float, float]]) -> Watch:
    spies = Spy("a", Path("/nowhere/a")), Spy("b", Path("/nowhere/b"))
    for spy, times in zip(spies, (source, destination), strict=True):
        spy.intervals += [Interval(spy.side, *pair) for pair in times]
    return Watch(*spies)


@pytest.mark.parametrize(
    ("source", "destination", "wrong"),
    [
        ([(0, 1)], [(2, 3)], False),
        ([(0, 1), (2, 3)], [], False),
        ([(0, 1), (4, 5)], [(2, 3)], False),
        ([(0, 2.001)], [(2, 3)], True),
        ([(0, 9)], [(2, 3)], True),
        ([(0, 1), (2.5, 4)], [(2, 3)], True),
    ],
)
def test_two_copies_are_seen(
    source: list[tuple[float, float]], destination: list[tuple[float, float]], wrong: bool
) -> None:
    assert bool(watch(source, destination).overlaps()) is wrong


def test_one_copy_that_never_ends_overlaps_every_later_one() -> None:
    assert "to the end" in overlaps([Interval("a", 0), Interval("b", 5)])[0]


def test_a_pause_is_the_time_between_two_owners() -> None:
    assert watch([(0, 1)], [(3.5, 9)]).pauses() == [2.5]


def test_phases_are_in_order() -> None:
    assert span("wired", "converging") == ("wired", "first-pass", "converging")
    assert len({phase.name for phase in PHASES}) == 11


def test_the_quick_ones_touch_every_phase() -> None:
    assert {name.partition("/")[0] for name in QUICK} == {phase.name for phase in PHASES}
    assert set(QUICK) <= set(CASES)


def test_results_are_written_with_what_failed(tmp_path: Path) -> None:
    results = [
        Result("wired/link-down", 1, code=4, owner="source", proven_s=1.0),
        Result("wired/link-down", 2, ["<two copies>"], owner="source", proven_s=2.0),
        Result("running/kill-controller", 3, owner="destination", proven_s=3.0, recover_s=2.5),
    ]
    assert figures(results)["failed"] == 1
    assert figures(results)["recover_after_kill_s"]["max"] == 2.5
    write(tmp_path / "faults", results, complete=True)
    page = (tmp_path / "faults.html").read_text()
    assert "!1/2" in page
    assert "<two copies>" not in page
    assert '"complete": true' in (tmp_path / "faults.json").read_text()
