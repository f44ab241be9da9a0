"""Finds the test guests that ``make images`` builds (``vm-images/build.sh``): Linux, and one without an operating system."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from qmp_migrate.errors import RigError

_VARIABLE = "QMP_MIGRATE_IMAGES"

GuestKind = Literal["linux", "bare"]
"""Which test guest: ``linux`` has disks and networks; ``bare`` has no operating system, and runs under every KVM."""

GUEST_KINDS: Final[tuple[GuestKind, ...]] = get_args(GuestKind)
KERNEL_WORDS: Final = "console=ttyS0 quiet no_timer_check"
"""What a test guest is booted with. On a busy machine a vCPU under TCG may not run while Linux looks whether its timer ticks,
and Linux then panics ("IO-APIC + timer doesn't work"). Under KVM it does not look."""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """The files a test guest is started from; absolute paths.

    Attributes:
        kernel: For QEMU's ``-kernel``.
        initrd: For QEMU's ``-initrd``; ``None`` for the bare guest, which has none.
    """

    kernel: Path
    initrd: Path | None = None

    @property
    def kind(self) -> GuestKind:
        """Which guest it is."""
        return "bare" if self.initrd is None else "linux"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the guest."""
        return (self.kernel,) if self.initrd is None else (self.kernel, self.initrd)


def find_images(kind: GuestKind = "linux") -> GuestImage:
    """Find a test guest's files: kernel and initramfs of the Linux guest, the image of the bare one.

    Looked at in this order: the directory that the environment variable ``QMP_MIGRATE_IMAGES`` names (and then no
    other), ``build/images`` under the current directory, ``qmp-migrate/images`` under ``$XDG_CACHE_HOME`` (default
    ``~/.cache``).

    Args:
        kind: Which guest.

    Raises:
        RigError: No directory has its files.
    """
    named = os.environ.get(_VARIABLE)
    directories = [Path(named)] if named else [Path("build/images"), cache_directory() / "images"]
    for directory in directories:
        image = _image(kind, directory.absolute())
        if all(file.is_file() for file in image.files):
            return image
    looked_at = ", ".join(str(directory.absolute()) for directory in directories)
    names = " and ".join(file.name for file in _image(kind, Path()).files)
    guest = {"linux": "test guest", "bare": "bare test guest"}[kind]
    verb = {"linux": "are", "bare": "is"}[kind]
    raise RigError(
        f"the {guest}'s {names} {verb} not there (looked in {looked_at})",
        hint=f"run `make images`, or set {_VARIABLE} to the directory that has {'them' if verb == 'are' else 'it'}",
    )


def _image(kind: GuestKind, directory: Path) -> GuestImage:
    if kind == "bare":
        return GuestImage(kernel=directory / "bare.elf")
    return GuestImage(kernel=directory / "vmlinuz", initrd=directory / "initrd.img")


def cache_directory() -> Path:
    """The user's cache directory of this project, which may not exist yet."""
    # The XDG rules: a relative path in the variable is to be ignored.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "qmp-migrate"
