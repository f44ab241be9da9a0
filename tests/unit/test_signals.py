"""A terminal that goes away does not end a migration; SIGTERM ends a save in good order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

WAITS = """
import asyncio, pathlib, sys
from qmp_migrate.cli.signals import end_as_by_ctrl_c, go_on_without_terminal

async def work():
    if "{how}" == "guarded":
        go_on_without_terminal()
        end_as_by_ctrl_c()
    print("ready", flush=True)
    try:
        for _ in range(2000):
            await asyncio.sleep(0.01)
            if pathlib.Path("{go}").exists():
                print("a line that nobody will read", flush=True)
                pathlib.Path("{done}").write_text("done")
                return
    finally:
        pathlib.Path("{tidied}").write_text("tidied")

asyncio.run(work())
"""


def start(tmp_path: Path, how: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a process that waits, its output on a terminal of its own; return it and our end of the terminal."""
    ours, its = os.openpty()
    names = {name: str(tmp_path / name) for name in ("go", "done", "tidied")}
    program = WAITS.format(how=how, **names)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=its, stdout=its, stderr=its, start_new_session=True
    )
    os.close(its)
    told = b""
    while b"ready" not in told:
        told += os.read(ours, 100)
    return process, ours


def test_it_goes_on_when_its_terminal_is_gone(tmp_path: Path) -> None:
    process, ours = start(tmp_path, "guarded")
    os.kill(process.pid, signal.SIGHUP)
    while os.readlink(f"/proc/{process.pid}/fd/2") != os.devnull:
        time.sleep(0.01)
    os.close(ours)
    (tmp_path / "go").touch()
    assert process.wait(20) == 0
    assert (tmp_path / "done").exists()


def test_without_this_a_hang_up_kills(tmp_path: Path) -> None:
    process, ours = start(tmp_path, "bare")
    os.kill(process.pid, signal.SIGHUP)
    assert process.wait(20) == -signal.SIGHUP
    os.close(ours)
    assert not (tmp_path / "tidied").exists()


def test_sigterm_is_a_ctrl_c(tmp_path: Path) -> None:
    process, ours = start(tmp_path, "guarded")
    os.kill(process.pid, signal.SIGTERM)
    process.wait(20)
    os.close(ours)
    assert (tmp_path / "tidied").exists()
    assert not (tmp_path / "done").exists()
