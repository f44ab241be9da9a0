"""The pure parts of the shoot-out: what follows from events, medians, goals, and the page."""

from __future__ import annotations

import io
import json
import re
import time
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench.contenders.base import MoveFailed
from bench.policies.__main__ import Run
from bench.policies.measure import link
from bench.policies.measure.event_recorder import Seen, course
from bench.policies.measure.guest_log import Inside
from bench.policies.measure.samples import Outcome, Point, Sample
from bench.policies.report import html_report, report, svg, targets
from bench.policies.report.markdown import markdown
from bench.policies.report.summary import Summary
from bench.policies.scenarios import AGAIN, ALL, CONTENDERS, MODES, OTHERS, OURS, POLICIES, RAW, Contender
from qmp_migrate import MigrationRequest

INSIDE = Inside(41.0, 0.9, 41.0, 12.0, 43.0, 25.0, 24.0, 60.0, 1.5)


def sample(scenario: str, contender: str, outcome: Outcome = "completed", **more: Any) -> Sample:
    return Sample(scenario, contender, 1, outcome, **{"wall_ms": 1000.0, **more})


# -- events ---------------------------------------------------------------------------------------------------------------


def seen(*events: tuple[float, str, str]) -> list[Seen]:
    return [Seen(100 + at, side == "source", name) for at, side, name in events]


def test_the_course_of_a_plain_migration() -> None:
    told = course(
        seen(
            (0.0, "source", "setup"),
            (0.1, "source", "active"),
            (0.1, "source", "pass 1"),
            (4.0, "source", "pass 2"),
            (5.0, "source", "STOP"),
            (5.03, "source", "completed"),
            (5.05, "destination", "RESUME"),
        )
    )
    assert told.moved_ms == 5050
    assert told.blackout_ms == pytest.approx(50)
    assert told.first_pass_ms == 4000 - 100 + 100
    assert told.passes_at_ms == (100, 4000)


def test_after_post_copy_it_is_over_when_all_memory_is_there() -> None:
    told = course(
        seen(
            (0, "source", "setup"),
            (1, "source", "STOP"),
            (1.02, "destination", "RESUME"),
            (4, "source", "completed"),
        )
    )
    assert told.moved_ms == 4000
    assert told.handed_over_ms == 1020
    assert told.blackout_ms == pytest.approx(20)


def test_a_guest_that_went_on_at_the_source_has_not_moved() -> None:
    told = course(
        seen((0, "source", "setup"), (1, "source", "STOP"), (1.5, "source", "RESUME"), (1.4, "source", "cancelled"))
    )
    assert told.moved_ms is None
    assert told.blackout_ms == pytest.approx(500)
    assert told.ended_ms == 1400


def test_qemu_11_does_not_tell_of_pass_1() -> None:
    assert course(seen((0, "source", "setup"), (3, "source", "pass 2"))).first_pass_ms == 3000


def test_nothing_seen_is_nothing_known() -> None:
    assert course([]).moved_ms is None


# -- field ----------------------------------------------------------------------------------------------------------------


def test_everybody_asks_for_something_that_the_product_knows() -> None:
    for group in CONTENDERS.values():
        for contender in group:
            MigrationRequest("g", "b", "a", **contender.asked)
        assert len({contender.name for contender in group}) == len(group)
    assert [c.name for c in CONTENDERS["policies"]] == [*OURS, *OTHERS]


def test_the_ratios_are_those_that_were_asked_for() -> None:
    assert [scenario.ratio for scenario in POLICIES] == [0.1, 0.5, 0.8, 1.2]
    assert len({scenario.name for scenario in ALL}) == len(ALL)
    assert [scenario.name for scenario in AGAIN] == ["0.8", "0.5", "1.2", "0.1", "modes", "throughput"]


def test_the_working_set_does_not_run_out_at_the_hardest_that_converges() -> None:
    hardest = POLICIES[2]
    # What else a guest of this size has in use is about 35 MiB.
    assert hardest.ws_mib >= 0.95 * hardest.ratio * (hardest.ws_mib + 35)


# -- summary and goals ----------------------------------------------------------------------------------------------------


def test_a_row_is_what_most_came_to() -> None:
    row = Summary(
        [
            sample("1.2", "ovirt", "gave up", total_ms=50_000.0, reason="too many passes"),
            sample("1.2", "ovirt", "completed", total_ms=20_000.0),
            sample("1.2", "ovirt", "gave up", total_ms=52_000.0, survived=False),
        ]
    ).rows[("1.2", "ovirt")]
    assert row.outcome == "gave up"
    assert row.story == "2x gave up, 1x completed"
    assert row.spreads["total_ms"].least == 50_000
    assert row.lost == 1


