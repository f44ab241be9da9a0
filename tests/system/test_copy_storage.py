"""``--copy-storage`` on real QEMU and a real guest: its disks arrive with every record that it was told is on them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qmp_migrate.rig.guest.disk_journal import check_journal
from tests.support.real.commands import Command
from tests.support.real.lab import Guest, Lab, interrupt
from tests.support.real.lab_journal import assert_untouched, record, wait_for_phase
from tests.support.real.raw_qmp import qmp

BUSY = "qm.rate=4 qm.ws=8 qm.tick=10 qm.disk=/dev/vda"
MIB = 1 << 20

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="no qemu-img")


@dataclass
class Disks:
    """A guest whose images are in one directory at ``a`` and go into another one at ``b``."""

    lab: Lab
    guest: Guest
    here: Path
    there: Path
    config: Path

    def migrate(self, *words: str, code: int | None = 0) -> Any:
        ran = self.lab.cli("migrate", self.guest.name, "--json", *words, code=code, config=self.config)
        return ran.doc

    def content(self, path: Path) -> bytes:
        raw = path.with_suffix(".content")
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", path, raw], check=True)
        try:
            return raw.read_bytes()
        finally:
            raw.unlink()

    def assert_nothing_lost(self, host: str, image: Path) -> None:
        """The guest goes on where it is now, writes there, and has every record that it was told is on its disk."""
        before = len(self.guest.verdict(host).journal)
        self.guest.wait(host, lambda v: len(v.journal) > before + 5)
        self.guest.wait_survived(host)
        acknowledged = self.guest.verdict(host).journal
        replay = check_journal(self.content(image), acknowledged)
        assert not replay.lost, (replay, len(acknowledged))

    def left(self) -> list[str]:
        """What is there at the destination."""
        return sorted(path.name for path in self.there.rglob("*")) if self.there.exists() else []


@contextmanager
def with_disks(
    lab: Lab,
    *names: str,
    content: int = 0,
    small: int = 0,
    chain: str = "",
    media: Path | None = None,
    watchdog: dict[str, str] | None = None,
    extra: str = "",
) -> Iterator[Disks]:
    """Start a guest with images in one directory, and wait until it has written some records.

    Args:
        lab: Where.
        names: Of its images, 32 MiB each; the suffix says the format.
        content: MiB at the end of each raw image that cannot be a hole.
        small: MiB of a file system of its own at the destination; 0: no limit.
        chain: Name of an image on top of the first one, which the guest gets instead.
        media: A medium that is made.
        watchdog: Settings.
        extra: More of the spec.
    """
    here, there = lab.files / "disks-a", lab.files / "disks-b"
    here.mkdir()
    for name in names:
        image_format = "qcow2" if name.endswith("qcow2") else "raw"
        subprocess.run(["qemu-img", "create", "-q", "-f", image_format, here / name, "32M"], check=True)
        if content:
            with (here / name).open("r+b") as image:
                image.seek((32 - content) * MIB)
                image.write(os.urandom(content * MIB))
    disks = list(names)
    if chain:
        words = ["-f", "qcow2", "-b", names[0], "-F", "qcow2", here / chain]
        subprocess.run(["qemu-img", "create", "-q", *words], check=True)
        disks = [chain]
    if media is not None:
        media.write_bytes(os.urandom(MIB) + bytes(MIB))
    spec = "".join(
        f'[[disk]]\npath = "{here / name}"\nformat = "{"qcow2" if name.endswith("qcow2") else "raw"}"\n'
        for name in disks
    )
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, here)
        stack.callback(shutil.rmtree, there, ignore_errors=True)
        if small:
            there.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={small}m", "qmp-migrate-storage", there], check=True)
            stack.callback(subprocess.run, ["umount", there], check=True)
            there = there / "images"
        maps = {"hosts_a": {"path_map": {str(there): str(here)}}, "hosts_b": {"path_map": {str(here): str(there)}}}
        config = lab.config(**maps, **({"watchdog": watchdog} if watchdog else {}))
        stack.callback(config.unlink)
        guest = stack.enter_context(lab.guest(append=BUSY, extra=extra + spec))
        guest.wait("a", lambda v: len(v.journal) > 3)
        yield Disks(lab, guest, here, there, config)


def assert_guest_and_hosts_as_before(d: Disks) -> None:
    """The guest runs on at the source with its own disks, and nothing of a copy is anywhere."""
    assert_untouched(d.guest)
    acknowledged = d.guest.verdict("a").journal
    d.guest.wait("a", lambda v: len(v.journal) > len(acknowledged) + 5)
    assert not d.there.exists(), d.left()
    assert (
        qmp(d.guest.directory("a") / "qmp.sock", "query-block-jobs")
        == qmp(d.guest.directory("a") / "qmp.sock", "query-jobs")
        == []
    )
    nodes = qmp(d.guest.directory("a") / "qmp.sock", "query-named-block-nodes")
    assert {node["drv"] for node in nodes} <= {"raw", "qcow2", "file"}, nodes
    objects = qmp(d.guest.directory("a") / "qmp.sock", "qom-list", path="/objects")
    assert not [entry for entry in objects if entry["type"].startswith("child<tls")], objects


def begin(d: Disks, phase: str, *words: str) -> Command:
    """Begin a slow move with all disks, and return once it has come to a phase."""
    process = d.lab.popen(
        "migrate", d.guest.name, "--to", "b", "--copy-storage", "full", "--json", *words, config=d.config
    )
    wait_for_phase(d.lab, d.guest, phase)
    return process


def ended(process: Command, code: int) -> Any:
    out, err = process.communicate(timeout=90)
    assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
    return json.loads(out)


@pytest.mark.parametrize(("name", "source_images"), [("one.raw", "rename"), ("one.qcow2", "remove")])
def test_a_guest_and_its_disks_move_and_every_record_is_there(lab: Lab, name: str, source_images: str) -> None:
    with with_disks(lab, name, "two.qcow2") as d:
        result = d.migrate("--to", "b", "--copy-storage", "full", "--source-images", source_images)
        assert (result["outcome"], result["owner"], result["error"]) == ("completed", "destination", None)
        assert (result["encrypted"], result["warnings"]) == (True, [])
        assert result["disk_bytes"] > 0
        d.assert_nothing_lost("b", d.there / name)
        assert d.left() == [name, "two.qcow2"]
        assert (d.there / name).stat().st_blocks * 512 < 10 * MIB, "sparse stays sparse"
        kept = [f"{n}.migrated-{result['id']}" for n in (name, "two.qcow2")] if source_images == "rename" else []
        assert sorted(path.name for path in d.here.iterdir()) == kept
        objects = qmp(d.guest.directory("b") / "qmp.sock", "qom-list", path="/objects")
        assert not [entry for entry in objects if entry["type"].startswith("child<tls")], objects


def test_a_cancel_while_disks_are_copied_leaves_nothing(lab: Lab) -> None:
    with with_disks(lab, "one.raw", content=8) as d:
        process = begin(d, "disks-mirroring", "--bandwidth", "1MiB")
        interrupt(process)
        result = ended(process, 6)
        assert (result["outcome"], result["owner"]) == ("cancelled", "source")
        assert_guest_and_hosts_as_before(d)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_gets_full_over_there_is_not_seen_by_the_guest(lab: Lab) -> None:
    with with_disks(lab, "one.raw", content=8, small=20) as d:
        process = begin(d, "disks-mirroring", "--bandwidth", "1MiB")
        with (d.there.parent / "full").open("wb") as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(MIB))
                filler.flush()
        result = ended(process, 4)
        assert (result["outcome"], result["owner"]) == ("rolled_back", "source")
        assert result["error"]["code"] == "disk_copy_failed"
        assert "No space left" in result["error"]["message"]
        assert_guest_and_hosts_as_before(d)


def test_a_destination_that_freezes_and_one_that_dies_are_not_seen_by_the_guest(lab: Lab) -> None:
    with with_disks(lab, "one.raw", watchdog={"stall": "3s", "connect": "3s"}) as d:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            process = begin(d, "copying", "--bandwidth", "2MiB")
            there = d.guest.pid("b")
            assert there is not None
            os.kill(there, number)
            result = ended(process, 4)
            assert (result["outcome"], result["owner"]) == ("rolled_back", "source"), result
            assert_guest_and_hosts_as_before(d)


@pytest.mark.parametrize("phase", ["disks-mirroring", "copying"])
def test_a_controller_that_dies_is_recovered_from(lab: Lab, phase: str) -> None:
    with with_disks(lab, "one.raw", content=8 if phase == "disks-mirroring" else 0) as d:
        process = begin(d, phase, "--bandwidth", "1MiB")
        process.kill()
        process.communicate()
        process = lab.popen("recover", "--json", config=d.config)
        if phase == "copying":
            under_way = record(lab, d.guest)
            assert under_way is not None
            lab.quicken(under_way["id"], config=d.config)
        [result] = ended(process, 0)["migrations"]
        if phase == "disks-mirroring":
            assert (result["outcome"], result["owner"]) == ("rolled_back", "source")
            assert_guest_and_hosts_as_before(d)
        else:
            assert (result["outcome"], result["owner"], result["warnings"]) == ("completed", "destination", []), result
            d.assert_nothing_lost("b", d.there / "one.raw")
            assert d.left() == ["one.raw"]


def test_only_the_top_of_a_chain_and_a_medium_that_is_missing(lab: Lab) -> None:
    iso = lab.files / "disks-a/cd.iso"
    cdrom = f'args = ["-drive", "file={iso},if=ide,media=cdrom,format=raw,readonly=on"]\n'
    with with_disks(lab, "base.qcow2", chain="top.qcow2", media=iso, extra=cdrom) as d:
        refused = d.migrate("--to", "b", "--copy-storage", "top", code=3)
        assert "base.qcow2 is not on b" in refused["error"]["message"]
        d.there.mkdir()
        shutil.copy(d.here / "base.qcow2", d.there / "base.qcow2")
        result = d.migrate("--to", "b", "--copy-storage", "top")
        assert result["outcome"] == "completed"
        d.assert_nothing_lost("b", d.there / "top.qcow2")
        assert (d.there / "cd.iso").read_bytes() == (d.here / "cd.iso").read_bytes()
        assert d.left() == ["base.qcow2", "cd.iso", "top.qcow2"]
        # Back again: the old image is in the way until somebody has looked at it.
        refused = d.migrate("--to", "a", "--copy-storage", "top", code=3)
        assert "nothing is written over" in refused["error"]["message"]
        (d.here / "top.qcow2").unlink()
        assert d.migrate("--to", "a", "--copy-storage", "top", "--mode", "offline")["outcome"] == "completed"
        d.assert_nothing_lost("a", d.here / "top.qcow2")
