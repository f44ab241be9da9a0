"""One controller per guest: both hosts, the epoch, who loses and what he is told, and what comes after a cut."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from qmp_migrate.errors import Fenced, FileFailed, HostUnreachable, LockBusy, TransportError
from qmp_migrate.hosts import SshHost
from qmp_migrate.hosts.fenced import FencedHost
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.settings import HostSettings
from tests.support.real.brokers import PATIENCE_S
from tests.support.real.sshd import Sshd, running_sshd

# One controller: on "take" it tries to take the guest, and says "won EPOCH" or "busy MESSAGE".
CONTROLLER = """
import asyncio, sys
from pathlib import Path
from qmp_migrate.errors import LockBusy
from qmp_migrate.hosts import HostAddress, SshHost
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.settings import HostSettings

async def main():
    migration, *rest = sys.argv[1:]
    sides = []
    for name, address, port, key, known, run_dir in zip(*[iter(rest)] * 6):
        host = SshHost(HostAddress(name, address, int(port), identity_file=Path(key), known_hosts=Path(known)))
        await host.connect()
        sides.append(Side(host, HostSettings(address=address, run_dir=run_dir), "web1"))
    held = None
    print("ready", flush=True)
    while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if word == "take":
            try:
                held = await guest_locks.take(*sides, f"migration {migration}")
                print("won", held.epoch, held.before, flush=True)
            except LockBusy as error:
                print("busy", error.exit_code, error.message, flush=True)
        elif held is not None:
            await held.release()
            held = None
            print("released", flush=True)
        else:
            print("nothing", flush=True)
    for side in sides:
        await side.host.close()

asyncio.run(main())
"""


@dataclass
class Place:
    """One host with its own sshd and run directory."""

    sshd: Sshd
    run_dir: Path

    def side(self, name: str) -> Side:
        """A controller's view of it, over a connection of its own."""
        host = SshHost(self.sshd.host_address(name=name))
        return Side(host, HostSettings(address=self.sshd.address.address, run_dir=str(self.run_dir)), "web1")

    def words(self, name: str) -> list[str]:
        """The same for CONTROLLER."""
        address = self.sshd.address
        return [
            *(name, address.address, str(address.port)),
            *(str(address.identity_file), str(address.known_hosts), str(self.run_dir)),
        ]

    @property
    def files(self) -> list[str]:
        """What is in the directory of the locks."""
        return sorted(os.listdir(self.run_dir / ".locks"))

    @property
    def epoch(self) -> int:
        """The guest's epoch here."""
        return int((self.run_dir / ".locks" / "web1.epoch").read_text().split()[0])

    @epoch.setter
    def epoch(self, number: int) -> None:
        (self.run_dir / ".locks").mkdir(parents=True, exist_ok=True)
        (self.run_dir / ".locks" / "web1.epoch").write_text(f"{number}\n")


@pytest.fixture
async def places(directory: Path) -> AsyncIterator[tuple[Place, Place]]:
    async with running_sshd(directory / "s1") as one, running_sshd(directory / "s2", address="127.0.0.10") as two:
        yield Place(one, directory / "r1"), Place(two, directory / "r2")


@pytest.fixture
async def sides(places: tuple[Place, Place]) -> AsyncIterator[tuple[Side, Side]]:
    """A controller's source and destination."""
    pair = places[0].side("a"), places[1].side("b")
    await asyncio.gather(*(side.host.connect() for side in pair))
    yield pair
    await asyncio.gather(*(side.host.close() for side in pair))


async def test_both_hosts_are_held_and_only_the_epoch_stays(
    places: tuple[Place, Place], sides: tuple[Side, Side]
) -> None:
    places[1].epoch = 4
    lock = await guest_locks.take(*sides, "migration m1")
    assert (lock.before, lock.epoch, lock.missing) == (4, 5, ())
    assert [place.epoch for place in places] == [5, 5]
    for side, place in zip(sides, places, strict=True):
        assert place.files == ["web1.beat", "web1.epoch", "web1.lock"]
        assert re.fullmatch(
            rf"\S+@\S+ pid {os.getpid()}, migration m1, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC",
            await guest_locks.holder(side) or "",
        )
    assert not lock.lost
    await lock.release()
    for side, place in zip(sides, places, strict=True):
        assert place.files == ["web1.epoch"]
        assert await guest_locks.holder(side) is None


async def test_a_damaged_epoch_takes_nothing(places: tuple[Place, Place], sides: tuple[Side, Side]) -> None:
    places[1].epoch = 1
    (places[1].run_dir / ".locks" / "web1.epoch").write_text("one\n")
    with pytest.raises(FileFailed, match="epoch"):
        await guest_locks.take(*sides, "migration m1")
    assert "web1.lock" not in places[0].files
    assert "web1.lock" not in places[1].files


