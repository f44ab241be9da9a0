"""Which disks are copied: each rule of `disk_copies`, with the facts that make it speak."""

from __future__ import annotations

from typing import Any

import pytest

from qmp_migrate.migration.storage import disk_plan
from qmp_migrate.migration.storage.disk_plan import DiskCopy, Judgement, Seen
from qmp_migrate.migration.storage.image_stat import FileFacts
from qmp_migrate.qemu.images import Device, Image
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.disks import disks

MIB = 1 << 20
GIB = 1 << 30
HERE = FileFacts("file", 16 * MIB, "1:11", "640", readable=True, writable=True, file_system="ext2/ext3", free=GIB)
ABSENT = FileFacts(file_system="ext2/ext3", file_system_id="f", free=GIB, above_writable=True)
QCOW2 = {"type": "qcow2", "data": {"compat": "1.1", "lazy-refcounts": True, "refcount-bits": 16}}


def image(name: str = "/a/one.raw", image_format: str = "raw", **more: Any) -> Image:
    """An image of 16 MiB, of which 2 MiB are allocated."""
    known = {"filename": name, "format": image_format, "virtual-size": 16 * MIB, "actual-size": 2 * MIB}
    if image_format == "qcow2":
        known |= {"cluster-size": 65536, "format-specific": QCOW2}
    return Image.model_validate(known | more)


def device(top: Image, **more: Any) -> Device:
    return Device(
        **{"key": "d0", "node": "#block1", "filename": top.filename, "protocol": "file", "image": top, **more}
    )


def drive(path: str, more: str = "") -> list[str]:
    return ["-drive", f"file={path},if=virtio,id=d0{more}"]


def seen(*devices: Device, argv: list[str] | None = None, how: str = "full", **more: Any) -> Seen:
    words = argv if argv is not None else [w for d in devices for w in drive(d.filename)]
    here = CommandLine.parse(["qemu-system-x86_64", *words])
    there = CommandLine.parse([word.replace("/a/", "/b/") for word in ["qemu-system-x86_64", *words]])
    known: dict[str, Any] = {
        "source_files": {d.filename: HERE for d in devices},
        "destination_files": {d.filename.replace("/a/", "/b/"): ABSENT for d in devices},
    }
    return Seen(
        how,  # type: ignore[arg-type]
        devices=devices,
        here=disks(here),
        there=disks(there),
        map_path=lambda path: path.replace("/a/", "/b/"),
        source="a",
        destination="b",
        **{**known, **more},
    )


def refused(judgement: Judgement) -> str:
    """The one failed check's text and hint."""
    [check] = [check for check in judgement.checks if check.status == "fail"]
    assert check.host in {"a", "b"}
    return f"{check.text} ({check.hint})"


def warned(judgement: Judgement) -> list[str]:
    return [check.text for check in judgement.checks if check.status == "warn"]


def test_a_raw_file_is_copied_to_where_the_map_says() -> None:
    judgement = disk_plan.judge(seen(device(image(), direct=True)))
    [copy] = judgement.copies
    assert (copy.source_path, copy.path, copy.format, copy.sync) == ("/a/one.raw", "/b/one.raw", "raw", "full")
    assert (copy.mode, copy.makes, copy.direct, copy.writable) == ("640", True, True, True)
    assert (copy.virtual_bytes, copy.expected_bytes, copy.source_identity) == (16 * MIB, 2 * MIB, "1:11")
    assert copy.options == {"size": 16 * MIB}
    assert {check.status for check in judgement.checks} == {"ok"}
    assert judgement.judged == {"/b/one.raw"}
    assert DiskCopy.of(copy.to_dict()) == copy, "it goes through the journal"


def test_a_qcow2_image_is_made_like_the_one_it_copies() -> None:
    [copy] = disk_plan.judge(seen(device(image("/a/one.qcow2", "qcow2", **{"cluster-size": 32768})))).copies
    assert copy.options == {
        "size": 16 * MIB,
        "version": "v3",
        "refcount-bits": 16,
        "cluster-size": 32768,
        "lazy-refcounts": True,
    }


def test_what_is_special_about_a_qcow2_image() -> None:
    data = {"compat": "0.10", "refcount-bits": 16, "extended-l2": True, "compression-type": "zstd"}
    special = image("/a/o.qcow2", "qcow2", **{"format-specific": {"type": "qcow2", "data": data}})
    options = special.create_options(backing=("base.qcow2", "qcow2"))
    assert options["version"] == "v2"
    assert (options["extended-l2"], options["compression-type"]) == (True, "zstd")
    assert (options["backing-file"], options["backing-fmt"]) == ("base.qcow2", "qcow2")


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("is vmdk", {"format": "vmdk"}),
        ("is encrypted", {"encrypted": True}),
        ("keeps its data in another file", {"format-specific": {"type": "qcow2", "data": {"data-file": "x"}}}),
        ("is marked as corrupt", {"format-specific": {"type": "qcow2", "data": {"corrupt": True}}}),
        ("is encrypted", {"format-specific": {"type": "qcow2", "data": {"encrypt": {"format": "luks"}}}}),
    ],
)
def test_images_that_cannot_be_copied(why: str, changes: dict[str, Any]) -> None:
    judgement = disk_plan.judge(seen(device(image("/a/one.qcow2", "qcow2", **changes))))
    assert why in refused(judgement)
    assert not judgement.copies


