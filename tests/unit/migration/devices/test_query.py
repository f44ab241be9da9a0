"""What a running QEMU tells of its devices, understood; the words are those of QEMU 7.2 and 10.0."""

from __future__ import annotations

from typing import Any

import pytest

from qmp_migrate.errors import MonitorError
from qmp_migrate.migration.devices.diff import Present
from qmp_migrate.migration.preflight import device_rules
from qmp_migrate.qemu import devices
from qmp_migrate.qemu.devices import Device, Devices, Drive, NetBackend
from qmp_migrate.vm.commandline.command_line import CommandLine
from tests.support.fakes.fake_qemu import Fails, FakeQemu
from tests.support.fakes.monitors import connected

TREE = {
    "/machine/peripheral": [("type", "string"), ("vd1", "child<virtio-blk-pci>"), ("scsi0", "child<virtio-scsi-pci>")],
    "/machine/peripheral-anon": [("type", "string"), ("device[0]", "child<virtio-rng-pci>")],
    "/objects": [("mem1", "child<memory-backend-ram>")],
    "/objects/mem1": [("size", "int"), ("share", "bool"), ("mem[0]", "child<memory-region>")],
    "/machine/peripheral/vd1": [("drive", "str"), ("addr", "int32"), ("x-own", "bool"), ("virtio-backend", "child<v>")],
    "/machine/peripheral/scsi0": [("addr", "int32"), ("vectors", "uint32")],
    "/machine/peripheral-anon/device[0]": [("addr", "int32")],
}
VALUES = {
    ("/machine/peripheral/vd1", "hotplugged"): True,
    ("/machine/peripheral/vd1", "parent_bus"): "/machine/peripheral/rp1/rp1",
    ("/machine/peripheral/vd1", "drive"): "hd1",
    ("/machine/peripheral/vd1", "addr"): 0,
    ("/machine/peripheral/scsi0", "hotplugged"): False,
    ("/machine/peripheral/scsi0", "parent_bus"): "/machine/q35/pcie.0",
    ("/machine/peripheral/scsi0", "addr"): 32,
    ("/machine/peripheral-anon/device[0]", "parent_bus"): "/machine/q35/pcie.0",
    ("/machine/peripheral-anon/device[0]", "addr"): 40,
    ("/objects/mem1", "size"): 1 << 27,
    ("/objects/mem1", "share"): False,
    ("/machine", "type"): "pc-q35-7.2-machine",
}
NETWORK = (
    "nic1: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:11:22:33\r\n"
    " \\ n1: index=0,type=user,net=10.0.2.0,restrict=off\r\n"
    "t1: index=0,type=tap,ifname=tap0,script=no,downscript=no\r\n"
    "t1: index=1,type=tap,ifname=tap0,script=no,downscript=no\r\n"
    "hub 0\r\n \\ hub0port0: user.0: index=0,type=user,net=10.0.2.0,restrict=on\r\n"
)
USERNET = (
    "Hub -1 (n1):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
    "  TCP[HOST_FORWARD]  13       127.0.0.1 33221       10.0.2.15    22     0     0\r\n"
    "  UDP[HOST_FORWARD]  14               *    53       10.0.2.15    53     0     0\r\n"
)


def node(name: str, driver: str) -> dict[str, Any]:
    return {
        "node-name": name,
        "drv": driver,
        "file": "/srv/d.img",
        "ro": False,
        "encrypted": False,
        "detect_zeroes": "off",
        "iops": 0,
        "bps": 1000 if name == "slow" else 0,
        "cache": {"direct": True, "no-flush": False, "writeback": True},
        "image": {"virtual-size": 4096},
    }


def talkative() -> FakeQemu:
    """Return a QEMU with a disk that was plugged in."""
    qemu = FakeQemu()

    def listed(arguments: dict[str, Any]) -> Any:
        found = TREE.get(arguments["path"])
        return Fails("Device not found") if found is None else [{"name": n, "type": t} for n, t in found]

    def got(arguments: dict[str, Any]) -> Any:
        return VALUES.get((arguments["path"], arguments["property"]), Fails("Property not found"))

    qemu.on("qom-list", listed)
    qemu.on("qom-get", got)
    qemu.on(
        "query-block",
        [
            {
                "device": "",
                "qdev": "/machine/peripheral/vd1/virtio-backend",
                "removable": False,
                "inserted": node("hd1", "raw"),
            },
            {"device": "cd0", "qdev": "cdrom0", "removable": True, "tray_open": True},
        ],
    )
    qemu.on("query-named-block-nodes", [node("hd1", "raw"), node("#block1", "file"), node("slow", "raw")])
    graph = {
        "nodes": [
            {"id": 1, "name": "hd1", "type": "block-driver"},
            {"id": 2, "name": "#block1", "type": "block-driver"},
            {"id": 3, "name": "/machine/peripheral/vd1/virtio-backend", "type": "block-backend"},
        ],
        "edges": [{"name": "file", "parent": 1, "child": 2}, {"name": "root", "parent": 3, "child": 1}],
    }
    qemu.on("x-debug-query-block-graph", graph)
    qemu.on("query-hotpluggable-cpus", Fails("machine does not support hot-plugging CPUs"))
    qemu.on("human-monitor-command", lambda a: USERNET if a["command-line"] == "info usernet" else NETWORK)
    known = [
        {"name": "drive", "type": "str"},
        {"name": "addr", "type": "int32", "default-value": -1},
        {"name": "x-own", "type": "bool", "default-value": True},
        {"name": "virtio-backend", "type": "child<v>"},
        {"name": "realized", "type": "bool"},
    ]
    qemu.on("device-list-properties", known)
    compat = [{"qom-type": "virtio-net-device", "property": "host_uso", "value": "off"}]
    qemu.on("query-machines", [{"name": "pc-q35-7.2", "compat-props": compat}, {"name": "other"}])
    return qemu


