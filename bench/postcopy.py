"""Does a guest survive post-copy from one QEMU to another? Asked of QEMU alone, with nothing of this project between.

A test guest is moved along a list of QEMUs, again and again; after each move its ticks must go on, and what it says of its
memory must be good. A guest that stands still is told with its kernel's last words, and another one is started::

    python -m bench.postcopy 11.1 11.1 10.0 11.1 --minutes 5
    python -m bench.postcopy 11.1 11.1 --guest bare --accel kvm --channels 2 --moves 200 --log build/postcopy.jsonl

With ``--log`` each move is written down, and the same command goes on where it was stopped. What it has found is in
``docs/guide/without-kvm.md`` and decision 19.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from bench.measure.qmp import Qmp
from qmp_migrate.rig.configuration import CPU
from qmp_migrate.rig.guest.images import KERNEL_WORDS, find_images
from qmp_migrate.rig.guest.oracle import Verdict, judge
from tests.support.real.qemu_versions import known

BOOT_S: Final = 120.0
GOES_ON_S: Final = 40.0
MOVE_S: Final = 60.0
APPEND: Final = {"linux": f"{KERNEL_WORDS} qm.ws=8 qm.tick=10", "bare": f"{KERNEL_WORDS} qm.ws=48 qm.tick=20"}
RATE: Final = {"linux": 4, "bare": 40}
"""MiB/s that the guest rewrites, as far as the machine gives it that."""
CAPABILITIES: Final = ("return-path", "events", "late-block-activate", "postcopy-ram")


@dataclass
class Settings:
    """What all moves have in common."""

    accel: str
    memory: str
    preempt: bool
    guest: Literal["linux", "bare"] = "linux"
    channels: int = 1
    compression: str = "none"
    rate: int = 0


@dataclass
class Qemu:
    """One QEMU and its monitor."""

    directory: Path
    process: asyncio.subprocess.Process
    monitor: Qmp

    def verdict(self) -> Verdict:
        """Return what the guest has told of itself here."""
        console = self.directory / "serial.log"
        return judge([console.read_bytes() if console.exists() else b""])

    def last_tick(self) -> int:
        """Return the number of the last tick that the guest has told of here; 0: none."""
        return self.verdict().last_tick

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
    images = find_images(settings.guest)
    initrd = ("-initrd", str(images.initrd)) if images.initrd is not None else ()
    argv = [
        *(binary, "-nodefaults", "-display", "none", "-machine", "pc-q35-7.2", "-accel", settings.accel),
        *("-cpu", CPU[settings.guest], "-smp", "1", "-m", f"size={settings.memory}"),
        *(
            "-append",
            f"{APPEND[settings.guest]} qm.rate={settings.rate or RATE[settings.guest]}",
            "-kernel",
            str(images.kernel),
            *initrd,
        ),
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
    several = {"multifd-channels": settings.channels, "multifd-compression": settings.compression}
    wanted += ["multifd"] if settings.channels > 1 else []
    for side in (source, destination):
        states = [{"capability": name, "state": True} for name in wanted]
        await side.monitor.execute("migrate-set-capabilities", {"capabilities": states})
        if settings.channels > 1:
            await side.monitor.execute("migrate-set-parameters", several)
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


@dataclass
class Series:
    """All moves so far, also those of earlier runs that were written down.

    Attributes:
        log: Where each move is written down; None: nowhere.
        until: When to stop, by the monotonic clock.
        most: How many are enough; 0: no limit.
    """

    settings: Settings
    log: Path | None
    until: float
    most: int
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for line in self.log.read_text().splitlines() if self.log is not None and self.log.exists() else []:
            one = json.loads(line)
            if one["settings"] == asdict(self.settings):
                self.seen[one["move"]] += 1

    @property
    def over(self) -> bool:
        """Enough moves, or no more time."""
        return time.monotonic() > self.until or 0 < self.most <= self.seen.total()

    def add(self, moved: str) -> None:
        """Count a move."""
        self.seen[moved] += 1
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(json.dumps({"move": moved, "settings": asdict(self.settings)}) + "\n")


async def trip(base: Path, names: Sequence[str], series: Series) -> None:
    """Move one guest along `names` until it breaks, or the series is over."""
    settings = series.settings
    binaries = known()
    async with contextlib.AsyncExitStack() as stack:
        here = await stack.enter_async_context(running(made(base, 0), binaries[names[0]], settings))
        assert await here.ticks(5, BOOT_S), "the guest does not boot"
        for number, (old, new) in enumerate(itertools.pairwise(names), 1):
            if series.over:
                return
            directory = made(base, number)
            incoming = ("-S", "-incoming", "defer")
            there = await stack.enter_async_context(running(directory, binaries[new], settings, *incoming))
            way = "post-copy" if await move(here, there, settings) else "one pass"
            goes_on = await there.ticks(here.last_tick() + 20, GOES_ON_S)
            bad = there.verdict().corruption
            series.add(f"{old} -> {new}, {way}: {'BROKEN' if not goes_on else 'CORRUPT' if bad else 'goes on'}")
            print(*bad, sep="\n", end="\n" if bad else "", flush=True)
            if not goes_on or bad:
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
    parser.add_argument(
        "--rate", type=int, default=0, metavar="MIB", help="MiB/s that the guest rewrites (4; bare: 40)"
    )
    parser.add_argument("--preempt", action="store_true", help="with postcopy-preempt")
    parser.add_argument("--guest", choices=["linux", "bare"], default="linux")
    parser.add_argument(
        "--channels", type=int, default=1, metavar="N", help="more than 1: over multifd, before post-copy"
    )
    parser.add_argument("--compression", choices=["none", "zlib", "zstd"], default="none", help="of multifd")
    parser.add_argument(
        "--moves", type=int, default=0, metavar="N", help="stop after so many, those in the log included"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="write each move down, and go on where it was stopped")
    words = parser.parse_args()
    if missing := set(words.versions) - set(known()):
        parser.error(f"no QEMU {', '.join(sorted(missing))} here; there are: {', '.join(sorted(known()))}")
    settings = Settings(
        words.accel, words.memory, words.preempt, words.guest, words.channels, words.compression, words.rate
    )
    series = Series(settings, words.log, time.monotonic() + words.minutes * 60, words.moves)
    while not series.over:
        with tempfile.TemporaryDirectory(prefix="qm-") as base:
            await trip(Path(base), words.versions, series)
    for what, count in sorted(series.seen.items()):
        print(f"{what}: {count}")


if __name__ == "__main__":
    asyncio.run(main())
