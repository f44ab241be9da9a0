"""Guests whose devices are not those of their command line any more, and guests with many kinds of devices, on real QEMU."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qmp_migrate.rig.guest.disk_journal import check_journal
from tests.support.real.lab import Guest, Lab, wait_for
from tests.support.real.qemu_versions import program
from tests.support.real.raw_qmp import qmp

PORTS = [word for n in range(1, 5) for word in ("-device", f"pcie-root-port,id=rp{n},chassis={n}")]


def monitor(guest: Guest, host: str) -> Path:
    return guest.directory(host) / "qmp.sock"


def ask(guest: Guest, host: str, command: str, /, **arguments: Any) -> Any:
    return qmp(monitor(guest, host), command, **arguments)


def opened(guest: Guest, host: str, node: str, driver: str, path: Path) -> None:
    """Open an image as a block node."""
    ask(guest, host, "blockdev-add", driver=driver, node_name=node, file={"driver": "file", "filename": str(path)})


def plug(guest: Guest, host: str, driver: str, name: str, **properties: Any) -> None:
    ask(guest, host, "device_add", driver=driver, id=name, **properties)


@contextmanager
def image(lab: Lab, name: str, size: int, kind: str = "raw") -> Iterator[Path]:
    path = lab.files / name
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, str(path), str(size)], check=True)
    try:
        yield path
    finally:
        path.unlink()


def drivers(guest: Guest, host: str) -> dict[str, str]:
    """Return the devices with an id: what they are."""
    listed = ask(guest, host, "qom-list", path="/machine/peripheral")
    return {entry["name"]: entry["type"] for entry in listed if entry["type"].startswith("child<")}


def test_what_was_plugged_in_goes_along_from_version_to_version(lab: Lab) -> None:
    """7.2 → 10.0 → 11.1 → 7.2: disk, interface, memory, vCPU plugged in; each version then plugs in or out itself."""
    old = lab.config(hosts_a={"qemu": program("7.2")}, hosts_b={"qemu": program("7.2")})
    to_10 = lab.config(hosts_a={"qemu": program("7.2")}, hosts_b={"qemu": program("10.0")})
    to_11 = lab.config(hosts_a={"qemu": program("11.1")})
    append = "qm.rate=0 qm.ws=8 qm.tick=10 qm.disk=/dev/vda"
    grows = {"maxmemory": "2GiB", "maxcpus": 4, "args": [*PORTS, "-device", "virtio-scsi-pci,id=scsi0"]}
    with (
        image(lab, "plugged.img", 4 << 20) as disk,
        image(lab, "second.qcow2", 4 << 20, "qcow2") as second,
        lab.guest(ready=False, append=append, config=old, **grows) as guest,
    ):
        opened(guest, "a", "plugged", "raw", disk)
        plug(guest, "a", "virtio-blk-pci", "vd9", drive="plugged", bus="rp2", serial="PLUGGED")
        guest.wait_ready("a")
        guest.wait("a", lambda v: len(v.journal) > 3)
        ask(guest, "a", "netdev_add", type="user", id="n9")
        plug(guest, "a", "virtio-net-pci", "nic9", netdev="n9", bus="rp3", mac="52:54:00:99:99:99")
        ask(guest, "a", "object-add", qom_type="memory-backend-ram", id="mem9", size=128 << 20)
        plug(guest, "a", "pc-dimm", "dimm9", memdev="mem9")
        free = next(cpu for cpu in ask(guest, "a", "query-hotpluggable-cpus") if "qom-path" not in cpu)
        plug(guest, "a", free["type"], "cpu9", **free["props"])
        checked = lab.cli("check", guest.name, "--to", "b", "--json", config=to_10).doc
        (devices,) = [check for check in checked["checks"] if check["id"] == "devices" and check["status"] == "ok"]
        for words in ("virtio-blk-pci vd9", "virtio-net-pci nic9", "pc-dimm dimm9", "-cpu cpu9"):
            assert words in devices["text"]

        move(lab, guest, "b", to_10)
        opened(guest, "b", "second", "qcow2", second)
        plug(guest, "b", "scsi-hd", "sd9", drive="second", bus="scsi0.0")
        move(lab, guest, "a", to_11)
        ask(guest, "a", "device_del", id="nic9")
        wait_for(lambda: "nic9" not in drivers(guest, "a"), 20)
        ask(guest, "a", "netdev_del", id="n9")
        move(lab, guest, "b", old)
        assert {"vd9", "dimm9", "cpu9", "sd9"} <= set(drivers(guest, "b"))
        assert "nic9" not in drivers(guest, "b")
        plug(guest, "b", "virtio-rng-pci", "rng9", bus="rp4")
        state = lab.files / "plugged.state"
        there = drivers(guest, "b")
        lab.cli("save", guest.name, str(state), config=old)
        lab.cli("restore", str(state), "--on", "b", config=old)
        assert drivers(guest, "b") == there
        verdict = guest.wait_survived("b")
        replay = check_journal(disk.read_bytes(), verdict.journal)
        assert not replay.lost, replay


def move(lab: Lab, guest: Guest, to: str, config: Path, *words: str) -> None:
    """Move a guest, and see that it has the same devices in the same places, and goes on writing to its disk."""
    origin = "a" if to == "b" else "b"
    before, journal = places(guest, origin), len(guest.verdict(origin).journal)
    result = lab.cli("migrate", guest.name, "--to", to, "--downtime-limit", "20s", *words, "--json", config=config).doc
    assert result["outcome"] == "completed"
    assert places(guest, to) == before
    guest.wait(to, lambda v: len(v.journal) > journal + 3 or bool(v.reasons and v.corruption))


def places(guest: Guest, host: str) -> dict[str, tuple[str, str, str]]:
    found = {}
    for name, kind in drivers(guest, host).items():
        path = f"/machine/peripheral/{name}"
        has = {entry["name"] for entry in ask(guest, host, "qom-list", path=path)}
        place = {
            key: ask(guest, host, "qom-get", path=path, property=key)
            for key in ("addr", "scsi-id", "lun")
            if key in has
        }
        bus = ask(guest, host, "qom-get", path=path, property="parent_bus").rpartition("/")[2]
        found[name] = (kind, bus, json.dumps(place))
    return found


def test_what_was_unplugged_stays_away_and_nothing_else_moves(lab: Lab) -> None:
    """On the chipset whose slots are given in order: one device less must not shift those after it. Media change, too."""
    to_10 = lab.config(hosts_b={"qemu": program("10.0")})
    with image(lab, "one.iso", 1 << 20) as one, image(lab, "two.iso", 1 << 20) as two:
        args = [
            *("-netdev", "user,id=first", "-device", "virtio-net-pci,id=first,netdev=first"),
            *(
                "-device",
                "virtio-scsi-pci,id=scsi0",
                "-device",
                "virtio-balloon-pci,id=balloon0",
                "-device",
                "virtio-rng-pci",
            ),
            *("-blockdev", f"driver=file,node-name=cd-file,filename={one},read-only=on"),
            *("-blockdev", "driver=raw,node-name=cd,file=cd-file,read-only=on", "-device", "scsi-cd,id=cd0,drive=cd"),
            *("-drive", f"if=none,id=cd1,media=cdrom,format=raw,file={one}", "-device", "ide-cd,id=cd1,drive=cd1"),
            *("-drive", "if=none,id=cd2,media=cdrom", "-device", "ide-cd,id=cd2,drive=cd2"),
        ]
        with lab.guest(disk=True, machine="pc-i440fx-7.2", args=args) as guest:
            ask(guest, "a", "device_del", id="first")
            wait_for(lambda: "first" not in drivers(guest, "a"), 20)
            ask(guest, "a", "netdev_del", id="first")
            ask(guest, "a", "blockdev-change-medium", id="cd0", filename=str(two), format="raw")
            ask(guest, "a", "eject", id="cd1")
            ask(guest, "a", "blockdev-change-medium", id="cd2", filename=str(two), format="raw")
            move(lab, guest, "b", to_10)
            assert media(guest, "b") == {"cd0": str(two), "cd1": None, "cd2": str(two)}
            ask(guest, "b", "eject", id="cd0")
            ask(guest, "b", "blockdev-change-medium", id="cd1", filename=str(one), format="raw")
            move(lab, guest, "a", lab.settings)
            assert media(guest, "a") == {"cd0": None, "cd1": str(one), "cd2": str(two)}
            guest.wait_survived("a")


def media(guest: Guest, host: str) -> dict[str, str | None]:
    blocks = ask(guest, host, "query-block")
    return {b["qdev"]: b["inserted"]["file"] if "inserted" in b else None for b in blocks if b["removable"]}


def test_what_cannot_go_along_is_refused_by_check_by_name(lab: Lab) -> None:
    with image(lab, "nvme.img", 1 << 20) as nvme, image(lab, "root.qcow2", 1 << 20, "qcow2") as root:
        args = [
            *(*PORTS, "-drive", f"if=none,id=n,format=raw,file={nvme}", "-device", "nvme,id=nv0,serial=1,drive=n"),
            *("-object", "memory-backend-ram,id=shm,size=1M,share=on", "-device", "ivshmem-plain,id=iv0,memdev=shm"),
            *("-drive", f"if=none,id=root,format=qcow2,file={root}", "-device", "virtio-blk-pci,id=root0,drive=root"),
            *("-fsdev", f"local,id=fs,path={lab.files},security_model=none"),
            *("-device", "virtio-9p-pci,id=share0,fsdev=fs,mount_tag=share"),
        ]
        with lab.guest(ready=False, firmware_only=True, args=args) as guest:
            plug(guest, "a", "edu", "edu0", bus="rp1")
            overlay = lab.files / "overlay.qcow2"
            ask(guest, "a", "blockdev-snapshot-sync", device="root", snapshot_file=str(overlay), format="qcow2")
            ran = lab.cli("check", guest.name, "--to", "b", "--json", code=3)
            failed = [f"{check['text']} ({check['hint']})" for check in ran.doc["checks"] if check["status"] == "fail"]
            assert len(failed) == 5, failed
            assert any("nvme nv0" in text and "virtio-blk" in text for text in failed)
            assert any("ivshmem-plain iv0" in text and "unplug" in text for text in failed)
            assert any("share0" in text and "NFS" in text for text in failed)
            assert any("edu edu0 was plugged in" in text for text in failed)
            assert any(f"disk root is on {overlay} now, not on {root}" in text for text in failed)
            lab.cli("migrate", guest.name, "--to", "b", code=3)
            assert drivers(guest, "a").keys() >= {"nv0", "edu0"}, "nothing was touched"
        overlay.unlink()


def test_a_uefi_guest_with_many_disks_and_vcpus_takes_them_all_along_and_comes_back(lab: Lab) -> None:
    """Its variable store and a disk that was plugged in are copied like others; firmware of another size is seen before."""
    code, template = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
    if not code.exists():
        pytest.skip("no UEFI firmware: apt-get install ovmf")
    here, there = lab.files / "uefi-a", lab.files / "uefi-b"
    here.mkdir()
    store = here / "vars.fd"
    store.write_bytes(template.read_bytes())
    to_10 = lab.config(
        hosts_a={"path_map": {str(there): str(here)}},
        hosts_b={"path_map": {str(here): str(there)}, "qemu": program("10.0")},
    )
    disks = "".join(
        f'[[disk]]\npath = "{here / name}"\nformat = "{kind}"\ninterface = "{interface}"\nsize = "4MiB"\n'
        for name, kind, interface in (
            ("a.img", "raw", "virtio"),
            ("b.img", "raw", "scsi"),
            ("c.qcow2", "qcow2", "scsi"),
        )
    )
    flash = ["-drive", f"if=pflash,format=raw,readonly=on,file={code}", "-drive", f"if=pflash,format=raw,file={store}"]
    append = "qm.rate=4 qm.ws=8 qm.tick=10 qm.disk=/dev/vda"
    keys: dict[str, Any] = {"vcpus": 2, "maxcpus": 4, "args": [*PORTS, *flash], "extra": disks, "append": append}
    try:
        (here / "plugged.img").write_bytes(bytes(4 << 20))
        with lab.guest(**keys) as guest:
            opened(guest, "a", "plugged", "raw", here / "plugged.img")
            plug(guest, "a", "virtio-blk-pci", "vd9", drive="plugged", bus="rp2")
            written = store.read_bytes()
            assert written != template.read_bytes(), "the firmware keeps its variables there"
            move(lab, guest, "b", to_10, "--copy-storage", "full")
            assert {path.name for path in there.iterdir()} == {"a.img", "b.img", "c.qcow2", "plugged.img", "vars.fd"}
            assert (there / "vars.fd").read_bytes() == written
            other = lab.files / "other.fd"
            other.write_bytes(b"\0" * 4096)
            mapped = lab.config(hosts_a={"path_map": {str(there / "vars.fd"): str(other)}})
            ran = lab.cli("check", guest.name, "--to", "a", code=3, config=mapped)
            assert f"firmware image {other} has 4096 bytes on a" in ran.out
            other.unlink()
            move(lab, guest, "a", lab.settings)
            verdict = guest.wait_survived("a")
            assert not check_journal((there / "a.img").read_bytes(), verdict.journal).lost
            assert len(ask(guest, "a", "query-cpus-fast")) == 2
    finally:
        for directory in (here, there):
            shutil.rmtree(directory, ignore_errors=True)
