"""The monitor, against a QMP server on a real socket: negotiation, errors, time limits, events, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from qemu.qmp import Message

from qmp_migrate.errors import MonitorBusy, MonitorError, MonitorLost, MonitorTimeout, QmpCommandFailed
from qmp_migrate.qemu import timeouts
from qmp_migrate.qemu.monitor import IN_FLIGHT, STREAM_LIMIT, Monitor
from qmp_migrate.qemu.timeouts import ENDING_S
from tests.support.fakes.fake_qemu import CRLF, Fails, FakeQemu, HangUp, Raw, Silence


@pytest.fixture
async def qemu() -> AsyncIterator[FakeQemu]:
    async with FakeQemu() as fake:
        yield fake


@pytest.fixture
async def monitor(qemu: FakeQemu) -> AsyncIterator[Monitor]:
    connected = await connect(qemu)
    yield connected
    await connected.close()


async def connect(qemu: FakeQemu, *, timeout: float = 5.0) -> Monitor:
    return await Monitor.connect(await qemu.client(), label="web1@a", host="a", timeout=timeout)


def is_closed(sock: socket.socket) -> bool:
    return sock.fileno() == -1


# -- connecting ---------------------------------------------------------------------------------------------------


async def test_out_of_band_is_negotiated_where_it_is_offered(qemu: FakeQemu, monitor: Monitor) -> None:
    assert qemu.negotiated == {"enable": ["oob"]}


async def test_and_not_where_it_is_not() -> None:
    async with FakeQemu(oob=False) as qemu:
        monitor = await connect(qemu)
        assert not qemu.negotiated
        assert (await monitor.execute("query-status"))["running"] is True
        await monitor.close()


async def test_a_second_client_gets_no_greeting_until_the_first_has_gone(qemu: FakeQemu, monitor: Monitor) -> None:
    sock = await qemu.client()
    with pytest.raises(MonitorBusy) as caught:
        await Monitor.connect(sock, label="web1@a", host="a", timeout=0.1)
    assert caught.value.host == "a"
    assert "one client" in (caught.value.hint or "")
    assert is_closed(sock)
    await monitor.close()
    again = await connect(qemu)
    assert (await again.execute("query-status"))["running"] is True
    await again.close()


async def test_greeting_and_negotiation_share_one_time_limit(qemu: FakeQemu, virtual_clock: None) -> None:
    qemu.on("qmp_capabilities", Silence())
    begun = time.monotonic()
    with pytest.raises(MonitorBusy):
        await connect(qemu, timeout=5.0)
    assert time.monotonic() - begun == pytest.approx(5.0, abs=0.01)


@pytest.mark.parametrize(
    "greeting",
    [
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        b'{"return": {}}\r\n',
        b'{"QMP": {"version": "7.2"}}\r\n',
        b'{"QMP": {"version": {}, "capabilities": ["oob"]\r\n',
        b"[]\r\n",
        b"\xff\xfe\r\n",
        b"\r\n",
    ],
)
async def test_what_does_not_greet_as_qemu_does_is_no_monitor(qemu: FakeQemu, greeting: bytes) -> None:
    qemu.greeting = greeting
    sock = await qemu.client()
    with pytest.raises(MonitorLost, match="does not speak QMP") as caught:
        await Monitor.connect(sock, label="web1@a", host="a")
    assert caught.value.hint
    assert is_closed(sock)


@pytest.mark.parametrize("reply", [Fails("no"), HangUp(), Raw(b"what?\r\n")])
async def test_a_refused_negotiation_is_no_monitor(qemu: FakeQemu, reply: object) -> None:
    qemu.on("qmp_capabilities", reply)
    with pytest.raises(MonitorLost, match="does not speak QMP"):
        await connect(qemu)


async def test_a_peer_that_is_gone_is_no_monitor() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    theirs.close()
    with pytest.raises(MonitorLost):
        await Monitor.connect(ours, label="web1@a")
    assert is_closed(ours)


async def test_cancelling_a_connect_closes_the_socket(qemu: FakeQemu) -> None:
    qemu.greeting = None
    sock = await qemu.client()
    connecting = asyncio.create_task(Monitor.connect(sock, label="web1@a"))
    await asyncio.sleep(0)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert is_closed(sock)


# -- commands -----------------------------------------------------------------------------------------------------


async def test_a_command_gets_its_own_answer(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("query-block-jobs", [])
    qemu.on("ring", lambda arguments: arguments["n"])
    answers = await asyncio.gather(*(monitor.execute("ring", {"n": n}) for n in range(50)))
    assert answers == list(range(50))
    assert await monitor.execute("query-block-jobs") == []


async def test_an_error_of_qemu_keeps_its_words(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("cont", Fails("Migration is not finalized yet", "GenericError"))
    with pytest.raises(QmpCommandFailed) as caught:
        await monitor.execute("cont")
    error = caught.value
    assert (error.command, error.error_class, error.desc) == ("cont", "GenericError", "Migration is not finalized yet")
    assert str(error) == "a: cont: Migration is not finalized yet"
    with pytest.raises(QmpCommandFailed) as caught:
        await monitor.execute("query-nonsense")
    assert caught.value.error_class == "CommandNotFound"


async def test_an_answer_of_several_megabytes_is_read(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("query-qmp-schema", ["x" * 1000] * 5000)
    assert len(await monitor.execute("query-qmp-schema")) == 5000


async def test_a_slow_host_gets_more_time_for_everything(qemu: FakeQemu) -> None:
    monitor = await Monitor.connect(await qemu.client(), label="web1@a", timeout=0.001, time_factor=10_000)
    qemu.on("stop", {})
    qemu.main_loop.clear()
    asyncio.get_running_loop().call_later(0.2, qemu.main_loop.set)
    await monitor.execute("stop", timeout=0.001)
    await monitor.close()


async def test_after_a_time_limit_the_outcome_is_unknown_and_the_monitor_usable(
    qemu: FakeQemu, monitor: Monitor
) -> None:
    qemu.main_loop.clear()
    with pytest.raises(MonitorTimeout) as caught:
        await monitor.execute("stop", timeout=0.05)
    assert "unknown" in (caught.value.hint or "")
    assert caught.value.host == "a"
    assert not monitor.closed.is_set()
    qemu.on("stop", {"late": True})
    qemu.main_loop.set()
    # The late answer to `stop` comes first; it belongs to nobody and must not be taken for this one's.
    assert (await monitor.execute("query-status"))["status"] == "running"


async def test_out_of_band_is_answered_while_the_main_loop_hangs(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.main_loop.clear()
    qemu.on("yank", {})
    waiting = asyncio.create_task(monitor.execute("query-status"))
    assert await monitor.execute("yank", {"instances": [{"type": "migration"}]}, oob=True) == {}
    assert not waiting.done()
    qemu.main_loop.set()
    assert (await waiting)["running"] is True


async def test_out_of_band_gets_through_however_much_is_waiting(qemu: FakeQemu, monitor: Monitor) -> None:
    """QEMU stops reading at 8 queued in-band commands: then a `yank` would wait behind them."""
    qemu.main_loop.clear()
    qemu.on("yank", {})
    waiting = [asyncio.create_task(monitor.execute("query-status")) for _ in range(3 * IN_FLIGHT)]
    await qemu.until_asked("query-status", IN_FLIGHT)
    await monitor.execute("yank", oob=True)
    assert len(qemu.asked("query-status")) == IN_FLIGHT < 8
    qemu.main_loop.set()
    assert len(await asyncio.gather(*waiting)) == 3 * IN_FLIGHT


async def test_waiting_for_a_turn_counts_as_waiting(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.main_loop.clear()
    waiting = [asyncio.create_task(monitor.execute("query-status")) for _ in range(IN_FLIGHT)]
    await qemu.until_asked("query-status", IN_FLIGHT)
    with pytest.raises(MonitorTimeout):
        await monitor.execute("query-migrate", timeout=0.05)
    qemu.main_loop.set()
    await asyncio.gather(*waiting)
    assert await monitor.execute("query-migrate") == {}


async def test_what_was_given_up_still_counts_until_qemu_has_answered_it(qemu: FakeQemu, monitor: Monitor) -> None:
    """Else a main loop that hangs would get so many that QEMU reads nothing more, and could not be freed out of band."""
    qemu.main_loop.clear()
    for _ in range(3 * IN_FLIGHT):
        with pytest.raises(MonitorTimeout):
            await monitor.execute("query-status", timeout=0.01)
    assert len(qemu.asked("query-status")) == IN_FLIGHT
    qemu.on("migrate-pause", {})
    assert await monitor.execute("migrate-pause", oob=True) == {}
    qemu.main_loop.set()
    assert (await monitor.execute("query-status"))["running"] is True


async def test_a_cancelled_command_leaves_its_turn_to_others(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("query-block", Silence())
    for _ in range(IN_FLIGHT + 1):
        task = asyncio.create_task(monitor.execute("query-block"))
        await qemu.until_asked("query-block")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (await monitor.execute("query-status"))["running"] is True


@pytest.mark.parametrize(
    ("command", "oob", "seconds"),
    [("query-migrate", False, 30.0), ("no-such-command", False, timeouts.DEFAULT_S), ("yank", True, 2.0)],
)
def test_every_command_has_a_time_limit(command: str, oob: bool, seconds: float) -> None:
    assert timeouts.limit(command, oob=oob) == seconds


# -- the end ------------------------------------------------------------------------------------------------------


async def test_a_pending_command_ends_with_the_connection(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("quit", HangUp())
    with pytest.raises(MonitorLost) as caught:
        await monitor.execute("quit")
    assert caught.value.host == "a"
    await asyncio.wait_for(monitor.closed.wait(), 5)
    with pytest.raises(MonitorLost):
        await monitor.execute("query-status")


@pytest.mark.parametrize(
    "data",
    [b"garbage\r\n", b"{\r\n", b"[1, 2]\r\n", b"17\r\n", b"\x00\x00\r\n", b"[" * 100_000 + b"\r\n"],
    ids=["text", "half", "list", "number", "NULs", "deep"],
)
async def test_a_server_that_talks_nonsense_is_lost(qemu: FakeQemu, monitor: Monitor, data: bytes) -> None:
    qemu.on("query-status", Raw(data))
    with pytest.raises(MonitorLost):
        await monitor.execute("query-status")
    await asyncio.wait_for(monitor.closed.wait(), 5)


async def test_a_line_without_an_end_does_not_fill_the_memory(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.on("query-status", Raw(b'"' + b"x" * (11 << 20)))
    with pytest.raises(MonitorLost):
        await monitor.execute("query-status")


async def test_an_error_without_an_id_ends_the_connection(qemu: FakeQemu, monitor: Monitor) -> None:
    """QEMU could not read what we sent: nobody knows any more which answer belongs to which command."""
    qemu.on("query-status", Raw(b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\r\n'))
    with pytest.raises(MonitorLost):
        await monitor.execute("query-status")


@pytest.mark.parametrize("body", [b"", b', "error": {"desc": 1}', b', "error": "no"'])
async def test_an_answer_that_is_none_is_an_error_of_ours(qemu: FakeQemu, monitor: Monitor, body: bytes) -> None:
    qemu.on("query-status", Raw(b'{"id": $ID' + body + b"}\r\n"))
    with pytest.raises(MonitorError):
        await monitor.execute("query-status")


async def test_answers_to_nobody_are_dropped(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.send(b'{"return": 1, "id": "from-yesterday"}' + CRLF)
    qemu.send(b'{"error": {"class": "GenericError", "desc": "x"}, "id": "from-yesterday"}' + CRLF)
    assert (await monitor.execute("query-status"))["running"] is True


async def test_close_ends_what_is_pending_and_may_be_called_often(qemu: FakeQemu) -> None:
    before = asyncio.all_tasks()
    monitor = await connect(qemu)
    qemu.on("query-status", Silence())
    pending = asyncio.create_task(monitor.execute("query-status"))
    await qemu.until_asked("query-status")
    await asyncio.gather(monitor.close(), monitor.close())
    await monitor.close()
    with pytest.raises(MonitorLost):
        await pending
    assert monitor.closed.is_set()
    left = {task for task in asyncio.all_tasks() - before if "_serve" not in repr(task)}
    assert not left


# -- events -------------------------------------------------------------------------------------------------------


async def test_events_come_in_order_with_both_clocks(qemu: FakeQemu, monitor: Monitor) -> None:
    before = time.monotonic()
    with monitor.events("STOP", "MIGRATION") as stream:
        qemu.emit("MIGRATION", {"status": "active"})
        qemu.emit("JOB_STATUS_CHANGE", {"status": "created", "id": "x"})
        qemu.emit("STOP", timestamp={"seconds": 1795460633, "microseconds": 893381})
        first, second = await stream.get(timeout=5), await stream.get(timeout=5)
    assert (first.name, first.data) == ("MIGRATION", {"status": "active"})
    assert (second.name, second.data) == ("STOP", {})
    assert second.seconds == pytest.approx(1795460633.893381)
    assert before <= first.at <= second.at <= time.monotonic()


async def test_every_stream_gets_every_event_and_one_without_names_all(qemu: FakeQemu, monitor: Monitor) -> None:
    with monitor.events() as everything, monitor.events("RESUME") as some:
        qemu.emit("STOP")
        qemu.emit("RESUME")
        assert [(await everything.get(timeout=5)).name for _ in range(2)] == ["STOP", "RESUME"]
        assert (await some.get(timeout=5)).name == "RESUME"


async def test_an_event_that_does_not_come_is_a_time_limit(monitor: Monitor) -> None:
    with monitor.events("RESUME", "STOP") as stream, pytest.raises(MonitorTimeout, match="RESUME/STOP"):
        await stream.get(timeout=0.02)


async def test_streams_end_with_the_connection_and_keep_what_came_before(qemu: FakeQemu, monitor: Monitor) -> None:
    with monitor.events() as stream:
        qemu.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        qemu.hang_up()
        assert [event.name async for event in stream] == ["SHUTDOWN"]
        assert [event async for event in stream] == []  # and again, for whoever looks twice
        with pytest.raises(MonitorLost):
            await stream.get(timeout=5)
    with monitor.events() as late:
        assert [event async for event in late] == []


async def test_a_slow_reader_loses_the_oldest_and_can_tell(qemu: FakeQemu, monitor: Monitor) -> None:
    with monitor.events("MIGRATION_PASS") as stream:
        for number in range(STREAM_LIMIT + 2):
            qemu.emit("MIGRATION_PASS", {"pass": number})
        await monitor.execute("query-status", timeout=60)  # answered after the events: they are all here
        assert stream.dropped == 2
        kept = [(await stream.get(timeout=5)).data["pass"] for _ in range(STREAM_LIMIT)]
        assert kept == list(range(2, STREAM_LIMIT + 2))


async def test_events_that_nobody_reads_are_not_kept(qemu: FakeQemu, monitor: Monitor) -> None:
    for _ in range(1000):
        qemu.emit("RTC_CHANGE", {"offset": 1})
    await monitor.execute("query-status")
    assert monitor._client.events.empty()


@pytest.mark.parametrize(
    "timestamp",
    [{"seconds": -1, "microseconds": -1}, {}, "yesterday", {"seconds": "noon"}, {"seconds": None, "microseconds": 1}],
    ids=["no clock", "nothing", "text", "text inside", "null"],
)
async def test_an_event_without_a_clock_is_an_event(qemu: FakeQemu, monitor: Monitor, timestamp: object) -> None:
    """QEMU says -1 where its host has no time to tell; whatever else comes must not end the connection either."""
    with monitor.events() as stream:
        qemu.emit("STOP", timestamp=timestamp)
        assert (await stream.get(timeout=5)).name == "STOP"


# -- secrets ------------------------------------------------------------------------------------------------------


async def test_nothing_that_travels_is_logged(qemu: FakeQemu, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    monitor = await connect(qemu)
    with pytest.raises(QmpCommandFailed):
        await monitor.execute("object-add", {"qom-type": "secret", "data": "s3cret-key"})
    qemu.send(json.dumps({"return": "s3cret-answer", "id": "unknown"}).encode() + CRLF)
    await monitor.execute("query-status")
    await monitor.close()
    assert "s3cret" not in caplog.text


async def test_nothing_that_travels_is_made_text_for_a_log_either(
    qemu: FakeQemu, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema is 200 KiB: made readable, it would hold the event loop up for as long as a blackout may last."""

    def readable(_message: Message) -> str:
        raise AssertionError("a message was made readable")

    monkeypatch.setattr(Message, "__str__", readable)
    assert (await monitor.execute("query-status"))["running"] is True


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
