"""Specs of guests, for tests."""

from __future__ import annotations

FULL = """\
name = "web1"
machine = "pc-q35-7.2"
cpu = "qemu64,+ssse3"
memory = "1GiB"
vcpus = 2
maxcpus = 4
accel = "tcg"
uuid = "6D5C2A0E-5D6C-4F0E-9A3B-0D0F6F0F2A11"
kernel = "vmlinuz"
initrd = "/boot/initrd"
append = "console=ttyS0"
args = ["-device", "virtio-rng-pci"]

[[disk]]
path = "../images/web,1.qcow2"
size = "10GiB"

[[disk]]
path = "/dev/vg/web"
format = "raw"
interface = "scsi"
readonly = true
serial = "DATA1"

[[nic]]
kind = "tap"
bridge = "br0"
mac = "52:54:00:AB:CD:EF"

[[nic]]
"""
