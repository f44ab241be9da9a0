"""Leftovers on a real host (sshd, QEMUs without a guest): each kind is made, found, and removed or left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qmp_migrate.fleet.cleanup import leftovers, removal
from qmp_migrate.fleet.cleanup.classification import Finding, Kind
from qmp_migrate.fleet.cleanup.leftovers import Leftovers
from qmp_migrate.fleet.controller import Controller
from qmp_migrate.hosts.process import ProcessId, is_alive, launch
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.qemu import encryption
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.settings import parse
from tests.support.real.sshd import running_sshd, short_directory, until

UUID = "6d5c2a0e-5d6c-4f0e-9a3b-0d0f6f0f2a11"
WAITS = ("-S", "-incoming", "defer")


class Fleet:
    """Two hosts on one sshd, each with a run directory of its own."""

    def __init__(self, controller: Controller, directory: Path) -> None:
        self.controller = controller
        self.directory = directory

    def run_dir(self, host: str = "a") -> Path:
        return self.directory / host

    def argv(self, place: Path, *words: str) -> list[str]:
        return [
            *("qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-nodefaults", "-display", "none", "-m", "16"),
            *("-name", "guest=web1", "-uuid", UUID, "-qmp", f"unix:{place}/qmp.sock,server=on,wait=off", *words),
        ]

    async def qemu(self, *words: str, host: str = "a", name: str = "web1") -> Side:
        side = self.controller.side(host, name)
        await side.host.connect()
        argv = self.argv(Path(side.directory), *words)
        side.process = await launch(side.host, directory=side.directory, argv=argv)
        return side

    async def find(self, *hosts: str) -> Leftovers:
        return await leftovers.find(self.controller, hosts)

    async def remove(self) -> Leftovers:
        return await leftovers.remove(self.controller, await self.find())

    async def moved(self) -> tuple[Side, Side]:
        """A guest that was sent from a to b, and never told to run there."""
        source, destination = await self.qemu(), await self.qemu(*WAITS, host="b")
        to, out = await destination.attach(), await source.attach()
        for monitor in (to, out):
            wanted = {"capabilities": [{"capability": "return-path", "state": True}]}
            await monitor.execute("migrate-set-capabilities", wanted)
        await qmp.start(out, "127.0.0.1", await qmp.listen(to, "127.0.0.1", None))
        while (await qmp.query(out)).status != "completed":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await source.detach()
        await destination.detach()
        return source, destination


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path
        for record in path.glob("*/**/pid"):
            with suppress(OSError, ValueError):
                os.kill(int(record.read_text().split()[0]), signal.SIGKILL)


@pytest.fixture
async def fleet(directory: Path) -> AsyncIterator[Fleet]:
    async with running_sshd(directory / "s") as server:
        address = server.address
        text = f'[controller]\nstate = "sqlite:///{directory}/journal.sqlite"\n'
        for host in ("a", "b"):
            (directory / host).mkdir(mode=0o700)
            text += (
                f'[hosts.{host}]\naddress = "{address.address}"\nport = {address.port}\nrun_dir = "{directory}/{host}"\n'
                f'identity_file = "{address.identity_file}"\nknown_hosts = "{address.known_hosts}"\n'
            )
        async with Controller.open(parse(text, source="test")) as controller:
            yield Fleet(controller, directory)


async def lives(side: Side) -> bool:
    assert side.process is not None
    return await is_alive(side.host, side.process)


def kinds(found: Leftovers) -> dict[Kind, str]:
    return {finding.kind: finding.action for finding in found.findings}


def quarantined(fleet: Fleet, host: str = "a") -> list[str]:
    return sorted(path.name.partition("-")[0] for path in (fleet.run_dir(host) / ".quarantine").glob("*"))


async def test_a_running_guest_and_a_foreign_qemu_next_door_are_never_touched(fleet: Fleet) -> None:
    guest = await fleet.qemu()
    next_door = fleet.directory / "a2" / "web1"
    next_door.mkdir(parents=True)
    foreign = subprocess.Popen(fleet.argv(next_door, *WAITS), stdin=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        await until((next_door / "qmp.sock").exists, "the foreign QEMU's socket")
        found = await fleet.remove()
        assert (found.findings, found.exit_code) == ([], 0)
        assert await lives(guest)
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


async def test_a_gone_guests_directory_goes_to_quarantine_without_its_keys(fleet: Fleet) -> None:
    guest = await fleet.qemu()
    keys = fleet.run_dir() / "web1" / "tls-m1"
    keys.mkdir(mode=0o700)
    (keys / "keys.psk").write_text("secret")
    await guest.kill()
    looked = await fleet.find()
    assert kinds(looked) == {Kind.KEY_DIRECTORY: "would-remove", Kind.DIRECTORY: "would-quarantine"}
    assert (looked.exit_code, keys.exists()) == (1, True)
    found = await fleet.remove()
    assert kinds(found) == {Kind.KEY_DIRECTORY: "removed", Kind.DIRECTORY: "quarantined"}
    assert (found.exit_code, quarantined(fleet)) == (0, ["web1"])
    (moved,) = (fleet.run_dir() / ".quarantine").iterdir()
    assert {path.name for path in moved.iterdir()} >= {"pid", "argv.json", "qemu.log"}
    assert not list(moved.glob("tls-*"))
    assert moved.parent.stat().st_mode & 0o777 == 0o700
    assert (await fleet.find()).exit_code == 0


async def test_a_waiting_destination_is_ended_and_one_that_is_held_is_not(fleet: Fleet) -> None:
    waiting = await fleet.qemu(*WAITS)
    held = await guest_locks.hold(waiting, "migration m1")
    found = await fleet.remove()
    assert (found.findings, list(found.busy["a"])) == ([], ["web1"])
    assert await lives(waiting)
    await held.release()
    found = await fleet.remove()
    assert kinds(found) == {Kind.WAITING_DESTINATION: "removed"}
    assert (found.exit_code, await lives(waiting), quarantined(fleet)) == (0, False, ["web1"])


async def test_a_guest_that_is_taken_between_look_and_act_is_left(fleet: Fleet) -> None:
    waiting = await fleet.qemu(*WAITS)
    looked = await fleet.find()
    held = await guest_locks.hold(waiting, "migration m1")
    found = await leftovers.remove(fleet.controller, looked)
    await held.release()
    assert found.findings == []
    assert await lives(waiting)


async def test_a_moved_guest_of_which_nobody_knows_is_never_touched(fleet: Fleet) -> None:
    source, destination = await fleet.moved()
    found = await fleet.remove()
    assert kinds(found) == {Kind.STOPPED_SOURCE: "kept", Kind.LOADED_DESTINATION: "kept"}
    assert found.exit_code == 1
    assert all(finding.hint for finding in found.findings)
    assert await lives(source)
    assert await lives(destination)


async def test_a_loaded_destination_goes_only_while_the_guest_runs_elsewhere(fleet: Fleet) -> None:
    source, destination = await fleet.moved()
    await (await source.attach()).execute("cont")
    await source.detach()
    looked = await fleet.find()
    assert kinds(looked)[Kind.LOADED_DESTINATION] == "would-remove"
    # Locked over there: somebody is about to act on it.
    held = await guest_locks.hold(source, "migration m1")
    await leftovers.remove(fleet.controller, looked)
    await held.release()
    assert await lives(destination)
    # It stops running between the look and the act.
    await (await source.attach()).execute("stop")
    await source.detach()
    again = await leftovers.remove(fleet.controller, looked)
    assert await lives(destination)
    assert again.exit_code == 1
    await (await source.attach()).execute("cont")
    await source.detach()
    assert kinds(await fleet.remove())[Kind.LOADED_DESTINATION] == "removed"
    assert await lives(source)
    assert not await lives(destination)


async def test_wiring_is_put_back_and_the_guest_runs_on(fleet: Fleet) -> None:
    guest = await fleet.qemu()
    keys = fleet.run_dir() / "web1" / "tls-m1"
    keys.mkdir(mode=0o700)
    (keys / "keys.psk").write_bytes(encryption.make_key_file())
    monitor = await guest.attach()
    await encryption.add_credentials(monitor, "tls-m1", str(keys), "client")
    await qmp.set_parameters(monitor, {"tls-creds": "tls-m1"})
    wanted = [{"capability": name, "state": True} for name in ("return-path", "auto-converge")]
    await monitor.execute("migrate-set-capabilities", {"capabilities": wanted})
    await guest.detach()
    found = await fleet.remove()
    assert kinds(found) == {Kind.KEY_DIRECTORY: "removed", Kind.WIRING: "put-back"}
    assert (found.exit_code, keys.exists()) == (0, False)
    monitor = await guest.attach()
    on = {c["capability"] for c in await monitor.execute("query-migrate-capabilities") if c["state"]}
    assert on == {"auto-converge"}
    assert (await monitor.execute("query-migrate-parameters"))["tls-creds"] == ""
    assert [o["name"] for o in await monitor.execute("qom-list", {"path": "/objects"}) if o["name"] == "tls-m1"] == []
    assert (await qmp.run_status(monitor)).running
    await guest.detach()


async def test_locks_and_temporary_files_go_and_epochs_stay(fleet: Fleet) -> None:
    place = fleet.run_dir() / ".locks"
    place.mkdir(mode=0o700)
    for name in ("web1.lock", "web1.beat", "web1.epoch", "web2.epoch.new", "web3.epoch.new", "held.lock"):
        (place / name).write_text("7\n")
    os.utime(place / "web2.epoch.new", (1, 1))
    await fleet.controller.host("a").connect()
    held = await guest_locks.hold(fleet.controller.side("a", "held"), "migration m1")
    found = await fleet.remove()
    assert found.exit_code == 0
    assert {path.name for path in place.iterdir()} >= {"web1.epoch", "web3.epoch.new", "held.lock"}
    assert {path.name for path in place.iterdir()} <= {"web1.epoch", "web3.epoch.new", "held.lock", "held.beat"}
    await held.release()


async def test_what_is_not_ours_is_named_and_left(fleet: Fleet) -> None:
    run, outside = fleet.run_dir(), fleet.directory / "outside"
    outside.mkdir()
    for name in ("pid", "argv.json", "keys.psk"):
        (outside / name).write_text("1 1 other-boot\n")
    (run / "link").symlink_to(outside)
    for name in ("a\nb", "a b", "-rf", "stranger"):
        (run / name).mkdir()
        (run / name / ("notes" if name == "stranger" else "pid")).write_text("1 1 other-boot\n")
    guest = run / "web1"
    guest.mkdir()
    (guest / "pid").write_text("1 1 other-boot\n")
    (guest / "tls-m1").symlink_to(outside)
    found = await fleet.remove()
    assert found.exit_code == 0
    assert {f.path for f in found.findings if f.verdict == "not-ours"} == {
        f"{run}/{name}" for name in ("a\\nb", "a b", "-rf", "stranger", "link")
    }
    assert {path.name for path in outside.iterdir()} == {"pid", "argv.json", "keys.psk"}
    assert {path.name for path in run.iterdir()} >= {"a\nb", "a b", "-rf", "stranger", "link"}
    assert quarantined(fleet) == ["web1"]


async def test_a_quarantine_that_is_a_link_is_not_followed(fleet: Fleet) -> None:
    run, outside = fleet.run_dir(), fleet.directory / "outside"
    outside.mkdir()
    (run / ".quarantine").symlink_to(outside)
    (run / "web1").mkdir()
    (run / "web1" / "pid").write_text("1 1 other-boot\n")
    found = await fleet.remove()
    assert found.exit_code == 1
    assert (run / "web1" / "pid").exists()
    assert list(outside.iterdir()) == []


async def _act_blindly(fleet: Fleet, looked: Leftovers) -> Finding:
    """Remove as if the second look had said the same: only what the host's own script proves stands between."""

    async def look(_vm: str, _mine: object) -> list[Finding]:
        return looked.findings

    (finding,) = looked.findings
    return await removal.remove(finding, fleet.controller.side, look)


