"""A QEMU that ends: what it has said is kept, nothing is left behind, and it is asked nothing that it would hang on."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from qemu.qmp import Message

from qmp_migrate.errors import MonitorLost, MonitorTimeout
from qmp_migrate.qemu.monitor import Monitor
from qmp_migrate.qemu.timeouts import ENDING_S
from tests.support.fakes.fake_qemu import CRLF, FakeQemu, connect

# -- the last words of a QEMU ----------------------------------------------------------------------------------------


async def test_the_end_that_a_qemu_announces_is_kept_though_nobody_listens(qemu: FakeQemu, monitor: Monitor) -> None:
    assert monitor.shutdown is None
    qemu.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
    qemu.hang_up()
    async with asyncio.timeout(5):
        await monitor.closed.wait()
    assert monitor.shutdown is not None
    assert monitor.shutdown.data["reason"] == "guest-shutdown"


async def test_what_it_said_before_it_ended_is_read_also_where_a_command_cannot_be_sent_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine QEMU may end between the loop's look at its socket and the next command."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    greeting = {"QMP": {"version": {}, "capabilities": []}}
    theirs.sendall(json.dumps(greeting).encode() + CRLF)

    def negotiate() -> None:
        assert json.loads(theirs.recv(4096))["execute"] == "qmp_capabilities"
        theirs.sendall(b'{"return": {}}' + CRLF)

    _, monitor = await asyncio.gather(
        asyncio.to_thread(negotiate), Monitor.connect(ours, label="web1@a", host="a", timeout=5)
    )
    send = monitor._client._do_send

    def end_and_send(message: Message) -> None:
        stamp = {"seconds": 1, "microseconds": 0}
        for event in (
            {"event": "STOP"},
            {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-shutdown"}},
        ):
            theirs.sendall(json.dumps({"timestamp": stamp} | event).encode() + CRLF)
        theirs.close()
        send(message)

    monkeypatch.setattr(monitor._client, "_do_send", end_and_send)
    with monitor.events("STOP", "SHUTDOWN") as events:
        with pytest.raises(MonitorLost):
            await monitor.execute("query-migrate")
        assert [event.name async for event in events] == ["STOP", "SHUTDOWN"]
    assert monitor.shutdown is not None
    await monitor.close()


async def test_one_that_ends_as_it_is_connected_leaves_nothing_behind() -> None:
    """The library's tasks have their ends looked at, or asyncio reports them with a traceback, as an agent's log showed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    theirs.sendall(json.dumps({"QMP": {"version": {}, "capabilities": []}}).encode() + CRLF)

    def negotiate() -> None:
        assert json.loads(theirs.recv(4096))["execute"] == "qmp_capabilities"
        theirs.sendall(b'{"return": {}}' + CRLF)
        theirs.close()

    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    _, failure = await asyncio.gather(
        asyncio.to_thread(negotiate), Monitor.connect(ours, label="web1@a", host="a", timeout=5), return_exceptions=True
    )
    if not isinstance(failure, MonitorLost):  # it was quick enough to be connected first
        assert isinstance(failure, Monitor)
        await failure.close()
    failure = None
    gc.collect()
    assert found == []


# -- a QEMU that ends must not be asked: up to 10.0 it may then hang for ever ---------------------------------------------


@pytest.fixture
async def ending(virtual_clock: None, qemu: FakeQemu) -> AsyncIterator[Monitor]:
    """The monitor of a QEMU that has just said that it ends."""
    monitor = await connect(qemu)
    with monitor.events("SHUTDOWN") as events:
        qemu.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        await events.get(timeout=5)
    yield monitor
    await monitor.close()


async def test_a_qemu_that_ends_is_asked_nothing(qemu: FakeQemu, ending: Monitor) -> None:
    asking = asyncio.create_task(ending.execute("query-status"))
    await asyncio.sleep(ENDING_S / 2)
    qemu.hang_up()
    with pytest.raises(MonitorLost) as caught:
        await asking
    assert caught.value.sent is False
    assert qemu.asked("query-status") == []


async def test_one_that_stays_is_asked_later(qemu: FakeQemu, ending: Monitor) -> None:
    """With -no-shutdown a QEMU stays in the run state shutdown, and must be asked."""
    begun = time.monotonic()
    assert (await ending.execute("query-status"))["running"] is True
    assert time.monotonic() - begun == pytest.approx(ENDING_S, abs=0.5)
    begun = time.monotonic()
    await ending.execute("query-status")
    assert time.monotonic() - begun < 0.5, "and from then on at once"


@pytest.mark.parametrize("event", ["RESET", "RESUME"])
async def test_one_whose_guest_goes_on_is_asked_at_once(qemu: FakeQemu, ending: Monitor, event: str) -> None:
    asking = asyncio.create_task(ending.execute("query-status"))
    await asyncio.sleep(ENDING_S / 4)
    assert not asking.done()
    qemu.emit(event)
    begun = time.monotonic()
    await asking
    assert time.monotonic() - begun < 0.5


async def test_out_of_band_goes_past_the_queue_that_hangs(qemu: FakeQemu, ending: Monitor) -> None:
    qemu.on("yank", {})
    begun = time.monotonic()
    await ending.execute("yank", {"instances": []}, oob=True)
    assert time.monotonic() - begun < 0.5


async def test_a_shorter_limit_ends_the_wait_and_nothing_is_sent(qemu: FakeQemu, ending: Monitor) -> None:
    with pytest.raises(MonitorTimeout):
        await ending.execute("query-status", timeout=ENDING_S / 2)
    assert qemu.asked("query-status") == []
