"""``python -m bench.policies``: measures, prints tables, writes ``build/bench-policies.json`` and ``.html``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.contenders.base import MoveFailed
from bench.fleet import ROOT
from bench.guest import Machine, loses_writes
from bench.measure import environment
from bench.policies.measure import link, tls
from bench.policies.measure.environment import Arena
from bench.policies.measure.samples import Sample
from bench.policies.measure.sampling import Take
from bench.policies.report import html_report, report
from bench.policies.scenarios import AGAIN, ALL, CONTENDERS, FIRST, LINK_MIB_S, MIB, Contender, Scenario
from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.rig.guest.accelerator_probe import probe_accel
from qmp_migrate.rig.guest.images import find_images

QEMU: Final = "qemu-system-x86_64"
NEWER: Final = ROOT / "build/qemus/10.0" / QEMU
"""Preferred where `make qemus` has fetched it: QEMU before 9.0 needs an odd memory size without KVM, and then the guest
stands still for some 0.1 s whenever its dirty bitmap is read."""

ROUND_TLS: Final = (1, 2)


def main() -> int:
    """Run it; returns the exit code. A goal that is missed is no failure."""
    options = _options()
    os.chdir(ROOT)  # the images are found from here, wherever it is started
    if options.read is not None:
        return report.again(json.loads(options.read.read_text()), options.output, _console(), options.markdown)
    reason = link.missing()
    if reason is not None:
        print(f"error: no limited link: {reason}", file=sys.stderr)
        return 1
    link.enter(sys.argv[1:])
    try:
        return asyncio.run(_main(options))
    except QmpMigrateError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except (MoveFailed, TimeoutError) as error:
        print(f"error: {error!r}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.policies", description="Policies and modes, side by side.")
    names = list(dict.fromkeys(c.name for group in CONTENDERS.values() for c in group))
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds at most (default: 3)")
    parser.add_argument(
        "--minutes", type=float, default=30.0, metavar="N", help="no sample is begun later (default: 30)"
    )
    parser.add_argument("--only", nargs="+", metavar="SCENARIO", choices=[s.name for s in ALL], help="only these")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", choices=names, help="only these")
    parser.add_argument("--qemu", type=Path, metavar="FILE", help="another QEMU")
    parser.add_argument("--read", type=Path, metavar="FILE", help="measure nothing: tell FILE again")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="with --read: write the tables as Markdown, too")
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench-policies.json", metavar="FILE")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    options.output = options.output.absolute()
    options.read = options.read.absolute() if options.read else None
    options.markdown = options.markdown.absolute() if options.markdown else None
    return options


@dataclass(slots=True)
class Run:
    """What is measured and what came of it.

    Attributes:
        samples: All so far.
        link_mib_s: What the link carried when it was tried out, once a round.
        tls_mib_s: What TLS allowed, by the number of connections, once a round; ``plain``: without TLS.
        absent: What could not be measured, and why.
        until: When no more samples are begun, on the monotonic clock.
    """

    samples: list[Sample] = field(default_factory=list)
    link_mib_s: list[float] = field(default_factory=list)
    tls_mib_s: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    until: float = 0.0

    def worth_it(self, scenario: Scenario, contender: Contender) -> bool:
        """Tell whether another sample of it would say anything new, and fits into the time."""
        known = [s for s in self.samples if (s.scenario, s.contender) == (scenario.name, contender.name)]
        took = max((sample.wall_ms / 1000 for sample in known), default=0.0)
        if known and known[-1].outcome in {"still going", "not available"}:
            return False
        return time.monotonic() + took < self.until


async def _main(options: argparse.Namespace) -> int:
    _obey_signals()
    qemu = Path(options.qemu or (NEWER if NEWER.exists() else shutil.which(QEMU) or QEMU))
    image = find_images()
    accel = await probe_accel(str(qemu), image)
    around = await environment.describe(str(qemu), accel)
    machine = Machine(str(qemu), accel, image, loses_writes(accel, around["qemu"]))
    run = Run(until=time.monotonic() + options.minutes * 60)
    began, interrupted = time.monotonic(), False
    scratch = Path(tempfile.mkdtemp(prefix="qmp-shootout-"))
    try:
        await link.raise_loopback()
        async with Arena.up(scratch, qemu) as arena:
            await _rounds(run, arena, machine, options, scratch)
    except asyncio.CancelledError:
        interrupted = True
        print("interrupted; everything was taken down", file=sys.stderr)
    except (QmpMigrateError, MoveFailed, TimeoutError, OSError) as error:
        if not run.samples:
            raise
        interrupted = True  # what was measured is told all the same
        print(f"error: {error!r}", file=sys.stderr)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    content = report.document(
        {**around, "minutes": round((time.monotonic() - began) / 60, 1)},
        run.samples,
        link_mib_s=run.link_mib_s,
        tls_mib_s=run.tls_mib_s,
        absent=run.absent,
        memory_kib={
            s.name: Machine(str(qemu), accel, image, machine.loses_writes, s.memory_kib).memory_kib for s in ALL
        },
        complete=not interrupted,
    )
    report.write(options.output, content)
    html = options.output.with_suffix(".html")
    html.write_text(html_report.html(content), "utf-8")
    report.show(_console(), content)
    print(f"written: {options.output}, {html}", file=sys.stderr)
    return 130 if interrupted else 0


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


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


async def _rounds(run: Run, arena: Arena, machine: Machine, options: argparse.Namespace, scratch: Path) -> None:
    """Measure round by round, while there is time."""
    for number in range(1, options.repeats + 1):
        judging: asyncio.Task[None] | None = None
        if time.monotonic() > run.until:
            return
        for scenario in FIRST if number == 1 else AGAIN:
            taking_part = [
                contender
                for contender in CONTENDERS[scenario.group]
                if (options.contenders is None or contender.name in options.contenders)
                and (options.only is None or scenario.name in options.only)
                and run.worth_it(scenario, contender)
            ]
            if not taking_part:
                continue
            await _settle(judging)
            judging = None
            await _prepare(run, scenario, Path(machine.qemu), scratch)
            for contender in taking_part:
                if not run.worth_it(scenario, contender):
                    continue
                take = Take.of(arena, scenario, contender, number, machine, f"s{len(run.samples)}")
                run.samples.append(take.sample)
                judging = await _sample(run, take, judging, f"{number}/{options.repeats}")
        await _settle(judging)


async def _settle(judging: asyncio.Task[None] | None) -> None:
    if judging is not None:
        await judging


async def _sample(run: Run, take: Take, judging: asyncio.Task[None] | None, round_text: str) -> asyncio.Task[None]:
    """Boot a guest while the one before is being judged; move it when it has the machine for itself."""
    moved = False
    try:
        try:
            await take.boot()
        finally:
            await _settle(judging)
        await take.forecast()
        await take.pace()
        await take.move()
        moved = True
    except MoveFailed as error:
        take.sample.reason = str(error)
    except asyncio.CancelledError:
        run.samples.remove(take.sample)  # it says nothing
        raise
    finally:
        if not moved:
            await take.judge()

    async def judge() -> None:
        if moved:
            await take.judge()
        _tell(take.sample, round_text)

    return asyncio.create_task(judge())


async def _prepare(run: Run, scenario: Scenario, qemu: Path, scratch: Path) -> None:
    """Set the link for a scenario, and measure what belongs to it."""
    if scenario.limited:
        await link.limit(LINK_MIB_S * MIB)
        run.link_mib_s.append(round(await link.measure() / MIB, 2))
        return
    await link.limit(None)
    reason = tls.missing(qemu)
    if reason is not None:
        run.absent["what TLS allows"] = reason
        return
    try:
        for connections in ROUND_TLS:
            rate = await tls.allowed(qemu, scratch / "tls", connections=connections)
            run.tls_mib_s.setdefault(str(connections), []).append(round(rate, 1))
        rate = await tls.allowed(qemu, scratch / "tls", connections=1, encrypted=False)
        run.tls_mib_s.setdefault("plain", []).append(round(rate, 1))
    except (MoveFailed, OSError, TimeoutError) as error:
        run.absent["what TLS allows"] = str(error) or repr(error)


def _tell(sample: Sample, round_text: str) -> None:
    said: list[Any] = [sample.outcome]
    if sample.total_ms is not None:
        said.append(f"{sample.total_ms / 1000:.2f} s")
    if sample.blackout_ms is not None:
        said.append(f"blackout {sample.blackout_ms:.0f} ms")
    if sample.inside is not None:
        said.append(f"inside {sample.inside.blackout_ms} ms, lost {sample.inside.lost_ms:.0f} ms of work")
    if sample.reason:
        said.append(sample.reason)
    said += [warning for warning in sample.warnings if warning.startswith("could not")]
    if sample.survived is False:
        said.append(f"NOT SURVIVED: {sample.damage}")
    print(
        f"{sample.scenario:<11} {round_text} {sample.contender:<16} {', '.join(map(str, said))}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