def test_of_equals_the_better_outcome_counts() -> None:
    rows = Summary([sample("0.1", "nova", "still going"), sample("0.1", "nova", "completed")]).rows
    assert rows[("0.1", "nova")].outcome == "completed"


def field(scenario: str, ours_ms: float, others_ms: float, *, blackout: float = 40.0) -> list[Sample]:
    return [
        sample(scenario, "default", total_ms=ours_ms, blackout_ms=blackout),
        *(sample(scenario, name, total_ms=others_ms, blackout_ms=50.0) for name in OTHERS),
    ]


@pytest.mark.parametrize(
    ("ours", "verdict"), [(7900.0, "met"), (8000.0, "met"), (8300.0, "tie"), (8500.0, "NOT MET")], ids=str
)
def test_default_must_not_take_longer_than_the_best(ours: float, verdict: str) -> None:
    found = targets.judge(Summary(field("0.5", ours, 8000.0)), {})
    assert next(goal for goal in found if goal.name.startswith("0.5: default takes")).verdict == verdict


@pytest.mark.parametrize(("ours", "verdict"), [(40.0, "met"), (52.0, "tie"), (60.0, "NOT MET")])
def test_default_must_have_the_smallest_blackout(ours: float, verdict: str) -> None:
    found = targets.judge(Summary(field("0.8", 1.0, 1.0, blackout=ours)), {})
    assert next(goal for goal in found if goal.name.startswith("0.8: default has")).verdict == verdict


def test_ranges_that_overlap_are_a_tie() -> None:
    some = [sample("0.1", "default", total_ms=t) for t in (4000.0, 5000.0, 6000.0)]
    some += [sample("0.1", "nova", total_ms=t) for t in (4100.0, 4200.0, 4300.0)]
    assert next(g for g in targets.judge(Summary(some), {}) if g.name.startswith("0.1: default takes")).verdict == "tie"


def test_a_default_that_does_not_complete_has_missed() -> None:
    some = [sample("0.8", "default", "gave up"), sample("0.8", "nova", total_ms=1.0, blackout_ms=1.0)]
    found = {goal.name: goal.verdict for goal in targets.judge(Summary(some), {})}
    assert found["0.8: default takes no longer than the best of the five"] == "NOT MET"
    assert found["0.5: default takes no longer than the best of the five"] == "not measured"


@pytest.mark.parametrize(("total", "verdict"), [(11_900.0, "met"), (12_100.0, "NOT MET")])
def test_finish_ends_within_three_copies(total: float, verdict: str) -> None:
    some = [sample("1.2", "finish", total_ms=total, first_pass_ms=4000.0)]
    assert next(g for g in targets.judge(Summary(some), {}) if "finish" in g.name).verdict == verdict


@pytest.mark.parametrize(("passes", "verdict"), [(3, "met"), (5, "met"), (6, "NOT MET")])
def test_gentle_gives_up_soon(passes: int, verdict: str) -> None:
    some = [sample("1.2", "gentle", "gave up", passes=passes)]
    assert next(g for g in targets.judge(Summary(some), {}) if "gentle" in g.name).verdict == verdict


def test_rates_are_held_against_what_is_possible() -> None:
    some = [
        sample("throughput", "raw QEMU", total_ms=1000.0, bytes=400 << 20),
        sample("throughput", "multifd 2", total_ms=1000.0, bytes=390 << 20),
        sample("throughput", "multifd 4", total_ms=1000.0, bytes=410 << 20),
        sample("throughput", "TLS, multifd 4", total_ms=1000.0, bytes=270 << 20),
    ]
    found = {
        goal.name[:9]: goal for goal in targets.judge(Summary(some), {"1": [280.0], "2": [310.0], "plain": [900.0]})
    }
    assert found["multifd i"].verdict == "met"
    assert found["encrypted"].verdict == "NOT MET"
    assert "87%" in found["encrypted"].told


def test_the_forecast_is_judged_over_all() -> None:
    some = [sample("0.1", "default", forecast_ms=ms) for ms in (900.0, 1200.0, 2000.0)]
    assert targets.judge(Summary(some), {})[-1].verdict == "met"
    assert targets.judge(Summary(some), {})[-1].told.startswith("20%")


def test_nothing_measured_is_no_verdict() -> None:
    assert {goal.verdict for goal in targets.judge(Summary([]), {})} == {"not measured"}


# -- what is worth measuring ----------------------------------------------------------------------------------------------


def test_what_will_not_end_is_measured_once_and_what_is_absent_too() -> None:
    run = Run(until=time.monotonic() + 100)
    contender = Contender("nova")
    assert run.worth_it(POLICIES[0], contender)
    run.samples.append(sample("0.1", "nova", wall_ms=2000.0))
    assert run.worth_it(POLICIES[0], contender)
    run.samples.append(sample("0.1", "nova", "still going"))
    assert not run.worth_it(POLICIES[0], contender)
    assert run.worth_it(POLICIES[1], contender)


