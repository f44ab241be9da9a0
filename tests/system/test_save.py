"""A guest into a file and out of it, on real QEMU and real sshd: each sentence of what `save` and `restore` promise."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qmp_migrate import Controller, load_settings
from tests.support.real.lab import Guest, Lab, qemus, wait_for
from tests.support.real.qemu_versions import program


@contextmanager
def state_of(guest: Guest) -> Iterator[Path]:
    """A place for a guest's state; proven empty afterwards."""
    place = guest.lab.files / f"{guest.name}-states"
    place.mkdir()
    try:
        yield place / "a state, with 'odd' name.state"
        assert not list(place.iterdir()), "nothing is left of it"
    finally:
        for path in place.iterdir():
            path.unlink()
        place.rmdir()


def test_a_guest_goes_into_files_and_out_of_them_from_version_to_version(lab: Lab) -> None:
    """One guest: saved by 7.2, read by 10.0 and 11.1; saved by 11.1 with all it has, read by 10.0; each time it goes on."""
    seven = lab.config(hosts_a={"qemu": program("7.2")})
    ten = lab.config(hosts_b={"qemu": program("10.0")})
    eleven = lab.config(hosts_a={"qemu": program("10.0")}, hosts_b={"qemu": program("11.1")})
    with lab.guest(disk=True, config=seven) as guest, state_of(guest) as file:
        saved = lab.cli("save", guest.name, str(file), "--json", config=seven).doc
        assert (saved["outcome"], saved["owner"]) == ("completed", "file")
        assert (saved["format"], saved["channels"], saved["direct_io"]) == ("stream", 0, False)
        assert saved["stored_bytes"] < 200 << 20
        assert not qemus(guest.name)
        assert not guest.directory("a").exists()
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        assert file.stat().st_mode & 0o777 == 0o600

        second = file.with_name("second.state")
        shutil.copy2(file, second)
        back = lab.cli("restore", str(second), "--on", "b", "--paused", "--json", config=ten).doc
        assert (back["outcome"], back["owner"], back["state"]) == ("completed", "destination", "paused")
        lab.cli("vm", "stop", guest.name, "--force")
        back = lab.cli("restore", str(file), "--on", "b", "--json", config=eleven).doc
        assert (back["outcome"], back["owner"], back["state"]) == ("completed", "destination", "running")
        guest.wait_survived("b")

        saved = lab.cli("save", guest.name, str(file), "--json", config=eleven).doc
        assert (saved["format"], saved["channels"], saved["direct_io"]) == ("mapped-ram", 2, True)
        assert saved["stored_bytes"] < saved["bytes"], "sparse"
        refused = lab.cli("restore", str(file), "--on", "a", config=seven, code=4)
        assert "cannot read" in refused.err
        assert "no mapped-ram" in refused.err
        back = lab.cli("restore", str(file), "--on", "a", "--json", config=eleven).doc
        assert back["state"] == "running"
        guest.wait_survived("a")
        assert qemus(guest.name) == [guest.pid("a")]


@contextmanager
def small_file_system(megabytes: int) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    with tempfile.TemporaryDirectory(prefix="qm-saving-") as directory:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "saving", directory], capture_output=True
        )
        if mounted.returncode:
            pytest.skip("mounting a small file system needs root")
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize("version", [None, "10.0"])
def test_a_full_disk_leaves_the_guest_running_where_it_was(lab: Lab, version: str | None) -> None:
    config = lab.config(hosts_a={"qemu": program(version)}) if version else lab.settings
    with lab.guest(config=config) as guest, small_file_system(8) as place:
        ran = lab.cli("save", guest.name, str(place / "g.state"), "--json", config=config, code=4)

        assert (ran.doc["outcome"], ran.doc["owner"]) == ("rolled_back", "source")
        assert "No space left" in ran.doc["error"]["message"]
        assert "runs on" in ran.doc["error"]["message"]
        assert not list(place.iterdir()), "no part of a file is left"
        ticks = guest.verdict("a").last_tick
        guest.wait("a", lambda v: v.last_tick > ticks + 20)
        # Nothing of it is in the way of the next one.
        moved = lab.cli("migrate", guest.name, "--to", "b", "--json", config=config).doc
        assert moved["outcome"] == "completed"
        guest.wait_survived("b")


