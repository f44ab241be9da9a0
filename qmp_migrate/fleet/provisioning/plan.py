"""What it takes for a machine to be one of our hosts: the wish, what the machine says of itself, and the steps between them.

Pure: nothing here touches anything. The same wish and the same machine give the same steps; on a machine that has taken
all of them, no step changes anything (`host setup` may be run as often as one likes).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from qmp_migrate.errors import UsageError

State = Literal["ok", "change", "warn", "fail"]
AGENT: Final = "qmp-hostagent.service"
DEFAULT_USER: Final = "qmp"
DEFAULT_RUN_DIR: Final = "/run/qmp-migrate"
ETC: Final = "/etc/qmp-migrate"
ENVIRONMENT: Final = f"{ETC}/hostagent.env"
LEAST_SESSIONS: Final = 10
USER_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
KEY_TYPES: Final = ("ssh-ed25519", "ecdsa-sha2-", "ssh-rsa", "sk-ssh-ed25519", "sk-ecdsa-sha2-")


@dataclass(frozen=True, slots=True)
class File:
    """A file that the machine must have.

    Attributes:
        path: Where.
        content: All of it.
        mode: Permissions.
        secret: Its content is never shown.
        for_user: Owner ``root``, group that of the agent's user; else all ``root``.
    """

    path: str
    content: bytes
    mode: int = 0o644
    secret: bool = False
    for_user: bool = False

    @property
    def digest(self) -> str:
        """SHA-256, as hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True)
class Package:
    """The Debian package that ``make dist`` has built.

    Attributes:
        path: Where it is on this machine.
        digest: SHA-256 of it.
        size: Bytes.
        version: Of qmp-migrate.
        architecture: As Debian calls it; ``""``: unknown.
        python: Minor version of Python 3 that it was built for; 0: unknown.
    """

    path: Path
    digest: str
    size: int
    version: str
    architecture: str = ""
    python: int = 0


@dataclass(frozen=True, slots=True)
class Wish:
    """How the machine shall be.

    Attributes:
        host: Its name in the settings.
        user: The user that guests and the agent run as.
        run_dir: Where guests' files are.
        qemu: The QEMU binary.
        key: Line for the user's ``authorized_keys``; ``""``: that is not ours to do.
        package: To install; None: what is there stays.
        agent: It shall have an agent.
        files: What shall be there.
    """

    host: str
    user: str
    run_dir: str
    qemu: str
    key: str
    package: Package | None
    agent: bool
    files: tuple[File, ...] = ()

    @property
    def home(self) -> str:
        """Home directory of a user that has to be made. Not where a controller that is run by root keeps its journal."""
        return "/var/lib/qmp-hostagent" if self.user == DEFAULT_USER else f"/home/{self.user}"

    @property
    def key_blob(self) -> str:
        """The part of the key that says which one it is."""
        return key_blob(self.key) if self.key else ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine says of itself, see `enrolment_scripts.LOOK`. Files as ``PATH: (digest, mode, owner:group)``."""

    facts: Mapping[str, str]
    files: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)

    def get(self, name: str) -> str:
        """Return a fact, ``""`` where it is not known."""
        return self.facts.get(name, "")

    @property
    def connected(self) -> bool:
        """Its agent says that the broker has it."""
        return self.get("agent_active") == "active" and "broker connected" in self.get("agent_status")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that the machine needs.

    Attributes:
        id: Stable, for programs.
        state: ``ok``: it is so. ``change``: it is to be done. ``warn``: it is not so, and not ours to do. ``fail``: it must
            be so, and a person has to do it.
        text: What, in words.
        hint: What a person can do.
        file: What to write, where it is about a file.
    """

    id: str
    state: State
    text: str
    hint: str = ""
    file: File | None = None

    def to_dict(self) -> dict[str, str]:
        """Return it for ``--json``."""
        return {"id": self.id, "state": self.state, "text": self.text, "hint": self.hint}