async def looked(qemu: FakeQemu, *named: str, anonymous: int = 1) -> Devices:
    async with qemu, connected(qemu) as monitor:
        return await devices.look(monitor, named=frozenset(named), anonymous=anonymous)


async def test_everything_that_is_told_is_understood() -> None:
    found = await looked(talkative(), "scsi0")
    disk = found.devices["/machine/peripheral/vd1"]
    assert (disk.id, disk.driver, disk.hotplugged, disk.bus) == ("vd1", "virtio-blk-pci", True, "rp1")
    assert {name: (p.value, p.default) for name, p in disk.properties.items()} == {
        "drive": ("hd1", None),
        "addr": (0, -1),
    }
    unnamed = found.devices["/machine/peripheral-anon/device[0]"]
    assert (unnamed.id, unnamed.hotplugged, unnamed.bus) == (None, False, "pcie.0")
    assert found.drives == [
        Drive("", "/machine/peripheral/vd1/virtio-backend", False, "hd1"),
        Drive("cd0", "cdrom0", True, None),
    ]
    assert found.nodes["hd1"].children == {"file": "#block1"}
    assert found.nodes["hd1"].direct
    assert [name for name, one in found.nodes.items() if one.limited] == ["slow"]
    assert found.backends == {
        "n1": NetBackend("user", "net=10.0.2.0,restrict=off"),
        "t1": NetBackend("tap", "ifname=tap0,script=no,downscript=no", 2),
        "user.0": NetBackend("user", "net=10.0.2.0,restrict=on"),
    }
    assert found.forwards == {"n1": ["tcp:127.0.0.1:33221-10.0.2.15:22", "udp::53-10.0.2.15:53"]}
    assert (found.objects, found.settings) == (
        {"mem1": "memory-backend-ram"},
        {"mem1": {"size": 1 << 27, "share": False}},
    )
    assert found.machine_properties == {("host_uso", "off")}
    assert not unnamed.place, "nothing is gone, so nobody needs to be pinned"


@pytest.mark.parametrize(("named", "anonymous"), [(("scsi0", "lost"), 1), (("scsi0", "vd1"), 1), (("scsi0",), 2)])
async def test_where_something_is_gone_all_places_are_asked(named: tuple[str, ...], anonymous: int) -> None:
    found = await looked(talkative(), *named, anonymous=anonymous)
    assert found.devices["/machine/peripheral/scsi0"].place == {"addr": 32}
    assert found.devices["/machine/peripheral-anon/device[0]"].place == {"addr": 40}


async def test_what_an_older_qemu_does_not_tell_is_left_open() -> None:
    qemu = talkative()
    qemu.on("query-machines", Fails("Parameter 'compat-props' is unexpected"))
    qemu.on("x-debug-query-block-graph", Fails("not found"))
    found = await looked(qemu, "scsi0")
    assert found.machine_properties == frozenset()
    assert found.nodes["hd1"].children is None


async def test_an_answer_that_is_not_qemu_s_is_an_error_with_a_hint() -> None:
    qemu = talkative()
    qemu.on("query-block", [{"nothing": 1}])
    with pytest.raises(MonitorError) as caught:
        await looked(qemu)
    assert caught.value.hint


# -- what preflight says ----------------------------------------------------------------------------------------------

NVME = Devices(
    {d.path: d for d in (Device("/machine/peripheral/nv0", "nvme"), Device("/machine/peripheral/iv0", "ivshmem-plain"))}
)


@pytest.mark.parametrize(
    ("reason", "subject", "advice"),
    [
        ("non-migratable device: 0000:00:01.0/nvme", "QEMU cannot move nvme nv0: ", "virtio-blk"),
        ("Migration is disabled when using feature 'peer mode' in device 'ivshmem'", "ivshmem-plain iv0", "master=on"),
        ("non-migratable device: 0000:00:04.0/usb-host", "QEMU cannot move usb-host", "device_del"),
        ("Migration is disabled when VirtFS export path '/x' is mounted in the guest", "refuses", "unmount"),
        ("The vmdk format used by node 'd' does not support live migration", "refuses", "qcow2"),
        ("State blocked by non-migratable CPU device (invtsc flag)", "refuses", "invtsc"),
        ("0000:01:00.0: VFIO device doesn't support device dirty tracking: vfio", "refuses", "unplug"),
        ("something new", "QEMU refuses to migrate it: something new", "remove or replace"),
    ],
)
def test_a_device_that_qemu_cannot_move_is_named_with_what_to_do(reason: str, subject: str, advice: str) -> None:
    ((text, hint),) = device_rules.blocked([reason], NVME)
    assert subject in text
    assert reason in text
    assert advice in hint


def test_a_device_that_the_other_qemu_cannot_receive() -> None:
    command = CommandLine.parse(["qemu", "-device", "igb,id=n1", "-device", "nvme,id=nv0,drive=e"])
    assert [text for text, _ in device_rules.not_received(command, "10.0.2")] == ["QEMU 10.0.2 cannot receive nvme nv0"]
    assert not list(device_rules.not_received(command, "11.1.3"))


def test_what_changed_is_told_and_what_is_refused_is_all_that_is_told() -> None:
    command = CommandLine("qemu")
    assert list(device_rules.changed(Present(command))) == [("ok", "its devices are those of its command line")]
    told = list(device_rules.changed(Present(command, ("a was plugged in",), ("w",))))
    assert told == [("warn", "w"), ("ok", "changed since its start, and taken over: a was plugged in")]
    assert list(device_rules.changed(Present(command, ("c",), (), ("r",)))) == [("fail", "r")]
