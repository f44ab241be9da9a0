"""What the agent tells its service manager, and how hard the units are."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostagent.app.sd_notify import ServiceManager
from tests import ROOT

UNITS = ROOT / "contrib" / "systemd"
LIMIT = 20
"""`systemd-analyze security` at most 2.0."""


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + address[1:] if address.startswith("@") else address)
        listening.settimeout(5.0)
        yield listening


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_it_says_what_it_is_told_to(tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@qmp-migrate-test-{os.getpid()}"
    with manager(address) as listening:
        ServiceManager({"NOTIFY_SOCKET": address}).say("READY=1", "STATUS=well")
        assert listening.recv(1000) == b"READY=1\nSTATUS=well"


async def test_it_says_that_it_lives_and_how_only_when_that_changes(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    said = "fine"
    with manager(address) as listening:
        listening.setblocking(False)
        service = ServiceManager(
            {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid())}
        )
        assert service.watchdog_s == 0.2
        task = asyncio.create_task(service.keep_alive(lambda: said))
        loop = asyncio.get_running_loop()
        heard = [await asyncio.wait_for(loop.sock_recv(listening, 1000), 5) for _ in range(3)]
        said = "ill"
        while b"STATUS=ill" not in heard[-1]:
            heard.append(await asyncio.wait_for(loop.sock_recv(listening, 1000), 5))
        task.cancel()
    assert heard[0] == b"STATUS=fine\nWATCHDOG=1"
    assert sum(b"STATUS=fine" in line for line in heard) == 1
    assert heard.count(b"WATCHDOG=1") >= 2


async def test_nobody_who_listens_and_a_watchdog_of_somebody_else_are_no_trouble(tmp_path: Path) -> None:
    nobody = ServiceManager({})
    nobody.say("READY=1")
    await asyncio.wait_for(nobody.keep_alive(lambda: ""), 5)
    gone = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    gone.say("READY=1")
    gone.say("READY=1")
    for environment in (
        {"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "many"},
        {"WATCHDOG_USEC": "-5"},
    ):
        assert ServiceManager(environment).watchdog_s == 0.0


def exposure(unit: Path) -> subprocess.CompletedProcess[str]:
    argv = ["systemd-analyze", "security", "--offline=true", f"--threshold={LIMIT}", str(unit)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed: apt-get install systemd"
)


@needs_analyze
@pytest.mark.parametrize("name", sorted(unit.name for unit in UNITS.glob("*.service")))
def test_the_units_are_hard(name: str, tmp_path: Path) -> None:
    ran = exposure(UNITS / name)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    # and the test can fail
    weak = tmp_path / name
    weak.write_text((UNITS / name).read_text().replace("NoNewPrivileges=yes\nCapabilityBoundingSet=\n", ""))
    assert exposure(weak).returncode != 0


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_user_and_directories_are_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", UNITS / "qmp-migrate.sysusers"], check=True, capture_output=True
    )
    assert "qmp:" in (tmp_path / "etc/passwd").read_text()
    assert [
        line for line in (tmp_path / "etc/group").read_text().splitlines() if line.startswith("kvm:") and "qmp" in line
    ]
    lines = [line for line in (UNITS / "qmp-migrate.tmpfiles").read_text().splitlines() if not line.startswith("#")]
    assert "d /run/qmp-migrate 0700 qmp qmp -" in lines
