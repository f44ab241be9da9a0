"""Which QEMUs the relay starts: those of our specs, and none that reaches beyond its guest."""

from __future__ import annotations

import pytest

from hostagent.relay.argument_rules import Refused
from hostagent.relay.qemu_args_policy import check_command_line
from hostagent.relay.settings import Allowed
from tests.support.data.relay_requests import argv

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
