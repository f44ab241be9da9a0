"""The controller's scripts that the relay knows, and what their arguments must be.

The relay has only their SHA-256 (``scripts.json``, made by ``python -m hostagent.relay.script_registry``; a test sees
that it is as the scripts are): it must start fast, and must not be talked into anything by what a script looks like.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).with_name("scripts.json")
PID: Final = ("number", "number", "boot id")
FENCE: Final = ("epoch", "number")

# Module and constant, then what each argument must be. "*" after the last one: any number of these. "argv": a QEMU's
# command line. "probe": that of a QEMU that is started for its answers.
SCRIPTS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("hosts.files", "READ"): ("record or log of a guest", "number", "number"),
    ("hosts.files", "WRITE"): ("serial log that travels", "mode", "number"),
    ("hosts.process_scripts", "IS_ALIVE"): PID,
    ("hosts.process_scripts", "WAIT_GONE"): (*PID, "number"),
    ("hosts.process_scripts", "KILL"): (*PID, "number", "signal"),
    ("hosts.process_scripts", "KILL_CLOSED"): (*PID, "number", "signal"),
    ("hosts.process_scripts", "IDENTIFY"): ("guest's directory",),
    ("hosts.process_scripts", "COMMAND_LINE"): ("number",),
    ("hosts.process_scripts", "DISCARD"): ("guest's directory",),
    ("hosts.process_scripts", "LIST"): ("run directory",),
    ("hosts.process_scripts", "LAUNCH"): ("guest's directory", "number", "word", "word", "number", "argv"),
    ("hosts.shell_command", "END_GROUP"): ("number", "number"),
    ("hosts.lock_scripts", "HOLDER"): ("number", "word"),
    ("hosts.lock_scripts", "END_HOLDER"): ("lock", "line of text"),
    ("migration.lifecycle.delegation", "GIVE"): ("run directory", "guest's name"),
    ("migration.lifecycle.delegation", "WITHDRAW"): ("run directory", "guest's name"),
    ("migration.lifecycle.delegation", "RECORD"): ("run directory", "guest's name"),
    ("migration.endpoint.console", "_TAIL"): ("guest's directory", "number"),
    ("migration.transport.setup", "_PLACE_KEYS"): ("file of a guest", "word", "word", "number"),
    ("migration.transport.setup", "_REMOVE_KEYS"): ("file of a guest", "word", "word"),
    ("migration.cold.definition", "_DEFINED"): ("guest's directory",),
    ("migration.preflight.host_facts", "_FACTS"): ("run directory", "guest's name", "QEMU", "address or nothing"),
    ("migration.preflight.host_facts", "_PATHS"): ("file for a guest", "*"),
    ("migration.preflight.host_facts", "_SIZES"): ("file for a guest", "*"),
    ("migration.preflight.host_facts", "_PROBE"): ("run directory", "probe"),
    ("migration.endpoint.guest_locks", "_EPOCH"): ("epoch",),
    ("migration.endpoint.guest_locks", "_HOLDER"): ("lock",),
    ("migration.endpoint.guest_locks", "_PLACE"): ("run directory",),
    ("migration.endpoint.guest_locks", "_BUMP"): ("epoch", "number", "line of text"),
    ("migration.endpoint.launch", "_LAUNCHING"): ("guest's directory",),
    ("migration.savefile.image_stamps", "_STAMPS"): ("image", "*"),
    ("fleet.doctor", "_FACTS"): ("run directory", "QEMU"),
    ("fleet.cleanup.run_dir_facts", "_FACTS"): ("run directory",),
}
NOTHING: Final = ":"
"""What is sent to see whether somebody is there."""


def digest(text: str | bytes) -> str:
    """Return the SHA-256 by which a script is known."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text).hexdigest()


def collect() -> dict[str, Any]:
    """Return the document, from the scripts as they are."""
    from qmp_migrate.hosts.fenced import _FENCE
    from qmp_migrate.hosts.shell_command import _WRAPPER
    from qmp_migrate.migration.preflight.host_facts import questions

    scripts: dict[str, dict[str, Any]] = {}
    for (module, name), kinds in {**SCRIPTS, ("", "nothing"): ()}.items():
        source = getattr(importlib.import_module(f"qmp_migrate.{module}"), name) if module else NOTHING
        called = f"{module}.{name}".strip(".")
        scripts[digest(source)] = {"name": called, "args": list(kinds)}
        scripts[digest(_FENCE + source)] = {"name": f"{called}, fenced", "args": [*FENCE, *kinds]}
    return {
        "schema": "relay.scripts/1",
        "wrapper": digest(_WRAPPER),
        "questions": digest(questions()),
        "scripts": dict(sorted(scripts.items())),
    }


def written() -> str:
    """Return the document as the file has it."""
    return json.dumps(collect(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(written())
    sys.stdout.write(f"{FILE}\n")
