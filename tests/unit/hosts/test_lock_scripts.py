"""Which process serves the SSH connection that a lock's holder lives on: every layout that OpenSSH has had."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qmp_migrate.hosts.scripts import script

HOLDER = 900

# pid, parent, comm, title
Tree = list[tuple[int, int, str, str]]
INIT = (1, 0, "systemd", "/sbin/init")
LISTENS = (10, 1, "sshd", "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups")
OLD_LISTENS = (10, 1, "sshd", "/usr/sbin/sshd -D")


def connection(directory: Path, tree: Tree) -> str | None:
    """What the script says about the process HOLDER in a machine that has these processes."""
    for pid, parent, comm, title in tree:
        process = directory / str(pid)
        process.mkdir()
        zeros = " 0" * 17
        (process / "stat").write_text(f"{pid} ({comm}) S {parent}{zeros} {pid}77 0 0\n")
        (process / "cmdline").write_text(f"{title}\0\0\0")
    asked = script("locks/connections").replace("/proc", str(directory)) + 'connection "$1" && echo "$session $since"'
    done = subprocess.run(["sh", "-c", asked, "sh", str(HOLDER)], capture_output=True, text=True, timeout=10)
    assert not done.stderr
    return done.stdout.strip() or None


@pytest.mark.parametrize("listener", [LISTENS, OLD_LISTENS])
@pytest.mark.parametrize(
    ("layout", "found"),
    [
        pytest.param(
            [
                (20, 10, "sshd", "sshd: ops [priv]"),
                (30, 20, "sshd", "sshd: ops@notty"),
                (40, 30, "bash", "bash -c sh"),
                (HOLDER, 40, "sh", "sh -c"),
            ],
            "30 3077",
            id="user",
        ),
        pytest.param(
            [(20, 10, "sshd", "sshd: root@notty"), (HOLDER, 20, "sh", "sh -c")],
            "20 2077",
            id="root",
        ),
        pytest.param(
            [
                (20, 10, "sshd-session", "sshd-session: ops [priv]"),
                (30, 20, "sshd-session", "sshd-session: ops@notty"),
                (HOLDER, 30, "sh", "sh -c"),
            ],
            "30 3077",
            id="9.8-user",
        ),
        pytest.param(
            [(20, 10, "sshd-session", "sshd-session: root@notty"), (HOLDER, 20, "sh", "sh -c")],
            "20 2077",
            id="9.8-root",
        ),
        pytest.param(
            [
                (20, 10, "sshd", "sshd: root@pts/0"),
                (30, 20, "odd (sshd) name)", "odd"),
                (HOLDER, 30, "sh", "sh -c"),
            ],
            "20 2077",
            id="a-name-made-to-confuse",
        ),
    ],
)
def test_the_nearest_session_is_meant(
    tmp_path: Path, listener: tuple[int, int, str, str], layout: Tree, found: str
) -> None:
    assert connection(tmp_path, [INIT, listener, *layout]) == found


def test_a_session_that_was_started_for_one_connection(tmp_path: Path) -> None:
    assert connection(tmp_path, [INIT, (20, 1, "sshd", "sshd: root@notty"), (HOLDER, 20, "sh", "sh")]) == "20 2077"


@pytest.mark.parametrize("listener", [LISTENS, OLD_LISTENS])
def test_the_one_that_listens_is_never_meant(tmp_path: Path, listener: tuple[int, int, str, str]) -> None:
    assert connection(tmp_path, [INIT, listener, (HOLDER, 10, "sh", "sh")]) is None


def test_a_listener_started_from_a_session_is_not_that_session(tmp_path: Path) -> None:
    login = [(10, 1, "sshd", "sshd: /usr/sbin/sshd"), (20, 10, "sshd", "sshd: root@pts/0"), (30, 20, "bash", "-bash")]
    rig = (40, 30, "sshd", "sshd: /usr/sbin/sshd -D -f x [listener] 0 of 10-100 startups")
    assert connection(tmp_path, [INIT, *login, rig, (HOLDER, 40, "sh", "sh")]) is None


@pytest.mark.parametrize("above", [[], [(40, 1, "dropbear", "dropbear")], [(40, 39, "sh", "its parent is not shown")]])
def test_where_no_sshd_is_above_there_is_none(tmp_path: Path, above: Tree) -> None:
    assert connection(tmp_path, [INIT, *above, (HOLDER, 40 if above else 1, "sh", "sh")]) is None
