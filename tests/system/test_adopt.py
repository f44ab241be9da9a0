"""Guests that were started by hand, as people do it, are adopted and moved. Real QEMU; the oracle says that they survived."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qmp_migrate.rig.guest.images import find_images
from qmp_migrate.rig.guest.oracle import Verdict, judge
from tests.support.real.lab import Lab, wait_for
from tests.support.real.raw_qmp import qmp

QEMU = shutil.which("qemu-system-x86_64") or "qemu-system-x86_64"
# Memory that is not a multiple of 256 KiB: see `tests.support.real.lab.MEMORY`.
BASE = ["-machine", "pc-q35-7.2", "-cpu", "qemu64", "-accel", "tcg", "-m", "163848K", "-smp", "1", "-nodefaults"]
OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


@dataclass
class ByHand:
    """A QEMU as somebody would start it, in a directory of its own, with paths relative to it."""

    lab: Lab
    name: str
    directory: Path
    pid: int = 0
    process: subprocess.Popen[bytes] | None = None
    words: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path:
        """Settings in which host b has its own place for this guest's own sockets and logs."""
        there = self.directory.with_name(f"{self.directory.name}-b")
        there.mkdir(exist_ok=True)
        for path in ("kernel", "initrd", "disk.img", "code.fd", "vars.fd"):
            if (self.directory / path).exists() and not (there / path).exists():
                (there / path).symlink_to(self.directory / path)
        return self.lab.config(
            hosts_a={"path_map": {str(there): str(self.directory)}},
            hosts_b={"path_map": {str(self.directory): str(there)}},
        )

    def adopt(self, target: str, *words: str) -> dict[str, object]:
        document: dict[str, object] = self.lab.cli(
            "adopt", target, "--on", "a", "--json", *words, config=self.config
        ).doc
        return document


