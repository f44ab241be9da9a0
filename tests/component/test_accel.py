"""The probe for KVM, with scripts in the place of QEMU: real processes that get ready, hang, or give up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path

import psutil
import pytest

from qmp_migrate.errors import RigError
from qmp_migrate.hosts.session import end_session, start_session
from qmp_migrate.rig.guest import accelerator_probe
from qmp_migrate.rig.guest.accelerator_probe import probe_accel
from qmp_migrate.rig.guest.firmware import find_qboot
from qmp_migrate.rig.guest.images import GuestImage
from tests.support.real.brokers import until

READY = "printf '[ 0.1] noise\\r\\n\\nQM READY v=1\\nQM T 1 5 6 7\\n'; exec sleep 1000"
READY_ALONE = "printf 'QM READY v=1\\n'; exec sleep 1000"
HANGS = "printf 'SeaBIOS\\r\\n'; exec sleep 1000"
GIVES_UP = "echo 'failed to initialize kvm' >&2; exit 1"
WORKS_WITHOUT_END = "while :; do :; done"
NO_LINES = "exec cat /dev/zero"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a /dev/kvm that we may open, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(accelerator_probe, "_KVM", tmp_path / "kvm")
    (tmp_path / "kvm").touch()
    return tmp_path


@pytest.fixture
def image(tmp_path: Path) -> GuestImage:
    (tmp_path / "vmlinuz").write_text("a kernel")
    (tmp_path / "initrd.img").write_text("its files")
    return GuestImage(kernel=tmp_path / "vmlinuz", initrd=tmp_path / "initrd.img")


def fake_qemu(directory: Path, behaviour: str) -> Path:
    """A QEMU that comes without qboot, and that notes each start of a guest, with its pid, and then does as told."""
    qemu = directory / "qemu"
    qemu.write_text(
        f'#!/bin/sh\n[ "$1" != -L ] || exit 0\necho $$ >>"{directory}/starts"\necho "$@" >"{directory}/argv"\n{behaviour}\n'
    )
    qemu.chmod(0o755)
    return qemu


def starts(directory: Path) -> list[int]:
    file = directory / "starts"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def has_ended(pid: int) -> bool:
    """Gone, or a zombie: a process that is not our child is reaped by whoever adopted it, in its own time."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (READY, "kvm"),
        (READY_ALONE, "tcg"),
        (HANGS, "tcg"),
        (GIVES_UP, "tcg"),
        (WORKS_WITHOUT_END, "tcg"),
        (NO_LINES, "tcg"),
    ],
)
async def test_only_a_guest_that_ticks_proves_kvm(
    machine: Path, behaviour: str, expected: str, image: GuestImage
) -> None:
    qemu = fake_qemu(machine, behaviour)
    limit_s = 0.2 if expected == "tcg" else None
    assert await probe_accel(str(qemu), image, timeout_s=limit_s) == expected
    (pid,) = starts(machine)
    assert not psutil.pid_exists(pid)
    assert "-accel kvm" in (machine / "argv").read_text()


async def test_the_answer_is_kept_until_the_binary_changes(machine: Path, image: GuestImage) -> None:
    qemu = fake_qemu(machine, READY)
    assert await probe_accel(str(qemu), image) == "kvm"
    assert await probe_accel(str(qemu), image) == "kvm"
    assert len(starts(machine)) == 1
    fake_qemu(machine, GIVES_UP)
    assert await probe_accel(str(qemu), image) == "tcg"
    assert len(starts(machine)) == 2


async def test_each_guest_is_asked_for_itself(machine: Path, image: GuestImage) -> None:
    bare = GuestImage(kernel=image.kernel)
    qemu = fake_qemu(machine, f'case "$*" in *-initrd*) {GIVES_UP};; esac; {READY}')
    for _ in range(2):
        assert await probe_accel(str(qemu), image) == "tcg"
        assert await probe_accel(str(qemu), bare) == "kvm"
    assert len(starts(machine)) == 2
    image.kernel.write_text("another kernel")
    assert await probe_accel(str(qemu), bare) == "kvm"
    assert len(starts(machine)) == 3


async def test_the_bare_guest_is_started_by_qboot_where_that_is(machine: Path, image: GuestImage) -> None:
    bare = GuestImage(kernel=image.kernel)
    qemu = fake_qemu(machine, READY)
    assert await find_qboot(str(qemu)) is None
    await probe_accel(str(qemu), bare)
    assert "-bios" not in (machine / "argv").read_text()
    qemu.write_text(qemu.read_text().replace("exit 0", f"exec echo {machine}"))
    (machine / "qboot.rom").touch()
    assert await find_qboot(str(qemu)) == "qboot.rom"
    await probe_accel(str(qemu), bare)
    assert "-bios qboot.rom" in (machine / "argv").read_text()


