"""What the link between two hosts carries, tried out: a QEMU without a guest migrates some MiB to another one.

It takes the very way that the guest will take: the same QEMU binaries, addresses, ports and firewall rules, the same TLS with
a key of its own, the same channels and compression. Nothing but QEMU is needed on the hosts. Each of the two QEMUs has no
machine (``-M none``), runs under a script that ends it after some seconds whatever becomes of the controller, and has its
files in a hidden directory beside those of the guests, which the script removes.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from qmp_migrate.errors import (
    ChannelRefused,
    CommandFailed,
    LaunchFailed,
    MigrationFailed,
    MonitorError,
    MonitorLost,
    QmpMigrateError,
)
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.transport import setup
from qmp_migrate.migration.transport.negotiation import Profile, Setting
from qmp_migrate.migration.transport.setup import Wires
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.qemu import states
from qmp_migrate.qemu.migration import MigrationInfo

SIZE_MIB: Final = 64
"""What is sent at most: random bytes, which no compression makes fewer."""

SENDING_S: Final = 1.2
"""After so long the sending is cut off: what has travelled by then says enough."""

BUFFERS_S: Final = 0.2
"""What travels at first fills the buffers of both hosts; what fits into less time than this is counted as a whole."""

CONNECT_S: Final = 8.0
"""Until the first byte has travelled."""

ANSWERS: Final = 5
READY_S: Final = 10.0
LIFE_S: Final = 30
"""What a probe's QEMU may live, whatever happens."""

OF_GUESTS: Final = frozenset(
    {"pause-before-switchover", "auto-converge", "dirty-limit", "postcopy-ram", "postcopy-preempt"}
)
"""Capabilities that a QEMU without a guest must not have, or has no use for."""

POLL_S: Final = 0.02

