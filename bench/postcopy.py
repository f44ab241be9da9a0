"""Does a guest survive post-copy from one QEMU to another? Asked of QEMU alone, with nothing of this project between.

A test guest is moved along a list of QEMUs, again and again; after each move its ticks must go on. A guest that stands
still is told with its kernel's last words, and another one is started::

    python -m bench.postcopy 11.1 11.1 10.0 11.1 --minutes 5

What it has found is in ``docs/guide/without-kvm.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.qmp import Qmp
from qmp_migrate.rig.images import find_images
from qmp_migrate.rig.oracle import judge
from tests.support.qemus import known

BOOT_S: Final = 120.0
GOES_ON_S: Final = 40.0
MOVE_S: Final = 60.0
APPEND: Final = "console=ttyS0 quiet qm.rate=4 qm.ws=8 qm.tick=10"
CAPABILITIES: Final = ("return-path", "events", "late-block-activate", "postcopy-ram")


@dataclass
class Settings:
    """What all moves have in common."""

    accel: str
    memory: str
    preempt: bool


@dataclass
class Qemu:
    """One QEMU and its monitor."""

    directory: Path
    process: asyncio.subprocess.Process
    monitor: Qmp

    def last_tick(self) -> int:
        """Return the number of the last tick that the guest has told of here; 0: none."""
        console = self.directory / "serial.log"
        return judge([console.read_bytes()]).last_tick if console.exists() else 0

    async def ticks(self, beyond: int, seconds: float) -> bool:
        """Wait until the guest has ticked beyond a number."""
        deadline = time.monotonic() + seconds
        while True:
            goes_on = self.last_tick() > beyond
            if goes_on or time.monotonic() > deadline:
                return goes_on
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def running(directory: Path, binary: str, settings: Settings, *more: str) -> AsyncIterator[Qemu]:
    """Run a QEMU in a directory of its own; it is gone afterwards."""
    images = find_images()
    argv = [
        *(binary, "-nodefaults", "-display", "none", "-machine", "pc-q35-7.2", "-accel", settings.accel),
        *("-cpu", "qemu64", "-smp", "1", "-m", f"size={settings.memory}", "-append", APPEND),
        *("-kernel", str(images.kernel), "-initrd", str(images.initrd)),
        *("-chardev", "file,id=console,path=serial.log", "-serial", "chardev:console"),
        *("-qmp", "unix:qmp.sock,server=on,wait=off", *more),
    ]
    with (directory / "qemu.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*argv, cwd=directory, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(20):
            monitor = await Qmp.open(directory / "qmp.sock", lambda _event: None)
        yield Qemu(directory, process, monitor)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def move(source: Qemu, destination: Qemu, settings: Settings) -> bool:
    """Move the guest; return whether post-copy came of it (a guest that has little to send needs none)."""
    wanted = [*CAPABILITIES, *(["postcopy-preempt"] if settings.preempt else [])]
    for side in (source, destination):
        states = [{"capability": name, "state": True} for name in wanted]
        await side.monitor.execute("migrate-set-capabilities", {"capabilities": states})
    await source.monitor.execute("migrate-set-parameters", {"max-bandwidth": 0, "downtime-limit": 1})
    await destination.monitor.execute("migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
    listens = (await destination.monitor.execute("query-migrate"))["socket-address"][0]
    await source.monitor.execute("migrate", {"uri": f"tcp:127.0.0.1:{listens['port']}"})
    asked = False
    async with asyncio.timeout(MOVE_S):
        while True:
            told: dict[str, Any] = await source.monitor.execute("query-migrate")
            status = told.get("status")
            if not asked and told.get("ram", {}).get("dirty-sync-count", 0) > 1:
                asked = True
                await source.monitor.execute("migrate-start-postcopy")
            there = (await destination.monitor.execute("query-status"))["status"]
            if status in {"postcopy-active", "completed"} and there != "inmigrate":
                await destination.monitor.execute("cont")
                return bool(status == "postcopy-active")
            assert status not in {"failed", "cancelled"}, told
            await asyncio.sleep(0.002)


def made(base: Path, number: int) -> Path:
    """Make a directory and return it."""
    directory = base / str(number)
    directory.mkdir()
    return directory


async def trip(base: Path, names: Sequence[str], settings: Settings, until: float, seen: Counter[str]) -> None:
    """Move one guest along `names` until it breaks, or the time is over."""
    binaries = known()
    async with contextlib.AsyncExitStack() as stack:
        here = await stack.enter_async_context(running(made(base, 0), binaries[names[0]], settings))
        assert await here.ticks(5, BOOT_S), "the guest does not boot"
        for number, (old, new) in enumerate(itertools.pairwise(names), 1):
            if time.monotonic() > until:
                return
            directory = made(base, number)
            incoming = ("-S", "-incoming", "defer")
            there = await stack.enter_async_context(running(directory, binaries[new], settings, *incoming))
            way = "post-copy" if await move(here, there, settings) else "one pass"
            goes_on = await there.ticks(here.last_tick() + 20, GOES_ON_S)
            seen[f"{old} -> {new}, {way}: {'goes on' if goes_on else 'BROKEN'}"] += 1
            if not goes_on:
                console = (directory / "serial.log").read_bytes().decode(errors="replace")
                words = [line for line in console.splitlines() if "RIP:" in line or "Kernel panic" in line]
                print(f"{old} -> {new}:", *dict.fromkeys(words), sep="\n  ", flush=True)
                return
            here = there


async def main() -> None:
    parser = argparse.ArgumentParser(description="move a guest by post-copy with QMP alone, and see whether it goes on")
    parser.add_argument(
        "versions", nargs="+", help="of those that `make qemus` has unpacked; the guest goes along them"
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--accel", choices=["tcg", "kvm"], default="tcg")
    parser.add_argument(
        "--memory", default=f"{128 * 1024 + 8}K", help="as QEMU's -m size= takes it (default: %(default)s)"
    )
    parser.add_argument("--preempt", action="store_true", help="with postcopy-preempt")
    words = parser.parse_args()
    if missing := set(words.versions) - set(known()):
        parser.error(f"no QEMU {', '.join(sorted(missing))} here; there are: {', '.join(sorted(known()))}")
    until, seen = time.monotonic() + words.minutes * 60, Counter[str]()
    settings = Settings(words.accel, words.memory, words.preempt)
    while time.monotonic() < until:
        with tempfile.TemporaryDirectory(prefix="qm-") as base:
            await trip(Path(base), words.versions, settings, until, seen)
    for what, count in sorted(seen.items()):
        print(f"{what}: {count}")


if __name__ == "__main__":
    asyncio.run(main())
