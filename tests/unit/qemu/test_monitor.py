"""The monitor, against a QMP server on a real socket: negotiation, errors, time limits, events, and how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time

import pytest
from qemu.qmp import Message

from qmp_migrate.errors import MonitorBusy, MonitorError, MonitorLost, MonitorTimeout, QmpCommandFailed
from qmp_migrate.qemu import timeouts
from qmp_migrate.qemu.monitor import IN_FLIGHT, STREAM_LIMIT, Monitor
from tests.support.fakes.fake_qemu import CRLF, Fails, FakeQemu, HangUp, Raw, Silence, connect


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
