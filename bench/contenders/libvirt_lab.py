"""Two libvirtds on one machine that think they are on two: for ``virsh`` alone, and only where libvirt is installed.

Each has namespaces of its own (mounts, network, host name, processes) and so its own state, address and host UUID; a pair
of virtual interfaces joins them. One reaches the other through SSH with a key and a known host key, as qmp-migrate
does, and as most people use ``virsh migrate``. Nothing is configured on the machine itself: when the two namespaces end,
so does everything in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import uuid
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.contenders.base import MoveFailed

NEEDED: Final = (
    *("libvirtd", "virsh", "virt-ssh-helper"),
    *("sshd", "ssh", "ssh-keygen", "openssl"),
    *("unshare", "nsenter", "ip"),
)
READY_S: Final = 60.0
COMMAND_S: Final = 60.0
RETRY_S: Final = 0.05

# $1 directory of this libvirtd  $2 its host name  $3 the guests' directory, the same path on both
_INIT: Final = """
set -eu
hostname "$2"
for place in /run /var/lib /var/log /var/cache; do mount -t tmpfs -o mode=755 tmpfs "$place"; done
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/guests" "$3"
mount --bind "$1/hosts" /etc/hosts
ip link set lo up
# The interface is put in from outside, and takes a moment.
until ip link show dev link0 >/dev/null 2>&1; do sleep 0.05; done
ip address add "$(cat "$1/address")/24" dev link0
ip link set link0 up
mkdir /run/sshd
"$(command -v sshd)" -f "$1/sshd_config" -E "$1/sshd.log"
# Not exec: process 1 inherits the QEMUs that daemonize, and must wait for them, which libvirtd does not do.
libvirtd --config /etc/libvirt/libvirtd.conf >"$1/libvirtd.log" 2>&1 &
wait $!
"""

_DAEMON: Final = """
listen_tls = 0
auth_unix_rw = "none"
host_uuid = "{uuid}"
log_outputs = "3:stderr"
"""

_SSHD: Final = """
ListenAddress {address}
HostKey {own}/host_key
AuthorizedKeysFile {ssh}/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""

_SSH: Final = """
IdentityFile {ssh}/key
IdentitiesOnly yes
UserKnownHostsFile {ssh}/known_hosts
StrictHostKeyChecking yes
BatchMode yes
"""

_DRIVER: Final = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
migrate_tls_x509_cert_dir = "{pki}"
migrate_tls_x509_verify = 1
"""


def missing() -> str | None:
    """Say why libvirt cannot be measured here, or None where it can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if os.geteuid() != 0:
        return "namespaces for two libvirtds need root"
    return None