@contextmanager
def by_hand(lab: Lab, *words: str, daemonize: bool = False) -> Iterator[ByHand]:
    name = f"h{uuid.uuid4().hex[:8]}"
    directory = lab.files / name
    directory.mkdir()
    images = find_images()
    (directory / "kernel").symlink_to(images.kernel)
    (directory / "initrd").symlink_to(images.initrd)
    append = "console=ttyS0 quiet qm.rate=2 qm.ws=16 qm.tick=10"
    argv = [QEMU, *BASE, "-name", name, "-kernel", "kernel", "-initrd", "initrd", "-append", append]
    argv += [*words, "-display", "none"]
    if daemonize:
        argv += ["-daemonize", "-pidfile", "qemu.pid"]
    made = ByHand(lab, name, directory, words=argv)
    with (directory / "out").open("wb") as out:
        made.process = subprocess.Popen(argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        if daemonize:
            assert made.process.wait(20) == 0, (directory / "out").read_text()
            made.pid = int((directory / "qemu.pid").read_text())
        else:
            made.pid = made.process.pid
        yield made
    finally:
        for host in ("a", "b"):
            lab.cli("vm", "stop", name, "--on", host, "--force", code=None)
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait(10)
        if daemonize and Path(f"/proc/{made.pid}/cmdline").exists():
            os.kill(made.pid, 9)
        shutil.rmtree(directory)
        shutil.rmtree(directory.with_name(f"{name}-b"), ignore_errors=True)


def ready(path: Path) -> None:
    """Wait until somebody listens at a socket: it is there a moment earlier."""

    def look() -> bool:
        with socket.socket(socket.AF_UNIX) as asked:
            return asked.connect_ex(str(path)) == 0

    wait_for(look, 20)


def moves(made: ByHand) -> None:
    """Move it to b, and see by its own word, over both consoles, that it goes on there without a gap."""
    config = made.config
    there = made.directory.with_name(f"{made.directory.name}-b")

    def verdict() -> Verdict:
        return judge([path.read_bytes() for d in (made.directory, there) if (path := d / "serial.log").exists()])

    def begun() -> bool:
        seen = verdict()
        return seen.ready is not None and seen.last_tick > 0

    wait_for(begun, 60)
    checked = made.lab.cli("check", made.name, "--to", "b", "--json", config=config, code=None)
    assert not [c for c in checked.doc["checks"] if c["status"] == "fail"], checked.out
    result = made.lab.cli("migrate", made.name, "--to", "b", "--downtime-limit", "5s", "--json", config=config).doc
    assert (result["outcome"], result["owner"]) == ("completed", "destination")
    (listed,) = [g for g in made.lab.cli("vm", "list", "--json", config=config).doc["guests"] if g["name"] == made.name]
    assert (listed["host"], listed["state"]) == ("b", "running")

    def survived() -> bool:
        seen = verdict()
        assert not seen.tick_faults, seen.tick_faults
        assert not seen.corruption, seen.corruption
        return seen.sweeps_ok_after_handover >= 1 and seen.ticks_after_handover > 20

    wait_for(survived, 60)
    assert not Path(f"/proc/{made.pid}/exe").exists()
    assert not (made.lab.run_dir("a") / made.name).exists()


def test_daemonized_with_two_monitors_and_relative_paths(lab: Lab) -> None:
    monitors = ["-qmp", "unix:one.sock,server=on,wait=off"]
    monitors += ["-chardev", "socket,id=m2,path=two.sock,server=on,wait=off", "-mon", "chardev=m2,mode=control"]
    with by_hand(lab, *monitors, "-serial", "file:serial.log", daemonize=True) as made:
        document = made.adopt(str(made.pid))
        assert document["adopted"]
        assert document["monitors"] == [str(made.directory / "one.sock"), str(made.directory / "two.sock")]
        assert made.adopt(str(made.pid))["already"]
        moves(made)


def test_by_its_socket_with_a_monitor_for_people_on_the_terminal_and_user_networking(lab: Lab) -> None:
    words = ["-monitor", "stdio", "-qmp", "unix:qmp.sock,server,nowait", "-serial", "file:serial.log"]
    words += ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:12:34:56"]
    with by_hand(lab, *words) as made:
        ready(made.directory / "qmp.sock")
        document = made.adopt(str(made.directory / "qmp.sock"))
        assert document["monitors"] == [str(made.directory / "qmp.sock")]
        (alone,) = [c for c in document["checks"] if c["id"] == "monitor"]  # type: ignore[attr-defined]
        assert alone["status"] == "warn"
        moves(made)


@pytest.mark.skipif(not OVMF.exists(), reason="no UEFI firmware: apt-get install ovmf")
def test_with_uefi_a_disk_and_what_was_plugged_in_since(lab: Lab) -> None:
    words = ["-drive", "if=pflash,format=raw,unit=0,readonly=on,file=code.fd"]
    words += ["-drive", "if=pflash,format=raw,unit=1,file=vars.fd"]
    words += ["-device", "pcie-root-port,id=rp1,chassis=1", "-drive", "file=disk.img,format=raw,if=virtio,cache=none"]
    words += ["-qmp", "unix:qmp.sock,server=on,wait=off", "-serial", "file:serial.log"]
    name_files = {"code.fd": OVMF, "vars.fd": VARS}
    with prepared(lab, name_files) as files, by_hand(lab, *_in(words, files)) as made:
        ready(made.directory / "qmp.sock")
        qmp(made.directory / "qmp.sock", "object-add", qom_type="rng-random", id="r9", filename="/dev/urandom")
        qmp(made.directory / "qmp.sock", "device_add", driver="virtio-rng-pci", id="rng9", rng="r9", bus="rp1")
        document = made.adopt(str(made.pid))
        assert any("rng9" in c["text"] for c in document["checks"] if c["id"] == "devices")  # type: ignore[attr-defined]
        moves(made)


@contextmanager
def prepared(lab: Lab, files: dict[str, Path]) -> Iterator[Path]:
    directory = lab.files / f"p{uuid.uuid4().hex[:6]}"
    directory.mkdir()
    for name, path in files.items():
        shutil.copy(path, directory / name)
    with (directory / "disk.img").open("wb") as file:
        file.truncate(4 << 20)
    yield directory
    shutil.rmtree(directory)


def _in(words: list[str], directory: Path) -> list[str]:
    for name in ("code.fd", "vars.fd", "disk.img"):
        words = [word.replace(f"file={name}", f"file={directory / name}") for word in words]
    return words


def test_what_cannot_be_adopted_is_refused_and_says_why(lab: Lab) -> None:
    with by_hand(lab, "-monitor", "stdio", "-serial", "file:serial.log") as made:
        refused = lab.cli("adopt", str(made.pid), "--on", "a", code=None)
        assert refused.code == 3
        assert "no QMP monitor on a UNIX socket" in refused.out
        assert "nothing was touched" in refused.err
        assert not (lab.run_dir("a") / made.name).exists()
    with by_hand(lab, "-qmp", "unix:qmp.sock,server=on,wait=off", "-serial", "file:serial.log") as made:
        ready(made.directory / "qmp.sock")
        with socket.socket(socket.AF_UNIX) as holder:  # somebody has it
            holder.connect(str(made.directory / "qmp.sock"))
            assert b"QMP" in holder.recv(4096)
            held = lab.cli("adopt", str(made.pid), "--on", "a", code=None)
            assert held.code == 3
            assert "held by another client" in held.out
        assert made.name in lab.cli("adopt", "--on", "a").out
        listed = lab.cli("adopt", "--on", "a", "--json").doc
        assert made.pid in [entry["pid"] for entry in listed["qemus"]]
        assert lab.cli("adopt", "1", "--on", "a", code=None).code == 3
        assert lab.cli("adopt", "relative.sock", "--on", "a", code=None).code == 2
        lab.cli("adopt", str(made.pid), "--on", "a")
        lab.cli("adopt", "--release", made.name, "--on", "a")
        assert not (lab.run_dir("a") / made.name).exists()
        assert made.process is not None
        assert made.process.poll() is None
    assert lab.cli("adopt", "--release", "nobody", "--on", "a", code=None).code == 2
