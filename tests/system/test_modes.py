"""Offline and post-copy on real QEMU: what each of them promises, and what becomes of the guest when it fails."""

from __future__ import annotations

import json
import os
import signal

from tests.support.lab import Guest, Lab, interrupt, qemus, wait_for
from tests.system.test_migrate import assert_untouched, qmp, wait_for_phase

BUSY = "qm.rate=200 qm.ws=128 qm.tick=10"
"""Dirties more than a link of 30 MiB/s carries."""


def test_offline_ends_however_busy_the_guest_is(lab: Lab) -> None:
    with lab.guest(append=BUSY) as guest:
        result = lab.cli("migrate", guest.name, "--to", "b", "--mode", "offline", "--bandwidth", "60MiB", "--json").doc
        assert (result["outcome"], result["owner"], result["mode"]) == ("completed", "destination", "offline")
        assert result["encrypted"] is True
        assert any("stopped" in step for step in result["steps"]), result["steps"]
        # What its users see: the guest stood still for as long as its memory travelled.
        assert result["qemu"]["total_ms"] <= result["blackout_ms"] < result["qemu"]["total_ms"] + 2000
        guest.wait_survived("b")
        assert not guest.directory("a").exists()
        assert qemus(guest.name) == [guest.pid("b")]


def test_offline_leaves_a_guest_paused_that_its_user_had_paused(lab: Lab, guest: Guest) -> None:
    qmp(guest, "a", "stop")
    result = lab.cli("migrate", guest.name, "--to", "b", "--mode", "offline", "--json").doc
    assert (result["outcome"], result["blackout_ms"], result["steps"]) == ("completed", 0, [])
    assert lab.cli("vm", "show", guest.name, "--json").doc["state"] == "paused"
    qmp(guest, "b", "cont")
    guest.wait_survived("b")


def test_offline_that_is_cancelled_lets_the_guest_run_on(lab: Lab, guest: Guest) -> None:
    process = lab.popen("migrate", guest.name, "--to", "b", "--mode", "offline", "--bandwidth", "5MiB", "--json")
    wait_for_phase(lab, guest, "copying")
    interrupt(process)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert (json.loads(out)["outcome"], json.loads(out)["owner"]) == ("cancelled", "source")
    assert_untouched(guest)


def test_offline_whose_destination_dies_lets_the_guest_run_on(lab: Lab, guest: Guest) -> None:
    """7.2 leaves a guest that was stopped before in `postmigrate` then: it must be told to run."""

    process = lab.popen("migrate", guest.name, "--to", "b", "--mode", "offline", "--bandwidth", "5MiB", "--json")
    wait_for_phase(lab, guest, "copying")
    pid = wait_for(lambda: guest.pid("b"), 10)
    os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert (json.loads(out)["outcome"], json.loads(out)["owner"]) == ("rolled_back", "source")
    assert_untouched(guest)


def test_offline_whose_controller_dies_is_driven_on(lab: Lab, guest: Guest) -> None:
    process = lab.popen("migrate", guest.name, "--to", "b", "--mode", "offline", "--bandwidth", "10MiB")
    record = wait_for_phase(lab, guest, "copying")
    process.kill()
    process.communicate()
    [result] = lab.cli("recover", str(record["id"]), "--json").doc["migrations"]
    assert (result["outcome"], result["owner"]) == ("completed", "destination")
    guest.wait_survived("b")


def test_or_lets_the_guest_run_again_where_it_was(lab: Lab, guest: Guest) -> None:
    process = lab.popen("migrate", guest.name, "--to", "b", "--mode", "offline", "--bandwidth", "10MiB")
    record = wait_for_phase(lab, guest, "copying")
    process.kill()
    process.communicate()
    assert "the guest is on a" in lab.cli("recover", str(record["id"]), "--back").err
    assert_untouched(guest)


# -- post-copy --------------------------------------------------------------------------------------------------------


def test_postcopy_ends_however_busy_the_guest_is(lab: Lab) -> None:
    with lab.guest(append=BUSY) as guest:
        result = lab.cli("migrate", guest.name, "--to", "b", "--mode", "postcopy", "--bandwidth", "60MiB", "--json").doc
        assert (result["outcome"], result["owner"], result["mode"]) == ("completed", "destination", "postcopy")
        assert result["encrypted"] is True
        assert any("one pass is over" in step for step in result["steps"]), result["steps"]
        assert 0 < result["blackout_ms"] < 2000, "it runs long before its memory is there"
        assert result["qemu"]["total_ms"] > result["blackout_ms"]
        guest.wait_survived("b")
        assert not guest.directory("a").exists()
        assert qemus(guest.name) == [guest.pid("b")]
        assert not list(guest.directory("b").glob("tls-*")), "the key is gone"
