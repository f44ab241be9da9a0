"""Two that claim to be one are told of, once; a migration is no conflict, and neither is a host that is gone."""

from __future__ import annotations

from typing import Any

import pytest

from qmp_migrate.bus.client.subscription import Received
from qmp_migrate.bus.consume import name_conflicts
from qmp_migrate.bus.consume.name_conflicts import Conflicts
from qmp_migrate.bus.messages.registry import HostEvent, HostStatus, HostVm
from qmp_migrate.bus.messages.topics import Kind, Topics
from qmp_migrate.fleet.guests import Guest
from qmp_migrate.fleet.guests import conflicts as listed
from qmp_migrate.fleet.notifications import rules
from tests.support.data.golden_messages import message

TOPICS = Topics()
LATER = name_conflicts.SETTLED_S + 0.1


def received(topic: str, made: object) -> Received:
    return Received(topic, False, TOPICS.parse(topic), made)  # type: ignore[arg-type]


def guest(host: str, vm: str = "web1", **changes: Any) -> Received:
    fields = {"host": host, "vm": vm, "runstate": "running", "role": "idle", "migration_status": None, **changes}
    made = message(Kind.HOST_VM, **fields)
    assert isinstance(made, HostVm)
    return received(TOPICS.host_vm(host, vm), made)


def gone(host: str, vm: str = "web1") -> Received:
    return received(TOPICS.host_vm(host, vm), None)


def status(host: str, state: str = "ready", session: str = "b1.1") -> Received:
    made = message(Kind.HOST_STATUS, host=host, state=state, session=session)
    assert isinstance(made, HostStatus)
    return received(TOPICS.host_status(host), made)


def spoken(host: str, session: str) -> Received:
    made = message(Kind.HOST_EVENT, source=f"/qmp-migrate/host/{host}", session=session)
    assert isinstance(made, HostEvent)
    return received(TOPICS.host_event(host), made)


def told(watch: Conflicts, *messages: Received, after: float = LATER) -> list[dict[str, Any]]:
    for each in messages:
        watch.hear(each, 100.0)
    return watch.found(100.0 + after)


def test_a_name_on_two_hosts_is_told_once_and_its_end_too() -> None:
    watch = Conflicts()
    [found] = told(watch, guest("a", uuid="u1"), guest("b", uuid="u2"))
    assert (found["schema"], found["vm"], found["hosts"]) == ("events.conflict/1", "web1", ["a", "b"])
    assert found["same_uuid"] is False
    assert told(watch, guest("a", uuid="u1"), guest("b", uuid="u2")) == []
    [ended] = told(watch, gone("b"))
    assert ended["hosts"] == []


def test_the_same_uuid_is_said() -> None:
    [found] = told(Conflicts(), guest("a", uuid="u1"), guest("b", uuid="u1"))
    assert found["same_uuid"] is True
    assert "one guest, twice" in found["text"]


@pytest.mark.parametrize(
    "other",
    [
        {"role": "source", "migration_status": "active"},
        {"role": "source", "runstate": "postmigrate", "migration_status": "completed"},
        {"role": "incoming", "runstate": "inmigrate"},
        {"role": "incoming", "runstate": "running", "migration_status": "postcopy-active"},
        {"runstate": "prelaunch"},
        {"runstate": "unknown"},
    ],
)
def test_a_migration_is_no_conflict(other: dict[str, Any]) -> None:
    assert told(Conflicts(), guest("a", **other), guest("b")) == []


def test_what_changes_back_within_a_moment_is_not_told() -> None:
    watch = Conflicts()
    assert told(watch, guest("a"), guest("b"), after=0.5) == []
    assert told(watch, gone("a")) == []


def test_a_host_that_is_gone_does_not_count_until_it_is_back() -> None:
    watch = Conflicts()
    assert told(watch, status("a", "lost"), guest("a"), guest("b")) == []
    [found] = told(watch, status("a", "ready", "b1.2"))
    assert found["hosts"] == ["a", "b"]


@pytest.mark.parametrize(
    ("sessions", "twice"),
    [
        (["b1.1", "b2.1", "b1.1"], True),
        (["b1.1", "b2.1", "b3.1"], False),
        (["b1.1", "b1.2", "b1.1"], False),
        (["b1.1", "b1.2", "b1.1", "b1.2", "b1.1"], True),
    ],
)
def test_two_agents_of_one_name_are_known_by_sessions_that_come_back(sessions: list[str], twice: bool) -> None:
    watch = Conflicts()
    found = told(watch, *(spoken("a", session) for session in sessions))
    assert [each["kind"] for each in found] == ["host"] * twice
    if twice:
        assert told(watch, *(spoken("a", session) for session in sessions)) == []  # it was said


def test_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_conflicts, "REMEMBERED", 10)
    watch = Conflicts()
    for number in range(100):
        watch.hear(guest("a", f"vm{number}"), 0.0)
        watch.hear(guest("b", f"vm{number}"), 0.0)
        watch.hear(spoken(f"h{number}", "b1.1"), 0.0)
    assert len(watch.found(10.0)) == 10


def test_it_is_a_notice() -> None:
    [found] = told(Conflicts(), guest("a", uuid="u1"), guest("b", uuid="u1"))
    notice = rules.conflict(found, 7)
    assert notice is not None
    assert (notice.kind, notice.vm, notice.data["hosts"]) == ("guest.conflict", "web1", ["a", "b"])
    assert rules.conflict({**found, "hosts": []}, 8) is None
    host = rules.conflict({"kind": "host", "host": "a", "text": "x"}, 1)
    assert host is not None
    assert host.kind == "host.conflict"


def test_a_list_of_guests_shows_them_too() -> None:
    def there(host: str, state: str = "running", migration: str | None = None) -> Guest:
        return Guest("web1", host, state, 1, migration=migration, uuid="u")

    assert [found["hosts"] for found in listed([there("a"), there("b", "paused")])] == [["a", "b"]]
    assert listed([there("a", migration="active"), there("b", "inmigrate")]) == []
    assert listed([there("a"), there("b", "postmigrate")]) == []
    assert listed([there("a")]) == []
