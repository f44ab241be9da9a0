"""A controller that is killed while it copies memory, and a copy that somebody else takes up."""

from __future__ import annotations

from tests.support.real.commands import Command
from tests.support.real.lab import Guest, Lab, Ran
from tests.support.real.lab_journal import wait_for_phase

SLOW = ("--bandwidth", "512KiB")
"""One pass takes a minute and more: time enough to kill who drives it, and for another to take it up and quicken it."""


def killed_while_copying(lab: Lab, guest: Guest, *words: str) -> str:
    """Begin to move a guest to ``b`` and kill the controller while memory is copied; return the migration's id."""
    process = lab.popen("migrate", guest.name, "--to", "b", *SLOW, *words)
    migration = str(wait_for_phase(lab, guest, "copying")["id"])
    process.kill()
    process.communicate()
    return migration


def quickened(lab: Lab, migration: str, *words: str) -> Ran:
    """Run a command that takes a slow copy up, and let the copy go on quickly from there."""
    process = lab.popen(*words)
    lab.quicken(migration)
    ran = ended(process)
    assert ran.code == 0, ran.err
    return ran


def ended(process: Command) -> Ran:
    out, err = process.communicate(timeout=60)
    return Ran(process.returncode, out, err)
