"""Copying disks between two real QEMUs, as far as QEMU does it: no guest, no hosts, every QEMU of this machine.

The receiving QEMU waits for a guest (``-incoming defer``) that stands on the same image which its NBD server writes, as in
a migration.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from qmp_migrate.errors import MonitorError, QmpCommandFailed
from qmp_migrate.qemu import encryption, images, storage
from qmp_migrate.qemu.images import Device, Target
from qmp_migrate.qemu.monitor import Monitor
from tests.support.real.bare_qemu import bare_qemu, binaries

HOST = "127.0.0.1"
MIB = 1 << 20
PATIENCE_S = 20.0

pytestmark = [
    pytest.mark.skipif(not binaries() or not shutil.which("qemu-img"), reason="no QEMU on this machine"),
    pytest.mark.timeout(120),
]


_FAULTS = ("installed", "11.1")
"""Two are enough where only what goes wrong is looked at: QEMU changed much between them."""


@pytest.fixture(params=binaries().items(), ids=lambda item: item[0])
def binary(request: pytest.FixtureRequest) -> str:
    if "image_format" not in request.fixturenames and request.param[0] not in _FAULTS:
        pytest.skip("seen with the others")
    return str(request.param[1])


def _img(*words: str | Path) -> str:
    return subprocess.run(["qemu-img", *words], check=True, capture_output=True, text=True).stdout


def _make(path: Path, image_format: str, *options: str | Path) -> None:
    """Make an image of 16 MiB with 2 MiB of content in two places."""
    _img("create", "-q", "-f", image_format, *options, path, "16M")
    for at, pattern in ((3, 0x5A), (9, 0xA5)):
        _write(path, image_format, f"write -P {pattern} {at}M 1M")


def _write(path: Path, image_format: str, command: str) -> None:
    subprocess.run(["qemu-io", "-f", image_format, "-c", command, str(path)], check=True, capture_output=True)


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@dataclass
class Pair:
    """A source with one disk, and a destination that waits for its guest on the image that it is to receive."""

    source: Monitor
    destination: Monitor
    device: Device
    target: Target
    port: int
    keys: Path
    node = "m1-n0"
    job = "m1-j0"

    async def connect(self) -> None:
        await storage.refuses_plain(self.source, self.node, self.target.node, address=HOST, port=self.port)
        await storage.connect(
            self.source, self.node, address=HOST, port=self.port, export_name=self.target.node, tls="nbd"
        )

    async def mirror(self, sync: storage.Sync = "full", speed: int = 0) -> bool:
        later = await storage.can_change_mode(self.source)
        await storage.mirror(
            self.source, self.job, device=self.device.node, target=self.node, sync=sync, in_step=not later, speed=speed
        )
        return later

    async def state(self) -> storage.Mirror:
        return (await storage.mirrors(self.source))[self.job]

    async def until_in_step(self, *, later: bool) -> None:
        while not (await self.state()).ready:  # noqa: ASYNC110 - a job in QEMU; the test's own time limit ends it
            await asyncio.sleep(0.02)
        if later:
            await storage.hold_in_step(self.source, self.job)
            while not (await self.state()).in_step:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def give_up_target(self) -> None:
        await storage.stop_serving(self.destination)
        await images.remove_target(self.destination, self.target)


class Stand:
    """Makes a `Pair`."""

    def __init__(self, directory: Path, binary: str, stack: AsyncExitStack) -> None:
        self.directory, self.binary, self.stack = directory, binary, stack

    async def pair(self, image: Path, image_format: str, there: Path) -> Pair:
        """Start both; the destination's image is made by a QEMU without a machine, like the source's."""
        drive = f"if=virtio,id=d0,format={image_format}"
        source = await self._start("a", "-M", "q35", "-drive", f"file={image},{drive}")
        (device,) = await images.devices(source)
        assert device.image is not None
        there.write_bytes(b"")  # noqa: ASYNC240
        target = Target("m1-t0", str(there), image_format)
        backing = device.image.backing
        below = (backing.filename, backing.format) if backing and there.parent != image.parent else None
        async with bare_qemu(self.binary, self.directory, "maker", ["-M", "none"]) as maker:
            await images.create(maker, target, device.image.create_options(backing=below))
        waits = ("-M", "q35", "-incoming", "defer")
        destination = await self._start("b", *waits, "-drive", f"file={there},{drive}")
        keys = self.directory / "keys"
        keys.mkdir()
        (keys / encryption.KEY_FILE).write_bytes(encryption.make_key_file())
        (keys / encryption.GROUP_FILE).write_bytes(encryption.GROUP)
        await encryption.add_credentials(source, "nbd", str(keys), "client")
        await encryption.add_credentials(destination, "nbd", str(keys), "server")
        port = await storage.serve(destination, HOST, None, tls="nbd")
        await images.add_node(destination, target)
        await storage.export(destination, target.node)
        return Pair(source, destination, device, target, port, keys)

    async def _start(self, name: str, *words: str) -> Monitor:
        return await self.stack.enter_async_context(bare_qemu(self.binary, self.directory, name, words))


@pytest.fixture
async def stand(directory: Path, binary: str) -> AsyncIterator[Stand]:
    async with AsyncExitStack() as stack:
        yield Stand(directory, binary, stack)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_a_disk_is_copied_and_stays_sparse(stand: Stand, directory: Path, image_format: str) -> None:
    here, there = directory / "here.img", directory / "there.img"
    options = ("-o", "cluster_size=32k,lazy_refcounts=on") if image_format == "qcow2" else ()
    _make(here, image_format, *options)
    pair = await stand.pair(here, image_format, there)
    await pair.connect()
    await pair.until_in_step(later=await pair.mirror())
    proof = await storage.finish(pair.source, pair.job)
    assert proof.done == proof.total > 0
    assert await storage.finish(pair.source, pair.job) == proof, "how it ended can be asked for again"
    await images.dismiss(pair.source, pair.job)
    await storage.disconnect(pair.source, pair.node)
    await pair.give_up_target()
    assert await images.jobs(pair.source) == {}
    assert "identical" in _img("compare", "-U", here, there)
    assert _allocated(there) < 4 * MIB
    if image_format == "qcow2":
        info = _img("info", "-U", there)
        assert "cluster_size: 32768" in info
        assert "lazy refcounts: true" in info


async def test_only_the_top_of_a_chain_is_copied(stand: Stand, directory: Path) -> None:
    here, there = directory / "a", directory / "b"
    here.mkdir()
    there.mkdir()
    _make(here / "base.qcow2", "qcow2")
    shutil.copy(here / "base.qcow2", there / "base.qcow2")
    _img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", here / "top.qcow2")
    _write(here / "top.qcow2", "qcow2", "write -P 1 5M 64k")
    pair = await stand.pair(here / "top.qcow2", "qcow2", there / "top.qcow2")
    assert [image.format for image in pair.device.image.chain] == ["qcow2", "qcow2"]  # type: ignore[union-attr]
    await pair.connect()
    await pair.until_in_step(later=await pair.mirror("top"))
    proof = await storage.finish(pair.source, pair.job)
    assert proof.total <= 256 * 1024
    await pair.give_up_target()
    assert "identical" in _img("compare", "-U", here / "top.qcow2", there / "top.qcow2")
    assert _allocated(there / "top.qcow2") < MIB


async def test_a_dead_target_goes_on_saying_ready_and_the_end_proves_it(stand: Stand, directory: Path) -> None:
    _make(directory / "here.img", "raw")
    pair = await stand.pair(directory / "here.img", "raw", directory / "there.img")
    await pair.connect()
    await pair.until_in_step(later=await pair.mirror())
    await storage.stop_serving(pair.destination)
    assert (await pair.state()).ready, "this is the trap"
    with pytest.raises(MonitorError, match="Input/output error"):
        await storage.finish(pair.source, pair.job)
    with pytest.raises(MonitorError, match="Input/output error"):  # also for who asks later
        await storage.finish(pair.source, pair.job)
    await storage.abort(pair.source, pair.job, node=pair.node)
    await storage.disconnect(pair.source, pair.node)
    assert await images.jobs(pair.source) == {}
    with pytest.raises(MonitorError, match="nobody knows how"):
        await storage.finish(pair.source, pair.job)


async def test_a_full_disk_over_there_ends_the_job_and_nothing_else(stand: Stand, directory: Path) -> None:
    _make(directory / "here.img", "raw")
    pair = await stand.pair(directory / "here.img", "raw", directory / "there.img")
    await pair.give_up_target()
    full = {"driver": "blkdebug", "node-name": "full", "image": "there", "discard": "unmap"}
    full["inject-error"] = [{"event": "write_aio", "errno": 28, "once": False}]  # type: ignore[assignment]
    there = {"driver": "file", "node-name": "there", "filename": str(directory / "there.img"), "discard": "unmap"}
    await pair.destination.execute("blockdev-add", there)
    await pair.destination.execute("blockdev-add", full)
    await pair.destination.execute("blockdev-add", {"driver": "raw", "node-name": pair.target.node, "file": "full"})
    pair.port = await storage.serve(pair.destination, HOST, None, tls="nbd")
    await storage.export(pair.destination, pair.target.node)
    await pair.connect()
    await pair.mirror()
    ended = await images.wait_concluded(pair.source, pair.job, timeout=PATIENCE_S)
    assert ended is not None
    assert "No space left" in (ended.error or "")
    (block,) = await pair.source.execute("query-block")
    assert block["io-status"] == "ok", "the guest's own disk is well"
    await storage.abort(pair.source, pair.job, node=pair.node)
    await storage.disconnect(pair.source, pair.node)
    (device,) = await images.devices(pair.source)
    assert device == pair.device


async def test_a_copy_under_way_is_ended(stand: Stand, directory: Path) -> None:
    _make(directory / "here.img", "raw")
    pair = await stand.pair(directory / "here.img", "raw", directory / "there.img")
    await pair.connect()
    await pair.mirror(speed=MIB)
    with pytest.raises(MonitorError, match="not complete"):
        await storage.finish(pair.source, pair.job)
    await storage.set_speed(pair.source, pair.job, 2 * MIB)
    state = await pair.state()
    assert state.speed == 2 * MIB
    assert not state.ready
    await storage.abort(pair.source, pair.job, node=pair.node)
    await storage.abort(pair.source, pair.job, node=pair.node)
    await storage.disconnect(pair.source, pair.node)
    await storage.disconnect(pair.source, pair.node)
    assert await images.jobs(pair.source) == {}


async def test_without_the_key_nobody_gets_in(stand: Stand, directory: Path) -> None:
    _make(directory / "here.img", "raw")
    pair = await stand.pair(directory / "here.img", "raw", directory / "there.img")
    where = {"address": HOST, "port": pair.port}
    other = directory / "other"
    other.mkdir()
    (other / encryption.KEY_FILE).write_bytes(encryption.make_key_file())
    await encryption.add_credentials(pair.source, "wrong", str(other), "client")
    with pytest.raises(QmpCommandFailed):
        await storage.connect(pair.source, pair.node, **where, export_name=pair.target.node, tls="wrong")
    await storage.stop_serving(pair.destination)
    pair.port = await storage.serve(pair.destination, HOST, None, tls=None)
    await storage.export(pair.destination, pair.target.node)
    with pytest.raises(MonitorError, match="not in force"):
        await pair.connect()
    nodes = {node["node-name"] for node in await pair.source.execute("query-named-block-nodes")}
    assert pair.node not in nodes
