"""The guest that everybody moves is the same guest."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.contenders.virsh import domain_xml, make_emulator
from bench.guest import Guest, Machine, loses_writes
from bench.scenarios import ALL, BARE, BARE_MEMORY_KIB, CORE
from qmp_migrate.rig.guest.images import GuestImage
from qmp_migrate.vm.spec.argv import build_argv
from qmp_migrate.vm.spec.guest_spec import parse_spec

IMAGE = GuestImage(Path("/images/vm & linuz"), Path("/images/initrd.img"))
MACHINE = Machine("/usr/bin/qemu-system-x86_64", "tcg", IMAGE, loses_writes=False)


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name)
def test_its_spec_is_one_that_the_product_takes(scenario) -> None:  # type: ignore[no-untyped-def]
    directory = Path("/run/rig/a/g1")
    guest = Guest("g1", scenario, MACHINE)
    spec = parse_spec(guest.spec(directory), source="bench", base_dir="/")
    argv = build_argv(spec, binary=MACHINE.qemu, directory=str(directory), accel="tcg", uuid="u").argv()
    assert "size=512M" in argv
    assert "socket,id=bench,path=/run/rig/a/g1/bench.sock,server=on,wait=off" in argv


def test_the_bare_guest_has_neither_an_initramfs_nor_more_than_kvm_needs() -> None:
    image = GuestImage(Path("/images/bare.elf"))
    machine = Machine("/usr/bin/qemu-system-x86_64", "kvm", image, False, BARE_MEMORY_KIB, "qboot.rom")
    spec = parse_spec(Guest("g1", BARE[0], machine).spec(Path("/run/g")), source="bench", base_dir="/")
    assert (spec.accel, spec.cpu, spec.memory, spec.initrd, spec.firmware) == (
        "kvm",
        "qemu64,-pni",
        2 << 30,
        None,
        "qboot.rom",
    )
    assert {name for scenario in BARE for name in scenario.contenders} == {"raw", "command", "library"}


def test_libvirt_s_is_the_same_one() -> None:
    guest = Guest("g1", CORE[0], MACHINE)
    domain = ElementTree.fromstring(domain_xml(guest, Path("/guests/g1"), Path(MACHINE.qemu)))
    assert domain.get("type") == "qemu"
    assert domain.findtext("memory") == str(512 * 1024)
    assert domain.findtext("os/kernel") == str(IMAGE.kernel)
    assert domain.findtext("os/cmdline") == guest.append
    assert domain.findtext("cpu/model") == "qemu64"
    space = "{http://libvirt.org/schemas/domain/qemu/1.0}"
    assert [argument.get("value") for argument in domain.iter(f"{space}arg")] == [
        "-qmp",
        "unix:/guests/g1/bench.sock,server=on,wait=off",
    ]


@pytest.mark.parametrize(
    ("accel", "version", "lost"),
    [
        ("tcg", "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", True),
        ("tcg", "QEMU emulator version 8.2.1", True),
        ("tcg", "QEMU emulator version 9.0.0", False),
        ("tcg", "QEMU emulator version 10.0.2", False),
        ("kvm", "QEMU emulator version 7.2.22", False),
        ("tcg", "", False),
    ],
)
def test_only_an_old_qemu_without_kvm_loses_writes(accel, version, lost) -> None:  # type: ignore[no-untyped-def]
    assert loses_writes(accel, version) is lost


def test_where_writes_would_be_lost_its_memory_is_no_multiple_of_256_kib() -> None:
    bad = Machine("/q", "tcg", IMAGE, loses_writes=True)
    assert bad.memory_kib == 512 * 1024 + 8
    assert MACHINE.memory_kib == 512 * 1024
    assert 'memory = "524296KiB"' in Guest("g", CORE[0], bad).spec(Path("/run/g"))


def test_libvirt_starts_qemu_itself_where_whole_mib_will_do(tmp_path: Path) -> None:
    assert make_emulator(tmp_path / "qemu", MACHINE) == Path(MACHINE.qemu)


def test_libvirt_s_guest_gets_the_odd_size_too_and_every_other_word_as_it_was(tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    told.chmod(0o700)
    emulator = make_emulator(tmp_path / "qemu", Machine(str(told), "tcg", IMAGE, loses_writes=True))
    ram = '{"qom-type":"memory-backend-ram","id":"pc.ram","size":%d}'
    words = ["-m", "512", "-object", ram % (512 << 20), "-smp", "512", "-append", "console=ttyS0 a  b", "-S", ""]
    found = subprocess.run([emulator, *words], capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    assert found == ["-m", "size=524296K", "-object", ram % (524296 << 10), *words[4:]]
