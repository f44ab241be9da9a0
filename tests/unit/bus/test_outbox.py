"""The queue: the newest state is never lost, events keep their order, progress gives way, and it stays bounded."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qmp_migrate.bus.client.outbox import BLAME_LIMIT, EVENT_BYTES_LIMIT, EVENT_LIMIT, Outbox

topics = st.sampled_from(["t1", "t2", "t3"])
payloads = st.binary(max_size=3)


def drain(outbox: Outbox) -> list[tuple[str, bytes]]:
    """Send everything; return what the broker got."""
    got = []
    while batch := outbox.take(8):
        for entry in batch:
            outbox.sent(entry)
            got.append((entry.topic, entry.payload))
    return got


class BrokerThatFails(RuleBasedStateMachine):
    """Publishing against a broker that loses connections and forgets everything."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox()
        self.wanted: dict[str, bytes] = {}
        self.broker: dict[str, bytes] = {}
        self.events: list[bytes] = []
        self.number = 0

    @rule(topic=topics, payload=payloads)
    def state(self, topic: str, payload: bytes) -> None:
        self.outbox.put_state(topic, payload)
        self.wanted[topic] = payload

    @rule()
    def event(self) -> None:
        self.number += 1
        self.outbox.put_event("e", str(self.number).encode())

    @rule(topic=topics, payload=payloads)
    def progress(self, topic: str, payload: bytes) -> None:
        self.outbox.put_progress(topic, payload)

    @rule(limit=st.integers(1, 4), works=st.integers(0, 4), data=st.data())
    def connection_that_ends(self, limit: int, works: int, data: st.DataObject) -> None:
        """Some of a batch arrive; something newer may come in between; the rest fails and all is sent again."""
        batch = self.outbox.take(limit)
        if data.draw(st.booleans()):
            self.state("t1", b"newer")
        for number, entry in enumerate(batch):
            if number < works:
                self.receive(entry.fate, entry.topic, entry.payload)
                self.outbox.sent(entry)
            else:
                entry.blame = min(entry.blame, BLAME_LIMIT - 2)  # here the broker is to blame
                assert not self.outbox.failed(entry)
        self.broker.clear()
        self.outbox.resend_states()

    @rule(newer=st.lists(topics, max_size=3))
    def connection_that_holds(self, newer: list[str]) -> None:
        """All is sent; some states change while older ones of theirs are under way."""
        while batch := self.outbox.take(8):
            if newer:
                self.state(newer.pop(), b"newest")
            for entry in batch:
                self.receive(entry.fate, entry.topic, entry.payload)
                self.outbox.sent(entry)
        assert {topic: payload for topic, payload in self.wanted.items() if payload} == self.broker
        assert self.events[-1:] == ([str(self.number).encode()] if self.number else [])

    def receive(self, fate: str, topic: str, payload: bytes) -> None:
        if fate == "state":
            self.broker[topic] = payload
            if not payload:
                del self.broker[topic]
        if fate == "event":
            assert payload not in self.events
            assert not self.events or int(payload) == int(self.events[-1]) + 1
            self.events.append(payload)

    @invariant()
    def no_topic_waits_twice(self) -> None:
        waiting = [(entry.fate, entry.topic) for entry in self.outbox.take(10_000) if entry.fate != "event"]
        assert len(waiting) == len(set(waiting))


BrokerThatFails.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBrokerThatFails = BrokerThatFails.TestCase


def test_first_in_first_out_across_kinds() -> None:
    outbox = Outbox()
    outbox.put_state("s", b"1")
    outbox.put_event("e", b"2")
    outbox.put_progress("p", b"3")
    outbox.put_event("e", b"4")
    assert [payload for _, payload in drain(outbox)] == [b"1", b"2", b"3", b"4"]
    assert len(outbox) == 0


def test_states_come_first_after_a_reconnect_and_our_own_status_after_them() -> None:
    outbox = Outbox()
    outbox.put_state("status", b"ready")
    outbox.put_event("e", b"1")
    outbox.put_state("vm", b"running")
    drain(outbox)
    outbox.put_event("e", b"2")
    outbox.resend_states(last="status")
    assert drain(outbox) == [("vm", b"running"), ("status", b"ready"), ("e", b"2")]


def test_a_full_queue_drops_progress_first_then_the_oldest_events_and_never_state() -> None:
    outbox = Outbox()
    outbox.put_state("s", b"state")
    outbox.put_progress("p", b"progress")
    for number in range(EVENT_LIMIT + 5):
        outbox.put_event("e", str(number).encode())
    outbox.put_progress("p", b"late")
    got = drain(outbox)
    assert got[0] == ("s", b"state")
    assert [payload for _, payload in got[1:]] == [str(n).encode() for n in range(5, EVENT_LIMIT + 5)]
    assert outbox.dropped == 5 + 2


def test_large_events_are_bounded_in_bytes() -> None:
    outbox, large = Outbox(), b"x" * 60_000
    for _ in range(500):
        outbox.put_event("e", large)
    assert sum(len(payload) for _, payload in drain(outbox)) <= EVENT_BYTES_LIMIT


def test_a_message_that_ends_every_connection_is_given_up_alone() -> None:
    """The innocents of its batch are not given up with it."""
    outbox = Outbox()
    for topic in ("a", "poison", "c"):
        outbox.put_state(topic, topic.encode())
    arrived: set[str] = set()
    failures: Counter[str] = Counter()
    for _ in range(20):
        outbox.resend_states()
        while batch := outbox.take(8):
            if any(entry.topic == "poison" for entry in batch):
                for entry in batch:
                    failures[entry.topic] += 1
                    outbox.failed(entry)
                break
            for entry in batch:
                outbox.sent(entry)
                arrived.add(entry.topic)
    assert arrived == {"a", "c"}
    assert (failures["a"], failures["c"]) == (1, 1)
    assert outbox.take(8) == []
    outbox.put_state("poison", b"better")
    assert drain(outbox) == [("poison", b"better")]
