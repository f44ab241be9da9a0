"""Take a kernel out of its compressed bzImage: `python vmlinux.py VMLINUZ VMLINUX TREE`.

QEMU starts the uncompressed one by its PVH entry, without firmware, and nothing is decompressed by an emulated processor.
"""

from __future__ import annotations

import lzma
import struct
import subprocess
import sys
import zlib
from pathlib import Path


def unpack(image: bytes, tree: Path) -> bytes:
    """Return the ELF kernel in a bzImage (the fields are those of Linux's boot protocol 2.08).

    Args:
        image: The bzImage.
        tree: An unpacked Debian that has lz4 and zstd.

    Raises:
        SystemExit: It is compressed in an unknown way, or is not an ELF file.
    """
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\xfd7zXZ"):
        kernel = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        kernel = zlib.decompressobj(31).decompress(payload)
    elif payload.startswith((b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd")):
        # The kernel's build appends the size, which is no part of the stream.
        kernel = _run(tree, "lz4" if payload[0] == 2 else "zstd", payload[:-4])
    else:
        raise SystemExit(f"a kernel that is compressed in an unknown way: it begins with {payload[:6].hex()}")
    if not kernel.startswith(b"\x7fELF"):
        raise SystemExit("the kernel is not an ELF file")
    return kernel


def _run(tree: Path, program: str, payload: bytes) -> bytes:
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    loader = [str(tree / "lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
    argv = [*loader, str(tree / "usr/bin" / program), "-dc"]
    return subprocess.run(argv, input=payload, stdout=subprocess.PIPE, check=True).stdout


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(unpack(Path(sys.argv[1]).read_bytes(), Path(sys.argv[3])))