def test_a_state_is_not_restored_twice_nor_over_changed_disks_nor_damaged(lab: Lab) -> None:
    image = lab.files / "twice.qcow2"
    disk = f'[[disk]]\npath = "{image}"\nformat = "qcow2"\nsize = "4MiB"\n'
    with lab.guest(ready=False, firmware_only=True, extra=disk) as guest, state_of(guest) as file:
        lab.cli("save", guest.name, str(file))
        whole = file.read_bytes()

        again = lab.cli("save", guest.name, str(file), code=2)
        assert "no host has a guest" in again.err

        file.write_bytes(whole[:5000] + b"X" + whole[5001:])
        damaged = lab.cli("restore", str(file), "--on", "b", "--json", code=1)
        assert "is damaged" in damaged.doc["error"]["message"]
        file.write_bytes(whole[:-50])
        assert "no state file" in lab.cli("restore", str(file), "--on", "b", code=1).err
        file.write_bytes(whole)

        os.utime(image)
        refused = lab.cli("restore", str(file), "--on", "b", code=3)
        assert "was written to after the guest was saved" in refused.err
        assert "--force" in refused.err
        assert not qemus(guest.name)

        lab.cli("restore", str(file), "--on", "b", "--paused", "--force", "--keep")
        assert lab.cli("vm", "show", guest.name, "--json").doc["state"] == "paused"
        (kept,) = file.parent.iterdir()
        twice = lab.cli("restore", str(kept), "--on", "a", code=1)
        assert "already on b" in twice.err
        assert "is there already" in lab.cli("save", guest.name, str(kept), code=3).err
        kept.unlink()
    image.unlink()


CRASH = """
import asyncio, os, signal, sys
from pathlib import Path
from qmp_migrate import Controller, load_settings
from qmp_migrate.migration.journal.operations import Operations

settings, what, vm, file, step = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # begun in the background, it would ignore Ctrl-C
enter = Operations.enter

async def dies(self, id, entered, **data):
    await enter(self, id, entered, **data)
    if entered == step and os.environ.get("HOW") == "interrupt":
        signal.raise_signal(signal.SIGINT)
    elif entered == step:
        os._exit(9)

Operations.enter = dies

async def main():
    async with Controller.open(load_settings(Path(settings))) as controller:
        if what == "save":
            await controller.save(vm, file)
        else:
            await controller.restore_file(file, on="b" if step in {"launching", "marking"} else "a")

asyncio.run(main())
"""


def crash(lab: Lab, what: str, guest: Guest, file: Path, step: str, *, how: str = "die") -> str:
    """Have a controller that ends as it enters a step; return what it wrote."""
    words = [sys.executable, "-c", CRASH, str(lab.settings), what, guest.name, str(file), step]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, env=os.environ | {"HOW": how})
    assert (ended.returncode == 9) is (how == "die"), ended.stderr
    return ended.stderr


def settle(lab: Lab, guest: Guest) -> tuple[str, str, str]:
    """Settle what was left: outcome, owner, run state. In this process: starting one costs more than the work."""

    async def work() -> tuple[str, str, str]:
        async with Controller.open(load_settings(lab.settings)) as controller:
            (left,) = await controller.unsettled_operations(vm=guest.name)
            result, _error = await controller.recover_operation(left)
            state = "none" if result.owner == "file" else (await controller.show(guest.name)).state
            return result.outcome, result.owner, state

    return asyncio.run(work())


def test_a_save_whose_controller_ends_leaves_a_guest_or_a_file_never_neither(lab: Lab) -> None:
    with lab.guest(ready=False, firmware_only=True) as guest, state_of(guest) as file:
        assert "KeyboardInterrupt" in crash(lab, "save", guest, file, "writing", how="interrupt")
        assert not list(file.parent.iterdir()), "Ctrl-C: settled by the controller itself"
        for step in ("writing", "sealed"):
            crash(lab, "save", guest, file, step)
            assert settle(lab, guest) == ("rolled_back", "source", "running"), step
            assert not list(file.parent.iterdir()), step
        # Its QEMU ended while nobody drove it: the file was complete, and is all there is of the guest.
        crash(lab, "save", guest, file, "renaming")
        os.kill(guest.pid("a") or 0, signal.SIGKILL)
        wait_for(lambda: not qemus(guest.name), 10)
        assert settle(lab, guest) == ("completed", "file", "none")
        file.unlink()


def test_a_restore_whose_controller_ends_leaves_a_guest_or_a_file_never_both(lab: Lab) -> None:
    with lab.guest(ready=False, firmware_only=True) as guest, state_of(guest) as file:
        crash(lab, "save", guest, file, "renamed")
        assert "renamed; settle it with" in lab.cli("status").err
        # Whoever wants the guest next settles what was left: here the save, whose QEMU still stands there.
        for step in ("loading", "marking"):
            crash(lab, "restore", guest, file, step)
            assert settle(lab, guest) == ("rolled_back", "file", "none"), step
            assert not qemus(guest.name)
        crash(lab, "restore", guest, file, "continuing")
        assert settle(lab, guest) == ("completed", "destination", "running")
        assert not list(file.parent.iterdir())
