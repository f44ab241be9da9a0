"""The files of what runs on hosts: each is whole, is used, says what it does, and the relay can read what it allows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import qmp_migrate
from hostagent.relay import argument_rules
from qmp_migrate.hosts import scripts

ROOT = Path(scripts.__file__).parent
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
NAMES = scripts.names()


def test_all_files_are_found() -> None:
    assert [str(path.relative_to(ROOT))[:-3] for path in sorted(ROOT.rglob("*.sh"))] == NAMES
    assert len(NAMES) > 80


@pytest.mark.parametrize("shell", SHELLS)
def test_each_is_a_script_for_every_shell(shell: str) -> None:
    words = ["busybox", "sh"] if shell == "busybox" else [shell]
    for name in NAMES:
        done = subprocess.run([*words, "-n"], input=scripts.script(name), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_does_and_sends_none_of_it(name: str) -> None:
    first = (ROOT / f"{name}.sh").read_text().splitlines()[0]
    assert re.match(r"#: (?!include |relay:)\S", first), first
    assert "#:" not in scripts.script(name)


def test_none_is_left_over() -> None:
    text = "".join(path.read_text() for path in Path(qmp_migrate.__file__).parent.rglob("*.py"))
    used = set(re.findall(r'script\("([a-z_]+/[a-z_]+)"\)', text))
    used |= set(
        re.findall(r"^#: include (.*)$", "".join(path.read_text() for path in ROOT.rglob("*.sh")), re.MULTILINE)
    )
    assert used == set(NAMES)


def test_the_relay_knows_every_kind_of_argument() -> None:
    kinds = {kind for kinds in scripts.relayed().values() for kind in kinds}
    special = {"*", "argv", "probe"}
    assert kinds - special <= set(argument_rules.CHECKS)


def test_the_relay_looks_at_what_it_is_asked_to_end_and_at_what_is_said_to_a_holder_of_locks() -> None:
    apart = {"guest's process", "command's process", "scope of locks"}
    found = {name: apart & set(kinds) for name, kinds in scripts.relayed().items()}
    assert {name: kinds for name, kinds in found.items() if kinds} == {
        "processes/kill": {"guest's process"},
        "processes/kill_closed": {"guest's process"},
        "processes/end_group": {"command's process"},
        "locks/hold": {"scope of locks"},
    }
    ends = {
        name
        for name in scripts.relayed()
        if re.search(r"^ *kill -s|^ *kill -KILL \"-", scripts.script(name), re.MULTILINE)
    }
    assert ends == {"processes/kill", "processes/kill_closed", "processes/end_group"}


def test_a_part_stands_where_it_is_included() -> None:
    part = scripts.script("processes/state_of")
    assert scripts.script("processes/is_alive") == part + 'same "$1" "$2" "$3"\n'


def test_no_script_of_an_unknown_name() -> None:
    with pytest.raises(FileNotFoundError):
        scripts.script("processes/no_such")
