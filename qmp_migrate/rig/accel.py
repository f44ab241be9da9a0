"""Finds out whether guests run under KVM on this machine, by running one.

``/dev/kvm`` proves nothing: on nested machines it opens, firmware runs under it, and then the guest's kernel hangs. So a
test guest is booted once, and only its own ``QM READY`` counts. The answer is kept until the machine is rebooted or
the QEMU binary changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from qmp_migrate.errors import RigError
from qmp_migrate.rig.images import GuestImage, cache_directory

Accelerator = Literal["kvm", "tcg"]

_KVM = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_READY = b"QM READY "


async def probe_accel(qemu: str, image: GuestImage, *, timeout_s: float = 6.0) -> Accelerator:
    """Say which accelerator can run a guest here.

    Args:
        qemu: The QEMU binary: a path, or a name that is looked up in ``PATH``.
        image: The guest that is booted for it.
        timeout_s: How long the guest may take to get ready under KVM, seconds. It needs about one where KVM works.

    Returns:
        ``kvm`` if the guest got ready under it, else ``tcg``. At once, without a boot, where ``/dev/kvm`` cannot be
        opened or the answer is known.

    Raises:
        RigError: There is no such QEMU.
    """
    path = await asyncio.to_thread(shutil.which, qemu)
    if path is None:
        raise RigError(f"{qemu} is not there", hint="install QEMU (Debian: apt-get install qemu-system-x86)")
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return "tcg"
    subject = await asyncio.to_thread(_Subject.of, path)
    known = await asyncio.to_thread(_recall, subject)
    if known is not None:
        return known
    found: Accelerator = "kvm" if await _boots_under_kvm(path, image, timeout_s) else "tcg"
    await asyncio.to_thread(_remember, subject, found)
    return found


async def _boots_under_kvm(path: str, image: GuestImage, timeout_s: float) -> bool:
    qemu = await asyncio.create_subprocess_exec(
        path,
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", "kvm", "-cpu", "qemu64", "-m", "256"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", "console=ttyS0 quiet qm.ws=1"),
        *("-serial", "stdio"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # so that a wrapper script and the QEMU it starts end together
    )
    assert qemu.stdout is not None
    try:
        async with asyncio.timeout(timeout_s):
            # A stream that ends first is a QEMU that gave up; one line at a time, for the log may be long.
            while line := await qemu.stdout.readline():
                if line.startswith(_READY):
                    return True
    except (TimeoutError, ValueError):  # ValueError: 64 KiB without a line end are no guest of ours
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(qemu.pid, signal.SIGKILL)
        await qemu.wait()
    return False


@dataclass(frozen=True, slots=True)
class _Subject:
    """What an answer holds for: this boot of the machine and this very binary."""

    boot_id: str
    path: str
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, path: str) -> _Subject:
        status = Path(path).stat()
        return cls(
            boot_id=_BOOT_ID.read_text().strip(),
            path=str(Path(path).absolute()),
            mtime_ns=status.st_mtime_ns,
            size=status.st_size,
        )


def _cache_file() -> Path:
    return cache_directory() / "accel.json"


def _answers() -> list[dict[str, object]]:
    """What is in the cache; a cache that cannot be read is an empty one."""
    try:
        answers = json.loads(_cache_file().read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(answers, list):
        return []
    return [answer for answer in answers if isinstance(answer, dict)]


def _recall(subject: _Subject) -> Accelerator | None:
    for answer in _answers():
        if answer == {**asdict(subject), "accel": "kvm"}:
            return "kvm"
        if answer == {**asdict(subject), "accel": "tcg"}:
            return "tcg"
    return None


def _remember(subject: _Subject, found: Accelerator) -> None:
    """Keeps the answer beside those for other binaries of this boot. Where nothing can be written, nothing is kept."""
    kept = [a for a in _answers() if a.get("boot_id") == subject.boot_id and a.get("path") != subject.path]
    file = _cache_file()
    new = file.with_name(f"{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            new.write_text(json.dumps([*kept, {**asdict(subject), "accel": found}], indent=2) + "\n")
            new.replace(file)
        finally:
            new.unlink(missing_ok=True)
