"""From words to a shell line and back, and what is cut off an output."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmp_migrate.errors import CommandFailed, UsageError
from qmp_migrate.hosts.base import Completed
from qmp_migrate.hosts.shell_command import behind_login_shell, checked, command_line, leader, without_greeting

words = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1)


@given(words)
def test_a_line_is_taken_apart_into_the_same_words(argv: list[str]) -> None:
    assert shlex.split(command_line("a", argv)) == argv


@settings(max_examples=20, deadline=None)
@given(words)
def test_a_real_shell_takes_it_apart_into_the_same_words(argv: list[str]) -> None:
    line = command_line("a", ["printf", "%s\\0", *argv])
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == argv


def test_a_nul_is_refused() -> None:
    with pytest.raises(UsageError, match="NUL"):
        command_line("a", ["x", "a\0b"])


def test_greeting_and_mark_are_cut_off_and_tell_who_runs() -> None:
    argv = behind_login_shell(["sh", "-c", "echo $$; echo qmp-migrate: begin again"], 10)
    done = subprocess.run(argv, capture_output=True, check=True)
    noisy = b"Welcome!\n" + done.stdout
    found = leader(noisy)
    assert found is not None
    assert int(found[0]) > 1
    assert int(found[1]) > 1
    text = without_greeting(Completed(0, noisy, b""), 1000).stdout.decode()
    assert text.split("\n")[1:] == ["qmp-migrate: begin again", ""]
    assert without_greeting(Completed(0, noisy, b""), 3).truncated
    assert leader(b"Welcome!\nqmp-migrate: begin 17 (sh") is None
    assert leader(b"qmp-migrate: begin 17 (a) b) S " + b" ".join(b"%d" % n for n in range(4, 30)) + b"\n") == (
        "17",
        "22",
    )
    assert without_greeting(Completed(127, b"no shell", b"x"), 100).stdout == b"no shell"


def test_a_failure_shows_the_last_line_and_keeps_the_rest() -> None:
    with pytest.raises(CommandFailed, match=r"ls ended with exit status 2: really not there") as caught:
        checked(Completed(2, b"", b"one\nreally not there\n"), "a", "ls")
    assert caught.value.stderr == "one\nreally not there"
    with pytest.raises(CommandFailed, match="signal"):
        checked(Completed(-1, b"", b""), "a", "ls")
    with pytest.raises(CommandFailed) as caught:
        checked(Completed(127, b"", b"sh: ls: not found"), "a", "ls")
    assert "installed" in (caught.value.hint or "")
