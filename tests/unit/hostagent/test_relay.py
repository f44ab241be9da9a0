"""The relay: what the controller sends is done, and nothing else. Behind a real sshd: `tests/component/test_relay.py`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostagent.relay import qmp_filter, script_registry
from hostagent.relay import request as relay_request
from hostagent.relay.argument_rules import Refused, path_below
from hostagent.relay.entry import main as entry
from hostagent.relay.executor import _check_lock
from hostagent.relay.qemu_args_policy import check_command_line
from hostagent.relay.request import PROBE, Request, understand
from hostagent.relay.settings import Allowed, BadSettings, read
from qmp_migrate.hosts import files, lock_scripts, process_scripts
from qmp_migrate.hosts import shell_command as host_command
from qmp_migrate.hosts.fenced import FENCE
from qmp_migrate.hosts.shell_command import behind_login_shell, script_argv
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.migration.preflight import host_facts

KNOWN = relay_request.load()
QEMU = "/usr/bin/qemu-system-x86_64"
BOOT = "0b0e4f0e-6a55-4a55-9d5b-1f6f0b1f7a10"
GOOD = [
    *("-nodefaults", "-no-user-config", "-display", "none", "-name", "guest=web1", "-uuid", BOOT),
    *(
        "-machine",
        "type=pc-q35-7.2",
        "-accel",
        "tcg",
        "-cpu",
        "qemu64-v1",
        "-m",
        "size=64M",
        "-smp",
        "cpus=1,maxcpus=1",
    ),
    *("-kernel", "/boot/vmlinuz", "-append", "console=ttyS0 root=/dev/vda", "-bios", "qboot.rom"),
    *("-S", "-incoming", "defer"),
]


@pytest.fixture
def allowed(tmp_path: Path) -> Allowed:
    for name in ("run/web1/tls", "run/.locks", "images", "qcow2", "boot"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (tmp_path / "images/out").symlink_to(tmp_path / "secret")
    (tmp_path / "run/link").symlink_to("/etc")
    return Allowed(
        str(tmp_path / "run"),
        (str(tmp_path / "images"),),
        (str(tmp_path / "qcow2"),),
        (str(tmp_path / "boot"), "/boot"),
        (QEMU,),
    )


def asked(source: str, *args: str) -> str:
    return shlex.join(behind_login_shell(script_argv(source, args), 10.0))


def request(command: str, allowed: Allowed) -> Request:
    return understand(command, allowed, KNOWN)


def argv(allowed: Allowed, *more: str) -> list[str]:
    directory = f"{allowed.run_dir}/web1"
    monitors = []
    for name in ("qmp", "agent"):
        monitors += ["-chardev", f"socket,id={name},path={directory}/{name}.sock,server=on,wait=off"]
        monitors += ["-mon", f"chardev={name},mode=control"]
    return [QEMU, *GOOD, *monitors, *more]


def test_the_scripts_that_are_known_are_those_that_are_sent() -> None:
    assert script_registry.FILE.read_text() == script_registry.written(), (
        "run: python -m hostagent.relay.script_registry"
    )


def test_what_the_controller_sends_is_done_as_it_was_sent(allowed: Allowed) -> None:
    guest = f"{allowed.run_dir}/web1"
    command = asked(process_scripts.IDENTIFY, guest)
    assert request(command, allowed).argv == tuple(shlex.split(command))
    epoch = f"{allowed.run_dir}/.locks/web1.epoch"
    assert request(asked(FENCE + process_scripts.DISCARD, epoch, "3", guest), allowed).how == "run"
    assert request(asked(guest_locks._BUMP, epoch, "0", "migration m-1"), allowed).how == "run"
    for script in (process_scripts.KILL, process_scripts.KILL_CLOSED):
        kill = request(asked(script, "17", "1234", BOOT, "100", "KILL"), allowed)
        assert kill.guests_pid == ("17", "1234")
    probe = [QEMU, *(word or "tcg" for word in PROBE)]
    assert request(shlex.join(behind_login_shell(probe, 10.0)), allowed).input_digest == KNOWN["questions"]
    with_ring = ["kvm,dirty-ring-size=4096" if word == "tcg" else word for word in probe]
    assert request(shlex.join(behind_login_shell(with_ring, 10.0)), allowed).input_digest == KNOWN["questions"]
    through_a_file = asked(host_facts._PROBE, allowed.run_dir, *probe)
    assert request(through_a_file, allowed).input_digest == KNOWN["questions"]
    for refused in (["/bin/sh", *probe[1:]], [*probe, "-daemonize"], probe[:1], []):
        with pytest.raises(Refused):
            request(asked(host_facts._PROBE, allowed.run_dir, *refused), allowed)
    with pytest.raises(Refused):
        request(asked(host_facts._PROBE, "/etc", *probe), allowed)
    for accelerator in ("kvm,dirty-ring-size=/x", "kvm,device=/dev/x", "tcg,dirty-ring-size=4096", "qtest"):
        other = [accelerator if word == "tcg" else word for word in probe]
        with pytest.raises(Refused):
            request(shlex.join(behind_login_shell(other, 10.0)), allowed)
    words = argv(allowed)
    launch = asked(process_scripts.LAUNCH, guest, "2000", "qmp.sock", "qemu.log", "9", *words)
    assert request(launch, allowed).record == tuple(words)
    assert request(shlex.join(["qmp-relay", "connect", f"{guest}/qmp.sock"]), allowed).how == "connect"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "sh",
        "bash -i",
        "id",
        "sh -c id",
        "scp -t /tmp",
        "/usr/lib/openssh/sftp-server",
        "internal-sftp",
        "qmp-relay connect /etc/passwd",
        "qmp-relay connect",
        "qmp-relay connect a b",
        "sh -c 'id' sh",
        "'unfinished",
        "a\nb",
        f"{QEMU} -monitor stdio",
    ],
)
def test_anything_else_is_refused(command: str, allowed: Allowed) -> None:
    with pytest.raises(Refused):
        request(command, allowed)


def test_the_same_words_in_another_notation_are_refused(allowed: Allowed) -> None:
    command = asked(process_scripts.LIST, allowed.run_dir)
    request(command, allowed)
    for other in (
        f"{command}; id",
        f"{command} && id",
        f"{command} $(id)",
        f"{command}\nid",
        f" {command}",
        f"{command} >x",
    ):
        with pytest.raises(Refused):
            request(other, allowed)


@pytest.mark.parametrize(
    ("source", "args"),
    [
        (files.READ, ["/etc/passwd", "0", "10"]),
        (files.READ, ["{run}/../secret", "0", "10"]),
        (files.READ, ["{run}/web1/../../secret", "0", "10"]),
        (files.READ, ["{run}/link/passwd", "0", "10"]),
        (files.READ, ["{run}/.locks/web1.epoch", "0", "10"]),
        (files.READ, ["{run}/web1/tls-m1/keys.psk", "0", "10"]),
        (files.WRITE, ["{run}/web1/a\nb", "0600", "1"]),
        (files.WRITE, ["{run}/web1/pid", "0600", "1"]),
        (files.WRITE, ["{run}/web1/argv.json", "0600", "1"]),
        (files.WRITE, ["{run}/web1/x/serial.log.1", "0600", "1"]),
        (files.WRITE, ["{run}/.locks/serial.log.1", "0600", "1"]),
        (files.WRITE, ["{run}/web1", "0600", "1"]),
        (files.WRITE, ["{run}/web1/x", "u+s", "1"]),
        (process_scripts.IDENTIFY, ["{run}/link"]),
        (process_scripts.IDENTIFY, ["{run}/.."]),
        (process_scripts.IDENTIFY, ["{run}/web1/tls"]),
        (process_scripts.IDENTIFY, ["{run}/web1", "more"]),
        (process_scripts.IDENTIFY, []),
        (process_scripts.KILL, ["-1", "0", BOOT, "1", "KILL"]),
        (process_scripts.KILL, ["1;id", "0", BOOT, "1", "KILL"]),
        (process_scripts.LIST, ["/"]),
        (guest_locks._BUMP, ["{run}/.locks/../x.epoch", "0", "x"]),
        (guest_locks._BUMP, ["{run}/.locks/x.sh", "0", "x"]),
        (guest_locks._BUMP, ["{run}/.locks/x.epoch", "0", "two\nlines"]),
        (guest_locks._BUMP, ["{run}/.locks/x.lock", "0", "x"]),
        (lock_scripts.END_HOLDER, ["{run}/.locks/x.epoch", "123"]),
    ],
)
def test_a_known_script_with_other_arguments_is_refused(source: str, args: list[str], allowed: Allowed) -> None:
    with pytest.raises(Refused):
        request(asked(source, *(arg.replace("{run}", allowed.run_dir) for arg in args)), allowed)


def test_a_script_that_differs_by_one_character_is_unknown(allowed: Allowed) -> None:
    for source in (process_scripts.LIST + " ", process_scripts.LIST.replace("cd", "rm", 1) + "#", FENCE + "id"):
        with pytest.raises(Refused, match="does not know"):
            request(asked(source, allowed.run_dir), allowed)


HOSTILE: list[list[str]] = [
    ["-monitor", "stdio"],
    ["-monitor", "unix:/tmp/x,server"],
    ["-qmp", "tcp:0.0.0.0:4444,server"],
    ["-gdb", "tcp::1234"],
    ["-s"],
    ["-plugin", "/tmp/x.so"],
    ["-readconfig", "/etc/passwd"],
    ["-incoming", "exec:id"],
    ["-incoming", "tcp:0:1"],
    ["-runas", "root"],
    ["-chroot", "/"],
    ["-daemonize"],
    ["-D", "/etc/x"],
    ["-trace", "file=/etc/x"],
    ["-netdev", "tap,id=n,ifname=t,script=/tmp/x,downscript=no"],
    ["-netdev", "tap,id=n,ifname=t"],
    ["-netdev", "user,id=n,smb=/etc"],
    ["-netdev", "user,id=n,guestfwd=tcp:10.0.2.100:1-cmd:id"],
    ["-netdev", "user,id=n,tftp=/etc"],
    ["-netdev", "bridge,id=n,br=br0,helper=/tmp/x"],
    ["-netdev", "vhost-user,id=n,chardev=c"],
    ["-net", "nic"],
    ["-nic", "user"],
    ["-drive", "file=/etc/shadow,format=raw,if=none,id=d"],
    ["-drive", "file={images}/a"],
    ["-drive", "file={images}/a,format=qcow2,if=none,id=d"],
    ["-drive", "file={qcow2}/a,format=raw,if=none,id=d"],
    ["-drive", "file=/boot/iso,format=raw,if=none,id=d"],
    ["-blockdev", "driver=file,node-name=f,filename={images}/a"],
    ["-blockdev", "driver=file,node-name=f,filename={images}/a", "-blockdev", "driver=qcow2,node-name=d,file=f"],
    ["-blockdev", "driver=file,node-name=f,filename={qcow2}/a", "-blockdev", "driver=raw,node-name=d,file=f"],
    [
        *("-blockdev", "driver=file,node-name=f,filename={qcow2}/a", "-blockdev", "driver=qcow2,node-name=d,file=f"),
        *("-device", "virtio-blk-pci,drive=f"),
    ],
    [
        *("-blockdev", "driver=file,node-name=f,filename={images}/a", "-blockdev", "driver=raw,node-name=d,file=f"),
        *("-blockdev", "driver=raw,node-name=e,file=f"),
    ],
    [
        "-blockdev",
        "driver=file,node-name=f,filename={images}/a,locking=off",
        "-blockdev",
        "driver=raw,node-name=d,file=f",
    ],
    ["-drive", "file={images}/out,format=raw,if=none,id=d"],
    ["-drive", "file=fat:rw:/etc,format=raw"],
    ["-drive", "file=nbd:unix:/x,format=raw"],
    ["-drive", "file={images}/a,format=vmdk"],
    ["-drive", "file={images}/a,format=raw,file=/etc/shadow"],
    ["-drive", "driver=ssh,file=x,format=raw"],
    ["-blockdev", "driver=host_device,filename=/dev/sda,node-name=a"],
    ["-blockdev", '{"driver":"file","filename":"/etc/shadow","node-name":"a"}'],
    ["-blockdev", '{"driver":"qcow2","file":{"driver":"ssh","path":"/x"},"node-name":"a"}'],
    ["-blockdev", '{"driver":"raw","file":"json:{}","node-name":"a"}'],
    ["-device", "vfio-pci,host=0000:01:00.0"],
    ["-device", "usb-host,hostbus=1,hostaddr=1"],
    ["-device", "loader,file=/etc/shadow"],
    ["-device", "ivshmem-plain,memdev=m"],
    ["-device", "virtio-net-pci,romfile=/etc/shadow"],
    ["-device", '{"driver":"vhost-vsock-pci"}'],
    ["-device", r'{"driver":"virtio-net-pci","romfile":"\u002fetc\u002fshadow"}'],
    ["-device", r'{"driver":"virtio-net-pci","romfile":"\/etc\/shadow"}'],
    ["-device", r'{"driver":"nvme","x":{"y":"\u002fetc\u002fshadow"}}'],
    ["-device", r'{"driver":"virtio-input-host-pci","evdev":"\u002fdev\u002finput\u002fevent0"}'],
    ["-device", "virtio-net-pci,romfile=tls-key"],
    ["-device", "virtio-gpu-rutabaga-pci,wayland-socket-path=qmp.sock"],
    ["-device", "virtio-blk-pci,drive=#block123"],
    ["-device", ' {"driver":"virtio-net-pci"}'],
    ["-object", r'{"qom-type":"memory-backend-ram","id":"m","size":"\u002fx"}'],
    ["-netdev", r'{"type":"tap","id":"n","script":"no","downscript":"no","ifname":"\u002fx"}'],
    ["-global", "migration.mode=cpr-exec"],
    ["-global", "virtio-net-pci.romfile=tls-key"],
    ["-global", "driver=virtio-net-pci,property=romfile,value=tls-key"],
    ["-global", "virtio-net-pci.romfile=/etc/shadow"],
    ["-chardev", "socket,id=c,host=0.0.0.0,port=1,server=on"],
    ["-chardev", "socket,id=c,path={run}/web1/x.sock"],
    ["-chardev", "socket,id=c,path={run}/web1/x.sock,server=off"],
    ["-pflash", "{images}/a"],
    ["-chardev", "pipe,id=c,path=/tmp/x"],
    ["-chardev", "file,id=c,path=/etc/x"],
    ["-chardev", "file,id=c,path={run}/other/x"],
    ["-chardev", "file,id=c,path={run}/web1/pid"],
    ["-chardev", "file,id=c,path={run}/web1/argv.json"],
    ["-chardev", "socket,id=c,path={run}/web1/pid,server=on,wait=off"],
    ["-chardev", "spicevmc,id=c,name=x"],
    ["-object", "memory-backend-file,id=m,mem-path=/etc/x,size=1M"],
    ["-object", "secret,id=s,file=/etc/shadow"],
    ["-object", "filter-dump,id=f,netdev=n,file=/tmp/x"],
    ["-object", "input-linux,id=i,evdev=/dev/input/event0"],
    ["-object", "rng-random,id=r,filename=/etc/shadow"],
    ["-fw_cfg", "name=opt/x,file=/etc/shadow"],
    ["-smbios", "file=/etc/shadow"],
    ["-smbios", "type=11,path=/etc/shadow"],
    ["-acpitable", "file=/etc/shadow"],
    ["-kernel", "/etc/shadow"],
    ["-kernel", "{images}/a"],
    ["-initrd", "/boot/m,/etc/shadow"],
    ["-initrd", "/boot/m /etc/shadow"],
    ["-fw_cfg", "name=opt/x,file={images}/a"],
    ["-vnc", "127.0.0.1:77", "-vnc", ":0"],
    ["-vnc", "unix:0"],
    ["-vnc", "0.0.0.0:1"],
    ["-monitor", "chardev:agent"],
    ["-mon", "chardev=agent,mode=readline"],
    ["-mon", "chardev=agent"],
    ["-display", "none", "-display", "none"],
    ["-drive", "{images}/x,,file=json:x,format=raw,if=none,id=d"],
    ["-drive", "{images}/x,format=raw,if=none,id=d"],
    ["-device", "virtio-scsi-pci", "-device", "scsi-cd,nodrive"],
    ["-device", "virtio-net-pci,noromfile"],
    ["-chardev", "socket,id=c,path={run}/web1/x.sock,server"],
    ["-netdev", "user,id=n,hostfwd=unix:x-:22"],
    [
        *("-blockdev", "driver=file,node-name=off,filename={qcow2}/o", "-blockdev"),
        *("driver=qcow2,node-name=d,file=off,read-only=on",),
    ],
    ["-chardev", "file,id=c,path={run}/web1/pid.new"],
    ["-chardev", "file,id=c,path={run}/web1/argv.json.moved-1"],
    ["-device", "AC97"],
    ["-bios", "{run}/web1/x"],
    ["-bios", "./qboot.rom"],
    ["-bios", "other.rom"],
    ["-kernel", "qboot.rom"],
    ["-machine", "q35,dumpdtb=/etc/x"],
    ["-machine", "q35,firmware=/etc/x"],
    ["-vnc", "unix:/tmp/x"],
    ["-spice", "port=1,disable-ticketing=on"],
    ["-virtfs", "local,path=/,mount_tag=x,security_model=none"],
    ["-fsdev", "local,id=f,path=/,security_model=none"],
    ["-sandbox", "off"],
    ["-mem-path", "/tmp"],
    ["-tpmdev", "passthrough,id=t,path=/dev/tpm0"],
    ["-semihosting"],
    ["-audiodev", "wav,id=a,path=/tmp/x"],
    ["-L", "/tmp"],
    ["-pidfile", "/etc/x"],
    ["-writeconfig", "/etc/x"],
    ["-set", "device.x.y=z"],
    ["-cpu", "host,x=/etc"],
]


@pytest.mark.parametrize("words", HOSTILE, ids=lambda words: " ".join(words))
def test_a_guest_that_reaches_out_is_not_started(words: list[str], allowed: Allowed) -> None:
    more = [
        word.replace("{run}", allowed.run_dir)
        .replace("{images}", allowed.images[0])
        .replace("{qcow2}", allowed.qcow2_images[0])
        for word in words
    ]
    check_command_line(argv(allowed), f"{allowed.run_dir}/web1", allowed)
    with pytest.raises(Refused):
        check_command_line(argv(allowed, *more), f"{allowed.run_dir}/web1", allowed)


@pytest.mark.parametrize(
    "words",
    [
        ["-drive", "file={qcow2}/a,format=qcow2,if=none,id=d,cache=none"],
        ["-drive", "file={images}/a,format=raw,if=none,id=d"],
        ["-drive", "file=/boot/iso,format=raw,if=none,id=d,readonly=on"],
        ["-blockdev", "driver=file,node-name=f,filename={images}/a", "-blockdev", "driver=raw,node-name=d,file=f"],
        ["-blockdev", "driver=file,node-name=f,filename={qcow2}/a", "-blockdev", "driver=qcow2,node-name=d,file=f"],
        ["-netdev", "user,id=n,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=tcp::80-:80,net=10.0.2.0/24"],
        ["-netdev", "tap,id=n,ifname=t0,script=no,downscript=no"],
        ["-device", "virtio-net-pci,netdev=n,id=nic0,mac=52:54:00:00:00:01"],
        ["-object", "rng-random,id=r,filename=/dev/urandom"],
        ["-device", "virtio-net-pci,romfile=,id=nic1"],
        ["-device", '{"driver":"virtio-scsi-pci","id":"s0"}', "-device", "virtio-vga"],
        ["-global", "ICH9-LPC.disable_s3=1", "-global", "driver=cfi.pflash01,property=secure,value=on"],
        ["-chardev", "file,id=s,path={run}/web1/serial.log,append=on", "-serial", "chardev:s"],
    ],
)
def test_a_guest_as_our_spec_makes_it_is_started(words: list[str], allowed: Allowed) -> None:
    more = [
        word.replace("{run}", allowed.run_dir)
        .replace("{images}", allowed.images[0])
        .replace("{qcow2}", allowed.qcow2_images[0])
        for word in words
    ]
    check_command_line(argv(allowed, *more), f"{allowed.run_dir}/web1", allowed)


@pytest.mark.parametrize("word", ["-nodefaults", "-no-user-config", "-display"])
def test_qemu_shows_no_monitor_for_people(word: str, allowed: Allowed) -> None:
    """By itself it has one on its screen, which VNC shows; `migrate exec:` there runs a program."""
    words = argv(allowed)
    at = words.index(word)
    del words[at : at + (2 if word == "-display" else 1)]
    with pytest.raises(Refused, match=word):
        check_command_line(words, f"{allowed.run_dir}/web1", allowed)


def test_another_program_is_not_started(allowed: Allowed) -> None:
    for words in ([], ["/bin/sh"], ["qemu-system-x86_64"], [f"{allowed.run_dir}/web1/qemu"]):
        with pytest.raises(Refused):
            check_command_line(words, f"{allowed.run_dir}/web1", allowed)


INET = {"transport": "socket", "type": "inet", "host": "::1", "port": "1"}
EXEC = {"transport": "exec", "args": ["id"]}


def said(allowed: Allowed, **command: Any) -> bytes:
    return qmp_filter.checked(json.dumps(command).encode(), allowed)


@pytest.mark.parametrize(
    "command",
    [
        {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}, "id": "1"},
        {"execute": "query-status", "id": 7},
        {"execute": "migrate", "arguments": {"uri": "tcp:10.0.0.2:49152"}},
        {"execute": "migrate", "arguments": {"channels": [{"channel-type": "main", "addr": INET}]}},
        {"execute": "migrate-incoming", "arguments": {"uri": "tcp:[::]:0,to=100"}},
        {"exec-oob": "migrate-pause"},
        {"execute": "set-vcpu-dirty-limit", "arguments": {"dirty-rate": 40}},
        {"execute": "cancel-vcpu-dirty-limit"},
        {"execute": "migrate-set-parameters", "arguments": {"max-bandwidth": 1, "downtime-limit": 300, "tls-creds": "tls0"}},
        {"execute": "human-monitor-command", "arguments": {"command-line": "info network"}},
    ],
)  # fmt: skip
def test_what_the_controller_says_to_a_monitor_passes(command: dict[str, Any], allowed: Allowed) -> None:
    assert json.loads(said(allowed, **command)) == command


@pytest.mark.parametrize(
    "command",
    [
        {"execute": "migrate", "arguments": {"uri": "exec:id"}},
        {"execute": "migrate", "arguments": {"uri": "file:/etc/x"}},
        {"execute": "migrate", "arguments": {"uri": "unix:/tmp/x"}},
        {"execute": "migrate", "arguments": {"uri": "tcp:a:1", "channels": []}},
        {"execute": "migrate", "arguments": {"channels": [{"channel-type": "main", "addr": EXEC}]}},
        {"execute": "migrate-incoming", "arguments": {"uri": "exec:id"}},
        {"execute": "migrate-set-parameters", "arguments": {"cpr-exec-command": ["id"]}},
        {"execute": "migrate-set-parameters", "arguments": {"mode": "cpr-exec"}},
        {"execute": "human-monitor-command", "arguments": {"command-line": "info network\nmigrate exec:id"}},
        {"execute": "human-monitor-command", "arguments": {"command-line": "savevm x"}},
        {"execute": "human-monitor-command", "arguments": {"command-line": ["info network"]}},
        {"execute": "screendump", "arguments": {"filename": "/tmp/x"}},
        {"execute": "pmemsave", "arguments": {"val": 0, "size": 1, "filename": "/tmp/x"}},
        {"execute": "dump-guest-memory", "arguments": {"paging": False, "protocol": "file:/tmp/x"}},
        {"execute": "chardev-add", "arguments": {"id": "c", "backend": {"type": "file", "data": {"out": "/tmp/x"}}}},
        {"execute": "blockdev-add", "arguments": {"driver": "file", "filename": "/etc/shadow", "node-name": "a"}},
        {"execute": "object-add", "arguments": {"qom-type": "secret", "id": "s", "file": "/etc/shadow"}},
        {"execute": "object-add", "arguments": {"qom-type": "tls-creds-psk", "id": "s", "dir": "/etc", "endpoint": "client"}},
        {"execute": "device_add", "arguments": {"driver": "vfio-pci", "host": "01:00.0"}},
        {"execute": "netdev_add", "arguments": {"type": "tap", "id": "n", "script": "/tmp/x"}},
        {"execute": "getfd", "arguments": {"fdname": "x"}},
        {"execute": "qom-set", "arguments": {"path": "/", "property": "x", "value": 1}},
        {"execute": "query-status", "exec-oob": "quit"},
        {"execute": "quit", "arguments": {"x": 1}},
        {"execute": "xen-save-devices-state", "arguments": {"filename": "/x"}},
        {"execute": ["quit"]},
        {"execute": "quit", "more": 1},
        {},
    ],
)  # fmt: skip
def test_what_reaches_beyond_the_guest_does_not(command: dict[str, Any], allowed: Allowed) -> None:
    with pytest.raises(Refused):
        said(allowed, **command)


@pytest.mark.parametrize(
    "line",
    [
        b'{"execute":"query-status","execute":"quit"}',
        b'{"execute":"migrate","arguments":{"uri":"tcp:a:1","uri":"exec:id"}}',
        b'{"execute":"quit"}{"execute":"quit"}',
        b"[" * 10_000,
        b'["quit"]',
        b"quit",
        b"\xff",
        b'{"execute":"quit"',
        b'{"execute":"quit","id":1e999}',
        b'{"execute":"quit","id":-Infinity}',
        b'{"execute":"quit","id":NaN}',
        b'{"execute":"quit","id":[1]}',
        b'{"execute":"quit","id":"' + b"x" * 200 + b'"}',
    ],
)
def test_lines_that_two_would_read_differently_are_refused(line: bytes, allowed: Allowed) -> None:
    with pytest.raises(Refused):
        qmp_filter.checked(line, allowed)


ANY = Allowed("/run/x", ("/srv/x",), ("/srv/q",), ("/boot",), (QEMU,))


@pytest.mark.timeout(900)
@settings(max_examples=1500, deadline=None)
@given(st.text(max_size=200))
def test_no_text_is_a_command(text: str) -> None:
    with pytest.raises(Refused):
        request(text, ANY)


@pytest.mark.timeout(900)
@settings(max_examples=1500, deadline=None)
@given(
    st.lists(st.text(max_size=30), max_size=6), st.sampled_from(sorted(k for k in vars(process_scripts) if k.isupper()))
)
def test_no_arguments_lead_out(args: list[str], name: str) -> None:
    source = getattr(process_scripts, name)
    try:
        found = request(asked(source, *(arg.replace("\0", "") for arg in args)), ANY)
    except Refused:
        return
    assert all("/" not in word or word.startswith("/run/x") for word in found.argv[-len(args) :] if args)


@pytest.mark.timeout(900)
@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_break_the_look_at_qmp(line: bytes) -> None:
    try:
        passed = qmp_filter.checked(line, ANY)
    except Refused:
        return
    assert json.loads(passed)


def test_links_that_lead_out_are_followed_before_they_are_believed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/out").symlink_to("/etc")
    (tmp_path / "in/own").symlink_to(tmp_path / "in")
    roots = (str(tmp_path / "in"),)
    assert path_below(f"{tmp_path}/in/a/b", roots)
    assert path_below(f"{tmp_path}/in/own/a", roots)
    for path in (f"{tmp_path}/in", f"{tmp_path}/in/out/passwd", f"{tmp_path}/in/../x", f"{tmp_path}/inner", "in/a", ""):
        assert not path_below(path, roots), path


def test_settings_that_anybody_may_write_or_that_say_nonsense_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    assert read(path) == Allowed()
    path.write_text('run_dir = "/run/x"\nimages = ["/srv/images"]\n')
    assert read(path).images == ("/srv/images",)
    path.chmod(0o666)
    with pytest.raises(BadSettings, match="others"):
        read(path)
    path.chmod(0o600)
    for text in (
        "x = 1",
        'images = "/srv"',
        'images = ["srv"]',
        'run_dir = "/"',
        'qemus = ["/a/../b"]',
        "run_dir = [",
        "run_dir = 1",
    ):
        path.write_text(text)
        with pytest.raises(BadSettings):
            read(path)


def test_it_explains_and_makes_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings_file = tmp_path / "relay.toml"
    settings_file.write_text(f'run_dir = "{tmp_path}/run"\n')
    assert entry(["--settings", str(settings_file), "--explain", "id"]) == 77
    assert entry(["--settings", str(settings_file), "--explain", asked(process_scripts.LIST, f"{tmp_path}/run")]) == 0
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAA me\n")
    capsys.readouterr()
    assert entry(["--line", str(key)]) == 0
    line = capsys.readouterr().out
    assert line.startswith('restrict,command="')
    assert line.endswith(' relay" ssh-ed25519 AAAA me\n')
    assert entry(["--nonsense"]) == 2


def test_the_controller_knows_a_refusal_when_it_sees_one() -> None:
    from hostagent.relay.executor import MARK, STATUS
    from qmp_migrate.errors import RelayRefused
    from qmp_migrate.hosts.base import Completed

    assert host_command.RELAY_STATUS == STATUS
    with pytest.raises(RelayRefused, match="no shell here"):
        host_command.not_refused(Completed(STATUS, b"", f"{MARK}no shell here\n".encode()), "a")
    assert host_command.not_refused(Completed(STATUS, b"", b"else"), "a").returncode == STATUS


def test_a_stream_is_cut_into_objects_wherever_it_is_cut_by_the_network() -> None:
    commands_ = [b'{"execute":"a","arguments":{"x":"}]\\"{"}}', b'{"execute":"b"}', b'{"id":[1,{"y":"\\\\"}]}']
    stream = b"\r\n" + commands_[0] + commands_[1] + b" \n" + commands_[2]
    for size in (1, 2, 3, 7, len(stream)):
        objects, found = qmp_filter.Objects(), []
        for at in range(0, len(stream), size):
            found += objects.feed(stream[at : at + size])
        assert found == commands_
    with pytest.raises(Refused):
        qmp_filter.Objects().feed(b"x")
    with pytest.raises(Refused):
        qmp_filter.Objects().feed(b'{"' + b"x" * (2 << 20))


def test_a_holder_of_locks_is_told_of_locks_only(allowed: Allowed) -> None:
    lock = f"{allowed.run_dir}/.locks/web1.lock"
    for line in (f"lock\t3\t{lock}\tme, since now", f"unlock\t3\t{lock}\t", "beat\t\t\t", "beat"):
        _check_lock(line, allowed)
    for line in (
        "",
        "lock",
        "lock\t3\t.profile\tx\tmore",
        "lock\t3\t.profile\tx",
        f"lock\t1\t{lock}\tx",
        f"lock\t33\t{lock}\tx",
        f"lock\t\t{lock}\tx",
        f"lock\t3\t{allowed.run_dir}/x\tx",
        f"lock\t3\t{allowed.run_dir}/.locks/../x.lock\tx",
        f"lock 3 {lock} x",
        "beat\tx",
        "exec\tx",
    ):
        with pytest.raises(Refused):
            _check_lock(line, allowed)


@pytest.mark.parametrize("depth", [33, 1023, 1025, 5000])
def test_what_is_nested_deeper_than_qemu_reads_is_refused_before_it_ends(depth: int) -> None:
    """QEMU gives up at 1024 levels, and takes what follows for new commands."""
    inner = b'{"execute":"migrate","arguments":{"uri":"exec:id"}}'
    with pytest.raises(Refused, match="nested"):
        qmp_filter.Objects().feed(b'{"execute":"query-status","id":' + b"[" * depth + inner + b"]" * depth + b"}")
    assert len(qmp_filter.Objects().feed(b'{"execute":"x","id":' + b"[" * 20 + b"]" * 20 + b"}")) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
MEMBERS: dict[str, frozenset[str]] = {
    **qmp_filter.KEYS,
    "migrate": frozenset({"uri", "channels"}),
    "migrate-incoming": frozenset({"uri", "channels"}),
    "migrate-recover": frozenset({"uri"}),
    "migrate-set-parameters": qmp_filter.PARAMETERS,
    "human-monitor-command": frozenset({"command-line"}),
    "object-add": qmp_filter.TLS,
    "query-status": frozenset(),
}
ASKED = st.sampled_from(sorted(MEMBERS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.dictionaries(st.sampled_from(sorted(MEMBERS[name])), VALUES, max_size=4) if MEMBERS[name] else st.just({}),
    )
)


@pytest.mark.timeout(900)
@settings(max_examples=1500, deadline=None)
@given(ASKED, st.text(max_size=8) | st.integers(0, 1 << 60))
def test_whatever_the_values_are_it_is_passed_on_as_it_is_or_refused(
    asked: tuple[str, dict[str, Any]], identifier: Any
) -> None:
    command = {"execute": asked[0], "arguments": asked[1], "id": identifier}
    try:
        line = qmp_filter.checked(json.dumps(command).encode(), ANY)
    except Refused:
        return
    assert json.loads(line) == command
    assert line.count(b"\n") == 1