async def test_a_directory_that_became_live_between_look_and_act_stays(fleet: Fleet) -> None:
    await (await fleet.qemu()).kill()
    looked = await fleet.find()
    guest = await fleet.qemu()
    found = await _act_blindly(fleet, looked)
    assert (found.action, "lives" in found.why) == ("kept", True)
    assert await lives(guest)
    assert (fleet.run_dir() / "web1" / "qmp.sock").exists()


async def test_another_qemu_than_the_one_that_was_looked_at_is_not_killed(fleet: Fleet) -> None:
    waiting = await fleet.qemu(*WAITS)
    looked = await fleet.find()
    await waiting.kill()
    guest = await fleet.qemu()
    assert (await _act_blindly(fleet, looked)).action == "kept"
    assert await lives(guest)


async def test_a_launch_under_way_keeps_its_directory(fleet: Fleet) -> None:
    await (await fleet.qemu()).kill()
    looked = await fleet.find()
    holding = ["flock", str(fleet.run_dir() / "web1"), "sh", "-c", "echo in; read x"]
    launching = subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")  # noqa: ASYNC220
    assert launching.stdout is not None
    assert await asyncio.to_thread(launching.stdout.readline) == b"in\n"
    found = await _act_blindly(fleet, looked)
    launching.communicate(b"\n")
    assert (found.action, "launch" in found.why) == ("kept", True)
    assert (fleet.run_dir() / "web1").exists()


