"""A whole machine beside this one: systemd, sshd, dpkg, over this system's files; what it changes is gone with it.

Made of `systemd-nspawn`, an overlay whose upper layer is in memory, and a network namespace of its own with a veth pair.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

BOOT_S = 60.0
TARGET = """[Unit]
Requires=basic.target
Wants=ssh.service dbus.service systemd-logind.service systemd-user-sessions.service
After=basic.target
AllowIsolate=yes
"""
NOT_IN_THERE = (
    "cron",
    "exim4",
    "getty@",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "networking",
    "systemd-networkd",
)


def why_not() -> str:
    """Why no such machine can be had here; `""`: it can."""
    if os.geteuid() != 0:
        return "needs root"
    for command in ("systemd-nspawn", "ip", "sshd", "dpkg-deb"):
        if not shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            return f"needs {command}"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "needs overlayfs"
    return ""


@dataclass
class Machine:
    """It runs.

    Attributes:
        address: Of the machine.
        outside: Of this side.
        root: Its file system, as seen from here.
        pid: Of its systemd.
    """

    address: str
    outside: str
    root: Path
    pid: int

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command in it, without SSH."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-a", *argv], capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()


@contextmanager
def machine(directory: Path, key: str) -> Iterator[Machine]:
    """Boot a machine, with `key` allowed for root."""
    tag = uuid.uuid4().hex[:6]
    number = int(tag[:2], 16)
    address, outside = f"10.213.{number}.2", f"10.213.{number}.1"
    layers, root = directory / "layers", directory / "root"
    with ExitStack() as stack:
        for path in (layers, root):
            path.mkdir()
        done(stack, ["mount", "-t", "tmpfs", "tmpfs", str(layers)], ["umount", "-l", str(layers)])
        for name in ("up", "work"):
            (layers / name).mkdir()
        prepare(layers / "up", key, address)
        options = f"lowerdir=/,upperdir={layers}/up,workdir={layers}/work"
        done(stack, ["mount", "-t", "overlay", "overlay", "-o", options, str(root)], ["umount", "-l", str(root)])
        done(stack, ["ip", "netns", "add", f"qm{tag}"], ["ip", "netns", "delete", f"qm{tag}"])
        veth = ["ip", "link", "add", f"qm{tag}", "type", "veth", "peer", "name", "host0", "netns", f"qm{tag}"]
        done(stack, veth, ["ip", "link", "delete", f"qm{tag}"])
        inside = ["ip", "-n", f"qm{tag}"]
        for argv in (
            ["ip", "address", "add", f"{outside}/30", "dev", f"qm{tag}"],
            ["ip", "link", "set", f"qm{tag}", "up"],
            [*inside, "address", "add", f"{address}/30", "dev", "host0"],
            [*inside, "link", "set", "host0", "up"],
            [*inside, "link", "set", "lo", "up"],
        ):
            subprocess.run(argv, check=True)
        log = stack.enter_context((directory / "boot.log").open("wb"))
        process = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", f"--directory={root}", "--boot", "--register=no", "--keep-unit"),
                *("--link-journal=no", "--console=pipe", f"--machine=qm{tag}", "--resolv-conf=off", "--timezone=off"),
                *(f"--network-namespace-path=/run/netns/qm{tag}", "--", "--unit=qm.target"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        stack.callback(end, process, f"qm{tag}")
        yield Machine(address, outside, root, booted(process, address, directory / "boot.log"))


def prepare(up: Path, key: str, address: str) -> None:
    """Write what is different in there."""
    units = up / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / "qm.target").write_text(TARGET)
    for path in Path("/etc/systemd/system").glob("*.wants/*"):
        if path.name.removesuffix(".service") not in {"ssh", "dbus"}:
            (units / path.name).symlink_to("/dev/null")
    for name in NOT_IN_THERE:
        unit = name if "." in name else f"{name}.service"
        if not (units / unit).is_symlink():
            (units / unit).symlink_to("/dev/null")
    ssh = up / "root/.ssh"
    ssh.mkdir(parents=True, mode=0o700)
    (up / "root").chmod(0o700)
    (ssh / "authorized_keys").write_text(f"{key}\n")
    # a key of its own: this machine may have none, and it must not be known elsewhere
    (up / "etc/ssh").mkdir(parents=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", up / "etc/ssh/ssh_host_ed25519_key"], check=True
    )
    (up / "etc/ssh/sshd_config").write_text(
        f"ListenAddress {address}\nHostKey /etc/ssh/ssh_host_ed25519_key\nUsePAM yes\nPermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
    )
    (up / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")


def done(stack: ExitStack, argv: list[str], undo: list[str]) -> None:
    """Do something, and see to it that it is undone."""
    subprocess.run(argv, check=True)
    stack.callback(lambda: subprocess.run(undo, check=False, stderr=subprocess.DEVNULL))


def booted(process: subprocess.Popen[bytes], address: str, log: Path) -> int:
    """Wait until its sshd answers; return the pid of its systemd."""
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"systemd-nspawn ended: {log.read_text(errors='replace')}"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        scan = subprocess.run(["ssh-keyscan", "-T", "2", address], capture_output=True, check=False)
        if children and scan.stdout.strip():
            argv = ["nsenter", "-t", children[-1], "-a", "systemctl", "is-system-running"]
            state = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
            if state in {"running", "degraded"}:  # from now on others than root may log in
                return int(children[-1])
        time.sleep(0.2)
    raise AssertionError(f"the machine did not boot within {BOOT_S} s: {log.read_text(errors='replace')}")


def end(process: subprocess.Popen[bytes], name: str) -> None:
    """Power it off."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for path in Path("/run/systemd/nspawn").glob(f"*/{name}*"):
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
