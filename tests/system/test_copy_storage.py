"""``--copy-storage`` on real QEMU and a real guest: its disks arrive with every record that it was told is on them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qmp_migrate.rig.disk_journal import check_journal
from tests.support.lab import Guest, Lab

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

    def left(self) -> list[str]:
        """What is there at the destination."""
        return sorted(path.name for path in self.there.rglob("*")) if self.there.exists() else []


def disk(path: Path, image_format: str = "raw", size: str = "16MiB") -> str:
    return f'[[disk]]\npath = "{path}"\nformat = "{image_format}"\nsize = "{size}"\n'


@contextmanager
def with_disks(lab: Lab, *names: str, append: str = BUSY, **keys: Any) -> Iterator[Disks]:
    """Start a guest with images of these names (the suffix says the format) and wait until it has written some records."""
    here, there = lab.files / "disks-a", lab.files / "disks-b"
    here.mkdir()
    extra = "".join(disk(here / name, "qcow2" if name.endswith("qcow2") else "raw") for name in names)
    maps = {"hosts_a": {"path_map": {str(there): str(here)}}, "hosts_b": {"path_map": {str(here): str(there)}}}
    config = lab.config(**maps)
    try:
        with lab.guest(append=append, extra=extra + keys.pop("extra", ""), **keys) as guest:
            guest.wait("a", lambda v: len(v.journal) > 3)
            yield Disks(lab, guest, here, there, config)
    finally:
        config.unlink()
        shutil.rmtree(here)
        shutil.rmtree(there, ignore_errors=True)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_a_guest_and_its_disks_move_and_every_record_is_there(lab: Lab, image_format: str) -> None:
    with with_disks(lab, f"one.{image_format}", "two.qcow2") as d:
        result = d.migrate("--to", "b", "--copy-storage", "full")
        assert (result["outcome"], result["owner"], result["error"]) == ("completed", "destination", None)
        before = len(d.guest.verdict("b").journal)
        verdict = d.guest.wait("b", lambda v: len(v.journal) > before + 5 or bool(v.corruption))
        assert not verdict.corruption
        d.guest.wait_survived("b")
        image = d.there / f"one.{image_format}"
        acknowledged = d.guest.verdict("b").journal
        assert not check_journal(d.content(image), acknowledged).lost
        assert d.left() == [image.name, "two.qcow2"]
