"""Somebody else at a guest's monitor: what tests plug in, take out and ask, beside the product."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any


def qmp(monitor: Path, command: str, /, *, failing: bool = False, **arguments: Any) -> Any:
    """Run one QMP command and return its answer; `failing`: it must be refused, and the reason is returned.

    Keys are given with underscores where QEMU has dashes.
    """
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(20)
        link.connect(str(monitor))
        stream = link.makefile("rw")
        json.loads(stream.readline())
        for name, given in (("qmp_capabilities", {}), (command, arguments)):
            given = {key.replace("_", "-"): value for key, value in given.items()}
            stream.write(json.dumps({"execute": name, "arguments": given}) + "\n")
            stream.flush()
            while "event" in (answer := json.loads(stream.readline())):
                pass
        assert ("error" in answer) is failing, answer
        return answer["error"]["desc"] if failing else answer["return"]
