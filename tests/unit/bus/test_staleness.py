"""Hosts that have fallen silent, by the listener's own clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from qmp_migrate.bus.client.subscription import Received
from qmp_migrate.bus.consume.staleness import Silence, with_pauses
from qmp_migrate.bus.messages.registry import MODELS
from qmp_migrate.bus.messages.topics import Kind, Topics
from tests.support.data.golden_messages import golden_of

TOPICS = Topics()


def received(kind: Kind, host: str = "a", **changes: object) -> Received:
    import json

    document = {**golden_of(kind), "host": host, **changes}
    message = MODELS[kind].model_validate_json(json.dumps(document))
    topic = f"{TOPICS.root}/host/{host}/{kind.value.partition('.')[2]}"
    return Received(topic, False, TOPICS.parse(topic), message)


def test_three_reports_that_do_not_come_are_told_once() -> None:
    silence = Silence()
    silence.hear(received(Kind.HOST_STATUS, state="ready", interval_s=5.0), 0.0)
    silence.hear(received(Kind.HOST_LOAD), 5.0)
    assert silence.fallen(19.9) == []
    (told,) = silence.fallen(20.1)
    assert (told["schema"], told["host"], told["silent_s"]) == ("events.stale/1", "a", 15.1)
    assert silence.fallen(30.0) == []
    silence.hear(received(Kind.HOST_LOAD), 31.0)
    assert len(silence.fallen(47.0)) == 1


def test_who_has_said_farewell_is_not_silent() -> None:
    silence = Silence()
    silence.hear(received(Kind.HOST_STATUS, state="ready"), 0.0)
    silence.hear(received(Kind.HOST_STATUS, state="lost"), 1.0)
    assert silence.fallen(1000.0) == []


def test_a_timestamp_from_the_future_changes_nothing() -> None:
    silence = Silence()
    silence.hear(received(Kind.HOST_LOAD, at="2999-01-01T00:00:00.000Z"), 0.0)
    assert len(silence.fallen(16.0)) == 1


async def test_pauses_come_between_and_errors_come_through(virtual_clock: None) -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0.15)
        yield 2

    seen = [item async for item in with_pauses(source(), 0.05)]
    assert seen[0] == 1
    assert None in seen
    assert [item for item in seen if item is not None] == [1, 2]


async def test_the_last_item_is_not_lost_when_it_comes_with_the_pause() -> None:
    """On a busy machine the pause is over, the item comes, and the source ends, all between two looks."""

    async def source() -> AsyncIterator[int]:
        yield 1
        asyncio.get_running_loop().call_later(0.02, time.sleep, 0.3)  # pause and item are both due after it
        await asyncio.sleep(0.1)
        yield 2

    seen = [item async for item in with_pauses(source(), 0.05)]
    assert [item for item in seen if item is not None] == [1, 2]


async def test_a_cancellation_is_obeyed_whenever_it_comes() -> None:
    """Also while the wait for an item is being taken back: it looks the same there."""

    async def nothing() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 0

    async def listen() -> None:
        async for _ in with_pauses(nothing(), 0):
            pass

    for turns in range(60):
        listening = asyncio.create_task(listen())
        for _ in range(turns):
            await asyncio.sleep(0)
        listening.cancel()
        done, _ = await asyncio.wait({listening}, timeout=1)
        assert done, f"after {turns} turns of the loop"
