"""Finds the test guest: the kernel and the initramfs that ``make images`` builds (``vm-images/build.sh``)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qmp_migrate.errors import RigError

_VARIABLE = "QMP_MIGRATE_IMAGES"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """The files a test guest is started from; absolute paths.

    Attributes:
        kernel: For QEMU's ``-kernel``.
        initrd: For QEMU's ``-initrd``.
    """

    kernel: Path
    initrd: Path


def find_images() -> GuestImage:
    """Find the test guest's kernel and initramfs.

    Looked at in this order: the directory that the environment variable ``QMP_MIGRATE_IMAGES`` names (and then no
    other), ``build/images`` under the current directory, ``qmp-migrate/images`` under ``$XDG_CACHE_HOME`` (default
    ``~/.cache``).

    Raises:
        RigError: No directory has both files.
    """
    named = os.environ.get(_VARIABLE)
    directories = [Path(named)] if named else [Path("build/images"), cache_directory() / "images"]
    for directory in directories:
        image = GuestImage(kernel=(directory / "vmlinuz").absolute(), initrd=(directory / "initrd.img").absolute())
        if image.kernel.is_file() and image.initrd.is_file():
            return image
    looked_at = ", ".join(str(directory.absolute()) for directory in directories)
    raise RigError(
        f"the test guest's vmlinuz and initrd.img are not there (looked in {looked_at})",
        hint=f"run `make images`, or set {_VARIABLE} to the directory that has them",
    )


def cache_directory() -> Path:
    """The user's cache directory of this project, which may not exist yet."""
    # The XDG rules: a relative path in the variable is to be ignored.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "qmp-migrate"
