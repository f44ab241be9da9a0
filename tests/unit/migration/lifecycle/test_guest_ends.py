"""A guest that ends while it is being moved: what is said is what happened, in whatever order it is heard."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qmp_migrate.errors import MigrationFailed
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.model.request import Mode
from qmp_migrate.migration.precopy import failures
from qmp_migrate.qemu.monitor import Event
from tests.support.fakes.bounded_gather import by_turns
from tests.support.fakes.engine_run import migrate
from tests.support.fakes.fake_qemu_pair import QemuPair

BY_GUEST = {"guest": True, "reason": "guest-shutdown"}
BY_SIGNAL = {"guest": False, "reason": "host-signal"}


def end_source(pair: QemuPair, shutdown: dict[str, Any] | None) -> None:
    """End the source's QEMU as QEMU ends: it says so, then it is gone."""
    if shutdown is not None and pair.source.hears:
        pair.source.emit("SHUTDOWN", shutdown)
    pair.source.die()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["live", "offline"])
async def test_whenever_it_powers_itself_off_that_is_said(journal: Journal, mode: Mode) -> None:
    """At each command of its migration, also before anybody listens to its events for the sake of copying."""
    async with QemuPair() as whole:
        await migrate(whole, journal, mode=mode)
        moved = whole.commands.index(("b", "cont"))

    async def one(number: int) -> list[str]:
        async with QemuPair() as pair:

            def on_command(before: int) -> None:
                if before == number and pair.source.hears:
                    end_source(pair, BY_GUEST)

            pair.on_command = on_command
            engine = await migrate(pair, journal, mode=mode)
            if pair.source.alive or engine.error is None:  # nobody had connected yet; or it had been handed over
                return []
            said = (engine.error.code, engine.course.chronicle.result.owner)
            found = list(pair.wrong)
            if said != ("guest_shutdown", "none") or "powered itself off" not in engine.error.message:
                found.append(f"{said}: {engine.error}")
            return [f"{found} at {number} {pair.commands[number : number + 1]}"] if found else []

    assert [found for found in await by_turns(one, range(1, moved)) if found] == []


@pytest.mark.parametrize(
    ("shutdown", "code", "words"),
    [
        (BY_GUEST, "guest_shutdown", "powered itself off"),
        (BY_SIGNAL, "source_ended", "host-signal"),
        (None, "guest_lost", "runs nowhere"),
    ],
)
async def test_a_destination_that_is_gone_first_does_not_hide_it(
    journal: Journal, shutdown: dict[str, Any] | None, code: str, words: str
) -> None:
    """The end of the stream ends the destination's QEMU: its monitor may close before the source's word is read."""
    async with QemuPair(busy=True) as pair:

        def on_becoming(qemu: object, status: str) -> None:
            if status == "active" and qemu is pair.destination:
                pair.source.main_loop.clear()  # it answers nothing any more, nobody can connect to it again,
                pair.source.alive = False  # and its last words are still on their way
                pair.destination.die()
                asyncio.get_running_loop().call_later(0.05, end_source, pair, shutdown)

        pair.on_becoming = on_becoming
        engine = await migrate(pair, journal)
        assert pair.wrong == []
        assert isinstance(engine.error, MigrationFailed)
        assert (engine.error.code, engine.course.chronicle.result.owner) == (code, "none")
        assert words in engine.error.message


async def test_in_post_copy_too_it_is_not_called_lost(journal: Journal) -> None:
    """It powers itself off at the destination, before all of its memory has come."""
    async with QemuPair(busy=True) as pair:
        reply = pair.destination._replies["cont"][0]

        def off(arguments: dict[str, Any]) -> Any:
            reply(arguments)
            pair.destination.emit("SHUTDOWN", BY_GUEST)
            return pair.destination.die()

        pair.destination.on("cont", off)
        engine = await migrate(pair, journal, mode="postcopy")
        assert pair.wrong == []
        assert isinstance(engine.error, MigrationFailed)
        assert (engine.error.code, engine.course.chronicle.result.owner) == ("guest_shutdown", "none")


@pytest.mark.parametrize(
    ("shutdown", "code", "words"),
    [
        (BY_GUEST, "guest_shutdown", "powered itself off"),
        ({"guest": True, "reason": "guest-reset"}, "guest_shutdown", "reset itself"),
        ({"guest": True, "reason": "guest-panic"}, "guest_panicked", "panicked"),
        (BY_SIGNAL, "source_ended", "told to end (host-signal)"),
    ],
)
def test_each_end_has_its_words(shutdown: dict[str, Any], code: str, words: str) -> None:
    failure = failures.ended(Event("SHUTDOWN", shutdown, 0.0, 0.0), "a", doing="saved")
    assert (failure.code, failure.safe_at_source, failure.host) == (code, False, "a")
    assert words in failure.message
    assert "saved" in failure.message
    assert "destination" not in str(failure.hint)
