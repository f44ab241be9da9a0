"""What TLS itself allows on this machine: QEMU's own channel between two processes, with nothing to migrate.

An NBD server that has nothing to read and a client that throws away what it gets, of the same QEMU, over the same loopback,
with a key of the same kind: what is left are TLS and the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from pathlib import Path
from typing import Final

from bench.contenders.base import MoveFailed
from bench.policies.measure.link import ADDRESS
from qmp_migrate.qemu import encryption

SIZE_MIB: Final = 1024
LIMIT_S: Final = 60.0
READY_S: Final = 10.0
END_S: Final = 10.0


def missing(qemu: Path) -> str | None:
    """Say why it cannot be measured beside this QEMU, or None."""
    absent = [name for name in ("qemu-nbd", "qemu-img") if not (qemu.parent / name).exists()]
    return f"not beside {qemu}: {', '.join(absent)}" if absent else None


async def allowed(qemu: Path, directory: Path, *, connections: int, encrypted: bool = True) -> float:
    """Return the rate of some connections at once, MiB per second of payload.

    Args:
        qemu: The QEMU whose tools are used.
        directory: For the key.
        connections: How many pairs of processes.
        encrypted: False: the same without TLS.

    Raises:
        MoveFailed: It could not be measured.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # noqa: ASYNC240
    (directory / encryption.KEY_FILE).write_bytes(encryption.make_key_file())
    async with contextlib.AsyncExitStack() as stack:
        ports = [await _serve(stack, qemu, directory, encrypted) for _ in range(connections)]
        began = time.monotonic()
        await asyncio.gather(*(_fetch(qemu, directory, port, encrypted, SIZE_MIB // connections) for port in ports))
        return SIZE_MIB / (time.monotonic() - began)


def _credentials(directory: Path, endpoint: str) -> str:
    username = f",username={encryption.IDENTITY}" if endpoint == "client" else ""
    return f"tls-creds-psk,id=tls,dir={directory},endpoint={endpoint}{username}"


async def _serve(stack: contextlib.AsyncExitStack, qemu: Path, directory: Path, encrypted: bool) -> int:
    with socket.create_server((ADDRESS, 0)) as found:
        port = int(found.getsockname()[1])
    server = await asyncio.create_subprocess_exec(
        str(qemu.parent / "qemu-nbd"),
        *(("--object", _credentials(directory, "server"), "--tls-creds", "tls") if encrypted else ()),
        *("-t", "-b", ADDRESS, "-p", str(port)),
        *("--image-opts", f"driver=null-co,size={SIZE_MIB}M,read-zeroes=off"),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
        start_new_session=True,
    )
    stack.push_async_callback(_end, server)
    async with asyncio.timeout(READY_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(ADDRESS, port)
                writer.close()
                return port
            except OSError:
                if server.returncode is not None:
                    raise MoveFailed("qemu-nbd ended at once") from None
                await asyncio.sleep(0.05)


async def _fetch(qemu: Path, directory: Path, port: int, encrypted: bool, mib: int) -> None:
    """Read so much and throw it away."""
    client = await asyncio.create_subprocess_exec(
        *(str(qemu.parent / "qemu-img"), "convert", "-n", "-S", "0", "-W", "-m", "8"),
        *(("--object", _credentials(directory, "client")) if encrypted else ()),
        "--image-opts",
        "--target-image-opts",
        f"driver=raw,size={mib}M,file.driver=nbd,file.server.type=inet,file.server.host={ADDRESS},"
        f"file.server.port={port}" + (",file.tls-creds=tls" if encrypted else ""),
        f"driver=null-co,size={mib}M",
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            out, _ = await client.communicate()
    except BaseException:
        await _end(client)
        raise
    if client.returncode != 0:
        raise MoveFailed(f"qemu-img: {out.decode(errors='replace').strip()}")


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