def key_blob(line: str) -> str:
    """Return the base64 word of a public key in OpenSSH's format, after a look at it.

    Raises:
        UsageError: It is none.
    """
    words = line.split()
    for kind, blob in itertools.pairwise(words):
        if kind.startswith(KEY_TYPES):
            try:
                raw = base64.b64decode(blob, validate=True)
            except (binascii.Error, ValueError):
                break
            if raw[4 : 4 + len(kind)] == kind.encode() and "\n" not in line.strip():
                return blob
    raise UsageError(
        f"this is not an SSH public key: {line.strip()[:60]!r}", hint="one line, as in ~/.ssh/id_ed25519.pub"
    )


def plan(wish: Wish, machine: Machine) -> list[Step]:
    """Return every step, in the order in which they must be taken.

    Where a step says ``fail``, none may be taken.
    """
    steps = [_system(wish, machine), _qemu(wish, machine), _kvm(machine), _user(wish, machine)]
    if wish.key:
        steps.append(_key(wish, machine))
    steps.append(_run_dir(wish, machine))
    if wish.package is not None or wish.agent:
        steps.append(_package(wish, machine))
    steps += [_file(wish, machine, file) for file in wish.files]
    if wish.agent:
        steps.append(_agent(machine, any(step.state == "change" and _matters(step) for step in steps)))
    steps += _ssh(machine)
    if machine.get("kill_user_processes") == "yes":
        steps.append(
            Step(
                "logind",
                "fail",
                "KillUserProcesses=yes: logind would end every guest when the controller's SSH session ends",
                "set KillUserProcesses=no in /etc/systemd/logind.conf",
            )
        )
    return steps


def _system(wish: Wish, machine: Machine) -> Step:
    what = f"{machine.get('os') or 'unknown system'}, {machine.get('machine')}"
    if machine.get("kernel") != "Linux":
        return Step("system", "fail", f"not Linux: {machine.get('kernel') or what}")
    if wish.package is not None and not machine.get("dpkg"):
        return Step(
            "system",
            "fail",
            f"{what}: no dpkg here, and the package is one of Debian's kind",
            "install the wheel by hand (docs: Setting up a host), then run this again without --package",
        )
    return Step("system", "ok", what)


def _qemu(wish: Wish, machine: Machine) -> Step:
    if version := machine.get("qemu"):
        return Step("qemu", "ok", f"{wish.qemu}: {version}")
    return Step(
        "qemu", "warn", f"no {wish.qemu}", "apt-get install qemu-system-x86 qemu-utils, or say qemu = in [hosts]"
    )


def _kvm(machine: Machine) -> Step:
    if machine.get("kvm"):
        return Step("kvm", "ok", "/dev/kvm is there")
    return Step("kvm", "warn", "no /dev/kvm: guests would be emulated", "switch virtualisation on in the firmware")


def _user(wish: Wish, machine: Machine) -> Step:
    groups = machine.get("groups").split()
    if not machine.get("home"):
        return Step("user", "change", f"make the user {wish.user}, home {wish.home}, group kvm")
    if machine.get("shell").endswith(("/nologin", "/false")):
        return Step(
            "user",
            "fail",
            f"{wish.user} has the shell {machine.get('shell')}: nothing can be run as it",
            f"usermod --shell /bin/sh {wish.user}",
        )
    if machine.get("kvm_group") and "kvm" not in groups:
        return Step("user", "change", f"add {wish.user} to the group kvm")
    return Step("user", "ok", f"user {wish.user}: groups {' '.join(groups)}")


def _key(wish: Wish, machine: Machine) -> Step:
    words = wish.key.split()
    called = words[-1] if len(words) > 2 else words[0]
    if machine.get("key") == "present":
        return Step("key", "ok", f"the controller's key {called} may log in as {wish.user}")
    if machine.get("key") == "other":
        return Step(
            "key",
            "warn",
            f"the controller's key {called} is there with other options than these: it is left alone",
            f"in ~{wish.user}/.ssh/authorized_keys: {wish.key}",
        )
    return Step("key", "change", f"let the controller's key {called} log in as {wish.user}")


