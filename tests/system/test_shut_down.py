"""Guests that are shut down: definition and disks move, crash-safe, and are started again over there."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hostagent.discovery.guests import start_ticks
from qmp_migrate import Controller, load_settings
from tests.support.real.lab import Guest, Lab, qemus, wait_for


@contextmanager
def ended(lab: Lab, name: str = "") -> Iterator[tuple[Guest, Path, Path, Path]]:
    """A guest that was running, with a disk of its own on host a, and a place for that disk on b."""
    here, there = lab.files / f"here{name}", lab.files / f"there{name}"
    here.mkdir()
    there.mkdir()
    image = here / "disk, one.qcow2"
    config = lab.config(hosts_b={"path_map": {str(here): str(there)}})
    disk = f'[[disk]]\npath = "{image}"\nformat = "qcow2"\nsize = "16MiB"\n'
    try:
        with lab.guest(ready=False, firmware_only=True, extra=disk) as guest:
            pid = guest.pid("a")
            assert pid
            os.kill(pid, signal.SIGKILL)
            # Not `qemus`: the kernel takes the command line away while threads of the QEMU still hold its images.
            wait_for(lambda: start_ticks(pid) is None, 10)
            write = [str(Path(shutil.which("qemu-io") or "qemu-io")), "-c", "write -P 0x5a 1M 3M", str(image)]
            subprocess.run(write, check=True, capture_output=True)
            yield guest, image, there / image.name, config
    finally:
        shutil.rmtree(here)
        shutil.rmtree(there)


def state(lab: Lab, guest: Guest) -> list[tuple[str, str]]:
    async def work() -> list[tuple[str, str]]:
        async with Controller.open(load_settings(lab.settings)) as controller:
            listed, _ = await controller.list_guests()
            return [(found.host, found.state) for found in listed if found.name == guest.name]

    return asyncio.run(work())


def settle(config: Path, guest: Guest) -> str:
    """Settle what was left; return who has the guest. In this process: starting one costs more than the work."""

    async def work() -> str:
        async with Controller.open(load_settings(config)) as controller:
            (left,) = await controller.unsettled_operations(vm=guest.name)
            result, _error = await controller.recover_operation(left)
            return str(result.owner)

    return asyncio.run(work())


def content(image: Path) -> bytes:
    raw = image.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(raw)], check=True, capture_output=True)
    found = raw.read_bytes()
    raw.unlink()
    return found


def test_definition_and_disks_move_and_the_guest_is_started_there(lab: Lab) -> None:
    with ended(lab) as (guest, image, copy, config):
        assert state(lab, guest) == [("a", "ended")]
        refused = lab.cli("check", guest.name, "--to", "b", config=config, code=3)
        assert "--copy-storage" in refused.out + refused.err
        before = content(image)

        words = ("migrate", guest.name, "--to", "b", "--copy-storage", "full", "--source-images", "rename", "--json")
        moved = lab.cli(*words, config=config)
        assert "of disks copied of" in moved.err
        result = moved.doc
        assert (result["outcome"], result["owner"], result["mode"]) == ("completed", "destination", "shut-down")
        assert result["encrypted"] is True
        assert content(copy) == before
        assert not image.exists()
        assert sorted(path.name for path in copy.parent.iterdir()) == [copy.name]
        assert copy.stat().st_blocks * 512 < 8 << 20, "sparse stays sparse"
        assert not qemus(guest.name), "nothing was started"
        assert not guest.directory("a").exists()
        assert state(lab, guest) == [("b", "ended")]
        assert f"{guest.name} is shut down" in lab.cli("vm", "show", guest.name, code=2).err
        assert f"{guest.name} a -> b" in lab.cli("report", result["id"], config=config).out
        assert not list(lab.run_dir("a").glob(".copy*")) + list(lab.run_dir("b").glob(".copy*"))

        started = lab.cli("vm", "start", guest.name, "--on", "b", "--json").doc
        assert (started["state"], started["host"]) == ("running", "b")
        assert "already on b" in lab.cli("vm", "start", guest.name, "--on", "b", code=1).err


CRASH = """
import asyncio, os, sys
from pathlib import Path
from qmp_migrate import Controller, load_settings
from qmp_migrate.migration.journal.operations import Operations

settings, vm, step = sys.argv[1:]
enter = Operations.enter

async def dies(self, id, entered, **data):
    await enter(self, id, entered, **data)
    if entered == step:
        os._exit(9)

Operations.enter = dies

async def main():
    async with Controller.open(load_settings(Path(settings))) as controller:
        await controller.migrate(vm, to="b", copy_storage="full")

asyncio.run(main())
"""


def test_a_controller_that_is_killed_leaves_the_definition_at_one_place(lab: Lab) -> None:
    with ended(lab, "-crash") as (guest, image, copy, config):
        for step in ("copying", "staging", "handing-over"):
            words = [sys.executable, "-c", CRASH, str(config), guest.name, step]
            died = subprocess.run(words, capture_output=True, text=True, timeout=60)
            assert died.returncode == 9, died.stderr
            assert len(state(lab, guest)) == 1
            forward = step == "handing-over"
            assert settle(config, guest) == ("destination" if forward else "source"), step
            assert state(lab, guest) == [("b" if forward else "a", "ended")]
            assert copy.exists() is forward
            assert image.exists(), "kept"
            assert len(list(copy.parent.iterdir())) == forward