async def test_a_qemu_without_a_record_is_told_and_its_directory_stays(fleet: Fleet) -> None:
    guest = await fleet.qemu()
    assert isinstance(guest.process, ProcessId)
    record = fleet.run_dir() / "web1" / "pid"
    text = record.read_text()
    record.unlink()
    found = await fleet.remove()
    record.write_text(text)
    assert kinds(found) == {Kind.STRAY_QEMU: "kept", Kind.DIRECTORY: "kept"}
    assert found.exit_code == 1
    assert await lives(guest)


async def test_a_host_that_cannot_be_asked_is_named_and_the_others_are_done(fleet: Fleet) -> None:
    await (await fleet.qemu()).kill()
    fleet.controller.settings.hosts["b"] = fleet.controller.settings.hosts["b"].model_copy(update={"port": 1})
    found = await fleet.remove()
    assert (kinds(found), list(found.unreachable), found.exit_code) == ({Kind.DIRECTORY: "quarantined"}, ["b"], 69)


async def test_a_loaded_destination_is_looked_at_again_under_both_locks(fleet: Fleet) -> None:
    source, destination = await fleet.moved()
    await (await source.attach()).execute("cont")
    await source.detach()
    (finding,) = [f for f in (await fleet.find()).findings if f.kind is Kind.LOADED_DESTINATION]
    holders: list[str | None] = []

    async def look(_vm: str, _mine: object) -> list[Finding]:
        holders.extend([await guest_locks.holder(source), await guest_locks.holder(destination)])
        return []

    assert (await removal.remove(finding, fleet.controller.side, look)).action == "kept"
    assert all(who is not None and "doctor" in who for who in holders)
    assert [await guest_locks.holder(source), await guest_locks.holder(destination)] == [None, None]
