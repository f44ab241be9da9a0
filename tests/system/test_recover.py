"""A controller that is killed leaves nothing that `recover`, the next `migrate` or `cancel` does not settle."""

from __future__ import annotations

import json

import pytest

from tests.support.real.interrupted import SLOW, ended, killed_while_copying, quickened
from tests.support.real.lab import Guest, Lab
from tests.support.real.lab_journal import wait_for_phase


def test_a_copy_that_still_runs_is_driven_on(lab: Lab, guest: Guest) -> None:
    migration = killed_while_copying(lab, guest)
    assert f"qmp-migrate recover {migration}" in lab.cli("status").err

    ran = quickened(lab, migration, "recover", migration, "--json")

    assert ran.doc["schema"] == "recoveries/1"
    [result] = ran.doc["migrations"]
    assert (result["id"], result["outcome"], result["owner"]) == (migration, "completed", "destination")
    assert result["encrypted"] is True
    guest.wait_survived("b")
    assert not guest.directory("a").exists()
    assert "ended already" in lab.cli("recover", migration, code=2).err


def test_back_on_request_and_the_next_try_works(lab: Lab, guest: Guest) -> None:
    migration = killed_while_copying(lab, guest)
    ran = lab.cli("recover", migration, "--back")
    assert "rolled_back; the guest is on a" in ran.err
    guest.wait_survived("a")
    assert not guest.directory("b").exists()
    assert lab.cli("migrate", guest.name, "--to", "b", "--json").doc["warnings"] == []
    guest.wait_survived("b")


def test_cancel_settles_one_whose_controller_is_gone(lab: Lab, guest: Guest) -> None:
    migration = killed_while_copying(lab, guest)
    assert lab.cli("cancel", migration, "--json").doc["owner"] == "source"
    assert not guest.directory("b").exists()


def test_the_next_migrate_of_the_guest_settles_the_last_one_first(lab: Lab, guest: Guest) -> None:
    migration = killed_while_copying(lab, guest)
    result = quickened(lab, migration, "migrate", guest.name, "--to", "b", "--json").doc
    assert (result["id"], result["outcome"]) == (migration, "completed")
    guest.wait_survived("b")


def test_of_two_controllers_one_wins_and_the_other_says_who_holds_the_guest(lab: Lab, guest: Guest) -> None:
    first = lab.popen("migrate", guest.name, "--to", "b", *SLOW, "--json")
    mine = wait_for_phase(lab, guest, "copying")
    # Another machine has another journal: what keeps it out are the locks on the hosts.
    other = lab.config(controller={"state": f"sqlite:///{lab.files}/other.sqlite"})
    late = lab.cli("migrate", guest.name, "--to", "b", "--json", code=75, config=other)
    assert f"pid {first.pid}" in late.err
    assert mine["id"] in late.err
    assert lab.cli("recover", mine["id"], code=75).err
    lab.quicken(mine["id"])
    assert ended(first).doc["outcome"] == "completed"
    guest.wait_survived("b")


def test_guarded_hands_over_all_the_same(lab: Lab, guest: Guest) -> None:
    result = lab.cli("migrate", guest.name, "--to", "b", "--guarded", "--json").doc
    assert result["outcome"] == "completed"
    assert result["blackout_ms"] > 0
    story = lab.cli("report", result["id"], "--json").doc["entries"]
    assert "pre-switchover" in [entry["act"] for entry in story]
    guest.wait_survived("b")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["recover", "m-no-such"], 2, "no migration"),
        (["recover", "--owner", "source"], 2, "qmp-migrate recover ID"),
        (["recover", "x", "--owner", "nobody"], 2, "--owner source"),
        (["recover", "x", "--fenced", "nowhere"], 2, "nowhere"),
    ],
)
def test_words_that_make_no_sense_are_refused(lab: Lab, words: list[str], code: int, says: str) -> None:
    assert says in lab.cli(*words, code=code).err


def test_nothing_to_recover_is_no_error(lab: Lab) -> None:
    settings = lab.config(controller={"state": f"sqlite:///{lab.files}/empty.sqlite"})
    ran = lab.cli("recover", "--json", config=settings)
    assert json.loads(ran.out) == {"schema": "recoveries/1", "migrations": [], "operations": []}
    assert "nothing to recover" in ran.err
