"""Disks and character devices, in all of QEMU's notations."""

from __future__ import annotations

import pytest

from qmp_migrate.errors import UsageError
from qmp_migrate.vm.commandline.chardevs import OldNotation, chardevs, monitors
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.disks import disks
from qmp_migrate.vm.commandline.filenames import local_path, rewrite_filename
from tests.support.data.command_lines import BY_HAND, LIBVIRT, PROXMOX


def _disks(*words: str) -> list[tuple[str | None, str | None, bool, str]]:
    return [(d.path, d.format, d.writable, d.role) for d in disks(CommandLine.parse(["qemu", *words]))]


def test_libvirts_block_graph() -> None:
    assert _disks(*LIBVIRT[1:]) == [
        ("/usr/share/OVMF/CODE.fd", "raw", False, "pflash"),
        ("/var/lib/libvirt/web_VARS.fd", "raw", True, "pflash"),
        ("/srv/images/web.qcow2", "qcow2", True, "disk"),
        ("/srv/images/base.qcow2", "qcow2", False, "backing"),
    ]
    found = {disk.path: disk for disk in disks(CommandLine.parse(LIBVIRT))}
    assert found["/srv/images/web.qcow2"].id == "libvirt-1-format"
    assert found["/srv/images/web.qcow2"].direct
    assert not found["/srv/images/base.qcow2"].direct


def test_proxmoxs_drives() -> None:
    assert _disks(*PROXMOX[1:]) == [
        (None, None, False, "cdrom"),
        ("/dev/pve/vm-100-disk-0", "raw", True, "disk"),
    ]
    assert disks(CommandLine.parse(PROXMOX))[1].direct


def test_short_forms_and_a_bare_image() -> None:
    assert _disks(*BY_HAND[1:]) == [
        ("/srv/a/web.img", None, True, "disk"),
        ("/srv/a/install.iso", None, False, "cdrom"),
        ("/usr/share/code.fd", "raw", False, "pflash"),
        ("/srv/a/extra.img", None, True, "disk"),
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-drive", "file=/a,,b.img,format=qcow2"], ("/a,b.img", "qcow2", True, "disk")),
        (["-drive", "file.filename=/a,file.driver=file,driver=qcow2,read-only=on"], ("/a", "qcow2", False, "disk")),
        (["-drive", "file=nbd://h/x,format=raw"], (None, "raw", True, "disk")),
        (["-drive", "file=file:/a:b,format=raw"], ("/a:b", "raw", True, "disk")),
        (["-drive", 'file=json:{"driver":"qcow2",,"file":{"filename":"/j"}}'], ("/j", None, True, "disk")),
        (["-blockdev", "qcow2,node-name=d,file.driver=file,file.filename=/n"], ("/n", "qcow2", True, "disk")),
        (["-blockdev", "file,node-name=d,filename=/n,read-only=on"], ("/n", "raw", False, "disk")),
        (["-blockdev", "nbd,node-name=d,server.type=unix,server.path=/s"], (None, "raw", True, "disk")),
        (
            [
                *("-blockdev", "driver=throttle,node-name=t,throttle-group=g,file=q"),
                *("-blockdev", "driver=qcow2,node-name=q,file=f", "-blockdev", "driver=file,node-name=f,filename=/t"),
            ],
            ("/t", "qcow2", True, "disk"),
        ),
        (["-blockdev", "file,node-name=c,filename=/c", "-device", "scsi-cd,drive=c"], ("/c", "raw", False, "cdrom")),
    ],
)
def test_one_disk(words: list[str], expected: tuple[str | None, str | None, bool, str]) -> None:
    assert _disks(*words) == [expected]


def test_a_graph_that_refers_to_itself_ends() -> None:
    words = ["-blockdev", "driver=raw,node-name=a,file=b", "-blockdev", "driver=raw,node-name=b,file=a"]
    top = [
        "-blockdev",
        "driver=qcow2,node-name=t,file=a,backing=t2",
        "-blockdev",
        "qcow2,node-name=t2,backing=t2,file=a",
    ]
    assert len(_disks(*words, *top)) < 1000


def test_temporary_drives() -> None:
    assert disks(CommandLine.parse(["qemu", "-drive", "file=/a,snapshot=on"]))[0].temporary


