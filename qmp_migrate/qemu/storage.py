"""Disks from one QEMU to another: an NBD server at the one end, a mirror into it at the other. Knows nothing of hosts.

The order of a copy, as seen from here (`qmp_migrate.migration.storage.mirror` has the whole)::

    destination   serve, images.add_node, export
    source        refuses_plain, connect, mirror … wait until `Mirror.ready` … hold_in_step, wait until `Mirror.in_step`
    source        finish: proves that everything is over there and on its disk
    destination   stop_serving, images.remove_target

What is not obvious, and was observed on 7.2, 10.0 and 11.1:

* A mirror whose target has died goes on saying ``ready`` while the guest does not write. Only its end proves anything: it
  flushes, over there, and then says whether that went well. Jobs are therefore not dismissed by themselves
  (``auto-dismiss``): how one has ended can be asked for later, also by another controller.
* The end that leaves the guest on its own disk is ``block-job-cancel`` *without* force on a ready job. ``job-cancel`` is
  not the same.
* ``on-target-error=report``: a full disk or a dead link over there ends the job; the guest does not see it.
* A connection that has gone silent holds up what the guest writes for as long as TCP tries, in a mirror that is in step;
  and a forced cancel then hangs QEMU's main loop (one 7.2 crashed after 30 s of that). `yank`, out of band, frees it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

from pydantic import Field, ValidationError

from qmp_migrate.errors import MonitorError, QmpCommandFailed
from qmp_migrate.qemu import images
from qmp_migrate.qemu.images import Reply
from qmp_migrate.qemu.monitor import Monitor

OPEN_S: Final = 3
"""How long QEMU may try to connect, seconds. It does so in its main loop: the guest stands still meanwhile."""

ANY_PORTS: Final = (49152, 65535)
"""Where no ports are given: the dynamic ones of RFC 6335. QEMU does not tell which port it got, so it is told one."""

PORTS_TRIED: Final = 50

FINISH_S: Final = 20.0
"""How long the last flush of a mirror may take."""

Sync: TypeAlias = Literal["full", "top"]

ABORT_S: Final = 5.0
"""How long a job may take to be gone once its connection is cut."""


class Mirror(Reply):
    """``query-block-jobs``: one mirror under way; bytes.

    Attributes:
        done, total: How far it is; both grow while the guest writes.
        ready: Everything was copied once.
        in_step: What the guest writes is over there before its write is done. None: this QEMU cannot say; it is so as
            soon as it is ready where the mirror was begun that way.
        io_status: ``ok``, ``failed`` or ``nospace``.
    """

    id: str = Field(alias="device")
    done: int = Field(default=0, alias="offset")
    total: int = Field(default=0, alias="len")
    ready: bool = False
    in_step: bool | None = Field(default=None, alias="actively-synced")
    io_status: str = Field(default="ok", alias="io-status")
    speed: int = 0


# -- the destination -----------------------------------------------------------------------------------------------


async def serve(
    monitor: Monitor, address: str, ports: tuple[int, int] | None, *, tls: str | None, avoid: Sequence[int] = ()
) -> int:
    """Start the NBD server of a QEMU (it has one) and return its port.

    Args:
        monitor: Of the QEMU that receives.
        address: Where to bind.
        ports: First and last port to try; None: any.
        tls: Id of the ``tls-creds`` object (endpoint ``server``); None: in the clear.
        avoid: Ports that somebody else will want.

    Raises:
        QmpCommandFailed: The address is not this host's, every port is taken, or the server runs already.
    """
    first, last = ports if ports is not None else ANY_PORTS
    free = [port for port in range(first, last + 1) if port not in avoid]
    tries = free[:PORTS_TRIED] if ports is not None else random.sample(free, PORTS_TRIED)
    refused: QmpCommandFailed | None = None
    for port in tries:
        arguments: dict[str, Any] = {"addr": {"type": "inet", "data": {"host": address, "port": str(port)}}}
        if tls is not None:
            arguments["tls-creds"] = tls
        try:
            await monitor.execute("nbd-server-start", arguments)
        except QmpCommandFailed as error:
            refused = error
            if "in use" not in error.desc:
                break
        else:
            return port
    where = f"{address}, ports {first}-{last}" if ports else address
    raise QmpCommandFailed(
        f"the destination cannot listen for the disks on {where}: {refused.desc if refused else 'no port is left'}",
        command="nbd-server-start",
        error_class=refused.error_class if refused else "GenericError",
        desc=refused.desc if refused else "",
        hint="disks need a port of their own: check migration_address and migration_ports of the host in the settings",
        host=monitor.host,
    )


async def export(monitor: Monitor, node: str, *, writable: bool = True) -> None:
    """Offer a node over the NBD server, under its own name.

    Raises:
        QmpCommandFailed: Something else uses the image, or there is no server.
    """
    arguments = {"type": "nbd", "id": node, "node-name": node, "name": node, "writable": writable}
    await monitor.execute("block-export-add", arguments)


async def stop_serving(monitor: Monitor) -> None:
    """End the NBD server, its connections and exports; returns once nobody can write through it. Nothing where none runs.

    Raises:
        MonitorError: It did not.
    """
    with contextlib.suppress(QmpCommandFailed):  # "NBD server not running"
        await monitor.execute("nbd-server-stop")
    left = [entry for entry in await monitor.execute("query-block-exports") if entry.get("type") == "nbd"]
    if left:
        raise MonitorError(
            f"{monitor.label} still exports {', '.join(str(e.get('id')) for e in left)}", host=monitor.host
        )


# -- the source ----------------------------------------------------------------------------------------------------


async def refuses_plain(monitor: Monitor, node: str, export_name: str, *, address: str, port: int) -> None:
    """Prove that a server takes nobody without the key: try it. (OSSN-0089: what is not looked at is off one day.)

    Args:
        monitor: Of the QEMU that will send.
        node: Name for a node that must not come to be.
        export_name: Of an export there.
        address: The server's.
        port: The server's.

    Raises:
        MonitorError: It took us in the clear, or could not be asked.
    """
    try:
        await connect(monitor, node, address=address, port=port, export_name=export_name, tls=None, open_s=0)
    except QmpCommandFailed as error:
        if "tls" in error.desc.lower():
            return
        raise
    await images.remove_node(monitor, node)
    raise MonitorError(
        "encryption of the disks was set but is not in force",
        hint="nothing was sent; do not use --no-encrypt to get around this, report it",
        host=monitor.host,
    )


async def connect(
    monitor: Monitor,
    node: str,
    *,
    address: str,
    port: int,
    export_name: str,
    tls: str | None,
    open_s: int = OPEN_S,
) -> None:
    """Connect to an export: a node that is written to over the network.

    QEMU does this in its main loop: have it known before that the address answers.

    Args:
        monitor: Of the QEMU that sends.
        node: Name for the new node.
        address: The server's.
        port: The server's.
        export_name: What it is called there.
        tls: Id of the ``tls-creds`` object (endpoint ``client``); None: in the clear.
        open_s: How long it is tried, also where it was refused; 0: once, for as long as TCP takes.

    Raises:
        QmpCommandFailed: Refused, no answer within `open_s`, wrong key, no such export.
    """
    arguments: dict[str, Any] = {
        "driver": "nbd",
        "node-name": node,
        "server": {"type": "inet", "host": address, "port": str(port)},
        "export": export_name,
        # A connection that is lost is lost: the job ends with an error and everything is taken back.
        "reconnect-delay": 0,
        "open-timeout": open_s,
        "discard": "unmap",
        "detect-zeroes": "off",
    }
    if tls is not None:
        arguments["tls-creds"] = tls
    await monitor.execute("blockdev-add", arguments)


async def can_change_mode(monitor: Monitor) -> bool:
    """Tell whether a mirror can be put in step later (QEMU 8.2 and up); else it must be begun that way."""
    return any(entry.get("name") == "block-job-change" for entry in await monitor.execute("query-commands"))


async def mirror(
    monitor: Monitor,
    job: str,
    *,
    device: str,
    target: str,
    sync: Sync,
    in_step: bool,
    speed: int = 0,
) -> None:
    """Begin to copy a node into another, and all that is written to it meanwhile.

    Args:
        monitor: Of the QEMU that has both.
        job: Id of the new job.
        device: Node that is copied.
        target: Node that is written.
        sync: ``full``: what the guest sees; ``top``: what is in the topmost image of the chain.
        in_step: What the guest writes goes over at once (``write-blocking``), from the beginning.
        speed: Bytes per second, of the copying; 0: as fast as it goes. What goes over at once is not held up.

    Raises:
        QmpCommandFailed: The sizes differ, something else works on the disk, …
    """
    await monitor.execute(
        "blockdev-mirror",
        {
            "job-id": job,
            "device": device,
            "target": target,
            "sync": sync,
            "copy-mode": "write-blocking" if in_step else "background",
            "on-source-error": "report",
            "on-target-error": "report",
            "auto-dismiss": False,
            "speed": speed,
        },
    )


async def mirrors(monitor: Monitor) -> dict[str, Mirror]:
    """Return the block jobs under way, by their id.

    Raises:
        MonitorError: It did not answer, or not as QEMU does.
    """
    reply = await monitor.execute("query-block-jobs")
    try:
        return {entry.id: entry for entry in map(Mirror.model_validate, reply)}
    except (ValidationError, TypeError) as error:
        raise MonitorError(
            f"{monitor.label}: query-block-jobs: {error}",
            hint="is this socket really a QEMU monitor?",
            host=monitor.host,
        ) from error


async def hold_in_step(monitor: Monitor, job: str) -> None:
    """From now on, what the guest writes goes over at once (`can_change_mode`). Then wait until `Mirror.in_step`."""
    await monitor.execute("block-job-change", {"id": job, "type": "mirror", "copy-mode": "write-blocking"})


async def set_speed(monitor: Monitor, job: str, bytes_per_s: int) -> None:
    """Limit how fast a mirror copies; 0: as fast as it goes."""
    await monitor.execute("block-job-set-speed", {"device": job, "speed": bytes_per_s})


async def finish(monitor: Monitor, job: str, *, timeout: float = FINISH_S) -> images.Job:
    """End a mirror that is ready, and prove that everything is over there: written, flushed, on its disk.

    The guest stays on its own disk. May be called again, also for one that has ended meanwhile: until it is dismissed
    (`images.dismiss`), QEMU knows how.

    Args:
        monitor: Of the QEMU that copies.
        job: Its id.
        timeout: Seconds.

    Raises:
        MonitorError: It was not ready, or has failed, or is gone: nothing is proven, the copy is worthless.
    """
    found = (await images.jobs(monitor)).get(job)
    if found is not None and not found.concluded:
        under_way = (await mirrors(monitor)).get(job)
        if under_way is not None and not under_way.ready:
            raise MonitorError(f"the copy of disk {job} is not complete", host=monitor.host)
        with contextlib.suppress(QmpCommandFailed):  # it has ended just now: how is asked for next
            await monitor.execute("block-job-cancel", {"device": job})
        found = await images.wait_concluded(monitor, job, timeout=timeout)
    if found is None:
        raise MonitorError(f"the copy of disk {job} has ended and nobody knows how", host=monitor.host)
    if found.error or found.done != found.total:
        raise MonitorError(
            f"the copy of disk {job} failed: {found.error or f'{found.done} of {found.total} bytes'}",
            hint="disk full, or an I/O error, or a lost connection at the destination: see its qemu.log",
            host=monitor.host,
        )
    return found


async def abort(monitor: Monitor, job: str, *, node: str) -> None:
    """End a mirror, whatever state it is in, and forget it. The guest stays on its own disk.

    The connection is cut first: a forced cancel waits, in QEMU's main loop, for what is under way on it, and on one that is
    dead that takes minutes in which nothing of QEMU answers.

    Args:
        monitor: Of the QEMU that copies.
        job: Its id.
        node: What it copies to.

    Raises:
        MonitorError: It does not end.
    """
    await yank(monitor, node)
    with contextlib.suppress(QmpCommandFailed):  # none of that name, or it has ended
        await monitor.execute("block-job-cancel", {"device": job, "force": True})
    await images.wait_concluded(monitor, job, timeout=ABORT_S)
    await images.dismiss(monitor, job)


async def yank(monitor: Monitor, node: str) -> None:
    """Cut a node's connection, out of band: what waits for it fails at once. Nothing where there is no such connection."""
    with contextlib.suppress(QmpCommandFailed):
        await monitor.execute("yank", {"instances": [{"type": "block-node", "node-name": node}]}, oob=True)


async def disconnect(monitor: Monitor, node: str, *, timeout: float = ABORT_S) -> None:
    """Close a connection's node; for a moment after its job's end something may still use it.

    Raises:
        QmpCommandFailed: It stays in use.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        try:
            await images.remove_node(monitor, node)
        except QmpCommandFailed:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            return
