"""Sessions and presence: a late last will cannot end a newer session."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from qmp_migrate.bus.client.presence import Presence
from qmp_migrate.bus.messages.registry import HostStatus, PresenceState, StatusMessage
from qmp_migrate.bus.messages.session import Session, begin_session

AT = datetime(2026, 11, 23, 18, 0, 0, tzinfo=UTC)


def status(state: PresenceState, session: Session) -> HostStatus:
    return HostStatus(
        host="a",
        at=AT,
        state=state,
        session=session.id,
        started_at=session.started_at,
        interval_s=5.0,
        version="1",
    )


def test_sessions_of_one_process_grow_even_within_a_millisecond() -> None:
    sessions = [begin_session()]
    for _ in range(50):
        sessions.append(begin_session(sessions[-1]))
    for older, newer in pairwise(sessions):
        assert newer.newer_than(older)
        assert not older.newer_than(newer)


def test_a_clock_that_steps_back_does_not_reorder_sessions_of_one_boot() -> None:
    first = Session("boot-1.1000", AT)
    second = Session("boot-1.2000", AT - timedelta(hours=1))
    assert second.newer_than(first)
    assert not first.newer_than(second)


def test_after_a_reboot_the_time_decides() -> None:
    before = Session("boot-1.99999999", AT)
    after = Session("boot-2.5", AT + timedelta(minutes=1))
    assert after.newer_than(before)
    assert not before.newer_than(after)


def test_the_owner_of_a_topic_knows_stale_wills_from_rivals() -> None:
    presence = Presence("t", status)
    old_will = presence.begin()
    will = presence.begin()
    assert isinstance(will, StatusMessage)
    assert will.state == "lost"
    assert presence.judge(presence.current()) == "ours"
    assert presence.judge(will) == "ours"
    assert presence.judge(old_will) == "stale"
    newer = begin_session(begin_session(presence.session))
    assert presence.judge(status("ready", newer)) == "rival"