@dataclass(frozen=True, slots=True)
class Daemon:
    """One libvirtd.

    Attributes:
        name: Host name.
        address: In the network that the two share.
        uri: How the other one reaches it.
        guests: Where the guests' directories are, as seen from outside.
        outer: The process that holds its namespaces; when it ends, everything in them does.
        init: Process 1 of its namespaces, by its number outside.
    """

    name: str
    address: str
    uri: str
    guests: Path
    outer: Process
    init: int

    async def run(self, *argv: str, check: bool = True) -> str:
        """Run a program beside this libvirtd and return what it wrote.

        Raises:
            MoveFailed: It failed and `check` is set.
        """
        process = await asyncio.create_subprocess_exec(
            *("nsenter", "--target", str(self.init), "--mount", "--net", "--uts", "--pid", *argv),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(COMMAND_S):
                out, _ = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        text = out.decode("utf-8", "replace").strip()
        if check and process.returncode != 0:
            raise MoveFailed(f"{' '.join(argv[:3])}: exit {process.returncode}: {text[-1000:]}")
        return text


@contextlib.asynccontextmanager
async def two_daemons(directory: Path, shared: Path, emulator: Path) -> AsyncIterator[tuple[Daemon, Daemon]]:
    """Bring two libvirtds up that can reach each other, and end them with all that they started.

    Args:
        directory: For their files.
        shared: A directory that is there; each sees its own guests' directory at this path.
        emulator: What they will start as QEMU.

    Raises:
        MoveFailed: One did not come up; with the end of its log.
    """
    async with contextlib.AsyncExitStack() as stack:
        addresses = {"left": "10.213.7.1", "right": "10.213.7.2"}
        pki = directory / "pki"
        pki.mkdir(parents=True)
        await _make_certificates(pki, list(addresses.values()))
        ssh = directory / "ssh"
        ssh.mkdir()
        await _make_ssh_key(ssh)
        daemons = []
        for name in addresses:
            daemon = await _enter(directory, name, addresses, shared)
            stack.push_async_callback(_end, daemon.outer)
            daemons.append(daemon)
        left, right = daemons
        await _run(
            *("nsenter", "--target", str(left.init), "--net"),
            *("ip", "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", str(right.init)),
        )
        await asyncio.gather(*(_ready(daemon, directory, emulator) for daemon in daemons))
        yield left, right


async def _enter(directory: Path, name: str, addresses: dict[str, str], shared: Path) -> Daemon:
    own, address = directory / name, addresses[name]
    (own / "etc").mkdir(parents=True)
    (own / "guests").mkdir()
    (own / "address").write_text(address)
    # libvirt asks for its own name's address again and again: it must not wait for a name server that is not there.
    (own / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in addresses.items()))
    (own / "etc/libvirtd.conf").write_text(_DAEMON.format(uuid=uuid.uuid4()))
    (own / "etc/qemu.conf").write_text(_DRIVER.format(pki=directory / "pki"))
    ssh = directory / "ssh"
    await _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(own / "host_key"))
    with (ssh / "known_hosts").open("a") as known:
        known.write(f"{address} {(own / 'host_key.pub').read_text()}")
    (own / "sshd_config").write_text(_SSHD.format(address=address, own=own, ssh=ssh))
    outer = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"),
        *("sh", "-c", _INIT, "sh", str(own), name, str(shared)),
        stdin=DEVNULL,
        start_new_session=True,  # so that Ctrl-C reaches us alone, and we end it
    )
    try:
        async with asyncio.timeout(READY_S):
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            while not (found := children.read_text().split()):  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(RETRY_S)
    except BaseException:
        await _end(outer)
        raise
    uri = f"qemu+ssh://root@{address}/system?command={ssh / 'ssh'}"
    return Daemon(name, address, uri, own / "guests", outer, int(found[0]))


async def _ready(daemon: Daemon, directory: Path, emulator: Path) -> None:
    """Wait until it answers and has asked its QEMU what it can do, which it does once."""
    asking = ("virsh", "-c", "qemu:///system", "domcapabilities", "--emulatorbin", str(emulator))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_S):
            while daemon.outer.returncode is None:
                if (await daemon.run(*asking, check=False)).startswith("<"):
                    return
                await asyncio.sleep(RETRY_S)
    log = directory / daemon.name / "libvirtd.log"
    told = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    raise MoveFailed(f"libvirtd on {daemon.name} did not come up: {' / '.join(told[-3:])}")


async def _end(outer: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        outer.send_signal(
            signal.SIGKILL
        )  # its child, process 1 of the namespaces, dies with it, and so do all in there
    await outer.wait()


async def _make_certificates(pki: Path, addresses: list[str]) -> None:
    """Make what ``virsh migrate --tls`` needs: one authority, and one certificate for both roles on both hosts."""
    names = ",".join(f"IP:{address}" for address in addresses)
    new_key = (
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    )
    await _run(*new_key, "-keyout", f"{pki}/ca-key.pem", "-out", f"{pki}/ca-cert.pem", "-subj", "/CN=bench")
    await _run(
        *new_key,
        *("-keyout", f"{pki}/server-key.pem", "-out", f"{pki}/server-cert.pem", "-subj", "/CN=bench host"),
        *("-CA", f"{pki}/ca-cert.pem", "-CAkey", f"{pki}/ca-key.pem"),
        *("-addext", f"subjectAltName={names}", "-addext", "extendedKeyUsage=serverAuth,clientAuth"),
        *("-addext", "basicConstraints=critical,CA:FALSE", "-addext", "keyUsage=digitalSignature"),
    )
    for kind in ("key", "cert"):
        shutil.copyfile(pki / f"server-{kind}.pem", pki / f"client-{kind}.pem")


async def _make_ssh_key(ssh: Path) -> None:
    """Make the key that both hosts accept, and a ``ssh`` that uses it and nothing of the user's own."""
    await _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / "key"))
    (ssh / "config").write_text(_SSH.format(ssh=ssh))
    program = ssh / "ssh"
    program.write_text(f'#!/bin/sh\nexec ssh -F {ssh / "config"} "$@"\n')
    program.chmod(0o700)


async def _run(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
    async with asyncio.timeout(COMMAND_S):
        out, _ = await process.communicate()
    if process.returncode != 0:
        raise MoveFailed(f"{' '.join(argv[:6])}: {out.decode('utf-8', 'replace').strip()}")
