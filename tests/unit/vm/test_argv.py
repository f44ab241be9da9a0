"""A spec made into a command line: explicit, stable, and read back as what it says."""

from __future__ import annotations

from typing import Literal

import pytest

from qmp_migrate.errors import ConfigError
from qmp_migrate.vm.commandline.chardevs import monitors
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.disks import disks
from qmp_migrate.vm.commandline.netdevs import netdevs
from qmp_migrate.vm.commandline.paths import required_paths
from qmp_migrate.vm.destination import derive_destination
from qmp_migrate.vm.spec.argv import build_argv, mac_of
from qmp_migrate.vm.spec.guest_spec import parse_spec
from tests.support.data.guest_specs import FULL

UUID = "6d5c2a0e-5d6c-4f0e-9a3b-0d0f6f0f2a11"


def _build(text: str, directory: str = "/run/a/web1", accel: Literal["kvm", "tcg"] = "tcg") -> CommandLine:
    spec = parse_spec(text, source="s", base_dir="/etc/guests")
    return build_argv(spec, binary="/usr/bin/qemu", directory=directory, accel=accel, uuid=UUID)


def test_it_reads_back_as_what_the_spec_says() -> None:
    guest = _build(FULL)
    assert CommandLine.parse(guest.argv()) == guest
    assert (guest.name, guest.uuid, guest.machine, guest.cpu) == ("web1", UUID, "pc-q35-7.2", "qemu64")
    assert (guest.memory_bytes, guest.vcpus, guest.max_vcpus) == (1 << 30, 2, 4)
    assert guest.accelerators == ("tcg",)
    assert guest.has("nodefaults")
    assert guest.has("no-user-config")
    assert not guest.has("S")
    assert [(d.id, d.path, d.format, d.writable, d.direct) for d in disks(guest)] == [
        ("disk0-format", "/etc/images/web,1.qcow2", "qcow2", True, True),
        ("disk1-format", "/dev/vg/web", "raw", False, True),
    ]
    assert [(n.kind, n.id) for n in netdevs(guest)] == [("bridge", "net0"), ("user", "net1")]
    assert [(m.mode, m.chardev.path) for m in monitors(guest)] == [
        ("control", "/run/a/web1/qmp.sock"),
        ("control", "/run/a/web1/agent.sock"),
    ]
    assert guest.argv()[-2:] == ["-device", "virtio-rng-pci"]
    assert [use.path for use in required_paths(guest)] == [
        *("/etc/images/web,1.qcow2", "/dev/vg/web", "/etc/guests/vmlinuz", "/boot/initrd"),
    ]


def test_its_destination_differs_only_in_the_directory() -> None:
    source = _build(FULL)
    there = _build(FULL, "/run/b/web1")
    derived = derive_destination(source, binary=there.binary, source_dir="/run/a/web1", dest_dir="/run/b/web1")
    assert derived.command.argv() == [*there.argv(), "-S", "-incoming", "defer"]
    assert derived.refusals == ()


def test_mac_addresses_are_stable_and_of_this_guest() -> None:
    assert mac_of(UUID, 0) == mac_of(UUID.upper(), 0)
    assert len({mac_of(UUID, 0), mac_of(UUID, 1), mac_of(UUID.replace("6", "7"), 0)}) == 3
    assert mac_of(UUID, 1) in " ".join(_build(FULL).argv())
    assert "mac=52:54:00:ab:cd:ef" in " ".join(_build(FULL).argv())


@pytest.mark.parametrize(
    ("cache", "direct", "no_flush", "write_cache"),
    [
        ("none", "on", "off", "on"),
        ("writeback", "off", "off", "on"),
        ("writethrough", "off", "off", "off"),
        ("directsync", "on", "off", "off"),
        ("unsafe", "off", "on", "on"),
    ],
)
def test_cache_modes(cache: str, direct: str, no_flush: str, write_cache: str) -> None:
    guest = _build(f'name = "a"\n[[disk]]\npath = "/x.img"\ncache = "{cache}"')
    for node in guest.named("blockdev"):
        assert node.properties().get("cache.direct") == direct
        assert node.properties().get("cache.no-flush") == no_flush
    assert guest.named("device")[0].properties().get("write-cache") == write_cache


@pytest.mark.parametrize(
    ("words", "backend"),
    [
        ('kind = "tap"\nifname = "tap0"', "tap,id=net0,ifname=tap0,script=no,downscript=no"),
        ('kind = "tap"\nbridge = "br0"', "bridge,id=net0,br=br0"),
        ('kind = "socket"\nmcast = "230.0.0.1:1234"', "socket,id=net0,mcast=230.0.0.1:1234"),
        ('kind = "socket"\nlisten = ":1234"', "socket,id=net0,listen=:1234"),
    ],
)
def test_network_back_ends(words: str, backend: str) -> None:
    assert _build(f'name = "a"\n[[nic]]\n{words}').value("netdev") == backend


def test_a_directory_that_is_too_deep_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="bytes"):
        _build('name = "a"', "/" + "d" * 100)


def test_a_dirty_ring_is_kvms() -> None:
    text = 'name = "web1"\ndirty_ring = 4096'
    guest = _build(text, accel="kvm")
    assert guest.value("accel") == "kvm,dirty-ring-size=4096"
    assert (guest.accelerators, guest.dirty_ring) == (("kvm",), 4096)
    # Where `auto` has come to TCG, which has none.
    guest = _build(text)
    assert (guest.value("accel"), guest.dirty_ring) == ("tcg", 0)


@pytest.mark.parametrize("words", [["-accel", "kvm"], ["-accel", "kvm,dirty-ring-size=x"], ["-M", "accel=kvm"], []])
def test_no_dirty_ring(words: list[str]) -> None:
    assert CommandLine.parse(["qemu", *words]).dirty_ring == 0
