"""What Home Assistant is told: one device for each host and guest, and where a guest is, whatever order messages come in."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmp_migrate.bus.client.subscription import Received
from qmp_migrate.bus.messages.registry import HostStatus, HostVm, MigrationProgress, MigrationState
from qmp_migrate.bus.messages.topics import Kind, Topics
from qmp_migrate.bus.publish import home_assistant
from qmp_migrate.bus.publish.home_assistant import HomeAssistant, node_of, object_of
from qmp_migrate.errors import UsageError
from tests.support.data.golden_messages import message

TOPICS = Topics()
DISCOVERY = re.compile(r"homeassistant/(sensor|binary_sensor)/[a-zA-Z0-9_-]+/[a-zA-Z0-9_-]+/config")
"""What Home Assistant takes for a discovery topic."""
WEB1 = "homeassistant/qmp-migrate_v1/vm/web1"


def received(topic: str, made: object) -> Received:
    return Received(topic, False, TOPICS.parse(topic), made)  # type: ignore[arg-type]


def guest(host: str, runstate: str = "running", role: str = "idle", vm: str = "web1", **changes: Any) -> Received:
    made = message(Kind.HOST_VM, host=host, vm=vm, runstate=runstate, role=role, **changes)
    assert isinstance(made, HostVm)
    return received(TOPICS.host_vm(host, vm), made)


def gone(host: str, vm: str = "web1") -> Received:
    return received(TOPICS.host_vm(host, vm), None)


def status(host: str, state: str = "ready") -> Received:
    made = message(Kind.HOST_STATUS, host=host, state=state)
    assert isinstance(made, HostStatus)
    return received(TOPICS.host_status(host), made)


def migration(outcome: str | None = None, owner: str | None = None, name: str = "m-1", **changes: Any) -> Received:
    fields = {"id": name, "vm": "web1", "source": "a", "destination": "b", "error": None, **changes}
    made = message(Kind.MIGRATION_STATE, outcome=outcome, owner=owner, **fields)
    assert isinstance(made, MigrationState)
    return received(TOPICS.migration_state(name), made)


def progress(percent: float, name: str = "m-1", vm: str | None = "web1") -> Received:
    made = message(Kind.MIGRATION_PROGRESS, id=name, vm=vm, percent=percent)
    assert isinstance(made, MigrationProgress)
    return received(TOPICS.migration_progress(name), made)


def told(devices: HomeAssistant, *messages: Received, at: float = 100.0) -> dict[str, Any]:
    for each in messages:
        devices.hear(each, at)
    return {topic: json.loads(payload) if payload else None for topic, payload in devices.changes(at).items()}


def test_a_host_is_a_device_whose_entities_read_what_its_agent_says() -> None:
    found = told(HomeAssistant(TOPICS), status("kvm-1.lab"))
    assert len(found) == 6
    assert all(DISCOVERY.fullmatch(topic) for topic in found), list(found)
    agent = found["homeassistant/binary_sensor/qmp-migrate_v1/host_kvm-1_2elab_agent/config"]
    assert agent["state_topic"] == "qmp-migrate/v1/host/kvm-1.lab/status"
    cpu = found["homeassistant/sensor/qmp-migrate_v1/host_kvm-1_2elab_cpu/config"]
    assert cpu["state_topic"] == "qmp-migrate/v1/host/kvm-1.lab/load"
    assert cpu["availability"][0]["topic"] == "qmp-migrate/v1/host/kvm-1.lab/status"
    assert cpu["device"] == agent["device"]
    assert cpu["device"]["name"] == "kvm-1.lab"
    assert len({config["unique_id"] for config in found.values()}) == 6


def test_a_guest_is_a_device_and_a_document() -> None:
    found = told(HomeAssistant(TOPICS), guest("a"))
    document = found.pop(WEB1)
    assert (document["host"], document["state"], document["migrating"], document["problem"]) == (
        "a",
        "running",
        False,
        False,
    )
    assert len(found) == 6
    assert all(DISCOVERY.fullmatch(topic) for topic in found)
    for config in found.values():
        assert config["state_topic"] == WEB1
        assert config["availability"] == [{"topic": "homeassistant/qmp-migrate_v1/status"}]
        assert config["device"]["identifiers"] == ["qmp-migrate_v1_guest_web1"]


def test_nothing_is_said_twice() -> None:
    devices = HomeAssistant(TOPICS)
    told(devices, status("a"), guest("a"))
    assert told(devices, status("a"), guest("a")) == {}
    assert list(told(devices, guest("a", "paused"))) == [WEB1]


def test_a_guest_is_followed_through_a_migration() -> None:
    devices = HomeAssistant(TOPICS)
    told(devices, guest("a"))
    steps = [
        ([migration()], ("a", "running", True, None)),
        ([guest("b", "inmigrate", "incoming"), guest("a", "running", "source")], ("a", "running", True, None)),
        ([progress(41.7)], ("a", "running", True, 41)),
        ([guest("a", "finish-migrate", "source")], ("a", "finish-migrate", True, 41)),
        ([guest("a", "postmigrate", "source"), guest("b", "running")], ("b", "running", True, 41)),
        ([migration("completed", "destination"), gone("a")], ("b", "running", False, None)),
    ]
    for messages, wanted in steps:
        document = told(devices, *messages).get(WEB1) or json.loads(devices.said[WEB1])
        assert tuple(document[key] for key in ("host", "state", "migrating", "percent")) == wanted
    assert document["last"]["outcome"] == "completed"
    assert (document["last"]["source"], document["last"]["destination"]) == ("a", "b")


LAST_WORDS = [
    [guest("a", "running", "source"), guest("a", "postmigrate", "source"), gone("a")],
    [guest("b", "inmigrate", "incoming"), guest("b")],
    [migration(), migration("completed", "destination")],
]


def test_in_whatever_order_three_publishers_are_heard_the_guest_ends_where_it_is() -> None:
    """Each topic keeps its order; between topics there is none."""
    turns = [number for number, words in enumerate(LAST_WORDS) for _ in words]
    for order in set(itertools.permutations(turns)):
        devices = HomeAssistant(TOPICS)
        told(devices, guest("a"))
        rest = [iter(words) for words in LAST_WORDS]
        for number in order:
            shown = told(devices, next(rest[number])).get(WEB1) or json.loads(devices.said[WEB1])
            assert shown["host"] in ("a", "b") or shown["state"] in ("gone", "unknown"), order
        document = json.loads(devices.said[WEB1])
        assert (document["host"], document["state"], document["migrating"]) == ("b", "running", False), order
        assert document["problem"] is False, order


def test_states_of_old_migrations_that_come_late_change_nothing() -> None:
    devices = HomeAssistant(TOPICS)
    told(devices, guest("a"), migration(name="m-2", started_at="2026-01-02T00:00:00.000Z"))
    told(devices, migration("failed", "source", started_at="2026-01-01T00:00:00.000Z"), progress(7.0))
    document = json.loads(devices.said[WEB1])
    assert (document["migrating"], document["last"]["outcome"], document["percent"]) == (True, None, None)


@pytest.mark.parametrize("outcome", ["failed", "unknown"])
def test_a_guest_that_may_not_run_is_a_problem(outcome: str) -> None:
    found = told(HomeAssistant(TOPICS), guest("a"), migration(outcome, "unknown"))[WEB1]
    assert (found["problem"], found["last"]["outcome"]) == (True, outcome)


def test_so_are_a_panic_and_a_name_used_twice() -> None:
    assert told(HomeAssistant(TOPICS), guest("a", "guest-panicked"))[WEB1]["problem"] is True
    devices = HomeAssistant(TOPICS)
    told(devices, guest("a", uuid="1"), guest("b", uuid="2"))
    found = told(devices, at=110.0)[WEB1]
    assert (found["host"], found["problem"]) == ("a, b", True)
    told(devices, gone("b"), at=111.0)
    assert told(devices, at=120.0)[WEB1]["problem"] is False


def test_what_a_lost_host_said_is_not_taken_for_the_truth() -> None:
    devices = HomeAssistant(TOPICS)
    told(devices, status("a"), guest("a"))
    assert told(devices, status("a", "lost"))[WEB1]["state"] == "unknown"
    assert told(devices, status("a"))[WEB1]["state"] == "running"
    # Started anew elsewhere by a person: what the dead host had said does not count.
    found = told(devices, status("a", "lost"), status("b"), guest("b"))[WEB1]
    assert (found["host"], found["state"], found["problem"]) == ("b", "running", False)


def test_a_guest_that_is_gone_says_so_and_keeps_its_entities_for_a_while() -> None:
    devices = HomeAssistant(TOPICS)
    entities = set(told(devices, guest("a")))
    found = told(devices, gone("a"), at=200.0)
    assert list(found) == [WEB1]
    assert (found[WEB1]["state"], found[WEB1]["host"]) == ("gone", None)
    assert told(devices, at=200.0 + home_assistant.GONE_S - 1) == {}
    found = told(devices, at=200.0 + home_assistant.GONE_S)
    assert (set(found), set(found.values())) == (entities, {None})
    assert devices.said == {}


def test_one_that_comes_back_in_time_is_the_same() -> None:
    devices = HomeAssistant(TOPICS)
    told(devices, guest("a"))
    told(devices, gone("a"), at=200.0)
    assert list(told(devices, guest("b"), at=210.0)) == [WEB1]
    assert told(devices, at=1000.0) == {}


def test_a_host_whose_status_was_cleared_is_taken_away_later() -> None:
    devices = HomeAssistant(TOPICS)
    told(devices, status("a"))
    assert told(devices, received(TOPICS.host_status("a"), None), at=200.0) == {}
    assert len(told(devices, at=200.0 + home_assistant.GONE_S)) == 6


def test_only_guests_that_are_wanted() -> None:
    devices = HomeAssistant(TOPICS, guests=["web*"])
    assert told(devices, guest("a", vm="db1"), migration(vm="db1"), progress(3.0, vm="db1")) == {}
    assert WEB1 in told(devices, guest("a"))


def test_no_publisher_can_make_it_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_assistant, "LIMIT", 3)
    devices = HomeAssistant(TOPICS)
    found = told(devices, *(guest("a", vm=f"g{number}") for number in range(5)))
    found |= told(devices, *(status(f"h{number}") for number in range(5)))
    assert len([topic for topic in found if "/vm/" in topic]) == 3
    assert len({topic for topic in found if topic.endswith("_agent/config")}) == 3
    assert devices.left_out == 4
    told(devices, *(migration(name=f"m-{number}", vm=f"x{number}") for number in range(50)))
    assert len(devices._moves) <= 6


@pytest.mark.parametrize(
    "prefix", ["", "a/+", "a#", "/a", "a/", "qmp-migrate", "qmp-migrate/v1", "qmp-migrate/v1/x", "ä"]
)
def test_a_prefix_that_cannot_be_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError):
        HomeAssistant(TOPICS, prefix)


def test_two_fleets_on_one_broker_do_not_meet() -> None:
    first = told(HomeAssistant(TOPICS), guest("a"))
    other = Topics("lab.two/v1")
    made = message(Kind.HOST_VM, host="a", vm="web1")
    topic = other.host_vm("a", "web1")
    second = told(HomeAssistant(other), Received(topic, False, other.parse(topic), made))
    assert not set(first) & set(second)
    assert node_of("lab.two/v1") == "lab_two_v1"


NAMES = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,20}", fullmatch=True)


@settings(max_examples=500, deadline=None)
@given(st.sets(NAMES, min_size=2, max_size=2), st.sampled_from(["state", "host"]))
def test_different_names_are_different_objects(names: set[str], entity: str) -> None:
    one, two = (object_of("guest", name, entity) for name in sorted(names))
    assert one != two
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", one)
