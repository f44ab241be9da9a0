"""The scripts of `host setup`: one that looks, and one for each thing that is done. All run as root."""

from __future__ import annotations

from typing import Final

from qmp_migrate.errors import RemoteError
from qmp_migrate.fleet.provisioning.plan import Machine
from qmp_migrate.hosts.scripts import script

LOOK: Final = script("provisioning/look")
MAKE_USER: Final = script("provisioning/make_user")
ADD_KEY: Final = script("provisioning/add_key")
MAKE_RUN_DIR: Final = script("provisioning/make_run_dir")
PUT_FILE: Final = script("provisioning/put_file")
UPLOAD: Final = script("provisioning/upload")
INSTALL: Final = script("provisioning/install")
START: Final = script("provisioning/start")


def machine(output: str, host: str) -> Machine:
    """Read what :data:`LOOK` has printed.

    Raises:
        RemoteError: It did not run to its end, or not as root.
    """
    facts: dict[str, str] = {}
    files: dict[str, tuple[str, str, str]] = {}
    for line in output.splitlines():
        name, _, value = line.partition(" ")
        if name == "file":
            words = value.split(" ", 3)
            if len(words) == 4:
                files[words[3]] = (words[0], words[1], words[2])
        else:
            facts[name] = value.strip()
    if facts.get("uid") != "0":
        raise RemoteError(
            f"not root there, but user {facts.get('uid', 'unknown')}",
            hint="--login a user that is root, or may use sudo without a password",
            host=host,
        )
    return Machine(facts, files)