async def test_of_several_controllers_at_once_exactly_one_wins(places: tuple[Place, Place]) -> None:
    # In both directions, and on machines whose settings call the hosts otherwise.
    one, two = places
    async with AsyncExitStack() as stack:
        controllers = []
        for number, words in enumerate(
            [
                [*one.words("a"), *two.words("b")],
                [*two.words("b"), *one.words("a")],
                [*one.words("y"), *two.words("x")],
                [*two.words("x"), *one.words("y")],
            ]
        ):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", CONTROLLER, f"m{number}", *words),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.push_async_callback(process.wait)
            stack.callback(process.stdin.close if process.stdin else process.kill)
            controllers.append(process)
        assert [await said(process) for process in controllers] == ["ready"] * len(controllers)
        last = 0
        for _ in range(6):
            answers = await asyncio.gather(*(asked(process, "take") for process in controllers))
            won = [number for number, answer in enumerate(answers) if answer.startswith("won")]
            assert len(won) == 1, answers
            _, epoch, before = answers[won[0]].split()
            assert int(epoch) > int(before) >= last
            assert int(epoch) == one.epoch == two.epoch
            last = int(epoch)
            for number, answer in enumerate(answers):
                if number not in won:
                    winner = controllers[won[0]].pid
                    who = rf"busy 75 .* another controller: \S+@\S+ pid {winner}, migration m{won[0]}, since .* UTC"
                    assert re.fullmatch(who, answer), answer
            await asyncio.gather(*(asked(process, "release") for process in controllers))
            assert one.files == two.files == ["web1.epoch"]


