"""When standing still becomes a failure: the limits, one by one, on a clock of the test's own."""

from __future__ import annotations

from typing import Any

from qmp_migrate.errors import MigrationFailed
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.model.watchdog import Watchdog
from qmp_migrate.settings import Limits


def watchdog(**wanted: int) -> Watchdog:
    request = MigrationRequest("web1", "b", "a", limits=Limits(connect_s=30, stall_s=20, switchover_s=10), **wanted)
    return Watchdog(request, "a", "10.0.0.2", 49152, begun=100.0)


def standstill(dog: Watchdog, begin: float, end: float, **seen: Any) -> MigrationFailed | None:
    """Look once a second and at the end; return the first failure."""
    for now in (*(begin + second for second in range(1, int(end - begin) + 1)), end):
        if (failure := dog.look(now, **seen)) is not None:
            return failure
    return None


def test_nothing_travels_at_all() -> None:
    dog = watchdog()
    assert standstill(dog, 100, 130, transferred=0, connected=False, stopped=None) is None
    failure = dog.look(130.1, transferred=0, connected=False, stopped=None)
    assert failure is not None
    assert (failure.code, failure.host, failure.exit_code) == ("not_connected", "a", 4)
    assert "10.0.0.2 port 49152" in failure.message


def test_bytes_are_life_however_few() -> None:
    dog = watchdog()
    for number in range(20):
        begin = 100 + number * 19.9
        assert standstill(dog, begin, begin + 19.9, transferred=number, connected=True, stopped=None) is None


def test_a_black_hole_is_seen_after_the_limit_and_not_before() -> None:
    dog = watchdog()
    assert dog.look(101, transferred=7, connected=True, stopped=None) is None
    assert standstill(dog, 101, 121, transferred=7, connected=True, stopped=None) is None
    failure = dog.look(121.1, transferred=7, connected=True, stopped=None)
    assert failure is not None
    assert failure.code == "stalled"


def test_the_time_to_connect_does_not_count_as_standstill() -> None:
    dog = watchdog()
    assert standstill(dog, 100, 129, transferred=0, connected=False, stopped=None) is None
    assert standstill(dog, 129, 148, transferred=0, connected=True, stopped=None) is None


def test_a_switchover_has_its_limit_and_what_the_user_allows() -> None:
    dog = watchdog(downtime_limit_ms=5000)
    assert standstill(dog, 100, 120, transferred=7, connected=True, stopped=105) is None
    failure = dog.look(120.1, transferred=7, connected=True, stopped=105)
    assert failure is not None
    assert failure.code == "switchover_stuck"


def test_a_guest_that_runs_on_after_a_stop_is_given_the_whole_time_again() -> None:
    dog = watchdog()
    assert standstill(dog, 100, 119, transferred=7, connected=True, stopped=None) is None
    assert standstill(dog, 119, 123, transferred=7, connected=True, stopped=119) is None
    assert standstill(dog, 123, 142, transferred=7, connected=True, stopped=None) is None


def test_what_nobody_watched_does_not_count() -> None:
    """The controller was frozen for an hour while QEMU copied on: it looks again before it judges."""
    for connected, stopped in [(False, None), (True, None), (True, 105.0)]:
        dog = watchdog()
        assert standstill(dog, 100, 106, transferred=7, connected=connected, stopped=stopped) is None
        assert dog.look(3706, transferred=7, connected=connected, stopped=stopped) is None
        assert standstill(dog, 3706, 3712, transferred=7, connected=connected, stopped=stopped) is None
        assert standstill(dog, 3712, 3740, transferred=7, connected=connected, stopped=stopped) is not None
