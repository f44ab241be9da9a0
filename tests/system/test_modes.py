"""Offline and post-copy on real QEMU: what each of them promises, and what becomes of the guest when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.real.commands import Command
from tests.support.real.interrupted import SLOW, quickened
from tests.support.real.lab import Guest, Lab, interrupt, qemus, wait_for
from tests.support.real.lab_journal import assert_untouched, record, wait_for_phase
from tests.support.real.raw_qmp import qmp
from tests.support.real.tcp_proxy import Cable

BUSY = {"append": "qm.rate=40 qm.ws=48 qm.tick=10", "memory": f"{128 * 1024 + 8}KiB"}
"""Dirties more than a link of 8 MiB/s carries."""


def test_offline_ends_however_busy_the_guest_is(lab: Lab) -> None:
    with lab.guest(**BUSY) as guest:
        result = lab.cli("migrate", guest.name, "--to", "b", "--mode", "offline", "--bandwidth", "20MiB", "--json").doc
        assert (result["outcome"], result["owner"], result["mode"]) == ("completed", "destination", "offline")
        assert result["encrypted"] is True
        assert any("stopped" in step for step in result["steps"]), result["steps"]
        # What its users see: the guest stood still for as long as its memory travelled.
        # The controller's own part (begin, and `cont`) is short, but how short depends on who else is busy here.
        assert result["qemu"]["total_ms"] <= result["blackout_ms"] < result["qemu"]["total_ms"] + 10_000
        guest.wait_survived("b")
        assert not guest.directory("a").exists()
        assert qemus(guest.name) == [guest.pid("b")]


def test_offline_leaves_a_guest_paused_that_its_user_had_paused(lab: Lab, guest: Guest) -> None:
    qmp(guest.directory("a") / "qmp.sock", "stop")
    result = lab.cli("migrate", guest.name, "--to", "b", "--mode", "offline", "--json").doc
    assert (result["outcome"], result["blackout_ms"], result["steps"]) == ("completed", 0, [])
    assert lab.cli("vm", "show", guest.name, "--json").doc["state"] == "paused"
    qmp(guest.directory("b") / "qmp.sock", "cont")
    guest.wait_survived("b")


def test_offline_that_is_cancelled_lets_the_guest_run_on(lab: Lab, guest: Guest) -> None:
    process = lab.popen("migrate", guest.name, "--to", "b", "--mode", "offline", *SLOW, "--json")
    wait_for_phase(lab, guest, "copying")
    interrupt(process)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert (json.loads(out)["outcome"], json.loads(out)["owner"]) == ("cancelled", "source")
    assert_untouched(guest)


def test_offline_whose_destination_dies_lets_the_guest_run_on(lab: Lab, guest: Guest) -> None:
    """7.2 leaves a guest that was stopped before in `postmigrate` then: it must be told to run."""

    process = lab.popen("migrate", guest.name, "--to", "b", "--mode", "offline", *SLOW, "--json")
    wait_for_phase(lab, guest, "copying")
    pid = wait_for(lambda: guest.pid("b"), 10)
    os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert (json.loads(out)["outcome"], json.loads(out)["owner"]) == ("rolled_back", "source")
    assert_untouched(guest)


def test_offline_whose_controller_dies_is_driven_on(lab: Lab, guest: Guest) -> None:
    process = lab.popen("migrate", guest.name, "--to", "b", "--mode", "offline", *SLOW)
    migration = wait_for_phase(lab, guest, "copying")["id"]
    process.kill()
    process.communicate()
    [result] = quickened(lab, migration, "recover", migration, "--json").doc["migrations"]
    assert (result["outcome"], result["owner"]) == ("completed", "destination")
    guest.wait_survived("b")


def test_or_lets_the_guest_run_again_where_it_was(lab: Lab, guest: Guest) -> None:
    process = lab.popen("migrate", guest.name, "--to", "b", "--mode", "offline", *SLOW)
    migration = wait_for_phase(lab, guest, "copying")["id"]
    process.kill()
    process.communicate()
    assert "the guest is on a" in lab.cli("recover", migration, "--back").err
    assert_untouched(guest)


# -- post-copy --------------------------------------------------------------------------------------------------------


def test_postcopy_ends_however_busy_the_guest_is(lab: Lab) -> None:
    with lab.guest(**BUSY) as guest:
        result = lab.cli("migrate", guest.name, "--to", "b", "--mode", "postcopy", "--bandwidth", "20MiB", "--json").doc
        assert (result["outcome"], result["owner"], result["mode"]) == ("completed", "destination", "postcopy")
        assert result["encrypted"] is True
        assert any("one pass is over" in step for step in result["steps"]), result["steps"]
        assert 0 < result["blackout_ms"] < result["qemu"]["total_ms"], "it runs before its memory is there"
        guest.wait_survived("b")
        assert not guest.directory("a").exists()
        assert qemus(guest.name) == [guest.pid("b")]
        assert not list(guest.directory("b").glob("tls-*")), "the key is gone"


@contextlib.contextmanager
def turned(lab: Lab, guest: Guest, config: Path | None = None) -> Iterator[Command]:
    """Begin to move a guest to ``b``, slowly, and wait until it runs there in post-copy."""
    words = ("--mode", "postcopy", "--bandwidth", "8MiB", "--downtime-limit", "10ms", "--json")
    process = lab.popen("migrate", guest.name, "--to", "b", *words, config=config)
    assert process.stderr is not None
    for line in process.stderr:
        if "blackout" in line and "MiB" not in line:
            break
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def latest(lab: Lab, guest: Guest) -> str:
    """Return the id of a guest's migration."""
    found = record(lab, guest)
    assert found is not None
    return str(found["id"])