async def said(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode().strip()


async def asked(process: asyncio.subprocess.Process, word: str) -> str:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n".encode())
    return await said(process)


# -- hosts that do not answer ------------------------------------------------------------------------------------------


async def test_a_host_that_does_not_answer_can_be_left_out(
    places: tuple[Place, Place], sides: tuple[Side, Side]
) -> None:
    places[0].epoch = 8
    await sides[1].host.close()
    os.kill(places[1].sshd.process.pid, signal.SIGKILL)
    with pytest.raises(TransportError):
        await guest_locks.take(*sides, "migration m1")
    assert places[0].files == ["web1.epoch"]
    lock = await guest_locks.take(*sides, "migration m1", partial=True)
    assert (lock.missing, lock.before, lock.epoch) == (("b",), 8, 9)
    assert isinstance(lock.fence(sides[0]), FencedHost)
    assert lock.fence(sides[1]) is sides[1].host
    assert "web1.lock" in places[0].files
    await lock.renew()  # nothing is lost
    assert not lock.lost
    await lock.release()
    os.kill(places[0].sshd.process.pid, signal.SIGKILL)
    await sides[0].host.close()
    with pytest.raises(HostUnreachable, match=r"no host of web1 can be reached: a: .*; b: "):
        await guest_locks.take(*sides, "migration m1", partial=True)


async def test_a_part_of_the_locks_connects_where_nobody_has_yet(
    places: tuple[Place, Place], sides: tuple[Side, Side]
) -> None:
    await asyncio.gather(*(side.host.close() for side in sides))
    lock = await guest_locks.take(*sides, "migration m1", partial=True)
    assert lock.missing == ()
    await lock.release()
    # A part is not a way round somebody who holds the guest.
    lock = await guest_locks.take(*sides, "migration m1", partial=True)
    other = places[0].side("a"), places[1].side("b")
    with pytest.raises(LockBusy, match="migration m1"):
        await guest_locks.take(*other, "migration m2", partial=True)
    await lock.release()
    await asyncio.gather(*(side.host.close() for side in other))


# -- after a cut -------------------------------------------------------------------------------------------------------


async def test_a_lock_is_taken_again_after_the_connection_was_lost(
    places: tuple[Place, Place], sides: tuple[Side, Side]
) -> None:
    lock = await guest_locks.take(*sides, "migration m1")
    places[1].sshd.signal_sessions(signal.SIGKILL)
    await lost(lock)
    kept = next(held for held in lock.held if not held.lost.is_set())
    await lock.renew()
    assert not lock.lost
    assert kept in lock.held
    assert [place.epoch for place in places] == [lock.epoch] * 2
    assert (await lock.fence(sides[1]).run(["echo", "here"])).text == "here"
    other = places[0].side("a"), places[1].side("b")
    await asyncio.gather(*(side.host.connect() for side in other))
    for one in other:
        with pytest.raises(LockBusy):
            await guest_locks.hold(one, "vm stop")
    await asyncio.gather(*(side.host.close() for side in other))
    await lock.release()
    assert places[0].files == places[1].files == ["web1.epoch"]


async def test_it_shows_whether_somebody_else_has_had_the_guest_meanwhile(sides: tuple[Side, Side]) -> None:
    since = []
    for purpose in ("migration m1", "migration m1", "migration m2", "migration m1", "migration m1"):
        lock = await guest_locks.take(*sides, purpose)
        since.append(lock.since)
        await lock.release()
    assert since == [1, 1, 3, 4, 4]


async def test_our_own_connection_of_before_does_not_keep_us_out(
    places: tuple[Place, Place], sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    # We have noticed that the network is gone, the host has not: its old sshd still waits for us.
    lock = await guest_locks.take(*sides, "migration m1")
    places[1].sshd.signal_sessions(signal.SIGSTOP)
    assert isinstance(sides[1].host, SshHost)
    assert sides[1].host._connection is not None
    sides[1].host._connection.close()
    await lost(lock)
    (old,) = {session.pid for session in places[1].sshd.sessions()} or {0}
    assert old
    await lock.renew()
    assert not lock.lost
    assert old not in {session.pid for session in places[1].sshd.sessions()}
    await lock.release()
    assert places[1].files == ["web1.epoch"]


async def test_a_host_that_cannot_be_reached_yet_may_be_tried_again(
    places: tuple[Place, Place], sides: tuple[Side, Side]
) -> None:
    lock = await guest_locks.take(*sides, "migration m1")
    places[1].sshd.signal_sessions(signal.SIGKILL)
    await lost(lock)
    os.kill(places[1].sshd.process.pid, signal.SIGSTOP)
    assert isinstance(sides[1].host, SshHost)
    sides[1].host.address = places[1].sshd.host_address(name="b", connect_timeout_s=0.5)
    with pytest.raises(HostUnreachable):
        await lock.renew()
    assert lock.lost
    assert "web1.lock" in places[0].files
    os.kill(places[1].sshd.process.pid, signal.SIGCONT)
    sides[1].host.address = places[1].sshd.host_address(name="b")
    await lock.renew()
    assert not lock.lost
    await lock.release()


async def test_who_had_the_guest_meanwhile_fences_us(places: tuple[Place, Place], sides: tuple[Side, Side]) -> None:
    lock = await guest_locks.take(*sides, "migration m1")
    for place in places:
        place.sshd.signal_sessions(signal.SIGKILL)
    await asyncio.gather(*(held.lost.wait() for held in lock.held))
    other = places[0].side("a"), places[1].side("b")
    await asyncio.gather(*(side.host.connect() for side in other))
    taken = await guest_locks.take(*other, "migration m2")
    assert taken.before == lock.epoch
    with pytest.raises(LockBusy, match="migration m2") as busy:  # while it has it
        await lock.renew()
    assert not isinstance(busy.value, Fenced)
    assert places[0].files == ["web1.beat", "web1.epoch", "web1.lock"]
    mark = places[0].run_dir / "mark"
    await sides[0].host.connect()
    with pytest.raises(Fenced, match=f"{taken.epoch} here and no longer {lock.epoch}"):
        await lock.fence(sides[0]).run(["touch", str(mark)])
    assert not mark.exists()
    await taken.release()
    with pytest.raises(Fenced):  # when it had it
        await lock.renew()
    assert places[0].files == places[1].files == ["web1.epoch"]
    await asyncio.gather(*(side.host.close() for side in other))


async def test_who_only_tries_does_not_take_it_from_us(places: tuple[Place, Place], sides: tuple[Side, Side]) -> None:
    # One of our locks is lost, and another controller has it for the moment that it needs to see that we hold the other.
    lock = await guest_locks.take(*sides, "migration m1")
    lost_number, kept_number = 0, 1
    side = lock._places[lost_number][0]
    place = next(place for place in places if str(place.run_dir) == side.settings.run_dir)
    place.sshd.signal_sessions(signal.SIGKILL)
    await lost(lock)
    other = place.side(side.name)
    await other.host.connect()
    trying = await guest_locks.hold(other, "migration m2")
    renewing = asyncio.create_task(lock.renew())
    done, _ = await asyncio.wait([renewing], timeout=0.5)
    assert not done
    await trying.release()
    await renewing
    assert not lock.lost
    assert not lock.held[kept_number].lost.is_set()
    await lock.release()
    await other.host.close()


async def lost(lock: guest_locks.GuestLock) -> None:
    """Wait until one of the locks is lost."""
    waiting = [asyncio.create_task(held.lost.wait()) for held in lock.held]
    done, pending = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    assert done
