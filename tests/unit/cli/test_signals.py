"""A terminal that goes away does not end a migration; SIGTERM ends a save in good order."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

WAITS = """
import asyncio, pathlib, signal, sys
from qmp_migrate.cli.signals import end_as_by_ctrl_c, go_on_without_terminal

# Whoever runs the tests may ignore these (nohup, a shell's background), and what is ignored is handed down.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.SIG_IGN if "{how}" == "in the background" else signal.default_int_handler)

async def work():
    if "{how}" != "bare":
        go_on_without_terminal()
        end_as_by_ctrl_c()
    print("ready", flush=True)
    try:
        for _ in range(12000):
            await asyncio.sleep(0.01)
            if pathlib.Path("{go}").exists():
                print("a line that nobody will read", flush=True)
                pathlib.Path("{done}").write_text("done")
                return
    finally:
        pathlib.Path("{tidied}").write_text("tidied")

asyncio.run(work())
"""


@contextlib.contextmanager
def started(tmp_path: Path, how: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a process that waits, its output on a terminal of its own: it, and our end of the terminal."""
    ours, its = os.openpty()
    names = {name: str(tmp_path / name) for name in ("go", "done", "tidied")}
    program = WAITS.format(how=how, **names)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=its, stdout=its, stderr=its, start_new_session=True
    )
    os.close(its)
    try:
        told = b""
        while b"ready" not in told:
            told += os.read(ours, 100)
        yield process, ours
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(OSError):
            os.close(ours)


def test_it_goes_on_when_its_terminal_is_gone(tmp_path: Path) -> None:
    with started(tmp_path, "guarded") as (process, ours):
        os.kill(process.pid, signal.SIGHUP)
        while os.readlink(f"/proc/{process.pid}/fd/2") != os.devnull:
            time.sleep(0.01)
        os.close(ours)
        (tmp_path / "go").touch()
        assert process.wait(60) == 0
    assert (tmp_path / "done").exists()


def test_without_this_a_hang_up_kills(tmp_path: Path) -> None:
    with started(tmp_path, "bare") as (process, _):
        os.kill(process.pid, signal.SIGHUP)
        assert process.wait(60) == -signal.SIGHUP
    assert not (tmp_path / "tidied").exists()


def test_sigterm_is_a_ctrl_c(tmp_path: Path) -> None:
    sigterm_ends(tmp_path, "guarded")


def test_also_where_ctrl_c_is_ignored(tmp_path: Path) -> None:
    """As in what a script has put into the background: ``qmp-migrate save … &``."""
    sigterm_ends(tmp_path, "in the background")


def sigterm_ends(tmp_path: Path, how: str) -> None:
    with started(tmp_path, how) as (process, _):
        os.kill(process.pid, signal.SIGTERM)
        process.wait(60)
    assert (tmp_path / "tidied").exists()
    assert not (tmp_path / "done").exists()
