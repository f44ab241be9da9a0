"""The convergence policy: the mildest thing that helps, never more than is allowed, and always an end, with a reason."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmp_migrate.migration.convergence import policies
from qmp_migrate.migration.convergence.ladder import (
    LAST_KINDS,
    NOTHING,
    START_MS,
    Allowed,
    Sample,
    Step,
    first_limit_ms,
    next_step,
)
from qmp_migrate.migration.convergence.vcpu_dirty_limit import stall_ms
from qmp_migrate.migration.model.request import MAX_DOWNTIME_MS
from tests.support.models.precopy_simulator import MIB, Guest, migrate

GBIT = 125_000_000
LINK = 32 * MIB

allowances = st.builds(
    Allowed,
    downtime_ms=st.integers(1, MAX_DOWNTIME_MS),
    bandwidth_bytes_per_s=st.sampled_from([0, GBIT // 10, GBIT]),
    throttle_percent=st.integers(0, 99),
    postcopy=st.booleans(),
    stop=st.booleans(),
    copies=st.floats(1, 20),
    hurry_copies=st.floats(1, 20),
    last_copies=st.floats(1, 10),
    timeout_ms=st.sampled_from([0, 1, 60_000]),
    dirty_ring_bytes=st.sampled_from([0, 1024 * 4096, 4096 * 4096]),
)

measured = st.lists(
    st.builds(
        Sample,
        pass_number=st.integers(1, 3),  # how many passes since the one before
        remaining_bytes=st.integers(0, 1 << 38),
        bandwidth_bytes_per_s=st.integers(0, 10 * GBIT),
        limit_ms=st.just(0),
        elapsed_ms=st.integers(0, 20_000),  # since the one before
        transferred_bytes=st.integers(0, 1 << 36),
        total_bytes=st.just(1 << 38),
        throttle_percent=st.integers(0, 99),
        begins_pass=st.booleans(),
        vcpu_dirty_bytes_per_s=st.sampled_from([(), (0, 0), (GBIT,), (2 * GBIT, 0), (GBIT, GBIT // 2, 10 * GBIT)]),
    ),
    max_size=30,
)


def followed(allowed: Allowed, seen: list[Sample]) -> list[tuple[Sample, Step]]:
    """Show what was measured to the policy, bit by bit, and obey it; ends with a last step."""
    limit, throttle, bandwidth = first_limit_ms(allowed.downtime_ms), 0, allowed.bandwidth_bytes_per_s // 2
    number = elapsed = transferred = dirty_limit = 0
    samples, told = list[Sample](), list[tuple[Sample, Step]]()
    for sample in seen:
        number, elapsed = number + sample.pass_number, elapsed + sample.elapsed_ms
        transferred += sample.transferred_bytes
        samples.append(
            Sample(
                number if sample.begins_pass else max(1, number - sample.pass_number),
                sample.remaining_bytes,
                sample.bandwidth_bytes_per_s,
                limit,
                elapsed,
                transferred,
                sample.total_bytes,
                min(throttle, sample.throttle_percent),
                throttle,
                bandwidth,
                sample.begins_pass,
                sample.vcpu_dirty_bytes_per_s,
                dirty_limit,
            )
        )
        step = next_step(samples, allowed)
        told.append((samples[-1], step))
        if step.kind in LAST_KINDS:
            break
        limit = step.limit_ms or limit
        throttle = step.throttle_percent or throttle
        dirty_limit = step.dirty_limit_bytes_per_s or dirty_limit
        bandwidth = step.bandwidth_bytes_per_s if step.kind == "raise-bandwidth" else bandwidth
    return told


def _stall_ms(sample: Sample, step: Step, allowed: Allowed) -> float:
    return stall_ms(sample.vcpu_dirty_bytes_per_s, step.dirty_limit_bytes_per_s, allowed.dirty_ring_bytes)


# -- for whatever is measured -----------------------------------------------------------------------------------------


@given(allowed=st.integers(1, MAX_DOWNTIME_MS))
def test_it_starts_low(allowed: int) -> None:
    assert first_limit_ms(allowed) == min(20, allowed)
    assert START_MS == 20


def test_where_there_must_be_no_second_pass_it_starts_with_all_that_is_allowed() -> None:
    assert first_limit_ms(300, one_pass=True) == 300


@given(allowances, measured)
def test_nothing_is_more_than_is_allowed_and_nothing_is_taken_back(allowed: Allowed, seen: list[Sample]) -> None:
    for sample, step in followed(allowed, seen):
        match step.kind:
            case "raise-downtime-limit":
                assert sample.limit_ms < step.limit_ms <= allowed.downtime_ms
            case "throttle":
                assert sample.asked_throttle_percent < step.throttle_percent <= allowed.throttle_percent
                assert not sample.dirty_limit_bytes_per_s  # not twice
            case "limit-dirty-rate":
                fastest = max(sample.vcpu_dirty_bytes_per_s)
                assert 0 < step.dirty_limit_bytes_per_s < (sample.dirty_limit_bytes_per_s or fastest)
                assert step.dirty_limit_bytes_per_s >= fastest * (1 - allowed.throttle_percent / 100)
                assert sample.limit_ms + _stall_ms(sample, step, allowed) <= allowed.downtime_ms + 1
                assert not sample.asked_throttle_percent
            case "raise-bandwidth":
                limit = sample.max_bandwidth_bytes_per_s
                assert step.bandwidth_bytes_per_s == allowed.bandwidth_bytes_per_s
                assert limit < step.bandwidth_bytes_per_s
            case "postcopy":
                assert allowed.postcopy
            case "stop":
                assert allowed.stop
                assert not allowed.postcopy
            case "give-up":
                assert not allowed.stop
                assert not allowed.postcopy


@given(allowances, measured)
def test_every_step_says_why_in_numbers(allowed: Allowed, seen: list[Sample]) -> None:
    for _sample, step in followed(allowed, seen):
        if step.kind == "none":
            assert step == NOTHING
        else:
            assert re.search(r"\d", step.reason)
        assert bool(step.hint) == (step.kind == "give-up")


@given(allowances, measured)
def test_within_a_pass_only_time_counts(allowed: Allowed, seen: list[Sample]) -> None:
    for sample, step in followed(allowed, seen):
        if step.kind != "none" and not sample.begins_pass:
            assert step.kind in LAST_KINDS
            assert 0 < allowed.timeout_ms <= sample.elapsed_ms


@given(allowances, measured)
def test_the_same_is_said_of_the_same(allowed: Allowed, seen: list[Sample]) -> None:
    assert followed(allowed, seen) == followed(allowed, seen)


# -- against guests ---------------------------------------------------------------------------------------------------

guests = st.builds(
    Guest,
    ram=st.integers(16, 4096).map(lambda mib: mib * MIB),
    link=st.sampled_from([LINK // 8, LINK, GBIT, 10 * GBIT]),
    dirty=st.integers(0, 3 * GBIT),
    working_set=st.sampled_from([0, MIB, 16 * MIB, 256 * MIB]),
    obeys=st.sampled_from([0.0, 0.3, 1.0]),
    reacts_ms=st.sampled_from([1.0, 5.0, 40.0]),
)


@settings(max_examples=100, deadline=None)
@given(guests, st.sampled_from(policies.OURS), st.integers(1, 2000), st.booleans(), st.booleans())
def test_every_guest_comes_to_an_end_soon(guest: Guest, policy: str, limit: int, postcopy: bool, stop: bool) -> None:
    ended = migrate(guest, policy, postcopy=postcopy, stop=stop, downtime_limit_ms=limit)
    assert ended.limit_ms <= limit
    copy_ms = guest.ram * 1000 / guest.link
    assert ended.total_ms <= 15 * copy_ms + 100 * limit + 5000
    if ended.how == "switched":
        assert ended.blackout_ms <= limit + 5
    if ended.how == "give-up":
        assert min(guest.working_set or guest.ram, guest.dirty * 15 * copy_ms / 1000) > guest.link * limit / 1000 * 0.9


@settings(max_examples=50, deadline=None)
@given(guests, st.integers(1, 2000))
def test_finish_never_gives_up_where_the_guest_may_be_stopped(guest: Guest, limit: int) -> None:
    assert migrate(guest, "finish", downtime_limit_ms=limit).how in {"switched", "stop"}
    assert migrate(guest, "finish", downtime_limit_ms=limit, postcopy=True).how in {"switched", "postcopy"}


@settings(max_examples=50, deadline=None)
@given(guests, st.integers(1, 1000), st.integers(2, 10))
def test_who_allows_more_is_not_refused_where_less_was_enough(guest: Guest, limit: int, factor: int) -> None:
    if migrate(guest, "gentle", downtime_limit_ms=limit).how == "switched":
        assert migrate(guest, "gentle", downtime_limit_ms=limit * factor).how == "switched"


@settings(max_examples=50, deadline=None)
@given(guests)
def test_gentle_leaves_the_guest_alone(guest: Guest) -> None:
    ended = migrate(guest, "gentle", postcopy=True)
    assert {step.kind for step in ended.steps} <= {"raise-downtime-limit", "give-up"}
    assert ended.most_throttle == 0


def test_an_idle_guest_needs_no_step() -> None:
    ended = migrate(Guest(ram=4096 * MIB, link=GBIT, dirty=MIB, working_set=4 * MIB))
    assert (ended.how, ended.limit_ms, ended.steps) == ("switched", 20, [])


def test_a_guest_that_needs_a_longer_pause_gets_just_that() -> None:
    """16 MiB are dirtied again in every pass: 135 ms at 1 Gbit/s, with headroom 168."""
    ended = migrate(Guest(ram=4096 * MIB, link=GBIT, dirty=10 * GBIT, working_set=16 * MIB), downtime_limit_ms=2000)
    assert ended.how == "switched"
    assert 135 <= ended.limit_ms <= 170
    assert ended.passes < 10
    assert ended.most_throttle <= 1  # it need not be slowed down


def test_the_limit_is_raised_when_little_is_left_and_not_after_a_burst() -> None:
    """Every other pass leaves ten times as much."""
    allowed, samples, number, elapsed = Allowed(2000), list[Sample](), 1, 10_000
    samples.append(Sample(1, 4096 * MIB, GBIT, 3, 0, 0, 4096 * MIB))
    while True:
        number, elapsed = number + 1, elapsed + 500
        left = 100 * MIB if number % 2 else 10 * MIB
        samples.append(Sample(number, left, GBIT, 3, elapsed, 0, 4096 * MIB))
        step = next_step(samples, allowed)
        if step.kind != "none":
            break
    assert (step.kind, number % 2) == ("raise-downtime-limit", 0)
    assert step.limit_ms == 105  # 10 MiB at 1 Gbit/s take 84 ms


def test_a_guest_that_needs_more_than_is_allowed_is_given_up_within_three_passes_of_seeing_it() -> None:
    ended = migrate(Guest(ram=4096 * MIB, link=GBIT, dirty=10 * GBIT, working_set=512 * MIB), "gentle")
    assert ended.how == "give-up"
    first_seen = 3  # pass 2 begins with all that was dirtied in the bulk pass, and pass 3 with as much again
    assert ended.passes <= first_seen + 3
    assert "MiB (4.3 s at 119.2 MiB/s)" in ended.last.reason


def test_what_would_have_worked_does_work() -> None:
    guest = Guest(ram=1024 * MIB, link=GBIT, dirty=2 * GBIT, working_set=256 * MIB)
    ended = migrate(guest, "gentle")
    assert ended.how == "give-up"
    found = re.search(r"--downtime-limit (\d+)ms", ended.last.hint)
    assert found, ended.last.hint
    assert migrate(guest, "gentle", downtime_limit_ms=int(found[1])).how == "switched"
    found = re.search(r"a link that carries (\d+)MiB/s", ended.last.hint)
    assert found, ended.last.hint
    faster = Guest(ram=guest.ram, link=int(found[1]) * MIB, dirty=guest.dirty, working_set=guest.working_set)
    assert migrate(faster, "gentle").how == "switched"
    assert "--policy finish" in ended.last.hint
    assert migrate(guest, "finish").how in {"switched", "stop"}


def test_and_so_does_the_bandwidth_where_it_was_ours_that_was_too_little() -> None:
    guest = Guest(ram=1024 * MIB, link=10 * GBIT, dirty=int(0.93 * GBIT))
    ended = migrate(guest, "gentle", bandwidth_bytes_per_s=GBIT)
    found = re.search(r"--bandwidth (\d+)MiB", ended.last.hint)
    assert found, ended.last.hint
    assert migrate(guest, "gentle", bandwidth_bytes_per_s=int(found[1]) * MIB).how == "switched"


def test_a_rate_limit_of_ours_that_is_far_too_low_is_named() -> None:
    guest = Guest(ram=128 * MIB, link=10 * GBIT, dirty=4 * MIB, working_set=24 * MIB)
    ended = migrate(guest, "gentle", bandwidth_bytes_per_s=2 * MIB)
    assert ended.how == "give-up"
    found = re.search(r"--bandwidth (\d+)MiB \(if the link carries it\)", ended.last.hint)
    assert found, ended.last.hint
    assert migrate(guest, "gentle", bandwidth_bytes_per_s=int(found[1]) * MIB).how == "switched"


def test_our_own_rate_limit_is_raised_first_as_far_as_it_may() -> None:
    guest = Guest(ram=1024 * MIB, link=10 * GBIT, dirty=GBIT // 4)
    ended = migrate(guest, bandwidth_bytes_per_s=GBIT // 5, max_bandwidth_bytes_per_s=GBIT)
    assert ended.how == "switched"
    assert ended.steps[0].kind == "raise-bandwidth"
    assert ended.steps[0].bandwidth_bytes_per_s == GBIT
    assert "throttle" not in {step.kind for step in ended.steps}


def test_time_that_is_up_takes_the_last_rung_that_is_allowed() -> None:
    guest = Guest(dirty=LINK // 2)
    for wanted, how in (({}, "give-up"), ({"allow_stop": True}, "stop"), ({"allow_postcopy": True}, "postcopy")):
        ended = migrate(guest, "gentle", postcopy=True, timeout_ms=3000, **wanted)
        assert ended.how == how
        assert 3000 <= ended.samples[-1].elapsed_ms <= 3300
        assert "3.0 s have passed" in ended.last.reason or "3.2 s" in ended.last.reason


def test_a_qemu_that_does_not_stop_although_it_fits_is_allowed_more() -> None:
    allowed = Allowed(300)
    samples = [Sample(2, MIB, GBIT, 30, 1200, 0, 1024 * MIB)]
    assert next_step(samples, allowed) == NOTHING
    samples.append(Sample(3, MIB, GBIT, 30, 1500, 0, 1024 * MIB))
    assert next_step(samples, allowed).limit_ms == 60


def test_a_guest_is_not_slowed_down_for_nothing() -> None:
    """At 40 % of its speed it still dirties half as much again as is carried; 30 % would not do."""
    samples = [Sample(n, 15 * GBIT, GBIT, 3, n * 10_000, 0, 20 * GBIT, 60, 60) for n in range(2, 6)]
    step = next_step(samples, Allowed(300, throttle_percent=70, copies=5, hurry_copies=2))
    assert step.kind == "give-up"
    assert "--max-throttle" in step.hint


def test_a_guest_that_cannot_be_slowed_down_enough_is_given_up_soon() -> None:
    ended = migrate(Guest(dirty=4 * LINK))
    assert [step.kind for step in ended.steps] == ["throttle", "give-up"]
    assert ended.passes <= 5


# -- what is promised -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_default_is_no_slower_than_the_best_of_the_others_and_pauses_shorter_than_each(share: float) -> None:
    guest = Guest(dirty=int(share * LINK))
    ours, others = migrate(guest), [migrate(guest, name) for name in policies.RIVALS]
    assert ours.how == "switched"
    assert ours.most_throttle <= 50
    assert ours.total_ms <= min(other.total_ms for other in others if other.how == "switched") + 50
    # Whose passes happen to end with next to nothing left are as short: below this it is devices and `cont`, and luck.
    assert ours.blackout_ms < max(30.0, min(other.blackout_ms for other in others))


@pytest.mark.parametrize("postcopy", [False, True])
@pytest.mark.parametrize("working_set", [0, 64 * MIB, 200 * MIB])
@pytest.mark.parametrize("obeys", [0.0, 0.2, 1.0])
def test_finish_ends_within_three_copies_also_where_more_is_dirtied_than_carried(
    obeys: float, working_set: int, postcopy: bool
) -> None:
    guest = Guest(dirty=int(1.2 * LINK), working_set=working_set, obeys=obeys)
    ended = migrate(guest, "finish", postcopy=postcopy)
    assert ended.how in {"switched", "postcopy", "stop"}
    assert ended.total_ms <= 3 * guest.ram * 1000 / guest.link


@pytest.mark.parametrize("share", [1.05, 1.2, 2.0, 5.0])
def test_gentle_gives_up_within_three_passes_of_seeing_it(share: float) -> None:
    ended = migrate(Guest(dirty=int(share * LINK)), "gentle")
    assert ended.how == "give-up"
    assert ended.passes <= 2 + 3


# -- only the vCPUs that write ----------------------------------------------------------------------------------------

WRITES, COMPUTES = 150 * MIB, 0
TWO = Guest(ram=2048 * MIB, link=100 * MIB, dirty=WRITES, working_set=512 * MIB, vcpus=(WRITES, COMPUTES), ring=4096)


def test_with_a_dirty_ring_the_vcpu_that_writes_is_limited_and_the_other_goes_on() -> None:
    ended = migrate(TWO, max_throttle_percent=80)
    assert ended.steps[0].kind == "limit-dirty-rate"
    assert "throttle" not in {step.kind for step in ended.steps}
    assert ended.how == "switched"
    assert ended.most_throttle <= 1
    assert 40 * MIB <= ended.dirty_limit <= 60 * MIB
    assert ended.blackout_ms <= 300
    assert "no vCPU may dirty more than" in ended.steps[0].reason


def test_without_a_ring_the_same_guest_is_slowed_down_as_a_whole() -> None:
    ended = migrate(replace(TWO, ring=0), max_throttle_percent=80)
    assert ended.steps[0].kind == "throttle"
    assert ended.dirty_limit == 0


def test_a_vcpu_is_limited_by_no_more_than_is_allowed() -> None:
    ended = migrate(TWO)  # by half
    assert ended.dirty_limit == WRITES / 2
    assert ended.how == "switched"


def test_a_user_who_allows_no_throttle_gets_no_limit() -> None:
    assert migrate(TWO, max_throttle_percent=0).dirty_limit == 0
    assert migrate(TWO, "gentle").dirty_limit == 0
    assert migrate(TWO, "proxmox").dirty_limit == 0


def test_a_limit_that_would_make_the_blackout_too_long_is_not_set() -> None:
    """On a slow link a vCPU over its limit would sleep for most of a second, and the whole guest at the switchover."""
    slow = replace(TWO, link=30 * MIB)
    assert migrate(slow, max_throttle_percent=90).dirty_limit == 0
    smaller = migrate(replace(slow, ring=1024), max_throttle_percent=90)
    assert 0 < smaller.dirty_limit < 30 * MIB
    assert smaller.blackout_ms <= 300


def test_the_policy_waits_until_it_knows_what_the_vcpus_dirty() -> None:
    passes = [Sample(n, 400 * MIB, 100 * MIB, 20, 4000 * n, 400 * MIB * n, 2048 * MIB) for n in range(1, 5)]
    allowed = Allowed(300, throttle_percent=80, copies=6, hurry_copies=1.8, dirty_ring_bytes=4096 * 4096)
    assert next_step(passes, allowed).kind == "none"
    known = [replace(one, vcpu_dirty_bytes_per_s=(WRITES, 0)) for one in passes]
    assert next_step(known, allowed).kind == "limit-dirty-rate"
    # Nobody but a device writes: then no vCPU can be at fault.
    assert next_step([replace(one, vcpu_dirty_bytes_per_s=(0, 0)) for one in passes], allowed).kind == "throttle"


def test_what_all_vcpus_write_together_counts() -> None:
    four = replace(TWO, vcpus=(40 * MIB,) * 4, dirty=160 * MIB)
    ended = migrate(four, max_throttle_percent=90)
    assert ended.steps[0].kind == "throttle"  # 10 MiB/s each: too long a sleep with such a ring
    assert migrate(replace(four, ring=1024), max_throttle_percent=90).steps[0].kind == "limit-dirty-rate"
