"""What a host is: from the kernel's and QEMU's own words."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hostagent.telemetry.host_info import QemuCatalogue, parse_cpuinfo, parse_machine_types, parse_version, read_info
from hostagent.telemetry.load import LoadMeter
from qmp_migrate.bus.messages.codec import encode

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7B13
flags\t\t: fpu sse4_2 avx2 fpu

processor\t: 1
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7B13
flags\t\t: fpu sse4_2 avx2
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
MACHINES = """Supported machines are:
microvm              microvm (i386)
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)
pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)
q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)
pc-q35-7.2           Standard PC (Q35 + ICH9, 2009)
pc-i440fx-2.6        Standard PC (i440FX + PIIX, 1996) (deprecated)
none                 empty machine
"""


def test_processors() -> None:
    cpu = parse_cpuinfo(X86)
    assert (cpu.model, cpu.vendor, cpu.logical_count) == ("AMD EPYC 7B13", "AuthenticAMD", 2)
    assert cpu.features == ["avx2", "fpu", "sse4_2"]
    assert parse_cpuinfo(ARM).features == ["asimd", "fp"]
    assert parse_cpuinfo("").model == "unknown"


def test_machine_types_are_those_that_can_be_pinned() -> None:
    assert parse_machine_types(MACHINES) == ["microvm", "pc-i440fx-2.6", "pc-i440fx-7.2", "pc-q35-7.2"]
    assert parse_machine_types("") == []


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright", "7.2.22"),
        ("QEMU emulator version 11.1.0\n", "11.1.0"),
        ("bash version 5", ""),
        ("", ""),
    ],
)
def test_versions(text: str, version: str) -> None:
    assert parse_version(text) == version


def fake_qemu(path: Path, version: str, *, body: str = "") -> Path:
    script = f"""#!/bin/sh
echo run >>{path}.runs
{body}
case $1 in
--version) echo "QEMU emulator version {version}" ;;
*) cat <<'.'
{MACHINES}
.
esac
"""
    path.write_text(script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def times_run(qemu: Path) -> int:
    return len(Path(f"{qemu}.runs").read_text().splitlines())


async def test_a_qemu_is_asked_once_and_again_after_an_upgrade(tmp_path: Path) -> None:
    qemu, catalogue = fake_qemu(tmp_path / "qemu", "7.2.22"), QemuCatalogue()
    (tmp_path / "alias").symlink_to(qemu)
    for _ in range(3):
        (found,) = await catalogue.read([str(qemu), str(tmp_path / "alias"), str(tmp_path / "absent")])
    assert (found.path, found.version) == (str(qemu), "7.2.22")
    assert "pc-q35-7.2" in found.machine_types
    assert times_run(qemu) == 2, "once for the version, once for the machine types"
    fake_qemu(qemu, "10.0.2")
    os.utime(qemu, ns=(1, 1))
    (found,) = await catalogue.read([str(qemu)])
    assert found.version == "10.0.2"


async def test_a_qemu_that_hangs_or_is_none_is_left_out(tmp_path: Path) -> None:
    hanging = fake_qemu(tmp_path / "hanging", "7.2.22", body="exec sleep 60")
    other = fake_qemu(tmp_path / "other", "x", body="echo something; exit 0")
    (tmp_path / "text").write_text("no program")
    good = fake_qemu(tmp_path / "good", "7.2.22")
    began = time.monotonic()
    with capture_logs() as logs:
        catalogue = QemuCatalogue(timeout_s=2.0)
        for _ in range(2):
            found = await catalogue.read([str(tmp_path / name) for name in ("hanging", "other", "text", "good")])
    assert [qemu.path for qemu in found] == [str(good)]
    assert time.monotonic() - began < 30
    assert sorted(log["path"] for log in logs) == sorted(str(path) for path in (hanging, tmp_path / "text"))
    assert other.exists()


def test_this_machine_can_be_told() -> None:
    info = read_info("a", [])
    assert info.memory_bytes > 0
    assert info.cpu.logical_count == os.cpu_count()
    assert any(address.address == "127.0.0.1" and address.prefix_length == 8 for address in info.addresses)
    encode(info)
    meter = LoadMeter("a")
    first, second = meter.read([]), meter.read([])
    assert (first.seq, second.seq) == (1, 2)
    assert 0 < first.memory_available_bytes <= first.memory_total_bytes
    encode(second)
