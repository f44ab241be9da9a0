"""A limit for each vCPU: what it leaves of the dirtying, and how long the guest may stand still for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.migration.convergence.vcpu_dirty_limit import dirtied, least_limit, limit_for, stall_ms

MIB = 1 << 20
RING = 4096 * 4096

vcpus = st.lists(st.floats(0, 1e10), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("rates", "total", "limit"),
    [
        ([150], 40, 40),
        ([150, 0], 40, 40),  # who does not write takes nothing from who does
        ([150, 150], 40, 20),
        ([150, 10], 40, 30),
        ([5, 100, 10, 100], 55, 20),
        ([10, 10], 40, 10),  # less than may be: no limit below what they do
        ([0, 0], 40, 0),
        ([], 40, 0),
    ],
)
def test_who_writes_less_leaves_its_share_to_who_writes_more(rates: list[float], total: float, limit: float) -> None:
    assert limit_for(rates, total) == pytest.approx(limit)


@given(vcpus, st.floats(1, 1e10))
def test_all_together_dirty_what_they_may(rates: list[float], total: float) -> None:
    assert dirtied(rates, limit_for(rates, total)) == pytest.approx(min(total, sum(rates)))


def test_a_guest_stands_still_until_the_last_sleeper_wakes_up() -> None:
    """QEMU 11.1.3: at 5 MiB/s 2.3 s, at 20 MiB/s 0.64 s; a vCPU that is never over the limit never sleeps."""
    assert stall_ms([30 * MIB], 5 * MIB, RING) == pytest.approx(2667, rel=0.01)
    assert stall_ms([123 * MIB, 0], 20 * MIB, RING) == pytest.approx(670, rel=0.01)
    assert stall_ms([30 * MIB], 5 * MIB, RING // 4) == pytest.approx(667, rel=0.01)
    assert stall_ms([30 * MIB], 30 * MIB, RING) == stall_ms([30 * MIB], 0, RING) == stall_ms([], MIB, RING) == 0


@given(st.lists(st.floats(1e3, 1e10), min_size=1, max_size=8), st.floats(1, 10_000))
def test_the_least_limit_is_the_one_with_the_longest_stall(rates: list[float], longest_ms: float) -> None:
    limit = least_limit(rates, longest_ms, RING)
    assert 0 < limit <= max(rates)
    assert stall_ms(rates, limit, RING) == pytest.approx(longest_ms, rel=0.01, abs=0.01)


def test_where_nothing_is_dirtied_there_is_no_least_limit() -> None:
    assert least_limit([0, 0], 100, RING) == 0
