"""The link: this process moves into a network of its own, whose loopback carries no more than it is told to.

A limit that QEMU sets itself (``max-bandwidth``) would be no link: some policies set it, too, and then they would have
another link than the others. So the kernel limits (``tbf``) what goes over the loopback interface of a new network namespace,
in which the whole rig is raised. The namespace ends with its last process, so there is nothing to take down.

The sshds are in there, too: control and memory share the wire, as on a host with one network card. How much the kernel
keeps on the way is bounded: a large socket buffer takes in what QEMU then believes to have been sent.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench.contenders.base import MoveFailed

MARK: Final = "QMP_MIGRATE_BENCH_NETWORK"
"""Environment: the network in which the program was started before it moved."""

SEND_BUFFER: Final = 512 * 1024
"""Most that the kernel keeps for one connection, bytes: 8 ms at 60 MiB/s."""

UNLIMITED_BUFFER: Final = 4 * 1024 * 1024
"""Linux's own default, where nothing is limited."""

BURST: Final = 256 * 1024
"""Four packets of the loopback interface."""

LATENCY_MS: Final = 10
PROBE_S: Final = 1.5
ADDRESS: Final = "127.0.0.3"


def missing() -> str | None:
    """Say why there can be no limited link here, or None."""
    absent = [name for name in ("unshare", "ip", "tc") if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if os.geteuid() != 0:
        return "a network of its own needs root"
    return None


def enter(argv: Sequence[str]) -> None:
    """Start this program anew in a network of its own; returns where that is so already.

    Args:
        argv: The program's arguments.
    """
    if MARK in os.environ:
        return
    words = ["unshare", "--net", "--", sys.executable, "-m", "bench.policies", *argv]
    os.execvpe(words[0], words, {**os.environ, MARK: _network()})


def _network() -> str:
    """Name the network that this process is in."""
    return os.readlink("/proc/self/ns/net")


def _must_be_ours() -> None:
    """Look whether this really is another network than the one in which the program was started.

    Raises:
        MoveFailed: It is not. Nothing may be changed then: a limit there stops everything on this machine.
    """
    interfaces = {line.partition(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]}
    if os.environ.get(MARK, "") in {"", _network()} or interfaces != {"lo"}:
        raise MoveFailed("this is the machine's own network: it is not touched")


async def raise_loopback() -> None:
    """Set up the loopback interface of this network.

    Raises:
        MoveFailed: This is not a network of our own, or it cannot be done.
    """
    _must_be_ours()
    await _run("ip", "link", "set", "lo", "up")


async def limit(bytes_per_s: int | None) -> None:
    """Let the loopback carry so much; None: as much as it can.

    Raises:
        MoveFailed: This is not a network of our own, or the kernel cannot do that.
    """
    _must_be_ours()
    _set_send_buffer(UNLIMITED_BUFFER if bytes_per_s is None else SEND_BUFFER)
    if bytes_per_s is None:
        await _run("tc", "qdisc", "del", "dev", "lo", "root", check=False)
        return
    await _run(
        *("tc", "qdisc", "replace", "dev", "lo", "root", "tbf"),
        *("rate", f"{bytes_per_s * 8}bit", "burst", str(BURST), "latency", f"{LATENCY_MS}ms"),
    )


def _set_send_buffer(most: int) -> None:
    Path("/proc/sys/net/ipv4/tcp_wmem").write_text(f"4096 16384 {most}")


async def measure() -> float:
    """Return what the link really carries from one process to another, bytes per second."""
    return await asyncio.to_thread(_measure)


def _measure() -> float:
    with socket.create_server((ADDRESS, 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        with receiver:
            receiver.setblocking(False)
            sender.setblocking(False)
            block, sink = memoryview(bytes(256 * 1024)), bytearray(1 << 20)
            began, since, received = time.monotonic(), 0.0, 0
            while (now := time.monotonic()) < began + PROBE_S:
                _try(lambda: sender.send(block))
                got = _try(lambda: receiver.recv_into(sink))
                # The first moments are the bucket and the buffers, not the link.
                if now < began + PROBE_S / 3:
                    since = now
                else:
                    received += got
                if not got:
                    time.sleep(0.0005)
    return received / (now - since)


def _try(call: Callable[[], int]) -> int:
    try:
        return call()
    except BlockingIOError:
        return 0


async def _run(*argv: str, check: bool = True) -> None:
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    if check and process.returncode != 0:
        raise MoveFailed(f"{' '.join(argv)}: {out.decode(errors='replace').strip()}")
