"""Finds out whether a test guest runs under KVM on this machine, by running it.

``/dev/kvm`` proves nothing: on nested machines it opens, firmware runs under it, and then the guest's kernel hangs; and
what one guest cannot do there, another can. So each test guest is asked for itself: it is booted once, and only its own
first tick counts. The answer is kept until the machine is rebooted, or the QEMU binary or the guest changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from qmp_migrate.errors import RigError
from qmp_migrate.hosts.session import end_session, start_session
from qmp_migrate.rig.guest.firmware import find_qboot
from qmp_migrate.rig.guest.images import KERNEL_WORDS, GuestImage, cache_directory

Accelerator = Literal["kvm", "tcg"]

_KVM = Path("/dev/kvm")
_writing = threading.Lock()  # two guests are asked at once, and both answers are to be kept
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TICK = b"QM T "

LIMIT_S: Final[dict[str, float]] = {"linux": 4.0, "bare": 9.0}
"""How much processor time a guest may take to its first tick under KVM, seconds. Linux needs about one where KVM works,
and so does the bare guest where KVM has no hardware below it; with SeaBIOS it needs 4 to 6 there. It is not time by the
clock, because a machine that is busy now is no reason to do without KVM until it is rebooted."""

PATIENCE: Final = 5
"""How many times as long a guest may take by the clock: one that waits for ever uses no processor."""

_POLL_S: Final = 0.1
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")

CPU: Final[dict[str, str]] = {"linux": "qemu64", "bare": "qemu64,-pni"}
"""The CPU model of each guest; without hardware below it, KVM has no SSE3 (``pni``)."""


def kvm_opens() -> bool:
    """Return whether ``/dev/kvm`` is there and may be used; says nothing about whether guests run under it."""
    return os.access(_KVM, os.R_OK | os.W_OK)


async def probe_accel(qemu: str, image: GuestImage, *, timeout_s: float | None = None) -> Accelerator:
    """Say which accelerator can run a test guest here.

    Args:
        qemu: The QEMU binary: a path, or a name that is looked up in ``PATH``.
        image: The guest that is booted for it.
        timeout_s: How much processor time the guest may take to its first tick under KVM, seconds; by the clock it may
            take :data:`PATIENCE` times as long. Default: :data:`LIMIT_S`.

    Returns:
        ``kvm`` if the guest ticked under it, else ``tcg``. At once, without a boot, where ``/dev/kvm`` cannot be
        opened or the answer is known.

    Raises:
        RigError: There is no such QEMU.
    """
    path = await asyncio.to_thread(shutil.which, qemu)
    if path is None:
        raise RigError(f"{qemu} is not there", hint="install QEMU (Debian: apt-get install qemu-system-x86)")
    if not kvm_opens():
        return "tcg"
    subject = await asyncio.to_thread(_Subject.of, path, image)
    known = await asyncio.to_thread(_recall, subject)
    if known is not None:
        return known
    limit_s = LIMIT_S[image.kind] if timeout_s is None else timeout_s
    found: Accelerator = "kvm" if await _ticks_under_kvm(path, image, limit_s) else "tcg"
    await asyncio.to_thread(_remember, subject, found)
    return found


async def _ticks_under_kvm(path: str, image: GuestImage, timeout_s: float) -> bool:
    files = ["-kernel", str(image.kernel)]
    if image.initrd is not None:
        files += ["-initrd", str(image.initrd)]
    elif (qboot := await find_qboot(path)) is not None:
        files += ["-bios", qboot]
    qemu = await start_session(
        path,
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", "kvm", "-cpu", CPU[image.kind], "-m", "256"),
        *(*files, "-append", f"{KERNEL_WORDS} qm.ws=1 qm.tick=1"),
        *("-serial", "stdio"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    ticked = asyncio.create_task(_ticks(qemu))
    try:
        async with asyncio.timeout(timeout_s * PATIENCE):
            while not ticked.done() and _processor_s(qemu.pid) < timeout_s:
                await asyncio.wait([ticked], timeout=_POLL_S)
        return ticked.done() and ticked.result()
    except TimeoutError:
        return False
    finally:
        ticked.cancel()
        await asyncio.gather(ticked, return_exceptions=True)
        await end_session(qemu)


async def _ticks(qemu: asyncio.subprocess.Process) -> bool:
    """Wait until the guest has ticked; False when its QEMU gave up before."""
    assert qemu.stdout is not None
    try:
        # One line at a time, for the log may be long; 64 KiB without a line end (ValueError) are no guest of ours.
        while line := await qemu.stdout.readline():
            if line.startswith(_TICK):
                return True
    except ValueError:
        pass
    return False


def _processor_s(pid: int) -> float:
    """Return how much processor time a process has used, seconds; 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


@dataclass(frozen=True, slots=True)
class _Subject:
    """What an answer holds for: this boot of the machine, this very binary, and this very guest, wherever it lies."""

    boot_id: str
    path: str
    mtime_ns: int
    size: int
    guest: str
    guest_sha256: str

    @classmethod
    def of(cls, path: str, image: GuestImage) -> _Subject:
        status = Path(path).stat()
        content = hashlib.sha256()
        for file in image.files:
            content.update(file.read_bytes())
        return cls(
            boot_id=_BOOT_ID.read_text().strip(),
            path=str(Path(path).absolute()),
            mtime_ns=status.st_mtime_ns,
            size=status.st_size,
            guest=image.kind,
            guest_sha256=content.hexdigest(),
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
    """Keep the answer beside those for other binaries and guests of this boot; where nothing can be written, keep nothing."""
    new = {**asdict(subject), "accel": found}
    file = _cache_file()
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    with _writing, contextlib.suppress(OSError):
        kept = [answer for answer in _answers() if answer.get("boot_id") == subject.boot_id]
        kept = [answer for answer in kept if any(answer.get(key) != new[key] for key in ("path", "guest"))]
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps([*kept, new], indent=2) + "\n")
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