def _run_dir(wish: Wish, machine: Machine) -> Step:
    if machine.get("run_dir") == f"700 {wish.user}":
        return Step("run-dir", "ok", f"{wish.run_dir}: 0700, {wish.user}")
    had = machine.get("run_dir")
    return Step("run-dir", "change", f"{'set right' if had else 'make'} {wish.run_dir}: 0700, {wish.user}")


def _package(wish: Wish, machine: Machine) -> Step:
    have, wanted = machine.get("package"), wish.package
    if wanted is None:
        if have:
            return Step("package", "ok", f"qmp-migrate {have} is installed; no --package: it stays")
        return Step("package", "fail", "no agent is installed here", "--package FILE, as `make dist` builds it")
    if machine.get("dpkg") and wanted.architecture not in {"", "all", machine.get("dpkg")}:
        return Step(
            "package", "fail", f"{wanted.path.name} is for {wanted.architecture}, this machine is {machine.get('dpkg')}"
        )
    if wanted.python and machine.get("python") != f"3.{wanted.python}":
        return Step(
            "package",
            "fail",
            f"{wanted.path.name} was built for Python 3.{wanted.python}, this machine has {machine.get('python') or 'none'}",
            "run `make dist` on a machine of the same release of Debian",
        )
    if have and machine.get("package_digest") == wanted.digest:
        return Step("package", "ok", f"qmp-migrate {have} from {wanted.path.name}")
    return Step(
        "package",
        "change",
        f"install qmp-migrate {wanted.version} ({wanted.size / 1e6:.1f} MB)" + (f", was {have}" if have else ""),
    )


def _file(wish: Wish, machine: Machine, file: File) -> Step:
    owner = f"root:{machine.get('group') or wish.user}" if file.for_user else "root:root"
    found = machine.files.get(file.path)
    if found == (file.digest, f"{file.mode:o}", owner):
        return Step("file", "ok", file.path, file=file)
    return Step("file", "change", f"{'write' if found is None else 'update'} {file.path}", file=file)


def _agent(machine: Machine, changed: bool) -> Step:
    if not machine.get("systemd"):
        return Step(
            "agent",
            "warn",
            "systemd does not run here: the agent is not started",
            f"start it otherwise: the variables of {ENVIRONMENT}, then qmp-hostagent run",
        )
    active, enabled = machine.get("agent_active"), machine.get("agent_enabled")
    if active == "active" and enabled == "enabled" and not changed:
        if machine.connected:
            return Step("agent", "ok", f"{AGENT}: {machine.get('agent_status')}")
        return Step("agent", "warn", f"{AGENT} runs: {machine.get('agent_status')}", f"journalctl -u {AGENT}")
    if active == "active":
        return Step("agent", "change", f"restart {AGENT}" + ("" if enabled == "enabled" else " and start it at boot"))
    return Step(
        "agent", "change", f"start {AGENT}, and at every boot" + (f" (is {active})" if active == "failed" else "")
    )


def _ssh(machine: Machine) -> list[Step]:
    steps = []
    if machine.get("sshd_streamlocal") in {"no", "remote"}:
        steps.append(
            Step(
                "sshd",
                "fail",
                f"sshd has AllowStreamLocalForwarding {machine.get('sshd_streamlocal')}: no monitor could be reached",
                "set AllowStreamLocalForwarding yes (or local) in sshd_config",
            )
        )
    sessions = machine.get("sshd_sessions")
    if sessions.isdecimal() and int(sessions) < LEAST_SESSIONS:
        steps.append(
            Step("sshd", "warn", f"sshd has MaxSessions {sessions}", f"{LEAST_SESSIONS} or more, as by default")
        )
    return steps or [Step("sshd", "ok", "sshd lets UNIX sockets through")]


def _matters(step: Step) -> bool:
    """Tell whether a running agent must be started anew after this."""
    return step.id in {"user", "package", "file"}
