"""The controller's scripts that the relay knows, and what their arguments must be.

The files of `qmp_migrate.hosts.scripts` say so themselves. The relay has only their SHA-256 (``scripts.json``, made by
``python -m hostagent.relay.script_registry``; a test sees that it is as the files are): it must start fast, and must not be
talked into anything by what a script looks like.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).with_name("scripts.json")
FENCE_KINDS: Final = ("epoch", "number")
NOTHING: Final = ":"
"""What is sent to see whether somebody is there."""


def digest(text: str | bytes) -> str:
    """Return the SHA-256 by which a script is known."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text).hexdigest()


def collect() -> dict[str, Any]:
    """Return the document, from the scripts as they are."""
    from qmp_migrate.hosts.fenced import FENCE
    from qmp_migrate.hosts.scripts import relayed, script
    from qmp_migrate.hosts.shell_command import WRAPPER
    from qmp_migrate.migration.preflight.host_facts import questions

    known = {name: (script(name), kinds) for name, kinds in relayed().items()}
    known["nothing"] = (NOTHING, ())
    scripts: dict[str, dict[str, Any]] = {}
    for name, (text, kinds) in known.items():
        scripts[digest(text)] = {"name": name, "args": list(kinds)}
        scripts[digest(FENCE + text)] = {"name": f"{name}, fenced", "args": [*FENCE_KINDS, *kinds]}
    return {
        "schema": "relay.scripts/1",
        "wrapper": digest(WRAPPER),
        "questions": digest(questions()),
        "scripts": dict(sorted(scripts.items())),
    }


def written() -> str:
    """Return the document as the file has it."""
    return json.dumps(collect(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(written())
    sys.stdout.write(f"{FILE}\n")