_SCRIPT: Final = script("forecast/probe_link")


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found. Milliseconds and bytes as the names say.

    Attributes:
        bytes_per_s: What the link carries.
        sent_bytes: How much was sent to find that out.
        setup_ms: Connecting, TLS handshake included.
        launch_ms: From the wish for a QEMU at the destination until it answers.
        wire_ms: Setting both up for each other.
        answer_ms: One question to the destination's QEMU, through the control connection.
        encrypted: It was.
    """

    bytes_per_s: float
    sent_bytes: int
    setup_ms: float
    launch_ms: float
    wire_ms: float
    answer_ms: float
    encrypted: bool


async def probe(source: Side, destination: Side, request: MigrationRequest, profile: Profile) -> Probed:
    """Send some MiB from one host to the other, as a migration would.

    Args:
        source: Sends; its guest is not touched.
        destination: Receives.
        request: Encryption; its bandwidth limit is left aside.
        profile: Channels and compression.

    Raises:
        LaunchFailed: A QEMU without a guest cannot be started on one of them.
        MigrationFailed: Nothing arrives: the message says why.
        MonitorError, TransportError, RemoteError: Something could not be asked.
    """
    name = f".p{secrets.token_hex(3)}"
    wish = replace(
        request,
        id=f"probe-{secrets.token_hex(3)}",
        mode="live",
        bandwidth_bytes_per_s=0,
        guarded=False,
        policy="default",
        copy_storage=None,
    )
    begun = time.monotonic()
    async with (
        _qemu(source, name, fill=True) as here,
        _qemu(destination, name, fill=False) as there,
    ):
        await _ready(there)
        launched = time.monotonic()
        await _ready(here)
        both = time.monotonic()
        wires = Wires()
        await setup.survey(here.side, there.side, wires)
        await setup.wire(here.side, there.side, wish, _of_memory(profile), wires, one_pass=False)
        wired = time.monotonic()
        sent, seconds, setup_ms = await _send(here.side, destination, wires.port)
        answer_ms = await _answer_ms(there.side)
    return Probed(
        bytes_per_s=sent / seconds,
        sent_bytes=sent,
        setup_ms=setup_ms,
        launch_ms=(launched - begun) * 1000,
        wire_ms=(wired - both) * 1000,
        answer_ms=answer_ms,
        encrypted=wires.credentials is not None,
    )


def _of_memory(profile: Profile) -> Profile:
    """Return what of a profile concerns how memory travels, without what is done to a guest."""
    if profile.refusals:
        return Profile()

    def of(side: Setting) -> Setting:
        return replace(side, capabilities=side.capabilities - OF_GUESTS)

    return replace(
        profile, postcopy=False, preempt=False, source=of(profile.source), destination=of(profile.destination)
    )


@dataclass(slots=True)
class _Qemu:
    side: Side
    script: asyncio.Task[None]


@contextlib.asynccontextmanager
async def _qemu(side: Side, name: str, *, fill: bool) -> AsyncIterator[_Qemu]:
    """Run a QEMU without a guest on a host; ended, with its files, when the block is left."""
    own = Side(side.host, side.settings, name)
    script = asyncio.create_task(_run(own, fill=fill))
    qemu = _Qemu(own, script)
    try:
        yield qemu
    finally:
        with contextlib.suppress(QmpMigrateError):
            await _ready(qemu)  # it may be about to start: then it is ended once it has
            await (await own.attach()).execute("quit", timeout=2.0)
        await own.detach()
        await asyncio.gather(script, return_exceptions=True)


async def _run(side: Side, *, fill: bool) -> None:
    size = f"{SIZE_MIB}M"
    memory = f"memory-backend-file,mem-path=fill,share=off,id=ram,size={size}"
    argv = [
        *(side.settings.qemu, "-M", "none,memory-backend=ram", "-m", size, "-nodefaults", "-display", "none", "-S"),
        *("-object", memory if fill else f"memory-backend-ram,id=ram,size={size}"),
        *("-qmp", "unix:qmp.sock,server=on,wait=off"),
        *(() if fill else ("-incoming", "defer")),
    ]
    args = [side.directory, str(SIZE_MIB if fill else 0), str(LIFE_S), *argv]
    try:
        await side.host.script(_SCRIPT, args, timeout=LIFE_S + 10.0)
    except CommandFailed as error:
        raise LaunchFailed(
            f"a QEMU without a guest cannot be run to probe the link: {error.stderr.strip().splitlines()[-1:] or error}",
            stderr=error.stderr,
            hint="the forecast then rests on earlier migrations between the two hosts, if there were any",
            host=side.name,
        ) from error


async def _ready(qemu: _Qemu) -> None:
    """Return once it answers."""
    deadline = time.monotonic() + READY_S
    while True:
        if qemu.script.done():
            qemu.script.result()
        try:
            await qemu.side.attach()
            return
        except (ChannelRefused, MonitorLost):
            if qemu.script.done() or time.monotonic() > deadline:
                raise
            await asyncio.sleep(POLL_S)


async def _answer_ms(there: Side) -> float:
    """Return how long one question takes, the quickest of several: what only a busy host takes is none of the link."""
    took = [0.0]
    with contextlib.suppress(MonitorError):
        monitor = await there.attach()
        for _ in range(ANSWERS):
            asked = time.monotonic()
            await qmp.run_status(monitor, timeout=2.0)
            took.append((time.monotonic() - asked) * 1000)
    return min(took[1:], default=0.0)


async def _send(here: Side, destination: Side, port: int) -> tuple[int, float, float]:
    """Send, and return bytes, seconds and what connecting took, milliseconds."""
    monitor = await here.attach()
    begun = time.monotonic()
    await qmp.start(monitor, destination.migration_address, port)
    connected: float | None = None
    settled: tuple[float, int] | None = None
    info = MigrationInfo()
    while True:
        info = await qmp.query(monitor)
        now = time.monotonic()
        sent = info.ram.transferred if info.ram else 0
        if info.status in states.TERMINAL:
            break
        if sent and connected is None:
            connected = now
        if connected is None:
            if now - begun > CONNECT_S:
                break
        elif settled is None:
            if now - connected > BUFFERS_S:
                settled = (now, sent)
        elif now - connected > SENDING_S and sent > settled[1]:
            return sent - settled[1], now - settled[0], max(0.0, (connected - begun) * 1000)
        await asyncio.sleep(POLL_S)
    if info.status != "completed" or info.ram is None:
        why = info.error_desc or f"nothing has arrived after {CONNECT_S:g} s"
        raise MigrationFailed(
            f"memory does not get from {here.name} to {destination.name} "
            f"({destination.migration_address}, port {port}): {why}",
            safe_at_source=True,
            hint="is that address right (migration_address), and is the port open (migration_ports)?",
            host=destination.name,
        )
    return info.ram.transferred, max(1, info.total_ms - info.setup_ms) / 1000, float(info.setup_ms)
