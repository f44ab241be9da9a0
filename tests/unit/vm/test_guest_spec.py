"""SPEC.toml: what it says, and how it says what is wrong with it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.errors import SpecError
from qmp_migrate.vm.spec.guest_spec import GuestSpec, parse_spec
from qmp_migrate.vm.spec.toml_lines import line_of
from tests.support.data.guest_specs import FULL


def _parse(text: str) -> GuestSpec:
    return parse_spec(text, source="web1.toml", base_dir="/etc/guests")


def test_a_full_spec() -> None:
    spec = _parse(FULL)
    assert spec.name == "web1"
    assert spec.memory == 1 << 30
    assert spec.uuid == "6d5c2a0e-5d6c-4f0e-9a3b-0d0f6f0f2a11"
    assert spec.kernel == "/etc/guests/vmlinuz"
    assert spec.initrd == "/boot/initrd"
    assert [disk.path for disk in spec.disk] == ["/etc/images/web,1.qcow2", "/dev/vg/web"]
    assert [disk.image_format for disk in spec.disk] == ["qcow2", "raw"]
    assert spec.disk[0].cache == "none"
    assert spec.disk[0].size == 10 << 30
    assert spec.nic[0].mac == "52:54:00:ab:cd:ef"
    assert spec.nic[1].kind == "user"
    assert spec.is_pinned


def test_a_name_is_enough() -> None:
    spec = _parse('name = "web1"')
    assert (spec.memory, spec.vcpus, spec.accel, spec.machine) == (512 << 20, 1, "auto", "pc-q35-7.2")


def test_an_alias_is_allowed_and_told() -> None:
    assert not _parse('name = "web1"\nmachine = "q35"').is_pinned


def test_firmware_without_a_slash_is_qemus_own() -> None:
    assert _parse('name = "a"\nfirmware = "bios-microvm.bin"').firmware == "bios-microvm.bin"
    assert _parse('name = "a"\nfirmware = "./OVMF.fd"').firmware == "/etc/guests/OVMF.fd"


WRONG = [
    ('name = "Web"', 1, "name", "'Web' is not a guest name"),
    ('name = "a"\nmemroy = "1GiB"', 2, "memroy", "did you mean 'memory'?"),
    ('name = "a"\nzzz = 1', 2, "zzz", "unknown key"),
    ('name = "a"\nmemory = 0', 2, "memory", "zero"),
    ('name = "a"\nmemory = "1PiB"', 2, "memory", "not a multiple of 8KiB"),
    ('name = "a"\nmemory = "-1MiB"', 2, "memory", "negative"),
    ('name = "a"\nmemory = 512', 2, "memory", "not a multiple of 8KiB"),
    ('name = "a"\nmemory = 1.5', 2, "memory", "in quotes"),
    ('name = "a"\nvcpus = 0', 2, "vcpus", "0 is less than 1"),
    ('name = "a"\nvcpus = 10000', 2, "vcpus", "10000 is more than 4096"),
    ('name = "a"\nvcpus = "2"', 2, "vcpus", "integer"),
    ('name = "a"\nvcpus = true', 2, "vcpus", "integer"),
    ('name = "a"\nvcpus = 4\n\n# few\nmaxcpus = 2', 5, "maxcpus", "less than vcpus"),
    ('name = "a"\nuuid = "1234"', 2, "uuid", "not a UUID"),
    ('name = "a"\nmachine = "q35,accel=kvm"', 2, "machine", "one plain word"),
    ('name = "a"\ncpu = "max\\n-device x"', 2, "cpu", "CPU model"),
    ('name = "a"\naccel = "hvf"', 2, "accel", "'auto', 'kvm' or 'tcg'"),
    ('name = "a"\ndirty_ring = 4000', 2, "dirty_ring", "4000 is not a power of two, for example 4096"),
    ('name = "a"\ndirty_ring = 512', 2, "dirty_ring", "512 is less than 1024"),
    ('name = "a"\ndirty_ring = 131072', 2, "dirty_ring", "131072 is more than 65536"),
    ('name = "a"\ndirty_ring = "4096"', 2, "dirty_ring", "integer"),
    (
        'name = "a"\naccel = "tcg"\ndirty_ring = 4096',
        3,
        "dirty_ring",
        'only KVM has one; leave it out, or write accel = "kvm"',
    ),
    ('name = "a"\ninitrd = "x"', 2, "initrd", "only with a kernel"),
    ('name = "a"\nkernel = ""', 2, "kernel", "path"),
    ('name = "a"\nkernel = "a\\u0000b"', 2, "kernel", "control characters"),
    ('name = "a"\nargs = [\n  "-device",\n  3,\n]', 2, "args.2", "string"),
    ('name = "a"\nargs = ["-m", "1G"]', 2, "args", "the key memory is there for it"),
    ('name = "a"\nargs = ["--qmp", "unix:/x"]', 2, "args", "makes the monitors itself"),
    ('name = "a"\nargs = ["-incoming", "defer"]', 2, "args", "destination of a migration"),
    ('name = "a"\nargs = ["-S"]', 2, "args", "starts the guest when it is ready"),
    ('name = "a"\nargs = ["-daemonize"]', 2, "args", "watches over"),
    ('name = "a"\nargs = ["-name", "b"]', 2, "args", "the key name"),
    ('name = "a"\nargs = ["disk.img"]', 2, "args", "[[disk]]"),
    ('name = "a"\nargs = ["-device"]', 2, "args", "has no argument"),
    ('name = "a"\n[[disk]]\npath = "x.img"\n\n[[disk]]\nsize = "1GiB"', 5, "disk.2.path", "is missing"),
    ('name = "a"\n[[disk]]\npath = "x.img"\nfromat = "raw"', 4, "disk.1.fromat", "did you mean 'format'?"),
    ('name = "a"\n[[disk]]\npath = "x"', 2, "disk.1", "format is not given"),
    ('name = "a"\n[[disk]]\npath = "x.img"\ninterface = "sata"', 4, "disk.1.interface", "'virtio', 'scsi' or 'ide'"),
    ('name = "a"\n[[disk]]\npath = "x.img"\ninterface = "ide"\nreadonly = true', 2, "disk.1", "cannot be read-only"),
    ('name = "a"\n[[disk]]\npath = "x.img"\nserial = "a,b"', 4, "disk.1.serial", "is not 1 to 20"),
    ('name = "a"\n[disk]\npath = "x.img"', 2, "disk", "is a list of tables"),
    ('name = "a"\n[[nic]]\nkind = "tap"', 2, "nic.1", "exactly one of bridge, ifname"),
    ('name = "a"\n[[nic]]\nkind = "user"\nbridge = "br0"', 2, "nic.1", "bridge does not go with"),
    ('name = "a"\n[[nic]]\nmac = "53:54:00:00:00:01"', 3, "nic.1.mac", "multicast"),
    ('name = "a"\n[[nic]]\nmac = "52:54:00:00:00:01,x=y"', 3, "nic.1.mac", "not a MAC"),
    ('name = "a"\n[[nic]]\nkind = "tap"\nifname = "a,script=/x"', 4, "nic.1.ifname", "interface name"),
    ('name = "a"\n[[nic]]\nkind = "socket"\nlisten = "x"', 4, "nic.1.listen", "HOST:PORT"),
    ('name = "a"\nkernel = vmlinuz', 2, "not TOML", "Invalid value"),
]


@pytest.mark.parametrize(("text", "line", "key", "reason"), WRONG)
def test_what_is_wrong_is_said_with_key_and_line(text: str, line: int, key: str, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        _parse(text)
    assert caught.value.message.startswith(f"web1.toml:{line}: {key}: ")
    assert reason in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 400


def test_every_finding_is_said_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        _parse('name = "a"\nvcpus = 0\nmemory = 0\nx = 1')
    assert [f"web1.toml:{line}" in caught.value.message for line in (2, 3, 4)] == [True] * 3


@pytest.mark.parametrize("text", ['name = "a"\n' + "#" * 70_000, 'name = "a"\n' + "\n" * 2000])
def test_a_file_that_is_no_spec_is_not_worked_on(text: str) -> None:
    with pytest.raises(SpecError, match="at most"):
        _parse(text)


@pytest.mark.parametrize(
    ("location", "line"),
    [
        (("a",), 1),
        (("b",), 2),
        (("b", 1), 2),
        (("c d",), 6),
        (("t", "x"), 9),
        (("t", "deep", "y"), 10),
        (("t", "absent"), 9),
        (("l", 0), 11),
        (("l", 1, "k"), 14),
        (("l", 1, "absent"), 13),
        (("last",), 5),
        (("absent",), None),
    ],
)
def test_lines_are_those_of_the_toml_parser(location: tuple[str | int, ...], line: int | None) -> None:
    lines = [
        *("a = 1 # a = 2", "b = [", '  "x = 1",', "]", "last = 1", '"c d" = """', "t = 3", '"""'),
        *("t.x = 1", "t.deep.y = 2", "[[l]]", "", "[[l]]", "k = 1", ""),
    ]
    text = "\n".join(lines)
    assert line_of(text, location) == line


@given(st.text(max_size=40))
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    for candidate in (text, f'name = "a"\n{text}'):
        with suppress(SpecError):
            assert _parse(candidate).name
