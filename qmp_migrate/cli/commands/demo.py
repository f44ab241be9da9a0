"""One live migration from end to end, for people to watch: what ``make demo`` runs.

A lab of two hosts comes up, a guest that counts and dirties memory starts on one, is moved to the other while it runs, and
must prove that it went on: every number of its count is there once, and every page of its memory is what it wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.consume.ordered import follow
from qmp_migrate.bus.messages.registry import MigrationProgress
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.cli.commands.events import line
from qmp_migrate.cli.render import ProgressView, summary
from qmp_migrate.errors import RigError
from qmp_migrate.fleet.controller import Controller
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.rig import lab
from qmp_migrate.rig.guest.oracle import Verdict, judge
from qmp_migrate.rig.state import RigState
from qmp_migrate.settings import load
from qmp_migrate.vm.spec.guest_spec import parse_spec

READY_S: Final = 60.0
PROOF_S: Final = 60.0
LOOK_EVERY_S: Final = 0.3


async def show(directory: Path | None, *, encrypt: bool) -> bool:
    """Run the demonstration.

    Args:
        directory: Where the lab is put; None: a new directory of its own.
        encrypt: False: in the clear.

    Returns:
        True when the guest proved that it survived.

    Raises:
        QmpMigrateError: The lab, the guest or the migration failed; nothing is left behind.
    """
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=120)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qmp-demo-") as temporary:
        place = directory if directory is not None else Path(temporary) / "rig"
        _headline(console, "a lab of two hosts on this machine")
        state = await lab.up(place, 2)
        try:
            for host in state.hosts:
                console.print(f"  host {host.name}: sshd on {host.address} port {host.port}, agent, {host.run_dir}")
            console.print(f"  broker: {state.broker_url}")
            verdict = await _migrate(console, state, encrypt=encrypt)
        finally:
            ended = await lab.down(place)
            console.print(f"  lab taken down: {len(ended or ())} processes ended, nothing left", style="dim")
    _headline(console, "done" if verdict.survived else "the guest did NOT survive")
    console.print(f"  in {time.monotonic() - begun:.1f} s")
    return verdict.survived


def _headline(console: Console, text: str) -> None:
    console.print()
    console.print(f"== {text}", style="bold cyan")


async def _migrate(console: Console, state: RigState, *, encrypt: bool) -> Verdict:
    if not state.guest_file.exists():
        raise RigError(state.warnings[0], hint="build the test guest first: make images, in a checkout")
    settings = load(state.settings_file)
    spec = parse_spec(state.guest_file.read_text("utf-8"), source=str(state.guest_file), base_dir=str(state.directory))
    source, destination = (state.hosts[0], state.hosts[1])
    request = MigrationRequest(spec.name, destination.name, encrypt=encrypt)
    view = ProgressView(console, request)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(_told_by_the_bus(console, state, spec.name))
        controller = await stack.enter_async_context(Controller.open(settings, reporters=[view]))
        _headline(console, f"guest {spec.name} on host {source.name}")
        guest = await controller.start(spec, on=source.name)
        before = Path(source.run_dir) / spec.name / "serial.log"
        ready = await _wait(before, lambda v: v.ready is not None and v.sweeps_ok > 0, READY_S, "get ready")
        assert ready.ready is not None
        console.print(
            f"  {guest.state}, pid {guest.pid}; it dirties {ready.ready.rate_mib_s} MiB/s of {ready.ready.ws_mib} MiB, "
            f"counts every {ready.ready.tick_ms} ms, and checks its memory"
        )
        _headline(console, f"live migration {source.name} -> {destination.name}; what the bus says is on the right")
        with view:
            result = await controller.migrate(request, on_plan=view.plan)
        _headline(console, "proof: the guest's own count and memory")
        after = Path(destination.run_dir) / spec.name
        verdict = await _wait_after(after, PROOF_S)
        _tell_verdict(console, verdict)
        console.print()
        console.print(summary(result))
        await controller.stop(spec.name, force=True)
    return verdict


def _tell_verdict(console: Console, verdict: Verdict) -> None:
    mark = "[green]ok[/]" if not verdict.tick_faults else "[red]broken[/]"
    console.print(f"  count   {verdict.first_tick} … {verdict.last_tick}, every number once: {mark}")
    mark = "[green]ok[/]" if not verdict.corruption else "[red]broken[/]"
    console.print(
        f"  memory  {verdict.sweeps_ok} whole sweeps found what was written "
        f"({verdict.sweeps_ok_after_handover} of them begun after the hand-over): {mark}"
    )
    for reason in verdict.reasons:
        console.print(f"  [red]{reason}[/]")


async def _wait(log: Path, enough: object, seconds: float, what: str) -> Verdict:
    deadline = time.monotonic() + seconds
    while True:
        text = log.read_bytes() if log.exists() else b""
        verdict = judge([text])
        if callable(enough) and enough(verdict):
            return verdict
        if time.monotonic() > deadline:
            raise RigError(
                f"the guest did not {what} within {seconds:g} s",
                hint=f"the end of its serial log: {text[-300:].decode('utf-8', 'replace')!r}",
            )
        await asyncio.sleep(LOOK_EVERY_S)


async def _wait_after(directory: Path, seconds: float) -> Verdict:
    """Wait until the guest has gone on at the destination for long enough to prove something, or broke."""
    deadline = time.monotonic() + seconds
    while True:
        logs = [path.read_bytes() for path in (directory / "serial.log.1", directory / "serial.log") if path.exists()]
        verdict = judge(logs)
        if verdict.tick_faults or verdict.corruption:
            return verdict
        if verdict.survived and verdict.sweeps_ok_after_handover > 0 and verdict.ticks_after_handover > 50:
            return verdict
        if time.monotonic() > deadline:
            return verdict
        await asyncio.sleep(LOOK_EVERY_S)


@contextlib.asynccontextmanager
async def _told_by_the_bus(console: Console, state: RigState, vm: str):  # type: ignore[no-untyped-def]
    """Print what a subscriber hears of the guest, while the block lasts."""

    async def listen(client: BusClient) -> None:
        async for news in follow(client, vm=vm):
            if not isinstance(news.received.message, MigrationProgress):
                text = re.sub(r"migration/[^/ ]+/", "migration/…/", line(news))
                console.print(Text(f"{'':>28}bus | {text}"[: console.width], style="magenta dim"))

    async with BusClient(BrokerAddress.parse(state.broker_url), Topics(), role="demo") as client:
        await client.wait_connected()
        task = asyncio.create_task(listen(client))
        try:
            yield
        finally:
            await asyncio.sleep(0.2)  # the last words are on their way
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
