"""Paths and listening addresses: found wherever QEMU has them, and nowhere else."""

from __future__ import annotations

import pytest

from qmp_migrate.vm.commandline.command_line import CommandLine, Option
from qmp_migrate.vm.commandline.listen_addresses import rewrite_listeners
from qmp_migrate.vm.commandline.paths import PathKind, PathUse, required_paths, rewrite_paths
from tests.support.data.command_lines import ALL, LIBVIRT, PROXMOX
from tests.support.data.path_places import PLACES


@pytest.mark.parametrize(("flag", "argument", "kind"), PLACES)
def test_every_place_of_a_path(flag: str, argument: str, kind: PathKind) -> None:
    seen: list[tuple[str, PathKind]] = []

    def change(path: str, found: PathKind) -> str:
        seen.append((path, found))
        return "/elsewhere/file"

    rewritten = rewrite_paths(Option(flag, argument.format("/srv/x", "/srv/x")), change)
    assert rewritten == Option(flag, argument.format("/elsewhere/file", "/elsewhere/file"))
    assert [path for path, _ in seen] == ["/srv/x"] * argument.count("{}")
    assert {found for _, found in seen} == {kind}


@pytest.mark.parametrize(
    ("flag", "argument"),
    [
        ("-append", "root=/srv/x init=/srv/x"),
        ("-append", "/srv/x"),
        ("-device", "virtio-blk-pci,drive=d,serial=/srv/x"),
        ("-device", "virtio-9p-pci,fsdev=f,mount_tag=/srv/x"),
        ("-smbios", "type=1,product=/srv/x"),
        ("-fw_cfg", "name=opt/x,string=/srv/x"),
        ("-name", "guest=/srv/x"),
        ("-netdev", "user,id=n,bootfile=/srv/x"),
        ("-drive", "file=ssh://h/srv/x"),
        ("-blockdev", "driver=ssh,server.host=h,server.port=22,path=/srv/x,node-name=s"),
        ("-blockdev", '{"driver":"nfs","server":{"type":"inet","host":"h"},"path":"/srv/x","node-name":"n"}'),
        ("-blockdev", "driver=qcow2,node-name=q,file=/srv/x"),
        ("-bios", "bios-256k.bin"),
        ("-device", "virtio-net-pci,romfile=efi-virtio.rom"),
        ("-netdev", "tap,id=n,script=no,downscript=no"),
        ("-chardev", "socket,id=a,path=name,abstract=on"),
        ("-serial", "stdio"),
        ("-vnc", "127.0.0.1:1"),
        ("-snapshot", None),
    ],
)
def test_what_is_no_path_of_the_host_stays(flag: str, argument: str | None) -> None:
    option = Option(flag, argument)
    assert rewrite_paths(option, lambda path, _kind: pytest.fail(f"took {path} for a path")) == option


@pytest.mark.parametrize("argv", ALL.values(), ids=ALL)
def test_looking_changes_nothing(argv: list[str]) -> None:
    for option in CommandLine.parse(argv).options:
        assert rewrite_paths(option, lambda path, _kind: path) is option or (
            rewrite_paths(option, lambda path, _kind: path) == option
        )
        assert rewrite_listeners(option, lambda address: address) == option


def test_required_paths_of_libvirts_guest() -> None:
    assert required_paths(CommandLine.parse(LIBVIRT)) == [
        PathUse("/usr/share/OVMF/CODE.fd", "firmware", False, "raw"),
        PathUse("/var/lib/libvirt/web_VARS.fd", "firmware", True, "raw"),
        PathUse("/srv/images/web.qcow2", "disk", True, "qcow2"),
        PathUse("/srv/images/base.qcow2", "disk", False, "qcow2"),
        PathUse("/var/lib/libvirt/qemu/web/key.aes", "other", False),
    ]


