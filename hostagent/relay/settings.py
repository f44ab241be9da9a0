"""What the owner of the host allows: ``/etc/qmp-migrate/relay.toml``."""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DEFAULT: Final = Path("/etc/qmp-migrate/relay.toml")
KEYS: Final = {"run_dir": str, "images": list, "qcow2_images": list, "readable": list, "qemus": list}


class BadSettings(Exception):
    """The file cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What guests may be made of.

    Attributes:
        run_dir: Where guests' directories are.
        images: Directories whose files are raw disks of guests.
        qcow2_images: Directories whose files are qcow2 disks of guests. No file may be opened as both: its guest could
            write a header that names other files of the host.
        readable: Directories whose files may be read by a guest's QEMU: kernels, firmware, installation media.
        qemus: QEMU binaries.
    """

    run_dir: str = "/run/qmp-migrate"
    images: tuple[str, ...] = ()
    qcow2_images: tuple[str, ...] = ()
    readable: tuple[str, ...] = ("/usr/share/OVMF", "/usr/share/qemu", "/usr/share/seabios", "/boot")
    qemus: tuple[str, ...] = ("/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-aarch64")


def read(path: Path) -> Allowed:
    """Read the file; without one the defaults are in force, which allow no disk.

    Raises:
        BadSettings: It is not TOML, has unknown keys or values, or others than its owner may write to it.
    """
    try:
        status = path.stat()
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Allowed()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path} cannot be read: {error}") from None
    if status.st_uid not in {0, os.geteuid()}:
        raise BadSettings(f"{path} belongs to somebody else")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadSettings(f"{path} can be written by others than its owner")
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSettings(f"{path}: not TOML: {error}") from None
    for key, value in found.items():
        if key not in KEYS:
            raise BadSettings(f"{path}: unknown key {key!r}; there are: {', '.join(KEYS)}")
        words = [value] if KEYS[key] is str else value
        if not isinstance(words, list) or not all(_is_path(word) for word in words):
            raise BadSettings(f"{path}: {key} must be {'an absolute path' if KEYS[key] is str else 'absolute paths'}")
    default = Allowed()
    made = Allowed(
        run_dir=found.get("run_dir", default.run_dir),
        images=tuple(found.get("images", default.images)),
        qcow2_images=tuple(found.get("qcow2_images", default.qcow2_images)),
        readable=tuple(found.get("readable", default.readable)),
        qemus=tuple(found.get("qemus", default.qemus)),
    )
    # What a guest writes must not be what another is read from.
    places = [(made.run_dir,), made.images, made.qcow2_images, made.readable]
    for number, some in enumerate(places):
        for others in places[number + 1 :]:
            for one in some:
                for other in others:
                    if f"{os.path.realpath(one)}/".startswith(f"{os.path.realpath(other)}/") or (
                        f"{os.path.realpath(other)}/".startswith(f"{os.path.realpath(one)}/")
                    ):
                        raise BadSettings(
                            f"{path}: {one} and {other} are in one another, and stand for different things"
                        )
    return made


def _is_path(word: object) -> bool:
    return isinstance(word, str) and os.path.isabs(word) and os.path.normpath(word) == word and word != "/"
