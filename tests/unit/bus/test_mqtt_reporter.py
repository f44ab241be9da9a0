"""The reporter: what a migration says becomes messages, and nothing it says can hurt it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from qmp_migrate.bus.messages.codec import decode, encode
from qmp_migrate.bus.messages.registry import BusMessage, MigrationEvent, MigrationProgress, MigrationState
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.bus.publish.mqtt_reporter import MqttReporter
from qmp_migrate.migration.model.reporter import MigrationView, Progress, Reporter

VIEW = MigrationView(
    id="m-1", vm="web1", source="a", destination="b", mode="live", phase="copying", rev=3, started_at=1_795_000_000.5
)
PROGRESS = Progress(
    id="m-1",
    seq=1,
    status="active",
    percent=12.5,
    transferred_bytes=10,
    remaining_bytes=20,
    total_bytes=30,
    throughput_bytes_per_s=40,
    dirty_bytes_per_s=50,
    pass_number=1,
    throttle_percent=0,
    expected_blackout_ms=12,
    eta_ms=None,
    elapsed_ms=99,
)


@dataclass
class Broker:
    """Takes what a `BusClient` would; every message must survive its own encoding."""

    topics: Topics = field(default_factory=Topics)
    got: list[tuple[str, str, BusMessage]] = field(default_factory=list)

    def publish_state(self, topic: str, message: BusMessage) -> None:
        self._take("state", topic, message)

    def publish_event(self, topic: str, message: BusMessage) -> None:
        self._take("event", topic, message)

    def publish_progress(self, topic: str, message: BusMessage) -> None:
        self._take("progress", topic, message)

    def _take(self, how: str, topic: str, message: BusMessage) -> None:
        decoded = decode(self.topics, topic, encode(message))[1]
        assert decoded is not None
        self.got.append((how, topic.removeprefix("qmp-migrate/v1/migration/"), decoded))


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def reporter(broker: Broker) -> Reporter:
    return MqttReporter(broker, "ctl-1")  # type: ignore[arg-type]  # mypy checks here that it fits the port


def test_a_phase_is_a_retained_state_and_an_event(broker: Broker, reporter: Reporter) -> None:
    reporter.phase(VIEW)
    reporter.phase(
        replace(VIEW, rev=4, phase="rolled-back", outcome="failed", error={"code": "x", "message": "y", "extra": 1})
    )
    (how1, topic1, state), (how2, topic2, event), (_, _, ended), (_, _, last) = broker.got
    assert (how1, topic1, how2, topic2) == ("state", "m-1/state", "event", "m-1/event")
    assert isinstance(state, MigrationState)
    assert (state.vm, state.phase, state.rev, state.owner, state.controller) == (
        "web1",
        "copying",
        3,
        "source",
        "ctl-1",
    )
    assert state.started_at.timestamp() == VIEW.started_at
    assert isinstance(event, MigrationEvent)
    assert (event.type, event.subject, event.seq) == ("qmp-migrate.migration.phase", "web1", 1)
    assert event.data["phase"] == "copying"
    assert isinstance(ended, MigrationState)
    assert ended.error is not None
    assert (ended.outcome, ended.error.code) == ("failed", "x")
    assert isinstance(last, MigrationEvent)
    assert last.seq == 2


def test_progress_carries_the_guest_once_it_is_known(broker: Broker, reporter: Reporter) -> None:
    reporter.progress(PROGRESS)
    reporter.phase(VIEW)
    reporter.progress(replace(PROGRESS, seq=2))
    numbers = [message for how, _, message in broker.got if how == "progress"]
    assert [type(message) for message in numbers] == [MigrationProgress, MigrationProgress]
    assert [message.vm for message in numbers if isinstance(message, MigrationProgress)] == [None, "web1"]


def test_events_are_numbered_per_migration(broker: Broker, reporter: Reporter) -> None:
    for migration in ("m-1", "m-2", "m-1"):
        reporter.event("step", {"id": migration, "why": "dirty rate above the link"})
    events = [message for _, _, message in broker.got if isinstance(message, MigrationEvent)]
    assert [(event.seq, event.data) for event in events] == [
        (seq, {"why": "dirty rate above the link"}) for seq in (1, 1, 2)
    ]
    assert len({event.id for event in events}) == 3


BROKEN: dict[str, Callable[[Any], None]] = {
    "no view": lambda reporter: reporter.phase(None),
    "no name": lambda reporter: reporter.phase(replace(VIEW, id="a/b")),
    "no time": lambda reporter: reporter.phase(replace(VIEW, started_at=float("nan"))),
    "no number": lambda reporter: reporter.progress(replace(PROGRESS, percent=float("inf"))),
    "text": lambda reporter: reporter.progress(replace(PROGRESS, total_bytes="many")),
    "no id": lambda reporter: reporter.event("step", {}),
    "too long": lambda reporter: reporter.event("x" * 999, {"id": "m-1"}),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_nothing_that_is_said_raises_and_it_is_logged_once(broken: Callable[[Any], None], reporter: Reporter) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            broken(reporter)
    assert [entry["event"] for entry in logs] == ["report-not-published"]


def test_odd_values_in_event_data_are_written_as_text(broker: Broker, reporter: Reporter) -> None:
    reporter.event("step", {"id": "m-1", "error": ValueError("odd"), "path": object, "ratio": float("inf")})
    message = broker.got[0][2]
    assert isinstance(message, MigrationEvent)
    assert message.data["error"] == "odd"


def test_a_report_takes_microseconds(broker: Broker, reporter: Reporter) -> None:
    reporter.phase(VIEW)
    began = time.thread_time()  # of this thread: the machine may be busy with something else
    for seq in range(200):
        reporter.progress(replace(PROGRESS, seq=seq))
    assert (time.thread_time() - began) / 200 < 0.005
