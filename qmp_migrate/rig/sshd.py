"""An sshd of our own for each host of the rig: own host key, own port, one user, no root needed.

It listens on one loopback address and lets in exactly the user who runs the rig, with the rig's own key.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from qmp_migrate.errors import RigError
from qmp_migrate.hosts.local import LocalHost
from qmp_migrate.hosts.process import ProcessId
from qmp_migrate.rig.addresses import RigHost

_CONFIG = """\
# Written by: qmp-migrate rig up
ListenAddress {address}:{port}
HostKey {host_key}
AuthorizedKeysFile {authorized_keys}
AllowUsers {user}
PidFile {ready}
AuthenticationMethods publickey
PermitRootLogin prohibit-password
# The files are in a 0700 directory of the user; that one is often under /tmp, which StrictModes does not accept.
StrictModes no
UsePAM {pam}
AllowStreamLocalForwarding yes
AllowTcpForwarding yes
AllowAgentForwarding no
X11Forwarding no
PrintMotd no
UseDNS no
# Many commands at once from one machine that is busy: nobody is sent away, and nobody's login is cut short.
MaxStartups 200
LoginGraceTime 120
{penalties}ClientAliveInterval 15
ClientAliveCountMax 3
# bash reads ~/.bashrc for every command that comes over SSH when it thinks it is the outermost shell: tenths of a
# second each, on a machine with a rich one.
SetEnv SHLVL=1
"""


def find_sshd() -> str:
    """Return the path of sshd.

    Raises:
        RigError: It is not installed.
    """
    path = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))
    if path is None:
        raise RigError("sshd is not installed", hint="apt-get install -y openssh-server")
    return path


def version() -> tuple[int, int]:
    """Return major and minor version of the installed sshd; ``(0, 0)``: it does not say.

    Raises:
        RigError: It is not installed.
    """
    said = subprocess.run([find_sshd(), "-V"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


async def make_key(machine: LocalHost, path: Path) -> str:
    """Make an Ed25519 key pair at ``path`` and ``path.pub``; return the public half, ``TYPE BASE64``.

    Raises:
        RigError: ``ssh-keygen`` is not installed.
        CommandFailed: It could not make the key.
    """
    if shutil.which("ssh-keygen") is None:
        raise RigError("ssh-keygen is not installed", hint="apt-get install -y openssh-client")
    await machine.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "qmp-migrate rig", "-f", str(path)])
    return " ".join(path.with_name(f"{path.name}.pub").read_text("ascii").split()[:2])


def write_config(part: Path, *, address: str, port: int, authorized_keys: Path) -> Path:
    """Write ``sshd_config`` into the directory of an sshd that has its ``host_key`` there.

    Args:
        part: Directory of this sshd; its pid file there is called ``ready``, made once it listens.
        address: Loopback address to listen on.
        port: Port to listen on.
        authorized_keys: Public keys that are let in.

    Returns:
        The file's path.
    """
    path = part / "sshd_config"
    text = _CONFIG.format(
        address=address,
        port=port,
        host_key=part / "host_key",
        authorized_keys=authorized_keys,
        user=getpass.getuser(),
        ready=part / "ready",
        # Tests and faults break logins off, all from one address: from 9.8 on that would lock out everybody for a while.
        penalties="PerSourcePenalties no\n" if version() >= (9, 8) else "",
        pam="yes" if _root_is_locked(Path("/etc/shadow")) else "no",
    )
    path.write_text(text, "utf-8")
    return path


def prepare_privilege_separation() -> None:
    """Make the empty directory without which sshd does not start as root (a service unit makes it otherwise)."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)


def free_port(address: str) -> int:
    """Return a TCP port that nobody listens on at ``address`` now.

    Raises:
        RigError: The address does not belong to this machine.
    """
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise RigError(
                f"cannot listen on {address}: {error.strerror}",
                hint="the rig's hosts are the loopback addresses 127.0.0.2 and up; Linux has them all",
            ) from error
        return int(probe.getsockname()[1])


def sessions(hosts: Iterable[RigHost], masters: Iterable[ProcessId]) -> list[psutil.Process]:
    """Return the processes behind the connections to the rig's sshds: they outlive the one that listens.

    Args:
        hosts: The rig's hosts: a process with a connection on one of their ports is meant, and all that it started.
        masters: The listening sshds.
    """
    ports = {(host.address, host.port) for host in hosts}
    pids = {entry.pid for entry in psutil.net_connections("tcp4") if entry.laddr in ports and entry.pid}
    found: dict[int, psutil.Process] = {}
    for pid in pids | {master.pid for master in masters}:
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(pid)
            found |= {member.pid: member for member in (top, *top.children(recursive=True))}
    for master in masters:
        found.pop(master.pid, None)
    return list(found.values())


def end_sessions(found: Sequence[psutil.Process]) -> None:
    """Kill what :func:`sessions` returned. psutil compares start times, so a pid that was reused is left alone."""
    for member in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def known_hosts_line(address: str, port: int, public_key: str) -> str:
    """Return the ``known_hosts`` line for one sshd."""
    return f"[{address}]:{port} {public_key}\n"


def _root_is_locked(shadow: Path) -> bool:
    """Tell whether we are root and root's password is locked: sshd then lets nobody in, unless it asks PAM."""
    if os.geteuid() != 0:
        return False
    try:
        lines = shadow.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    return any(line.startswith("root:!") for line in lines)
