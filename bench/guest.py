"""The guest that everybody moves: its spec, and what it says of itself on its serial line."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.scenarios import MEMORY_KIB, ODD_KIB, Scenario
from qmp_migrate.rig.configuration import CPU
from qmp_migrate.rig.guest.accelerator_probe import Accelerator
from qmp_migrate.rig.guest.images import KERNEL_WORDS, GuestImage
from qmp_migrate.rig.guest.oracle import Verdict, judge

SOCKET: Final = "bench.sock"
"""The observer's monitor, in the guest's directory."""

SERIAL_LOGS: Final = ("serial.log.1", "serial.log")
"""What it brought along, and what it wrote where it is."""

SETTLED_TICKS: Final = 50
GOES_ON_TICKS: Final = 5
LOOK_EVERY_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Machine:
    """What every guest here is started with.

    Attributes:
        qemu: Path of the QEMU binary.
        accel: What was proven to run a guest here.
        image: Files of the test guest.
        loses_writes: See `loses_writes`.
        plain_kib: Memory of a guest, KiB, where nothing speaks against it.
        firmware: What starts it, by the name under which QEMU finds it; None: QEMU's default.
    """

    qemu: str
    accel: Accelerator
    image: GuestImage
    loses_writes: bool
    plain_kib: int = MEMORY_KIB
    firmware: str | None = None

    @property
    def memory_kib(self) -> int:
        """A guest's memory, KiB."""
        return self.plain_kib + (ODD_KIB if self.loses_writes else 0)


def loses_writes(accel: Accelerator, version: str) -> bool:
    """Tell whether a guest's memory must not be a multiple of 256 KiB (``vm-images/README.md``, "Beware").

    That makes QEMU's dirty syncs slower: so it is done only where it must be, and then for everybody.

    Args:
        accel: The accelerator.
        version: What ``qemu-system-x86_64 --version`` says.
    """
    found = re.search(r"version (\d+)\.", version)
    return accel == "tcg" and found is not None and int(found[1]) < 9


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest, for one migration.

    Attributes:
        name: Its name.
        scenario: What it does.
        machine: What it is started with.
        tick_ms: Its tick period.
        verify: It verifies its memory all the time.
    """

    name: str
    scenario: Scenario
    machine: Machine
    tick_ms: int = 20
    verify: bool = False

    @property
    def append(self) -> str:
        """Its kernel command line. Mostly memory is not verified: that costs CPU, and the tests prove that it survives."""
        scenario = self.scenario
        return (
            f"{KERNEL_WORDS} qm.ws={scenario.ws_mib} qm.rate={scenario.rate_mib_s} "
            f"qm.tick={self.tick_ms} qm.verify={self.verify:d}"
        )

    def spec(self, directory: Path) -> str:
        """Return its SPEC.toml for a directory (``RUN_DIR/NAME``): one monitor more than usual, for the observer."""
        socket = f"socket,id=bench,path={directory / SOCKET},server=on,wait=off"
        keys = {
            "name": self.name,
            "machine": "pc-q35-7.2",
            "cpu": CPU[self.machine.image.kind],
            "memory": f"{self.machine.memory_kib}KiB",
            "vcpus": 1,
            "accel": self.machine.accel,
            "kernel": str(self.machine.image.kernel),
            **({"initrd": str(self.machine.image.initrd)} if self.machine.image.initrd is not None else {}),
            **({"firmware": self.machine.firmware} if self.machine.firmware is not None else {}),
            "append": self.append,
            "args": ["-chardev", socket, "-mon", "chardev=bench,mode=control"],
        }
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


def read_verdict(directories: Sequence[Path]) -> Verdict:
    """Return what a guest's logs say, those of the directories it was in, in that order."""
    paths = (directory / name for directory in directories for name in SERIAL_LOGS)
    return judge([path.read_bytes() for path in paths if path.exists()])


async def settled(directory: Path) -> None:
    """Wait until a guest has booted, filled its working set, and counted for a second; the caller limits the time."""
    while (verdict := read_verdict([directory])).ready is None or verdict.last_tick < SETTLED_TICKS:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_EVERY_S)


async def went_on(source: Path, destination: Path, *, seconds: float = 4.0) -> tuple[bool, float | None]:
    """Look whether a guest counts on after its move.

    Returns:
        Whether it does within some seconds, and the rate at which it dirtied its memory, MiB per second.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        # The source's directory is gone where the log moved along.
        verdict = read_verdict([source, destination])
        if verdict.ticks_after_handover >= GOES_ON_TICKS and not verdict.tick_faults:
            return True, verdict.achieved_mib_s
        if asyncio.get_running_loop().time() > deadline:
            return False, verdict.achieved_mib_s
        await asyncio.sleep(LOOK_EVERY_S)
