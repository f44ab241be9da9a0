"""The shell scripts that take leftovers away: each proves once more, on the host and right before, what it acts on."""

from __future__ import annotations

from typing import Final

from qmp_migrate.hosts.scripts import script

REMOVE_KEYS: Final = script("cleanup/remove_keys")
QUARANTINE: Final = script("cleanup/quarantine")
REMOVE_FILE: Final = script("cleanup/remove_file")
