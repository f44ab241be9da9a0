"""The command line of the relay, read without a library: it is started for each command of the controller."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from hostagent.relay.settings import DEFAULT

USAGE: Final = """usage: qmp-hostagent relay [--settings FILE] [--explain COMMAND | --line PUBLIC_KEY]

The forced command of a controller's key: does what SSH_ORIGINAL_COMMAND asks for, as far as FILE
allows (default: /etc/qmp-migrate/relay.toml).

  --explain COMMAND   say whether a command would be done, and do nothing
  --line PUBLIC_KEY   print the line for authorized_keys that binds a key to the relay
"""


def main(words: list[str] | None = None) -> int:
    """Read the words and do it."""
    words = sys.argv[1:] if words is None else words
    settings, explain, key = DEFAULT, None, None
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in {"-h", "--help"}:
            sys.stdout.write(USAGE)
            return 0
        if word not in {"--settings", "--explain", "--line"} or not rest:
            sys.stderr.write(USAGE)
            return 2
        value = rest.pop(0)
        if word == "--settings":
            settings = Path(value)
        elif word == "--explain":
            explain = value
        else:
            key = Path(value)
    if key is not None:
        return _line(key, settings)
    if explain is not None:
        return _explain(explain, settings)
    from hostagent.relay.executor import main as relay

    relay(settings)


def _line(key: Path, settings: Path) -> int:
    import shutil

    try:
        words = key.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{key} cannot be read: {error}\n")
        return 1
    if len(words) < 2 or not words[0].startswith(("ssh-", "ecdsa-", "sk-")):
        sys.stderr.write(f"{key} is not a public key; give the .pub file\n")
        return 2
    program = shutil.which("qmp-hostagent") or "/usr/bin/qmp-hostagent"
    more = "" if settings == DEFAULT else f" --settings {settings}"
    sys.stdout.write(f'restrict,command="{program} relay{more}" {" ".join(words)}\n')
    return 0


def _explain(command: str, settings: Path) -> int:
    from hostagent.relay.argument_rules import Refused
    from hostagent.relay.request import load, understand
    from hostagent.relay.settings import BadSettings, read

    try:
        request = understand(command, read(settings), load())
    except (Refused, BadSettings) as error:
        sys.stdout.write(f"refused: {error}\n")
        return 77
    sys.stdout.write(f"done: {request.name}\n")
    return 0