def ended(process: Command, seconds: float = 60) -> tuple[int, Any]:
    out, _err = process.communicate(timeout=seconds)
    return process.returncode, json.loads(out)


@pytest.fixture
def cut(lab: Lab) -> Iterator[tuple[Cable, Path]]:
    """A network for memory that can be cut, and the settings with it; the usual one is as it was."""
    address = tomllib.loads(lab.settings.read_text())["hosts"]["b"]["address"]
    with socket.create_server((address, 0)) as free:
        port = free.getsockname()[1]
    with Cable((address, port), ("127.0.77.3", port)) as cable:
        keys = {"migration_address": "127.0.77.3", "migration_listen": address, "migration_ports": f"{port}-{port}"}
        yield cable, lab.config(hosts_b=keys)


def test_a_cancel_is_refused_once_post_copy_has_begun(lab: Lab, cut: tuple[Cable, Path]) -> None:
    cable, config = cut
    with lab.guest(**BUSY) as guest, turned(lab, guest, config) as process:
        cable.hold()  # it lasts for as long as it takes to ask
        assert "there is no way back" in lab.cli("cancel", latest(lab, guest), code=2).err
        interrupt(process)
        cable.up()
        code, result = ended(process)
        assert (code, result["outcome"], result["owner"]) == (0, "completed", "destination")
        assert any("the cancel is refused" in warning for warning in result["warnings"]), result["warnings"]
        guest.wait_survived("b")


def test_a_network_that_is_cut_in_post_copy_is_gone_round(lab: Lab, cut: tuple[Cable, Path]) -> None:
    cable, config = cut
    with lab.guest(**BUSY) as guest, turned(lab, guest, config) as process:
        cable.down()
        code, result = ended(process)
        assert (code, result["outcome"], result["owner"]) == (0, "completed", "destination"), result
        guest.wait_survived("b")


def test_another_controller_follows_it_to_its_end(lab: Lab, cut: tuple[Cable, Path]) -> None:
    cable, config = cut
    with lab.guest(**BUSY) as guest, turned(lab, guest, config) as process:
        cable.hold()
        process.kill()
        process.wait()
        cable.up()
        [result] = lab.cli("recover", latest(lab, guest), "--json").doc["migrations"]
        assert (result["outcome"], result["owner"]) == ("completed", "destination"), result
        guest.wait_survived("b")
        assert not list(guest.directory("b").glob("tls-*")), "the key is gone"


def test_a_destination_that_dies_in_post_copy_loses_the_guest_and_that_is_said(lab: Lab) -> None:
    with lab.guest(**BUSY) as guest, turned(lab, guest) as process:
        pid = guest.pid("b")
        assert pid
        os.kill(pid, signal.SIGKILL)
        code, result = ended(process)
        assert (code, result["outcome"], result["owner"]) == (1, "failed", "none")
        assert result["error"]["code"] == "guest_lost"
        assert not qemus(guest.name)
        lab.cli("doctor", "--leftovers", "--remove", code=None)
