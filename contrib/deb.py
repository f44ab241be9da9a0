"""Builds a Debian package that needs nothing but Python: ``make dist`` runs it after the wheel is there.

The libraries that we need are copied from the virtual environment (which is hash-pinned) into ``/usr/lib/qmp-migrate``,
where nobody else finds them. What is compiled fits one minor version of Python, so the package asks for that one. No root,
no download.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIB = Path("usr/lib/qmp-migrate")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
NAME = "qmp-migrate"

WRAPPER = """#!/usr/bin/python3 -E
import sys
sys.path[0] = "/usr/lib/qmp-migrate"
from {module} import main
sys.exit(main())
"""

CONTROL = """Package: qmp-migrate
Version: {version}
Architecture: {architecture}
Maintainer: qmp-migrate developers <qmp-migrate@localhost>
Installed-Size: {size}
Depends: python3 (>= 3.{minor}), python3 (<< 3.{next})
Recommends: qemu-system-x86 | qemu-system-arm, qemu-utils, openssh-server
Suggests: mosquitto
Section: admin
Priority: optional
Description: live migration of plain QEMU guests over QMP and SSH
 Moves running QEMU guests from host to host: no libvirt, one owner, encrypted
 by default. Holds the controller (qmp-migrate) and the agent of a host
 (qmp-hostagent) with its systemd service, which starts once
 /etc/qmp-migrate/hostagent.env says to whom it belongs.
"""

SERVICES = " ".join(sorted(unit.name for unit in (ROOT / "contrib" / "systemd").glob("*.service")))

POSTINST = """#!/bin/sh
set -e
if [ "$1" = configure ]; then
    if command -v systemd-sysusers >/dev/null; then systemd-sysusers qmp-migrate.conf || :; fi
    if command -v systemd-tmpfiles >/dev/null; then systemd-tmpfiles --create qmp-migrate.conf || :; fi
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload || :
        systemctl try-restart @SERVICES@ || :
    fi
fi
"""

PRERM = """#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now @SERVICES@ 2>/dev/null || :
fi
find /usr/lib/qmp-migrate -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || :
"""

POSTRM = """#!/bin/sh
set -e
if [ "$1" = purge ]; then
    rm -rf /etc/qmp-migrate
    rmdir /run/qmp-migrate /var/lib/qmp-hostagent 2>/dev/null || :
fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi
"""


def closure(names: list[str]) -> list[Distribution]:
    """Return the distributions that these need, themselves first, without extras that nobody asked for."""
    from packaging.requirements import Requirement

    found: dict[str, Distribution] = {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        key = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if key in found:
            continue
        found[key] = dist = distribution(wanted.name)
        for text in dist.requires or ():
            each = Requirement(text)
            extras = [*wanted.extras, ""]
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(each)
    return list(found.values())


def copy_libraries(into: Path) -> None:
    """Copy the libraries: modules and metadata, no scripts, no tests of theirs."""
    for dist in closure([NAME]):
        if dist.metadata["Name"] == NAME:
            continue
        for file in dist.files or ():
            if ".." in file.parts or file.suffix == ".pyc" or "__pycache__" in file.parts:
                continue
            target = into / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(dist.locate_file(file)), target)
            if ".so" in file.name:
                target.chmod(0o644)


def put(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file with its mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    path.chmod(mode)


def build(wheel: Path, out: Path, compression: str = "xz") -> Path:
    """Build the package from a wheel of ours; return its path."""
    version = wheel.name.split("-")[1]
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        lib = tree / LIB
        lib.mkdir(parents=True)
        copy_libraries(lib)
        shutil.unpack_archive(wheel, lib, "zip")
        put(tree / "usr/bin/qmp-migrate", WRAPPER.format(module="qmp_migrate.cli.main"), 0o755)
        put(tree / "usr/bin/qmp-hostagent", WRAPPER.format(module="hostagent.app.entry"), 0o755)
        units = ROOT / "contrib" / "systemd"
        for unit in units.glob("*.service"):
            put(tree / "lib/systemd/system" / unit.name, unit.read_text())
        put(tree / "usr/lib/sysusers.d/qmp-migrate.conf", (units / "qmp-migrate.sysusers").read_text())
        put(tree / "usr/lib/tmpfiles.d/qmp-migrate.conf", (units / "qmp-migrate.tmpfiles").read_text())
        documents = tree / "usr/share/doc/qmp-migrate"
        put(documents / "copyright", (ROOT / "LICENSE").read_text())
        put(documents / "README.md", (ROOT / "README.md").read_text())
        put(documents / "examples/hostagent.env", (units / "hostagent.env").read_text())
        (documents / "changelog.gz").write_bytes(gzip.compress((ROOT / "CHANGELOG.md").read_bytes(), mtime=0))
        (tree / "etc/qmp-migrate").mkdir(parents=True)
        for path in (tree, *tree.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) // 1024
        minor = sys.version_info.minor
        put(
            tree / "DEBIAN/control",
            CONTROL.format(version=version, architecture=architecture, size=size, minor=minor, next=minor + 1),
        )
        for script, text in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)):
            put(tree / "DEBIAN" / script, text.replace("@SERVICES@", SERVICES), 0o755)
        files = sorted(path for path in tree.rglob("*") if path.is_file() and "DEBIAN" not in path.parts)
        sums = [
            f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(tree)}"
            for path in files
        ]
        put(tree / "DEBIAN/md5sums", "\n".join(sums) + "\n")
        (tree / "DEBIAN").chmod(0o755)
        out.mkdir(parents=True, exist_ok=True)
        package = out / f"{NAME}_{version}_{architecture}.deb"
        environment = {**os.environ, "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", "1700000000")}
        argv = ["dpkg-deb", "--root-owner-group", f"-Z{compression}", "--build", str(tree), str(package)]
        subprocess.run(argv, check=True, env=environment, stdout=subprocess.DEVNULL)
    return package


def main() -> int:
    """Build it."""
    parser = argparse.ArgumentParser(description="Build the Debian package from a wheel.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--compression", choices=("xz", "gzip", "none"), default="xz")
    options = parser.parse_args()
    if shutil.which("dpkg-deb") is None:
        sys.stderr.write("no dpkg-deb here: the .deb is left out\n")
        return 0
    sys.stdout.write(f"{build(options.wheel, options.out, options.compression)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