def test_no_sample_is_begun_that_would_not_fit() -> None:
    run = Run(until=time.monotonic() + 30)
    run.samples.append(sample("0.1", "nova", wall_ms=60_000.0))
    assert not run.worth_it(POLICIES[0], Contender("nova"))


@pytest.mark.parametrize("mark", [None, "", "own"])
@pytest.mark.parametrize("touch", [link.raise_loopback, lambda: link.limit(1)], ids=["raise", "limit"])
async def test_the_machine_s_own_network_is_never_touched(
    touch: Any, mark: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_argv: str, check: bool = True) -> None:
        pytest.fail("a command was run")

    monkeypatch.setattr(link, "_run", never)
    monkeypatch.delenv(link.MARK, raising=False)
    if mark is not None:
        monkeypatch.setenv(link.MARK, link._network() if mark == "own" else mark)
    with pytest.raises(MoveFailed, match="own network"):
        await touch()


# -- telling --------------------------------------------------------------------------------------------------------------


def document() -> dict[str, Any]:
    curve = [Point(0, 1, 190 << 20, 0, 0), Point(4000, 2, 90 << 20, 190 << 20, 30)]
    some = [
        sample(
            "0.1",
            "default",
            total_ms=4000.0,
            blackout_ms=40.0,
            inside=INSIDE,
            curve=curve,
            survived=True,
            passes=4,
            bytes=1,
        ),
        sample("0.1", "nova", "still going", total_ms=60_000.0, curve=curve, passes=9, reason="<still> going"),
        sample("0.1", "ganeti", "not available", reason="--policy <x> & co"),
        sample("0.1", "ovirt", "failed", reason="QEMU ended"),
        sample("1.2", "gentle", "gave up", total_ms=9000.0, passes=3, steps=["it <grows>"], inside=INSIDE),
        sample("modes", "offline", total_ms=4000.0, blackout_ms=4100.0, inside=INSIDE, survived=False),
        sample("throughput", "raw QEMU", total_ms=2000.0, bytes=800 << 20),
        sample("throughput", "TLS", "not available", reason="no"),
    ]
    around = {
        "at": "now",
        "cpu": "c",
        "cores": 2,
        "system": "s",
        "qemu": "q",
        "accel": "tcg",
        "commit": "1",
        "load": [0.1],
    }
    content = report.document(
        {**around, "minutes": 1.0},
        some,
        link_mib_s=[49.6],
        tls_mib_s={"1": [300.0], "plain": [900.0]},
        absent={"what": "why"},
        memory_kib={scenario.name: scenario.memory_kib for scenario in ALL},
        complete=True,
    )
    told: dict[str, Any] = json.loads(json.dumps(content))
    return told


def test_a_document_is_read_back_as_it_was() -> None:
    told = document()["samples"]
    assert [Sample.of(one).to_dict() for one in told] == [
        {**one, "curve": [tuple(point) for point in one["curve"]]} for one in told
    ]


def test_the_page_has_pictures_that_are_whole_and_nothing_unescaped() -> None:
    made = html_report.html(document())
    pictures = re.findall(r"<svg.*?</svg>", made, re.DOTALL)
    assert len(pictures) == 5  # two policies, courses, modes, rates
    for picture in pictures:
        ElementTree.fromstring(picture)
    assert "nan" not in "".join(pictures)
    assert "<still>" not in made
    assert "it &lt;grows&gt;" in made
    assert "1 of 2 guests" in made


def test_a_page_of_nothing_is_a_page() -> None:
    empty = {
        **document(),
        "samples": [],
        "link": {"aimed_mib_s": 50, "measured_mib_s": []},
        "tls_mib_s": {},
        "goals": [],
    }
    assert "<svg" not in html_report.html(empty)


def test_the_tables_name_everybody() -> None:
    written = io.StringIO()
    report.show(Console(width=250, file=written), document())
    told = written.getvalue()
    for word in ("nova", "still going", "gave up", "NOT SURVIVED", "not measured: what: why", "--policy <x> & co"):
        assert word in told


def test_the_documentation_s_tables_have_everybody_once() -> None:
    told = markdown(document())
    assert told.count("| default | completed | 4.0 | 40 |") == 1
    assert "| ganeti | not available |  |" in told
    assert "| raw QEMU | completed | 400 | 2.00 |" in told


def test_scales_and_ticks() -> None:
    scale = svg.Scale(10, 1000, 0, 100, log=True)
    assert scale(100) == pytest.approx(50)
    assert scale(1) == 0
    assert svg.ticks(62) == [0, 10, 20, 30, 40, 50, 60]
    assert svg.ticks(0.9, 4) == pytest.approx([0, 0.5])
    assert MODES.group == "modes"
    assert RAW.limited is False
