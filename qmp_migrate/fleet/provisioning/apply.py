"""Make a machine one of our hosts: look, take the steps of `plan.plan`, look again.

Everything runs as root there, through the same SSH and with the same checks of host keys as all else; nothing stays behind
but what the steps say. A setup that is cut off is simply run again.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from qmp_migrate.errors import CommandFailed, ConfigError, RemoteError
from qmp_migrate.fleet.provisioning import scripts
from qmp_migrate.fleet.provisioning.plan import AGENT, Machine, Package, Step, Wish, plan
from qmp_migrate.hosts import Completed, Host

PIECE: Final = 4 << 20
LOOK_S: Final = 60.0
INSTALL_S: Final = 600.0
START_S: Final = 120.0
CONNECT_S: Final = 20.0
"""How long we wait for the agent to reach its broker."""

Tell = Callable[[Step, str], None]
"""Called with each step: before it is taken ("begin"), with its progress ("12%"), and after it ("done")."""


class Root:
    """A host on which we are root: as the user that we log in as, or through sudo.

    Args:
        host: Connected as a user that is root or may use sudo without a password.
        sudo: Use it.
    """

    def __init__(self, host: Host, *, sudo: bool) -> None:
        self.host = host
        self._sudo = sudo

    async def script(self, source: str, *args: str, input: bytes = b"", timeout: float = LOOK_S) -> Completed:
        """Run one of our scripts as root.

        Raises:
            RemoteError: It failed; the message has what it said.
        """
        try:
            if not self._sudo:
                return await self.host.script(source, args, input=input, timeout=timeout)
            return await self.host.run(["sudo", "-n", "sh", "-c", source, "sh", *args], input=input, timeout=timeout)
        except CommandFailed as error:
            if self._sudo and "sudo" in (last := error.stderr.strip().rpartition("\n")[2]):
                raise RemoteError(
                    f"sudo does not let us: {last}",
                    hint="a rule with NOPASSWD for this user, or --login root",
                    host=self.host.name,
                ) from None
            raise


def read_package(path: Path) -> Package:
    """Read what a package is for.

    Raises:
        ConfigError: It cannot be read, or is no package of ours.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint="`make dist` builds it in dist/") from error
    if not content.startswith(b"!<arch>\ndebian-binary"):
        raise ConfigError(f"{path} is no Debian package", hint="`make dist` builds it in dist/")
    fields: dict[str, str] = {}
    if shutil.which("dpkg-deb"):
        said = subprocess.run(["dpkg-deb", "--field", str(path)], capture_output=True, check=False)
        for line in said.stdout.decode("utf-8", "replace").splitlines():
            name, separator, value = line.partition(": ")
            if separator and not name.startswith(" "):
                fields[name] = value
        if fields.get("Package") != "qmp-migrate":
            raise ConfigError(f"{path} is a package of {fields.get('Package') or 'nothing'}, not of qmp-migrate")
    depends = fields.get("Depends", "")
    minor = depends.partition("python3 (>= 3.")[2].partition(")")[0]
    return Package(
        path=path,
        digest=hashlib.sha256(content).hexdigest(),
        size=len(content),
        version=fields.get("Version", "from " + path.name),
        architecture=fields.get("Architecture", ""),
        python=int(minor) if minor.isdecimal() else 0,
    )


async def look(root: Root, wish: Wish) -> Machine:
    """Ask the machine how it is. Touches nothing.

    Raises:
        RemoteError: We are not root there.
        TransportError: It cannot be reached.
    """
    args = (wish.user, wish.run_dir, wish.qemu, wish.key_blob, wish.key, *(file.path for file in wish.files))
    done = await root.script(scripts.LOOK, *args)
    return scripts.machine(done.stdout.decode("utf-8", "replace"), root.host.name)


async def take(root: Root, wish: Wish, steps: list[Step], tell: Tell) -> list[Step]:
    """Take the steps that change something, and return how everything is afterwards.

    Raises:
        RemoteError: A step failed. Those before it are done; run it again once the cause is gone.
        TransportError: The connection broke: run it again.
    """
    for step in steps:
        if step.state == "change":
            tell(step, "begin")
            await _take(root, wish, step, tell)
            tell(step, "done")
    machine = await look(root, wish)
    if wish.agent and machine.get("systemd"):
        deadline = time.monotonic() + CONNECT_S
        while not machine.connected and machine.get("agent_active") == "active" and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            machine = await look(root, wish)
    return plan(wish, machine)


async def _take(root: Root, wish: Wish, step: Step, tell: Tell) -> None:
    match step.id:
        case "user":
            await root.script(scripts.MAKE_USER, wish.user, wish.home)
        case "key":
            await root.script(scripts.ADD_KEY, wish.user, wish.key)
        case "run-dir":
            await root.script(scripts.MAKE_RUN_DIR, wish.user, wish.run_dir)
        case "package":
            await _install(root, wish, step, tell)
        case "file":
            assert step.file is not None
            file = step.file
            args = (file.path, f"{file.mode:04o}", wish.user if file.for_user else "root", str(len(file.content)))
            await root.script(scripts.PUT_FILE, *args, input=file.content)
        case "agent":
            await root.script(scripts.START, AGENT, timeout=START_S)
        case _:
            raise AssertionError(f"nobody takes the step {step.id}")


async def _install(root: Root, wish: Wish, step: Step, tell: Tell) -> None:
    assert wish.package is not None
    content = await asyncio.to_thread(wish.package.path.read_bytes)
    if hashlib.sha256(content).hexdigest() != wish.package.digest:
        raise ConfigError(f"{wish.package.path} has changed meanwhile", hint="run it again")
    for offset in range(0, len(content), PIECE):
        piece = content[offset : offset + PIECE]
        done = await root.script(scripts.UPLOAD, str(offset), input=piece)
        if done.text != str(offset + len(piece)):
            raise RemoteError("the package arrived in part only", hint="run it again", host=root.host.name)
        tell(step, f"{100 * (offset + len(piece)) // len(content)}%")
    await root.script(scripts.INSTALL, wish.package.digest, timeout=INSTALL_S)
