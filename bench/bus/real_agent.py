"""A real agent and many real QEMUs: what the agent costs while nothing happens, which is nearly always."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TICK = os.sysconf("SC_CLK_TCK")
WARM_S = 10.0


def measure(guests: int, seconds: float, say: Callable[[str], None], *, warm_s: float = WARM_S) -> dict[str, Any]:
    """Start a broker, QEMUs without a machine in them, and an agent; return what the agent takes."""
    say(f"a real agent with {guests} QEMUs")
    with tempfile.TemporaryDirectory(prefix="qm-bus-") as name:
        directory = Path(name)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        config = directory / "mosquitto.conf"
        user = "user root\n" if os.geteuid() == 0 else ""
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type error\n{user}")
        environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"}
        processes = [subprocess.Popen(["mosquitto", "-c", str(config)], env=environment, stderr=subprocess.DEVNULL)]
        try:
            for number in range(guests):
                processes.append(_qemu(directory / "run" / f"g{number}"))
            argv = [
                sys.executable,
                "-m",
                "hostagent.app.cli",
                "run",
                "--host",
                "a",
                "--mqtt",
                f"mqtt://127.0.0.1:{port}",
            ]
            with (directory / "agent.log").open("wb") as log:
                agent = subprocess.Popen([*argv, "--run-dir", str(directory / "run")], stdout=log, stderr=log)
            processes.append(agent)
            time.sleep(warm_s)
            before, began = _cpu_s(agent.pid), time.monotonic()
            time.sleep(seconds)
            cpu = 100 * (_cpu_s(agent.pid) - before) / (time.monotonic() - began)
            known = (directory / "agent.log").read_text().count("guest-appeared")
            memory = _memory(agent.pid)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return {"guests": guests, "known": known, "cpu_percent": round(cpu, 2), **memory}


def _qemu(directory: Path) -> subprocess.Popen[bytes]:
    directory.mkdir(parents=True)
    argv = ["qemu-system-x86_64", "-M", "none", "-display", "none"]
    for monitor in ("qmp", "agent"):
        argv += ["-qmp", f"unix:{directory}/{monitor}.sock,server=on,wait=off"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (directory / "argv.json").write_text(json.dumps(argv))
    (directory / "pid").write_text(f"{process.pid} {ticks} {boot}\n")
    return process


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def _memory(pid: int) -> dict[str, float]:
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in {"Rss", "Pss"}:
            found[f"{name.lower()}_mb"] = round(int(rest.split()[0]) * 1024 / 1e6, 1)
    return found