def test_snapshots_and_bitmaps_stay_behind_and_that_is_said() -> None:
    data = {"bitmaps": [{"name": "backup"}]}
    top = image(
        "/a/o.qcow2", "qcow2", snapshots=[{"name": "before"}], **{"format-specific": {"type": "qcow2", "data": data}}
    )
    judgement = disk_plan.judge(seen(device(top)))
    assert len(judgement.copies) == 1
    assert ["snapshots" in text or "bitmaps" in text for text in warned(judgement)] == [True, True]


def test_a_network_disk_stays() -> None:
    top = image("nbd://x/y")
    judgement = disk_plan.judge(seen(device(top, protocol="nbd"), argv=drive("nbd://x/y")))
    assert not judgement.copies
    assert "leave --copy-storage out" in judgement.checks[-1].hint


@pytest.mark.parametrize(
    ("same_machine", "there", "stays"),
    [
        (True, HERE, True),  # one machine, one inode
        (False, HERE, False),  # two machines: numbers that are equal prove nothing on ext4
        (False, FileFacts("file", 16 * MIB, "9:11", file_system="nfs"), True),
        (False, FileFacts("file", 16 * MIB, "9:12", file_system="nfs"), False),
    ],
)
def test_a_file_that_both_hosts_see_as_one_stays(same_machine: bool, there: FileFacts, stays: bool) -> None:
    here = HERE if there.file_system != "nfs" else FileFacts("file", 16 * MIB, "5:11", file_system="nfs")
    judgement = disk_plan.judge(
        seen(
            device(image()),
            source_files={"/a/one.raw": here},
            destination_files={"/b/one.raw": there},
            same_machine=same_machine,
        )
    )
    assert not judgement.copies
    if stays:
        assert not [check for check in judgement.checks if check.status == "fail"]
    else:
        assert "nothing is written over" in refused(judgement)


@pytest.mark.parametrize(
    ("there", "why"),
    [
        (HERE, "nothing is written over"),
        (FileFacts("other"), "nothing is written over"),
        (FileFacts(free=GIB), "its directory cannot be written"),
        (FileFacts("block", 16 * MIB, writable=True), "holds data"),
        (FileFacts("block", 8 * MIB, blank=True, writable=True), "make it exactly as large"),
        (FileFacts("block", 16 * MIB, blank=True), "cannot be written"),
    ],
)
def test_places_that_cannot_be_used(there: FileFacts, why: str) -> None:
    assert why in refused(disk_plan.judge(seen(device(image()), destination_files={"/b/one.raw": there})))


def test_a_blank_volume_of_the_same_size_is_used_as_it_is() -> None:
    there = FileFacts("block", 16 * MIB, blank=True, writable=True)
    [copy] = disk_plan.judge(seen(device(image()), destination_files={"/b/one.raw": there})).copies
    assert (copy.makes, copy.directories) == (False, ())


def test_a_volume_is_not_made() -> None:
    argv = drive("/dev/vg/one")
    volume = device(image("/dev/vg/one"), protocol="host_device")
    block = FileFacts("block", 16 * MIB, "6:7")
    files = {"source_files": {"/dev/vg/one": block}, "destination_files": {"/dev/vg/one": ABSENT}}
    assert "make the volume first" in refused(disk_plan.judge(seen(volume, argv=argv, **files)))


def test_the_source_of_a_link_or_a_volume_is_not_put_away() -> None:
    linked = FileFacts("file", 16 * MIB, "1:11", link=True)
    [copy] = disk_plan.judge(seen(device(image()), source_files={"/a/one.raw": linked})).copies
    assert copy.source_identity == ""


def chain(how: str, there: FileFacts, argv: list[str] | None = None, **more: Any) -> Judgement:
    base = image("/a/base.qcow2", "qcow2")
    below = {"backing-image": base.model_dump(by_alias=True), "backing-filename": "base.qcow2"}
    top = image("/a/top.qcow2", "qcow2", **below, **{"full-backing-filename": "/a/base.qcow2"})
    known: dict[str, Any] = {
        "source_files": {"/a/top.qcow2": HERE, "/a/base.qcow2": HERE},
        "destination_files": {"/b/top.qcow2": ABSENT, "/b/base.qcow2": there},
        "source_digests": {"/a/base.qcow2": "x"},
        "destination_digests": {"/b/base.qcow2": "x"},
    }
    return disk_plan.judge(seen(device(top), argv=argv, how=how, **{**known, **more}))


