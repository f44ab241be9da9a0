"""Copy what qmp-migrate depends on from this Python's site-packages: `python libraries.py DIRECTORY`.

All of its dependencies without extras, as they are installed: hash-pinned by requirements/dev.txt.
"""

from __future__ import annotations

import re
import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path


def closure(name: str) -> dict[str, Distribution]:
    """Return the installed distributions that one needs, itself not among them."""
    found: dict[str, Distribution] = {}
    asked = [name]
    while asked:
        for requirement in distribution(asked.pop()).requires or ():
            if "extra ==" in requirement:
                continue
            match = re.match(r"[A-Za-z0-9._-]+", requirement)
            wanted = re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""
            if wanted and wanted not in found:
                try:
                    found[wanted] = distribution(wanted)
                except PackageNotFoundError:  # its marker names another system
                    continue
                asked.append(wanted)
    return found


def copy(to: Path) -> None:
    """Copy their modules; scripts and byte code stay behind."""
    for one in closure("qmp-migrate").values():
        for file in one.files or ():
            if ".." in file.parts or file.suffix == ".pyc":
                continue
            target = to / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(one.locate_file(file)), target)


if __name__ == "__main__":
    copy(Path(sys.argv[1]))