@pytest.mark.parametrize(
    ("filename", "path", "rewritten"),
    [
        ("/a/b", "/a/b", "</a/b>"),
        ("a.img", "a.img", "<a.img>"),
        ("./x:y", "./x:y", "<./x:y>"),
        ("file:/a", "/a", "file:</a>"),
        ("host_device:/dev/sdb", "/dev/sdb", "host_device:</dev/sdb>"),
        ("fat:rw:/dir", None, "fat:rw:</dir>"),
        ("nbd:unix:/s.sock:exportname=e", None, "nbd:unix:</s.sock>:exportname=e"),
        ("nbd:host:10809", None, "nbd:host:10809"),
        ("nbd+unix:///e?socket=/run/x", None, "nbd+unix:///e?socket=%3C/run/x%3E"),
        ("https://h/a.img", None, "https://h/a.img"),
        ("iscsi://h/t/0", None, "iscsi://h/t/0"),
        ("rbd:pool/image:id=admin", None, "rbd:pool/image:id=admin"),
        ('json:{"driver":"file","filename":"/j"}', "/j", 'json:{"driver":"file","filename":"</j>"}'),
        ("", None, ""),
    ],
)
def test_file_names(filename: str, path: str | None, rewritten: str) -> None:
    assert local_path(filename) == path
    assert rewrite_filename(filename, lambda found: f"<{found}>") == rewritten


@pytest.mark.parametrize(
    "text",
    [
        *("stdio", "mon:stdio", "pty", "none", "null", "vc:80Cx24C", "chardev:c0", "/dev/ttyS0", "file:/a,b:c"),
        *("unix:/a,,b,server=on,wait=off", "unix:/a,,,server", "tcp::4444,server,nowait", "udp:h:1@l:2", "unix:", ""),
        *("telnet:[::1]:23,server", "tcp::1", "pipe:/p", "mon:unix:/m", "msmouse", "websocket:h:1,server=on"),
    ],
)
def test_old_notation_comes_back(text: str) -> None:
    assert str(OldNotation.parse(text)) == text


def test_character_devices() -> None:
    words = [
        *("-chardev", "socket,id=c0,path=/c,server=on,wait=off", "-chardev", "file,id=c1,path=/l"),
        *(
            "-serial",
            "unix:/a,,b,server",
            "-serial",
            "chardev:c1",
            "-gdb",
            "tcp::1234",
            "-serial",
            "mon:telnet:[::1]:23,server",
        ),
    ]
    found = chardevs(CommandLine.parse(["qemu", *words]))
    assert [(c.backend, c.id, c.path, c.host, c.port, c.server, c.waits) for c in found] == [
        ("socket", "c0", "/c", None, None, True, False),
        ("file", "c1", "/l", None, None, False, False),
        ("socket", None, "/a,b", None, None, True, True),
        ("chardev", "c1", None, None, None, False, False),
        ("socket", None, None, "", "1234", True, False),
        ("socket", None, None, "::1", "23", True, True),
    ]


def test_monitors_of_all_kinds() -> None:
    words = [
        *("-chardev", "socket,id=c0,path=/c,server=on,wait=off", "-mon", "chardev=c0,mode=control"),
        *("-chardev", "stdio,id=c1", "-mon", "c1", "-qmp", "unix:/q,server,nowait", "-qmp-pretty", "chardev:c0"),
        *("-monitor", "none", "-mon", "chardev=absent", "-monitor", "stdio"),
        *("-object", "monitor-qmp,id=m,chardev=c0", "-object", '{"qom-type":"monitor-hmp","id":"h","chardev":"c1"}'),
    ]
    found = monitors(CommandLine.parse(["qemu", *words]))
    assert [(m.mode, m.chardev.backend, m.chardev.path) for m in found] == [
        ("control", "socket", "/c"),
        ("readline", "stdio", None),
        ("control", "socket", "/q"),
        ("control", "socket", "/c"),
        ("readline", "stdio", None),
        ("control", "socket", "/c"),
        ("readline", "stdio", None),
    ]


def test_unreadable_json_is_an_error_of_ours() -> None:
    with pytest.raises(UsageError):
        disks(CommandLine.parse(["qemu", "-blockdev", "{'driver':'file'}"]))