async def test_one_that_never_stops_talking_has_no_qboot(machine: Path) -> None:
    qemu = fake_qemu(machine, READY)
    qemu.write_text(qemu.read_text().replace("exit 0", NO_LINES))
    assert await find_qboot(str(qemu)) is None


async def test_the_same_guest_elsewhere_is_not_asked_again(machine: Path, image: GuestImage) -> None:
    qemu = fake_qemu(machine, READY)
    await probe_accel(str(qemu), image)
    (machine / "copy").write_bytes(image.kernel.read_bytes())
    await probe_accel(str(qemu), GuestImage(kernel=machine / "copy", initrd=image.initrd))
    assert len(starts(machine)) == 1


async def test_another_boot_of_the_machine_asks_again(
    machine: Path, monkeypatch: pytest.MonkeyPatch, image: GuestImage
) -> None:
    qemu = fake_qemu(machine, READY)
    await probe_accel(str(qemu), image)
    (machine / "boot_id").write_text("another\n")
    monkeypatch.setattr(accelerator_probe, "_BOOT_ID", machine / "boot_id")
    await probe_accel(str(qemu), image)
    assert len(starts(machine)) == 2
    kept = json.loads((machine / "cache/qmp-migrate/accel.json").read_text())
    assert [answer["boot_id"] for answer in kept] == ["another"], "answers of earlier boots are of no use to anyone"


async def test_a_cache_that_cannot_be_written_is_no_error(machine: Path, image: GuestImage) -> None:
    (machine / "cache").write_text("a file where the directory should be")
    assert await probe_accel(str(fake_qemu(machine, READY)), image) == "kvm"


@pytest.mark.parametrize("content", ["{", "[1, {}]", '{"accel": "kvm"}', ""])
async def test_a_damaged_cache_is_an_empty_one(machine: Path, content: str, image: GuestImage) -> None:
    qemu = fake_qemu(machine, READY)
    cache = machine / "cache/qmp-migrate/accel.json"
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert await probe_accel(str(qemu), image) == "kvm"
    assert await probe_accel(str(qemu), image) == "kvm"
    assert len(starts(machine)) == 1
    assert list(cache.parent.iterdir()) == [cache]


async def test_no_kvm_no_boot_whatever_was_known(machine: Path, image: GuestImage) -> None:
    qemu = fake_qemu(machine, READY)
    assert await probe_accel(str(qemu), image) == "kvm"
    (machine / "kvm").unlink()
    assert await probe_accel(str(qemu), image) == "tcg"
    assert len(starts(machine)) == 1


async def test_a_cancelled_probe_leaves_no_process(machine: Path, image: GuestImage) -> None:
    # A wrapper that does not exec: the QEMU is a child of what we started.
    qemu = fake_qemu(machine, f'sleep 1000 &\necho $! >>"{machine}/starts"\nwait')
    probe = asyncio.create_task(probe_accel(str(qemu), image, timeout_s=60.0))
    deadline = time.monotonic() + 20
    while len(starts(machine)) < 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    wrapper, child = starts(machine)
    assert not psutil.pid_exists(wrapper)
    while not has_ended(child):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert not (machine / "cache").exists(), "an unfinished probe has no answer to keep"


async def test_a_cancel_while_a_program_starts_ends_all_that_it_has_started(tmp_path: Path) -> None:
    """Whenever the cancel comes: asyncio by itself ends the program alone."""
    program = f'sleep 1000 &\necho $! >>"{tmp_path}/starts"\nwait'
    for turns in range(12):
        (tmp_path / "starts").unlink(missing_ok=True)
        starting = asyncio.create_task(start_session("/bin/sh", "-c", program, stdout=asyncio.subprocess.PIPE))
        for _ in range(turns):
            await asyncio.sleep(0)
        for _ in range(1000):  # the loop stands still: asyncio has not heard of its pipes
            if turns < 3 or starts(tmp_path):
                break
            time.sleep(0.002)  # noqa: ASYNC251
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await end_session(await starting)
        for child in starts(tmp_path):
            await until(lambda child=child: has_ended(child), "what it has started ends")


async def test_a_qemu_that_is_not_there(machine: Path, image: GuestImage) -> None:
    with pytest.raises(RigError, match="no-such-qemu"):
        await probe_accel("no-such-qemu", image)
    assert not (machine / "cache").exists()
