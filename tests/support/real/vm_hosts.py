"""A lab whose hosts are machines: their power is cut while a guest moves, and what is true afterwards is told by commands.

Everything is emulated twice, so a step takes seconds: tests wait for states, and assert owners and exit codes, never times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.real.commands import command_server
from tests.support.real.lab import CLI, Lab, Ran

IMAGES = Path(os.environ.get("QMP_MIGRATE_IMAGES", "build/images"))
STEP_S = 300.0
"""A limit for one command, against tests that hang; a quiet machine needs a twentieth."""


def missing() -> str | None:
    """Say why there can be no such lab here, or None."""
    reason = IMAGES / "host.missing"
    if reason.exists():
        return f"no host machines: {reason.read_text().strip()}"
    if not (IMAGES / "host" / "manifest.json").exists():
        return "no host machines: make host-image"
    if not (IMAGES / "bare.elf").exists():
        return "no bare guest: make images"
    return None


@dataclass
class Machines(Lab):
    """A lab whose hosts are machines."""

    def cli(self, *words: str, code: int | None = 0, config: Path | None = None, timeout: float = STEP_S) -> Ran:
        return super().cli(*words, code=code, config=config, timeout=timeout)

    def power(self, host: str, action: str, *words: str) -> None:
        self.cli("rig", "power", host, action, *words, "--dir", str(self.directory))

    def link(self, host: str, position: str, network: str = "both") -> None:
        self.cli("rig", "link", host, position, "--network", network, "--dir", str(self.directory))

    def status(self) -> Any:
        return self.cli("rig", "status", "--json", "--dir", str(self.directory)).doc

    def mend(self) -> None:
        """Bring every host into the state in which it was when the lab came up."""
        for host, how in self.status()["hosts"].items():
            if how["power"] == "hung":
                self.power(host, "resume")
            self.power(host, "on")
            self.link(host, "up")

    def run(self, host: str, command: str, *, check: bool = True) -> str:
        """Run a shell command on a host, as somebody who logs in there does."""
        settings = tomllib.loads(self.settings.read_text())["hosts"][host]
        options = {"UserKnownHostsFile": settings["known_hosts"], "ConnectTimeout": "60", "BatchMode": "yes"}
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        target = ["-p", str(settings["port"]), "-i", settings["identity_file"], f"root@{settings['address']}"]
        argv = ["ssh", "-F", "none", *words, *target, command]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=STEP_S)
        assert not check or done.returncode == 0, f"{host}: {command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def where(self, name: str, *, code: int | None = 0) -> dict[str, str]:
        """On which hosts a guest is, and in what state: ``vm list``."""
        listed = self.cli("vm", "list", "--json", code=code).doc["guests"]
        return {guest["host"]: guest["state"] for guest in listed if guest["name"] == name}

    def migrate(self, name: str, to: str, *words: str, at: str, then: Callable[[], None]) -> Ran:
        """Move a guest, and do something once the command has said `at`."""
        process = self.popen("migrate", name, "--to", to, *words, "--json")
        told, done = "", False
        for line in process.stderr:
            told += line
            if at in line and not done:
                done = True
                then()
        ran = Ran(process.wait(STEP_S), process.stdout.read(), told)
        process.stdout.close()
        process.stderr.close()
        assert done, f"it never said {at!r}\n{ran.out}\n{told}"
        return ran

    @contextmanager
    def bare(self, *, on: str = "a", append: str = "qm.tick=100", extra: str = "") -> Iterator[str]:
        """A bare guest of its own on a host; gone afterwards."""
        name = f"g{uuid.uuid4().hex[:8]}"
        spec = self.files / f"{name}.toml"
        # Not a multiple of 256 KiB of memory: see docs/guide/without-kvm.md.
        keys = {"name": name, "memory": f"{32 * 1024 + 8}KiB", "cpu": "qemu64", "accel": "tcg"}
        keys |= {"kernel": "/lab/guests/bare.elf", "append": append}
        spec.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()) + extra)
        self.cli("vm", "start", str(spec), "--on", on)
        try:
            yield name
        finally:
            self.mend()
            self.cli("vm", "stop", name, "--force", code=None)  # one that two hosts have is seen below
        assert self.where(name) == {}


@contextmanager
def machines(*words: str) -> Iterator[Machines]:
    """Bring a lab of two machines up (`words`: more options), and take it down."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    env = os.environ | {"NO_COLOR": "1"}
    with tempfile.TemporaryDirectory(prefix="qm-") as base:
        directory, files = Path(base) / "rig", Path(base) / "files"
        files.mkdir()
        rig = [*CLI, "rig"]
        up = [*rig, "up", "--hosts-as-vms", *words, "--json", "--dir", str(directory)]
        done = subprocess.run(up, capture_output=True, text=True, timeout=STEP_S, env=env)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        try:
            with command_server() as commands:
                yield Machines(directory, Path(told["settings"]), Path(told["guest"]).read_text(), files, commands)
        finally:
            for console in sorted(directory.glob("parts/machine-*/console.log")):
                sys.stdout.write(f"{console.parent.name}: {console.read_text(errors='replace')[-2000:]}\n")
            down = [*rig, "down", "--dir", str(directory)]
            done = subprocess.run(down, capture_output=True, text=True, timeout=STEP_S, env=env)
        assert done.returncode == 0, done.stderr
        assert not directory.exists(), sorted(directory.rglob("*"))