def test_the_top_of_a_chain_goes_onto_an_equal_image() -> None:
    [copy] = chain("top", HERE).copies
    assert (copy.sync, copy.expected_bytes) == ("top", 2 * MIB)
    assert (copy.options["backing-file"], copy.options["backing-fmt"]) == ("base.qcow2", "qcow2")


@pytest.mark.parametrize(
    ("there", "digests", "why"),
    [
        (ABSENT, {}, "is not on b"),
        (FileFacts("file", MIB, "1:12"), {}, "another one"),
        (FileFacts("file", 16 * MIB, "1:12"), {"/b/base.qcow2": "y"}, "another one"),
        (FileFacts("file", 16 * MIB, "1:12"), {}, "could not be compared"),
    ],
)
def test_the_top_of_a_chain_goes_onto_nothing_else(there: FileFacts, digests: dict[str, str], why: str) -> None:
    assert why in refused(chain("top", there, destination_digests=digests))


def test_a_whole_chain_becomes_one_image() -> None:
    [copy] = chain("full", ABSENT).copies
    assert (copy.sync, copy.expected_bytes) == ("full", 4 * MIB)
    assert "backing-file" not in copy.options


def test_a_chain_that_the_command_line_spells_out_cannot_become_one_image() -> None:
    argv = [
        *("-blockdev", "driver=qcow2,node-name=low,read-only=on,file.driver=file,file.filename=/a/base.qcow2"),
        *("-blockdev", "driver=qcow2,node-name=#block1,backing=low,file.driver=file,file.filename=/a/top.qcow2"),
    ]
    assert "kept to the letter" in refused(chain("full", ABSENT, argv=argv))


def medium(there: FileFacts, more: str = ",media=cdrom", image_format: str = "raw", **known: Any) -> Judgement:
    disk = device(image("/a/cd.iso", image_format), read_only=True, removable=True)
    argv = ["-drive", f"file=/a/cd.iso,id=d0{more}"]
    return disk_plan.judge(seen(disk, argv=argv, destination_files={"/b/cd.iso": there}, **known))


def test_a_medium_that_is_missing_is_copied() -> None:
    [copy] = medium(ABSENT).copies
    assert not copy.writable


def test_a_medium_with_the_same_content_is_used() -> None:
    digests = {"source_digests": {"/a/cd.iso": "x"}, "destination_digests": {"/b/cd.iso": "x"}}
    judgement = medium(FileFacts("file", 16 * MIB, "1:12"), **digests)
    assert not judgement.copies
    assert not [check for check in judgement.checks if check.status == "fail"]


def test_another_medium_is_refused_and_another_firmware_is_told_of() -> None:
    other = FileFacts("file", 8 * MIB, "1:12")
    assert "another one" in refused(medium(other))
    assert "another one" in warned(medium(other, ",if=pflash,readonly=on"))[0]
    assert "put it to /b/cd.iso" in refused(medium(ABSENT, image_format="qcow2"))


def test_a_drive_of_the_host_cannot_come_along() -> None:
    disk = device(image("/a/sr0"), protocol="host_cdrom", read_only=True)
    assert "eject" in refused(disk_plan.judge(seen(disk)))


def test_an_empty_drive_is_nothing() -> None:
    assert disk_plan.judge(seen(Device("cd"), argv=["-drive", "media=cdrom,id=cd"])).copies == ()


def test_a_disk_that_the_command_line_does_not_know_is_refused() -> None:
    judgement = disk_plan.judge(seen(device(image("/a/new.raw")), argv=drive("/a/old.raw")))
    assert "which is not in the command line" in refused(judgement)


def test_room_is_counted_for_each_file_system() -> None:
    small = FileFacts(file_system_id="f", free=5 * MIB, above_writable=True)
    assert "not enough room" in refused(disk_plan.judge(seen(device(image()), destination_files={"/b/one.raw": small})))
    tight = FileFacts(file_system_id="f", free=8 * MIB, above_writable=True)
    judgement = disk_plan.judge(seen(device(image()), destination_files={"/b/one.raw": tight}))
    assert len(judgement.copies) == 1
    assert "once they are full" in warned(judgement)[0]


def test_one_port_is_not_enough_and_another_job_is_in_the_way() -> None:
    assert "one port" in refused(disk_plan.judge(seen(device(image()), one_port=True)))
    assert "backup0" in refused(disk_plan.judge(seen(device(image()), busy=frozenset({"backup0"}))))


def test_paths_that_count_from_somewhere_are_refused() -> None:
    files = {"source_files": {"one.raw": HERE}, "destination_files": {"one.raw": ABSENT}}
    judgement = disk_plan.judge(seen(device(image("one.raw")), argv=drive("one.raw"), **files))
    assert "absolute" in refused(judgement)
