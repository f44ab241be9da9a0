"""A guest's command line as it is now: what was plugged in, taken out and changed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from qmp_migrate.migration.devices.diff import Present, as_it_is, given_devices
from qmp_migrate.qemu.devices import ANONYMOUS, PERIPHERAL, Device, Devices, Drive, NetBackend, Node, Property
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.disks import disks
from tests.support.data.command_lines import ALL

ARGV = [
    *("/usr/bin/qemu-system-x86_64", "-nodefaults", "-machine", "pc-i440fx-7.2", "-smp", "1,maxcpus=4"),
    *("-netdev", "user,id=net0", "-device", "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:01"),
    *("-blockdev", "driver=raw,node-name=root,file.driver=file,file.filename=/srv/root.img"),
    *("-device", "virtio-blk-pci,id=disk0,drive=root", "-device", "virtio-rng-pci"),
    *("-device", "virtio-scsi-pci,id=scsi0", "-drive", "if=none,id=cd,media=cdrom,format=raw,file=/srv/one.iso"),
    *("-device", "scsi-cd,id=cd0,drive=cd,bus=scsi0.0"),
]
SLOTS = {"nic0": 3 << 3, "disk0": 4 << 3, "device[0]": 5 << 3, "scsi0": 6 << 3}


def path_of(name: str) -> str:
    return f"{ANONYMOUS}/{name}" if name.startswith("device[") else f"{PERIPHERAL}/{name}"


def device(name: str, driver: str, bus: str = "pci.0", *, hotplugged: bool = False, **more: Any) -> Device:
    place = {"addr": SLOTS[name]} if name in SLOTS else {}
    return Device(path_of(name), driver, hotplugged, bus, more.pop("place", place), more.pop("properties", {}), **more)


def file(name: str, filename: str, **more: Any) -> Node:
    return Node(name, "file", filename, bytes=4096, children={}, **more)


def raw(name: str, filename: str, **more: Any) -> Node:
    return Node(name, "raw", filename, bytes=4096, **{"children": {"file": f"#{name}-file"}, **more})


def nodes(*found: Node) -> dict[str, Node]:
    """Return nodes by name, each format with a file below it."""
    below = [
        file(f"#{node.name}-file", node.filename, read_only=node.read_only) for node in found if node.driver != "file"
    ]
    return {node.name: node for node in (*found, *below)}


AT_START = Devices(
    {
        one.path: one
        for one in (
            device("nic0", "virtio-net-pci"),
            device("disk0", "virtio-blk-pci"),
            device("device[0]", "virtio-rng-pci"),
            device("scsi0", "virtio-scsi-pci"),
            device("cd0", "scsi-cd", "scsi0.0", place={"channel": 0, "scsi-id": 0, "lun": 0}),
        )
    },
    nodes(raw("root", "/srv/root.img"), raw("#block1", "/srv/one.iso", read_only=True)),
    (Drive("", f"{PERIPHERAL}/disk0/virtio-backend", False, "root"), Drive("cd", "cd0", True, "#block1")),
    {"net0": NetBackend("user", "net=10.0.2.0,restrict=off")},
    cpus=({"props": {"core-id": 0}, "vcpus-count": 1, "qom-path": "/machine/unattached/device[0]"},),
)
"""What the guest has while nothing was changed."""


def compare(devices: Devices, argv: Sequence[str] = ARGV) -> Present:
    return as_it_is(CommandLine.parse(argv), devices)


def plugged(*found: Device, base: Devices = AT_START, **more: Any) -> Devices:
    """Return the guest with devices that were plugged in, and what stands behind them."""
    return replace(
        base,
        devices={**base.devices, **{one.path: replace(one, hotplugged=True) for one in found}},
        nodes={**base.nodes, **more.pop("nodes", {})},
        backends={**base.backends, **more.pop("backends", {})},
        drives=(*base.drives, *more.pop("drives", ())),
        **more,
    )


def without(*names: str, base: Devices = AT_START, **more: Any) -> Devices:
    gone = {path_of(name) for name in names}
    return replace(base, devices={path: one for path, one in base.devices.items() if path not in gone}, **more)


def added(present: Present) -> list[tuple[str, Any]]:
    """Return the options beyond those of the start; properties as JSON."""
    assert present.refusals == ()
    words = present.command.argv()
    assert words[: len(ARGV)] == ARGV
    rest = words[len(ARGV) :]
    return [(rest[n], json.loads(rest[n + 1])) for n in range(0, len(rest), 2)]


def prop(value: Any, default: Any = None, kind: str = "str") -> Property:
    return Property(value, default, kind)


DISK: Mapping[str, Property] = {
    "drive": prop("data"),
    "addr": prop(0, -1, "int32"),
    "serial": prop("S1"),
    "bootindex": prop(-1, None, "int32"),
    "iothread": prop("", None, "link<iothread>"),
    "romfile": prop(""),
    "num-queues": prop(2, 65535, "uint16"),
    "share-rw": prop(False, False, "bool"),
}
NIC: Mapping[str, Property] = {
    "netdev": prop("net1"),
    "mac": prop("52:54:00:00:00:02"),
    "addr": prop(0x11, -1, "int32"),
    "romfile": prop("efi-virtio.rom"),
    "romsize": prop(262144, 4294967295, "uint32"),
    "host_uso": prop(False, True, "bool"),
}
DISK1 = device("disk1", "virtio-blk-pci", "rp1", properties=DISK)
NIC1 = device("nic1", "virtio-net-pci", "rp2", properties=NIC)
USER = {"net1": NetBackend("user", "net=10.0.2.0,restrict=off")}


def test_a_guest_that_was_not_changed_is_its_command_line_to_the_letter() -> None:
    present = compare(AT_START)
    assert present.command.argv() == ARGV
    assert (present.changes, present.warnings, present.refusals) == ((), (), ())


def test_devices_without_an_id_are_counted_as_qemu_makes_them() -> None:
    words = ["qemu", "-device", '{"driver":"usb-kbd"}', "-drive", "if=virtio,file=/a", "-device", "virtio-rng-pci"]
    given = given_devices(CommandLine.parse([*words, "-device", "e1000,id=n"]))
    assert given.anonymous == (2, 1, 0)
    assert given.named == {"n": 3}


def test_a_disk_that_was_plugged_in_comes_with_its_image_its_place_and_what_it_was_told() -> None:
    present = compare(plugged(DISK1, nodes=nodes(raw("data", "/srv/data.img", direct=True))))
    assert added(present) == [
        (
            "-blockdev",
            {
                "driver": "raw",
                "node-name": "data",
                "read-only": False,
                "cache": {"direct": True, "no-flush": False},
                "file": {"driver": "file", "cache": {"direct": False, "no-flush": False}, "filename": "/srv/data.img"},
            },
        ),
        (
            "-device",
            {
                "driver": "virtio-blk-pci",
                "id": "disk1",
                "bus": "rp1",
                "drive": "data",
                "addr": "0x0",
                "serial": "S1",
                "num-queues": 2,
            },
        ),
    ]
    assert present.changes == ("virtio-blk-pci disk1 was plugged in at rp1",)
    assert any("aio" in warning for warning in present.warnings)


def test_a_chain_of_named_nodes_comes_from_the_bottom_up_and_an_unnamed_backing_file_is_the_image_s_own() -> None:
    chain = {
        "data": Node("data", "qcow2", "/srv/data.qcow2", bytes=1, children={"file": "data-file", "backing": "base"}),
        "data-file": file("data-file", "/srv/data.qcow2"),
        "base": Node("base", "qcow2", "/srv/base.qcow2", True, bytes=1, children={"file": "#f", "backing": "#b"}),
        "#f": file("#f", "/srv/base.qcow2", read_only=True),
    }
    options = added(compare(plugged(DISK1, nodes=chain)))
    assert [given["node-name"] for name, given in options if name == "-blockdev"] == ["data-file", "base", "data"]
    assert options[2][1]["file"] == "data-file"
    assert options[2][1]["backing"] == "base"
    assert "backing" not in options[1][1]


def test_a_disk_of_drive_add_becomes_a_node_of_the_same_name() -> None:
    found = plugged(
        DISK1, nodes=nodes(raw("#block9", "/srv/data.img")), drives=(Drive("data", "disk1", False, "#block9"),)
    )
    options = added(compare(found))
    assert options[0][1]["node-name"] == options[1][1]["drive"] == "data"


def test_an_interface_comes_with_its_back_end_and_never_with_what_the_machine_type_or_qemu_sets() -> None:
    own = frozenset({("host_uso", "off")})
    forwards = {"net1": ["tcp:127.0.0.1:2222-10.0.2.15:22"]}
    present = compare(plugged(NIC1, backends=USER, machine_properties=own, forwards=forwards))
    assert added(present) == [
        ("-netdev", {"type": "user", "id": "net1", "hostfwd": [{"str": "tcp:127.0.0.1:2222-10.0.2.15:22"}]}),
        (
            "-device",
            {
                "driver": "virtio-net-pci",
                "id": "nic1",
                "bus": "rp2",
                "netdev": "net1",
                "mac": "52:54:00:00:00:02",
                "addr": "0x2.0x1",
            },
        ),
    ]


@pytest.mark.parametrize(
    ("kind", "text", "queues", "vhost", "made"),
    [
        ("user", "net=10.0.2.0,restrict=on", 1, False, {"restrict": True}),
        ("tap", "ifname=t0,script=no,downscript=no", 1, False, {"ifname": "t0", "script": "no", "downscript": "no"}),
        (
            *("tap", "ifname=t0,script=/etc/up,downscript=no", 2, True),
            {"ifname": "t0", "script": "/etc/up", "downscript": "no", "queues": 2, "vhost": True},
        ),
        (
            "bridge",
            "helper=/usr/lib/qemu/qemu-bridge-helper,br=br0",
            1,
            False,
            {"br": "br0", "helper": "/usr/lib/qemu/qemu-bridge-helper"},
        ),
    ],
)
def test_network_back_ends(kind: str, text: str, queues: int, vhost: bool, made: dict[str, Any]) -> None:
    found = plugged(replace(NIC1, vhost=vhost), backends={"net1": NetBackend(kind, text, queues)})
    assert added(compare(found))[0][1] == {"type": kind, "id": "net1", **made}


def test_memory_comes_with_its_back_end_at_its_address() -> None:
    dimm = device(
        *("dimm1", "pc-dimm", ""),
        properties={
            "addr": prop(1 << 32, 0, "uint64"),
            "slot": prop(0, -1, "int32"),
            "memdev": prop("/objects/mem1", None, "link<memory-backend>"),
            "size": prop(1 << 27, None, "uint64"),
        },
    )
    settings = {"mem1": {"size": 1 << 27, "share": True, "prealloc": False, "policy": "default", "type": "x"}}
    found = plugged(dimm, objects={"mem1": "memory-backend-ram"}, settings=settings)
    assert added(compare(found)) == [
        ("-object", {"qom-type": "memory-backend-ram", "id": "mem1", "size": 1 << 27, "share": True}),
        ("-device", {"driver": "pc-dimm", "id": "dimm1", "addr": 1 << 32, "slot": 0, "memdev": "mem1"}),
    ]


def test_a_vcpu_comes_with_its_place() -> None:
    place = {"props": {"core-id": 2, "thread-id": 0, "node-id": 0}, "qom-path": path_of("cpu1"), "vcpus-count": 1}
    found = plugged(device("cpu1", "qemu64-x86_64-cpu", ""), cpus=(*AT_START.cpus, place))
    assert added(compare(found)) == [
        ("-device", {"driver": "qemu64-x86_64-cpu", "id": "cpu1", "core-id": 2, "thread-id": 0})
    ]


def test_what_others_stand_on_comes_first_and_a_device_without_an_id_stays_without() -> None:
    disk = device("device[1]", "scsi-hd", "scsi1.0", properties={"drive": prop("data")})
    found = plugged(disk, device("scsi1", "virtio-scsi-pci", "bridge1"), device("bridge1", "pci-bridge"))
    found = replace(found, nodes={**found.nodes, **nodes(raw("data", "/srv/data.img"))})
    options = added(compare(found))
    assert [given.get("id") for name, given in options if name == "-device"] == ["bridge1", "scsi1", None]


def test_what_a_device_made_for_itself_it_makes_again() -> None:
    own = {"rng": prop(f"{PERIPHERAL}/rng1/virtio-backend/default-backend", None, "link<rng-backend>")}
    options = added(compare(plugged(device("rng1", "virtio-rng-pci", "rp1", properties=own))))
    assert options == [("-device", {"driver": "virtio-rng-pci", "id": "rng1", "bus": "rp1"})]


def test_moved_once_it_is_an_ordinary_guest_and_can_be_moved_again() -> None:
    found = plugged(DISK1, NIC1, backends=USER, nodes=nodes(raw("data", "/srv/data.img")))
    once = compare(found)
    there = replace(found, devices={path: replace(one, hotplugged=False) for path, one in found.devices.items()})
    again = as_it_is(once.command, there)
    assert again.command == once.command
    assert (again.changes, again.refusals) == ((), ())


# -- what was taken out -----------------------------------------------------------------------------------------------


def test_what_was_unplugged_stays_away_with_its_back_end_and_all_others_are_pinned() -> None:
    present = compare(without("nic0", backends={}))
    words = present.command.argv()
    assert not [word for word in words if "nic0" in word or "net0" in word]
    assert "virtio-blk-pci,id=disk0,drive=root,bus=pci.0,addr=0x4" in words
    assert "virtio-rng-pci,bus=pci.0,addr=0x5" in words
    assert "virtio-scsi-pci,id=scsi0,bus=pci.0,addr=0x6" in words
    assert "scsi-cd,id=cd0,drive=cd,bus=scsi0.0,channel=0,scsi-id=0,lun=0" in words
    assert present.refusals == ()
    assert len(present.changes) == 2


def test_a_disk_that_was_unplugged_leaves_with_all_its_block_nodes() -> None:
    nodes_of = ("driver=file,node-name=b-file,filename=/b", "driver=qcow2,node-name=b,file=b-file")
    argv = [*ARGV, "-blockdev", nodes_of[0], "-blockdev", nodes_of[1], "-device", "virtio-blk-pci,id=b,drive=b"]
    present = compare(AT_START, argv)
    assert not [word for word in present.command.argv() if "=b" in word]
    assert present.refusals == ()


def test_a_device_in_json_is_pinned_with_numbers_where_qemu_wants_numbers() -> None:
    argv = [*ARGV[:-1], '{"driver":"scsi-cd","id":"cd0","drive":"cd"}']
    words = compare(without("nic0"), argv).command.argv()
    pinned = {"driver": "scsi-cd", "id": "cd0", "drive": "cd", "bus": "scsi0.0", "channel": 0, "scsi-id": 0, "lun": 0}
    assert json.loads(words[-1]) == pinned
    assert "user,id=net0" in words, "a back end that is still there stays"


def test_unplugged_and_plugged_in_under_the_same_id_is_another_device() -> None:
    again = device("disk0", "virtio-blk-pci", "rp1", properties=DISK)
    drives = (AT_START.drives[1], Drive("", f"{PERIPHERAL}/disk0/virtio-backend", False, "data"))
    found = plugged(again, base=replace(AT_START, drives=drives), nodes=nodes(raw("data", "/srv/data.img")))
    found = replace(found, nodes={name: node for name, node in found.nodes.items() if "root" not in name})
    words = compare(found).command.argv()
    assert not [word for word in words if "/srv/root.img" in word or word.startswith("virtio-blk-pci")]
    assert json.loads(words[-1])["drive"] == "data"


def test_without_its_last_back_end_a_guest_gets_no_interface_of_qemu_s_own() -> None:
    argv = [word for word in ARGV if word != "-nodefaults"]
    assert compare(without("nic0", backends={}), argv).command.argv()[-2:] == ["-nic", "none"]


# -- media ------------------------------------------------------------------------------------------------------------

NODE_ARGV = [
    *(word for word in ARGV[:-4]),
    *("-blockdev", "driver=file,node-name=cd-file,filename=/srv/one.iso"),
    *(
        "-blockdev",
        "driver=raw,node-name=cd,file=cd-file,read-only=on",
        "-device",
        "scsi-cd,id=cd0,drive=cd,bus=scsi0.0",
    ),
]
NODE_MEDIA = nodes(raw("root", "/srv/root.img"), raw("cd", "/srv/one.iso", children={"file": "cd-file"}))
NODE_MEDIA = {**NODE_MEDIA, "cd-file": file("cd-file", "/srv/one.iso")}


def in_drive(node: Node | None, name: str = "cd") -> Devices:
    drives = (AT_START.drives[0], Drive(name, "cd0", True, node.name if node else None))
    base = AT_START.nodes if name else NODE_MEDIA
    return replace(AT_START, drives=drives, nodes={**base, **(nodes(node) if node else {})})


def test_a_medium_of_a_drive_that_was_changed_or_taken_out() -> None:
    changed = compare(in_drive(raw("#block7", "/srv/two,three.iso", read_only=True)))
    assert "if=none,id=cd,media=cdrom,file=/srv/two,,three.iso,format=raw" in changed.command.argv()
    empty = compare(in_drive(None))
    assert "if=none,id=cd,media=cdrom" in empty.command.argv()
    assert changed.refusals == empty.refusals == ()


def test_a_medium_of_a_block_node_that_was_changed_or_taken_out() -> None:
    changed = compare(in_drive(raw("#block7", "/srv/two.iso", read_only=True), ""), NODE_ARGV)
    (node,) = [json.loads(word) for word in changed.command.argv() if word.startswith("{")]
    assert (node["node-name"], node["file"]["filename"]) == ("cd", "/srv/two.iso")
    assert changed.command.argv()[-1] == "scsi-cd,id=cd0,drive=cd,bus=scsi0.0"
    assert compare(in_drive(None, ""), NODE_ARGV).command.argv()[-1] == "scsi-cd,id=cd0,bus=scsi0.0"
    named = compare(in_drive(raw("two", "/srv/two.iso", read_only=True), ""), NODE_ARGV).command.argv()
    assert "scsi-cd,id=cd0,bus=scsi0.0,drive=two" in named


def test_a_medium_in_a_drive_that_was_empty() -> None:
    argv = [*ARGV[:-4], "-device", "scsi-cd,id=cd0,bus=scsi0.0"]
    words = compare(in_drive(raw("#block7", "/srv/two.iso"), ""), argv).command.argv()
    assert "scsi-cd,id=cd0,bus=scsi0.0,drive=medium-cd0" in words
    assert json.loads(words[-1])["node-name"] == "medium-cd0"


@pytest.mark.parametrize(("node", "made"), [(None, []), (raw("#b", "/srv/two.iso"), ["file=/srv/two.iso,format=raw"])])
def test_the_short_form_of_a_cd_drive(node: Node | None, made: list[str]) -> None:
    drives = (Drive("ide2-cd0", "/machine/unattached/device[9]", True, node.name if node else None),)
    found = replace(without("cd0", "scsi0"), drives=drives, nodes=nodes(node) if node else {})
    argv = ["qemu", "-cdrom", "/srv/one.iso", "-device", "virtio-rng-pci"]
    present = compare(found, argv)
    assert present.command.argv()[-2:] == ["-drive", ",".join(["media=cdrom,index=2", *made])]
    assert "-cdrom" not in present.command.argv()


def test_what_qemu_does_not_list_or_has_used_up_stays() -> None:
    argv = ["qemu", "-netdev", "hubport,id=h,hubid=0", "-object", "secret,id=s,file=/k", "-object", "iothread,id=gone"]
    present = compare(replace(AT_START, devices={}, drives=(), backends={}), argv)
    assert present.command.argv() == argv[:-2]


def test_a_chain_that_has_got_shorter_is_refused() -> None:
    top, mid = "driver=qcow2,node-name=top,file=f,backing=mid", "driver=qcow2,node-name=mid,file=f"
    argv = ["qemu", "-blockdev", "driver=file,node-name=f,filename=/t", "-blockdev", mid, "-blockdev", top]
    found = replace(AT_START, devices={}, drives=(), nodes=nodes(raw("top", "/t"), file("f", "/t")))
    (refusal,) = compare(found, argv).refusals
    assert "block node top has lost mid" in refusal


def test_network_disks_and_images_named_relatively_are_not_compared() -> None:
    argv = ["qemu", "-drive", "if=none,id=a,file=nbd://h/x", "-drive", "if=none,id=b,file=b.img"]
    argv += ["-drive", "if=none,id=c,driver=rbd,pool=p,image=i"]
    drives = (Drive("a", "", False, "x"), Drive("b", "", False, "y"), Drive("c", "", False, "x"))
    found = replace(
        AT_START, devices={}, drives=drives, nodes=nodes(raw("x", "nbd://h:10809/x"), raw("y", "/home/b.img"))
    )
    assert compare(found, argv).refusals == ()


# -- what is refused --------------------------------------------------------------------------------------------------

SLICE = {"data": raw("data", "/srv/data.img"), "#data-file": replace(file("#data-file", "/srv/data.img"), bytes=8192)}
SNAPSHOT = replace(
    AT_START,
    drives=(Drive("", f"{PERIPHERAL}/disk0/virtio-backend", False, "#block8"), AT_START.drives[1]),
    nodes={**AT_START.nodes, **nodes(Node("#block8", "qcow2", "/srv/snap.qcow2"))},
)
REFUSED = {
    "a driver that nobody knows": (plugged(device("x1", "edu")), ["edu x1", "certainty", "unplug"]),
    "an encrypted image": (plugged(DISK1, nodes=nodes(raw("data", "/srv/d", encrypted=True))), ["disk1", "encrypted"]),
    "an image with limits": (plugged(DISK1, nodes=nodes(raw("data", "/srv/d", limited=True))), ["I/O limits"]),
    "an image over the network": (plugged(DISK1, nodes=nodes(raw("data", "nbd://h/x"))), ["disk1", "certainty"]),
    "an image told in JSON": (plugged(DISK1, nodes=nodes(raw("data", "json:{}"))), ["certainty"]),
    "a part of an image": (plugged(DISK1, nodes=SLICE), ["a part of /srv/data.img"]),
    "a graph that QEMU does not tell": (plugged(DISK1, nodes=nodes(raw("data", "/d", children=None))), ["stands on"]),
    "a node that is gone": (plugged(DISK1), ["block node data is gone"]),
    "a tap interface handed over": (
        plugged(NIC1, backends={"net1": NetBackend("tap", "fd=22")}),
        ["net1 (tap: fd=22)"],
    ),
    "a user network of one's own": (plugged(NIC1, backends={"net1": NetBackend("user", "net=10.9.0.0")}), ["10.9.0.0"]),
    "a socket": (plugged(NIC1, backends={"net1": NetBackend("socket", "socket: fd=9")}), ["net1 (socket"]),
    "a back end that is gone": (plugged(NIC1), ["net1 is gone"]),
    "a standby": (
        plugged(replace(NIC1, properties={**NIC, "failover_pair_id": prop("nic0")}), backends=USER),
        ["standby of another device"],
    ),
    "an object that cannot be read": (
        plugged(replace(DISK1, properties={**DISK, "iothread": prop("/objects/k", None, "link<iothread>")})),
        ["object k"],
    ),
    "a link elsewhere": (
        plugged(replace(DISK1, properties={**DISK, "iothread": prop("/machine/x", None, "link<iothread>")})),
        ["iothread is /machine/x"],
    ),
    "a back end taken away": (replace(AT_START, backends={}), ["virtio-net-pci nic0 has lost net0"]),
    "a vCPU of the start taken out": (
        replace(AT_START, cpus=({"qom-path": "/machine/unattached/x", "vcpus-count": 0},)),
        ["vCPU"],
    ),
    "a disk on another image": (SNAPSHOT, ["disk disk0 is on /srv/snap.qcow2 now, not on /srv/root.img", "snapshot"]),
    "a disk on another image, told in JSON": (
        replace(
            SNAPSHOT,
            nodes=AT_START.nodes
            | nodes(Node("#block8", "qcow2", 'json:{"driver":"qcow2","file":{"filename":"/srv/o"}}')),
        ),
        ["disk disk0 is on json:"],
    ),
    "a medium that cannot be told": (in_drive(raw("#block7", "nbd://h/x")), ["medium in cd was changed"]),
    "QEMU tells nothing": (Devices(), ["does not tell its devices"]),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_built_again_with_certainty_is_refused_by_name(case: str) -> None:
    devices, words = REFUSED[case]
    (refusal,) = compare(devices).refusals
    for word in words:
        assert word in refusal


def test_a_virtio_disk_of_drive_cannot_be_pinned() -> None:
    argv = [*ARGV, "-drive", "if=virtio,file=/srv/b.img"]
    drive = replace(device("device[1]", "virtio-blk-pci"), place={"addr": 7 << 3})
    found = without("nic0")
    (refusal,) = compare(replace(found, devices={**found.devices, drive.path: drive}), argv).refusals
    assert "if=virtio" in refusal


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (plugged(NIC1, backends=USER), "network interface that it made by itself"),
        (plugged(device("cd1", "scsi-cd", "scsi0.0")), "CD drive that it made by itself"),
    ],
)
def test_what_qemu_makes_by_itself_must_not_vanish(found: Devices, word: str) -> None:
    argv = ["qemu", "-device", "virtio-rng-pci", "-device", "virtio-scsi-pci,id=scsi0"]
    (refusal,) = compare(replace(found, drives=()), argv).refusals
    assert word in refusal


@pytest.mark.parametrize("name", list(ALL))
def test_guests_of_other_programs_that_were_not_changed_stay_as_they_are(name: str) -> None:
    command = CommandLine.parse(ALL[name])
    drives, known = [], {}
    for number, disk in enumerate(disks(command)):
        node = disk.id if disk.option.name == "blockdev" and disk.id else f"#block{number}"
        if disk.path is not None:
            known[node] = raw(node, disk.path)
        removable = disk.role in {"cdrom", "floppy"}
        label = (disk.id if disk.option.name == "drive" else None) or (
            "" if disk.option.name == "blockdev" else f"d{number}"
        )
        if disk.role != "backing":
            drives.append(Drive(label, f"/machine/unattached/{number}", removable, node if disk.path else None))
    for option in command.named("blockdev"):
        node = option.properties().get("node-name") or ""
        known.setdefault(node, raw(node, "/below"))
    found = Devices(
        {path: Device(path, "x") for path in given_devices(command).paths()},
        known,
        drives,
        {option.properties().get("id") or "": NetBackend("x", "") for option in command.named("netdev")},
        {option.properties().get("id") or "": "x" for option in command.named("object")},
    )
    present = as_it_is(command, found)
    assert present.command.argv() == ALL[name]
    assert present.refusals == ()
