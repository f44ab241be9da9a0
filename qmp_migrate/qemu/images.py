"""What a guest's disks are, asked from its QEMU: devices, images, backing chains; and empty images made by a QEMU.

No ``qemu-img`` is needed on any host: a running QEMU tells of its own images all that is needed to make another one like
them (``query-block``), and any QEMU makes one (``blockdev-create``), also one without a machine.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qmp_migrate.errors import MonitorError, MonitorTimeout, QmpCommandFailed
from qmp_migrate.qemu.monitor import Monitor

CREATE_S: Final = 60.0
"""How long making one empty image may take: with metadata preallocated on slow storage it is seconds."""

JOB_POLL_S: Final = 0.1
"""How often a job is asked for whose events do not tell."""

PROTOCOLS: Final = frozenset({"file", "host_device", "host_cdrom"})
"""Block drivers that are a file or device of the host; all others are the network's, or made up."""

_QCOW2_VERSION: Final = {"0.10": "v2", "1.1": "v3"}


class Reply(BaseModel):
    """What QEMU answers; members that are not used are skipped."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class FormatDetails(Reply):
    """``format-specific`` ``data`` of a qcow2 image."""

    compat: str = "1.1"
    lazy_refcounts: bool = Field(default=False, alias="lazy-refcounts")
    refcount_bits: int = Field(default=16, alias="refcount-bits")
    extended_l2: bool = Field(default=False, alias="extended-l2")
    compression_type: str = Field(default="zlib", alias="compression-type")
    corrupt: bool = False
    data_file: str | None = Field(default=None, alias="data-file")
    encrypt: dict[str, Any] | None = None
    bitmaps: tuple[dict[str, Any], ...] = ()


class FormatSpecific(Reply):
    """``format-specific``: of qcow2 images only, here."""

    type: str = ""
    data: dict[str, Any] = Field(default_factory=dict)


class Image(Reply):
    """One image file as QEMU has it open; bytes.

    Attributes:
        filename: As QEMU was told, or found in the image above.
        format: ``raw``, ``qcow2``, …
        virtual_bytes: What the guest sees.
        allocated_bytes: What it takes on the host; None where that cannot be told.
        cluster_bytes: None where the format has none.
        backing: The image below.
        backing_name: How the image itself names it; `backing_filename`: the same, seen from QEMU's directory.
        snapshots: Internal ones.
    """

    filename: str
    format: str
    virtual_bytes: int = Field(alias="virtual-size")
    allocated_bytes: int | None = Field(default=None, alias="actual-size")
    cluster_bytes: int | None = Field(default=None, alias="cluster-size")
    encrypted: bool = False
    backing: Image | None = Field(default=None, alias="backing-image")
    backing_name: str | None = Field(default=None, alias="backing-filename")
    backing_filename: str | None = Field(default=None, alias="full-backing-filename")
    backing_format: str | None = Field(default=None, alias="backing-filename-format")
    snapshots: tuple[dict[str, Any], ...] = ()
    specific: FormatSpecific = Field(default_factory=FormatSpecific, alias="format-specific")

    @property
    def details(self) -> FormatDetails:
        """What is special about a qcow2 image; defaults for other formats."""
        return FormatDetails.model_validate(self.specific.data if self.specific.type == "qcow2" else {})

    @property
    def chain(self) -> tuple[Image, ...]:
        """The image and all below it."""
        return (self, *(self.backing.chain if self.backing else ()))

    @property
    def chain_bytes(self) -> int:
        """The most that its content can take when the chain is flattened: what all of it takes, but not more than it has."""
        return min(self.virtual_bytes, sum(image.allocated_bytes or 0 for image in self.chain))

    def create_options(self, *, backing: tuple[str, str] | None = None) -> dict[str, Any]:
        """Return what ``blockdev-create`` needs to make an empty image like this one, without ``driver`` and ``file``.

        Args:
            backing: Name and format of the image below; None: it stands alone.
        """
        if self.format == "raw":
            return {"size": self.virtual_bytes}
        details = self.details
        options: dict[str, Any] = {
            "size": self.virtual_bytes,
            "version": _QCOW2_VERSION.get(details.compat, "v3"),
            "refcount-bits": details.refcount_bits,
        }
        if self.cluster_bytes:
            options["cluster-size"] = self.cluster_bytes
        if details.lazy_refcounts:
            options["lazy-refcounts"] = True
        if details.extended_l2:
            options["extended-l2"] = True
        if details.compression_type != "zlib":
            options["compression-type"] = details.compression_type
        if backing is not None:
            options["backing-file"], options["backing-fmt"] = backing
        return options


class _Inserted(Reply):
    node: str = Field(alias="node-name", default="")
    driver: str = Field(alias="drv", default="")
    read_only: bool = Field(alias="ro", default=False)
    file: str = ""
    encrypted: bool = False
    cache: dict[str, bool] = Field(default_factory=dict)
    image: Image


class _Block(Reply):
    device: str = ""
    qdev: str = ""
    removable: bool = False
    inserted: _Inserted | None = None


class _Node(Reply):
    node: str = Field(alias="node-name", default="")
    driver: str = Field(alias="drv", default="")
    file: str = ""
    read_only: bool = Field(alias="ro", default=False)


@dataclass(frozen=True, slots=True)
class Device:
    """One disk of a guest as its QEMU has it now.

    Attributes:
        key: What is the same in two QEMUs with the same command line: the drive's id, else the device's QOM path.
        node: Its topmost block node, which is what block jobs are told; ``""``: no medium.
        filename: What it stands on, as QEMU was told.
        protocol: Driver of the lowest node: ``file``, ``host_device``, ``nbd``, …; ``""``: no medium.
        read_only: The guest cannot write to it.
        removable: It has a tray, or is a floppy.
        direct: It passes the host's page cache by.
        image: None where there is no medium.
    """

    key: str
    node: str = ""
    filename: str = ""
    protocol: str = ""
    read_only: bool = False
    removable: bool = False
    direct: bool = False
    image: Image | None = None


async def devices(monitor: Monitor) -> tuple[Device, ...]:
    """Return all disks that a QEMU has, in its order, empty drives included.

    Raises:
        MonitorError: It did not answer, or not as QEMU does.
    """
    blocks = await monitor.execute("query-block")
    nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
    try:
        lowest = {n.file: n.driver for n in map(_Node.model_validate, nodes) if n.driver not in FORMATS}
        return tuple(_device(_Block.model_validate(block), lowest) for block in blocks)
    except (ValidationError, TypeError) as error:
        raise MonitorError(
            f"{monitor.label} answers, but not as QEMU does: {error}",
            hint="is this socket really a QEMU monitor?",
            host=monitor.host,
        ) from error


FORMATS: Final = frozenset(
    {"raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "luks", "parallels", "dmg", "cloop", "bochs"}
    | {"throttle", "copy-on-read", "quorum", "mirror_top", "commit_top", "copy-before-write", "snapshot-access"}
)
"""Block drivers that stand on another node."""


def _device(block: _Block, lowest: dict[str, str]) -> Device:
    key = block.device or block.qdev
    inserted = block.inserted
    if inserted is None:
        return Device(key, removable=block.removable)
    return Device(
        key=key,
        node=inserted.node,
        filename=inserted.file,
        protocol=lowest.get(inserted.file, ""),
        read_only=inserted.read_only,
        removable=block.removable,
        direct=inserted.cache.get("direct", False),
        image=inserted.image,
    )


# -- jobs of the block layer ----------------------------------------------------------------------------------------


class Job(Reply):
    """``query-jobs``: one job, until it is dismissed.

    Attributes:
        status: ``running``, ``ready``, ``concluded``, …; QEMU's words.
        done, total: Bytes; how much there is grows while a guest writes.
        error: Why it failed; None: it has not.
    """

    id: str
    type: str = ""
    status: str
    done: int = Field(default=0, alias="current-progress")
    total: int = Field(default=0, alias="total-progress")
    error: str | None = None

    @property
    def concluded(self) -> bool:
        """It has ended, well or not, and waits to be dismissed."""
        return self.status == "concluded"


async def jobs(monitor: Monitor) -> dict[str, Job]:
    """Return the block jobs of a QEMU by their id.

    Raises:
        MonitorError: It did not answer, or not as QEMU does.
    """
    reply = await monitor.execute("query-jobs")
    try:
        return {job.id: job for job in map(Job.model_validate, reply)}
    except (ValidationError, TypeError) as error:
        raise MonitorError(
            f"{monitor.label}: query-jobs: {error}", hint="is this socket really a QEMU monitor?", host=monitor.host
        ) from error


async def wait_concluded(monitor: Monitor, job: str, *, timeout: float) -> Job | None:
    """Wait until a job has ended; None where there is none of that name.

    Args:
        monitor: Of the QEMU that has it.
        job: Its id.
        timeout: Seconds.

    Raises:
        MonitorError: It has not ended in time, or QEMU does not answer.
    """
    deadline = time.monotonic() + timeout
    with monitor.events("JOB_STATUS_CHANGE") as events:
        while True:
            found = (await jobs(monitor)).get(job)
            if found is None or found.concluded:
                return found
            if time.monotonic() > deadline:
                raise MonitorError(
                    f"block job {job} of {monitor.label} has not ended within {timeout:g} s ({found.status})",
                    hint="its storage, or the connection to it, may hang",
                    host=monitor.host,
                )
            with contextlib.suppress(MonitorTimeout):
                await events.get(timeout=JOB_POLL_S)


async def dismiss(monitor: Monitor, job: str) -> None:
    """Forget a job that has ended; nothing where there is none of that name."""
    try:
        await monitor.execute("job-dismiss", {"id": job})
    except QmpCommandFailed as error:
        if "not found" not in error.desc.lower():
            raise


# -- nodes and images --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """An image file that is written by a QEMU for somebody else, not for its guest.

    Attributes:
        node: Name of its topmost node: what is exported. At most 31 bytes, as QEMU wants.
        path: Absolute, on the QEMU's host.
        format: ``raw`` or ``qcow2``.
        protocol: ``file`` or ``host_device``.
        direct: Passes the host's page cache by, as the guest's own node does.
        read_only: It is only read.
        extra: More options of the topmost node, for example ``backing``.
    """

    node: str
    path: str
    format: str = "raw"
    protocol: str = "file"
    direct: bool = False
    read_only: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def file_node(self) -> str:
        """Name of the node below."""
        return f"{self.node}-f"


async def add_file_node(monitor: Monitor, target: Target) -> None:
    """Open an image's file. Holes that are written as zeros stay holes (``discard=unmap``).

    Raises:
        QmpCommandFailed: QEMU cannot open it.
    """
    await monitor.execute(
        "blockdev-add",
        {
            "driver": target.protocol,
            "node-name": target.file_node,
            "filename": target.path,
            "discard": "unmap",
            "read-only": target.read_only,
            "cache": {"direct": target.direct},
        },
    )


async def add_node(monitor: Monitor, target: Target) -> None:
    """Open an image, file and format: the two nodes of `target`.

    Raises:
        QmpCommandFailed: QEMU cannot open it; no node of it is left.
    """
    await add_file_node(monitor, target)
    try:
        await monitor.execute(
            "blockdev-add",
            {
                "driver": target.format,
                "node-name": target.node,
                "file": target.file_node,
                "discard": "unmap",
                "read-only": target.read_only,
                "cache": {"direct": target.direct},
                "detect-zeroes": "unmap",
                **target.extra,
            },
        )
    except QmpCommandFailed:
        await remove_node(monitor, target.file_node)
        raise


async def remove_node(monitor: Monitor, node: str) -> bool:
    """Close a node that was added over QMP; False where there is none of that name.

    Raises:
        QmpCommandFailed: It is in use.
    """
    try:
        await monitor.execute("blockdev-del", {"node-name": node})
    except QmpCommandFailed as error:
        if "find" in error.desc.lower():  # "Failed to find node with node-name='…'"
            return False
        raise
    return True


async def remove_target(monitor: Monitor, target: Target) -> None:
    """Close the nodes of a target, top first, however many of them there are."""
    await remove_node(monitor, target.node)
    await remove_node(monitor, target.file_node)


async def create(monitor: Monitor, target: Target, options: dict[str, Any]) -> None:
    """Make an empty image in a file that exists already (what is in it is lost).

    Args:
        monitor: Of any QEMU on that host.
        target: File and format.
        options: `Image.create_options` of the image that it is to be like.

    Raises:
        QmpCommandFailed: QEMU cannot open the file.
        MonitorError: The image could not be made; says why.
    """
    job = f"{target.node}-c"
    if target.format == "raw":  # its file is all there is of it
        await _create(monitor, job, target, {"driver": "file", "filename": target.path, **options})
        return
    await add_file_node(monitor, target)
    try:
        await _create(monitor, job, target, {"driver": target.format, "file": target.file_node, **options})
    finally:
        await remove_node(monitor, target.file_node)


async def _create(monitor: Monitor, job: str, target: Target, options: dict[str, Any]) -> None:
    await monitor.execute("blockdev-create", {"job-id": job, "options": options})
    ended = await wait_concluded(monitor, job, timeout=CREATE_S)
    await dismiss(monitor, job)
    if ended is None or ended.error:
        raise MonitorError(
            f"the {target.format} image {target.path} could not be made: {ended.error if ended else 'no word of it'}",
            hint="is there room on that file system?",
            host=monitor.host,
        )