def test_required_paths_of_proxmoxs_guest() -> None:
    uses = {use.path: use for use in required_paths(CommandLine.parse(PROXMOX))}
    assert uses["/dev/pve/vm-100-disk-0"] == PathUse("/dev/pve/vm-100-disk-0", "disk", True, "raw")
    assert "/var/lib/qemu-server/pve-bridge" in uses
    assert "/var/run/qmeventd.sock" not in uses  # it goes on trying to connect there
    assert "/var/run/qemu-server/100.qmp" not in uses  # it listens there
    assert "/var/run/qemu-server/100.pid" not in uses


def test_a_path_used_twice_is_listed_once_and_writable() -> None:
    command = CommandLine.parse(["qemu", "-cdrom", "/a", "-hda", "/a", "-kernel", "/k", "-bios", "bios.bin"])
    assert required_paths(command) == [PathUse("/a", "disk", True), PathUse("/k", "kernel", False)]


@pytest.mark.parametrize(
    ("flag", "argument"),
    [
        ("-vnc", "{}:1"),
        ("-vnc", "{}:1,password=on"),
        ("-display", "vnc={}:1"),
        ("-spice", "port=5900,addr={}"),
        ("-chardev", "socket,id=a,host={},port=1,server=on"),
        ("-chardev", "udp,id=a,host=h,port=1,localaddr={}"),
        ("-serial", "tcp:{}:4444,server,nowait"),
        ("-monitor", "telnet:{}:4444,server"),
        ("-serial", "udp:h:1@{}:2"),
        ("-gdb", "tcp:{}:1234"),
        ("-netdev", "socket,id=n,listen={}:1"),
        ("-netdev", "socket,id=n,mcast=230.0.0.1:1,localaddr={}"),
        ("-netdev", "stream,id=n,server=on,addr.type=inet,addr.host={},addr.port=1"),
        ("-netdev", "dgram,id=n,local.type=inet,local.host={},local.port=1"),
        ("-netdev", "user,id=n,hostfwd=tcp:{}:2222-10.0.2.15:22"),
        ("-netdev", '{{"type":"user","id":"n","hostfwd":[{{"str":"tcp:{}:22-:22"}}]}}'),
        ("-nic", "hostfwd=udp:{}:53-:53"),
    ],
)
def test_every_place_of_a_listening_address(flag: str, argument: str) -> None:
    swapped = rewrite_listeners(
        Option(flag, argument.format("127.0.0.2")), lambda address: address.replace("127.0.0.2", "127.0.0.3")
    )
    assert swapped == Option(flag, argument.format("127.0.0.3"))


@pytest.mark.parametrize(
    ("flag", "argument"),
    [
        ("-chardev", "socket,id=a,host=127.0.0.2,port=1"),
        ("-chardev", "socket,id=a,host=127.0.0.2,port=1,reconnect=1"),
        ("-serial", "tcp:127.0.0.2:4444"),
        ("-netdev", "socket,id=n,connect=127.0.0.2:1"),
        ("-netdev", "stream,id=n,server=off,addr.type=inet,addr.host=127.0.0.2,addr.port=1"),
        ("-netdev", "user,id=n,guestfwd=tcp:10.0.2.1:1-tcp:127.0.0.2:1"),
        ("-append", "ip=127.0.0.2"),
        ("-vnc", "none"),
        ("-vnc", "unix:/127.0.0.2:1"),
        ("-drive", "file=nbd://127.0.0.2/x"),
    ],
)
def test_where_qemu_connects_stays(flag: str, argument: str) -> None:
    option = Option(flag, argument)
    assert rewrite_listeners(option, lambda address: pytest.fail(f"took {address} for ours")) == option


def test_ipv6_keeps_its_brackets() -> None:
    assert rewrite_listeners(Option("-vnc", "[::1]:1"), lambda _old: "fe80::2").value == "[fe80::2]:1"
    assert rewrite_listeners(Option("-vnc", "127.0.0.2:1"), lambda _old: "fe80::2").value == "[fe80::2]:1"
    assert rewrite_listeners(Option("-vnc", ":1"), lambda old: old or "10.0.0.1").value == "10.0.0.1:1"
