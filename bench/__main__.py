"""``python -m bench``: measures, prints a table, writes ``build/bench.json``. Ctrl-C ends it and leaves nothing behind."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from rich.console import Console

from bench.contenders import libvirt_lab
from bench.contenders.base import Contender, MoveFailed
from bench.contenders.command import Command, time_help
from bench.contenders.library import Library
from bench.contenders.raw import Raw
from bench.contenders.virsh import Virsh, make_emulator
from bench.fleet import ROOT, Fleet
from bench.guest import Guest, Machine, loses_writes
from bench.measure import environment, sampling
from bench.measure.samples import Sample
from bench.report import report
from bench.report.summary import Spread, Summary
from bench.report.targets import judge
from bench.scenarios import ALL, BARE, BARE_MEMORY_KIB, EVERYBODY, MEMORY_KIB, Scenario
from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.rig.guest.accelerator_probe import probe_accel
from qmp_migrate.rig.guest.firmware import find_qboot
from qmp_migrate.rig.guest.images import find_images

QEMU: Final = "qemu-system-x86_64"


def main() -> int:
    """Run it; returns the exit code. A target that is missed is no failure."""
    options = _options()
    os.chdir(ROOT)  # the images are found from here, wherever it is started
    try:
        return asyncio.run(_main(options))
    except QmpMigrateError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except (MoveFailed, TimeoutError) as error:
        print(f"error: {error!r}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure qmp-migrate side by side with others."
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="samples of each kind (default: 5)")
    parser.add_argument(
        "--only", nargs="+", metavar="SCENARIO", choices=[s.name for s in (*ALL, *BARE)], help="only these"
    )
    parser.add_argument(
        "--guest",
        choices=["linux", "bare"],
        default="linux",
        help="bare: the guest without an operating system, 2 GiB of memory, under KVM where that runs it",
    )
    parser.add_argument("--contenders", nargs="+", choices=EVERYBODY, default=list(EVERYBODY), help="only these")
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench.json", metavar="FILE")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    options.output = options.output.absolute()
    return options


async def _main(options: argparse.Namespace) -> int:
    _obey_signals()
    path = await asyncio.to_thread(shutil.which, QEMU)
    bare = options.guest == "bare"
    image = find_images(options.guest)
    accel = await probe_accel(QEMU, image)
    around = await environment.describe(QEMU, accel)
    memory_kib = BARE_MEMORY_KIB if bare else MEMORY_KIB
    firmware = await find_qboot(path or QEMU) if bare else None
    machine = Machine(path or QEMU, accel, image, loses_writes(accel, around["qemu"]), memory_kib, firmware)
    around |= {"guest": options.guest, "guest_memory_mib": memory_kib // 1024}
    samples: list[Sample] = []
    help_ms: list[float] = []
    absent: dict[str, str] = {}
    interrupted = False
    try:
        help_ms += await time_help(max(5, options.repeats))
        async with _contenders(set(options.contenders), machine, absent) as contenders:
            known = BARE if bare else ALL
            wanted = [scenario for scenario in known if options.only is None or scenario.name in options.only]
            await _measure(wanted, contenders, machine, options.repeats, samples)
    except asyncio.CancelledError:
        interrupted = True
        print("interrupted; everything was taken down", file=sys.stderr)
    targets = judge(Summary(samples), Spread.of(help_ms))
    content = report.document(around, samples, help_ms, targets, absent, complete=not interrupted)
    report.write(options.output, content)
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
    report.show(console, around, samples, help_ms, targets, absent)
    print(f"written: {options.output}", file=sys.stderr)
    return 130 if interrupted else 0


def _obey_signals() -> None:
    """Let the first signal end the measuring; more of them must not end the cleaning up."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    seen = False

    def on_signal() -> None:
        nonlocal seen
        if seen:
            print("taking everything down; this has a time limit of its own", file=sys.stderr)
            return
        seen = True
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)


@contextlib.asynccontextmanager
async def _contenders(
    wanted: set[str], machine: Machine, absent: dict[str, str]
) -> AsyncIterator[dict[str, Contender]]:
    """Bring up what the contenders need, and take it down. Where libvirt cannot be used, `absent` says why."""
    async with contextlib.AsyncExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="qmp-bench-"))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        found: dict[str, Contender] = {}
        if "raw" in wanted:
            found["raw"] = Raw(scratch / "raw")
        if wanted & {"command", "library"}:
            fleet = await stack.enter_async_context(Fleet.up(scratch / "rig"))
            found |= {"command": Command(fleet), "library": Library(fleet)}
        if "virsh" in wanted:
            reason = libvirt_lab.missing()
            if reason is None:
                shared = scratch / "guests"
                shared.mkdir()
                try:
                    emulator = make_emulator(scratch / "qemu", machine)
                    lab = libvirt_lab.two_daemons(scratch / "libvirt", shared, emulator)
                    found["virsh"] = Virsh(*await stack.enter_async_context(lab), shared, emulator)
                except (MoveFailed, TimeoutError, OSError) as error:
                    reason = str(error) or repr(error)
            if reason is not None:
                absent["virsh"] = reason
        yield {name: found[name] for name in EVERYBODY if name in wanted and name in found}


async def _measure(
    scenarios: list[Scenario],
    contenders: dict[str, Contender],
    machine: Machine,
    repeats: int,
    samples: list[Sample],
) -> None:
    """Let the contenders take turns, scenario by scenario; `samples` grows."""
    for scenario in scenarios:
        taking_part = [contenders[name] for name in scenario.contenders if name in contenders]
        for number in range(1, repeats + 1):
            for contender in taking_part:
                guest = Guest(f"bench{len(samples)}", scenario, machine)
                sample = await sampling.take(contender, guest, number)
                samples.append(sample)
                _tell(sample, repeats)


def _tell(sample: Sample, repeats: int) -> None:
    if sample.error is not None:
        told = f"failed: {sample.error}"
    else:
        total = f"{sample.qemu.total_ms} ms of it QEMU's" if sample.qemu else "QEMU's own figures are missing"
        told = f"{sample.wall_ms:6.0f} ms, {total}, blackout {sample.blackout_ms} ms"
    print(f"{sample.scenario:<13} {sample.round}/{repeats} {sample.contender:<8} {told}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
