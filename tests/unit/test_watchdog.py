"""When standing still becomes a failure: the limits, one by one, on a clock of the test's own."""

from __future__ import annotations

from qmp_migrate.migration.request import MigrationRequest
from qmp_migrate.migration.watchdog import Watchdog
from qmp_migrate.settings import Limits


def watchdog(**wanted: int) -> Watchdog:
    request = MigrationRequest("web1", "b", "a", limits=Limits(connect_s=30, stall_s=20, switchover_s=10), **wanted)
    return Watchdog(request, "a", "10.0.0.2", 49152, begun=100.0)


def test_nothing_travels_at_all() -> None:
    dog = watchdog()
    assert dog.look(130, transferred=0, connected=False, stopped=None) is None
    failure = dog.look(130.1, transferred=0, connected=False, stopped=None)
    assert failure is not None
    assert (failure.code, failure.host, failure.exit_code) == ("not_connected", "a", 4)
    assert "10.0.0.2 port 49152" in failure.message


def test_bytes_are_life_however_few() -> None:
    dog = watchdog()
    for number in range(100):
        assert dog.look(130 + number * 19.9, transferred=number, connected=True, stopped=None) is None


def test_a_black_hole_is_seen_after_the_limit_and_not_before() -> None:
    dog = watchdog()
    assert dog.look(125, transferred=7, connected=True, stopped=None) is None
    assert dog.look(145, transferred=7, connected=True, stopped=None) is None
    failure = dog.look(145.1, transferred=7, connected=True, stopped=None)
    assert failure is not None
    assert failure.code == "stalled"


def test_the_time_to_connect_does_not_count_as_standstill() -> None:
    dog = watchdog()
    assert dog.look(129, transferred=0, connected=False, stopped=None) is None
    assert dog.look(148, transferred=0, connected=True, stopped=None) is None


def test_a_switchover_has_its_limit_and_what_the_user_allows() -> None:
    dog = watchdog(downtime_limit_ms=5000)
    assert dog.look(215, transferred=7, connected=True, stopped=200) is None
    failure = dog.look(215.1, transferred=7, connected=True, stopped=200)
    assert failure is not None
    assert failure.code == "switchover_stuck"


def test_a_guest_that_runs_on_after_a_stop_is_given_the_whole_time_again() -> None:
    dog = watchdog()
    assert dog.look(125, transferred=7, connected=True, stopped=None) is None
    assert dog.look(144, transferred=7, connected=True, stopped=140) is None
    assert dog.look(163, transferred=7, connected=True, stopped=None) is None
