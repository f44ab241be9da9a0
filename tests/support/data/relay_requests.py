"""What a controller sends to the relay, and a guest's command line that the relay lets through."""

from __future__ import annotations

import shlex

from hostagent.relay import request as relay_request
from hostagent.relay.request import Request, understand
from hostagent.relay.settings import Allowed
from qmp_migrate.hosts.shell_command import behind_login_shell, script_argv

KNOWN = relay_request.load()


QEMU = "/usr/bin/qemu-system-x86_64"


BOOT = "0b0e4f0e-6a55-4a55-9d5b-1f6f0b1f7a10"


GOOD = [
    *("-nodefaults", "-no-user-config", "-display", "none", "-name", "guest=web1", "-uuid", BOOT),
    *(
        "-machine",
        "type=pc-q35-7.2",
        "-accel",
        "tcg",
        "-cpu",
        "qemu64-v1",
        "-m",
        "size=64M",
        "-smp",
        "cpus=1,maxcpus=1",
    ),
    *("-kernel", "/boot/vmlinuz", "-append", "console=ttyS0 root=/dev/vda", "-bios", "qboot.rom"),
    *("-S", "-incoming", "defer"),
]


def asked(source: str, *args: str) -> str:
    return shlex.join(behind_login_shell(script_argv(source, args), 10.0))


def request(command: str, allowed: Allowed) -> Request:
    return understand(command, allowed, KNOWN)


def argv(allowed: Allowed, *more: str) -> list[str]:
    directory = f"{allowed.run_dir}/web1"
    monitors = []
    for name in ("qmp", "agent"):
        monitors += ["-chardev", f"socket,id={name},path={directory}/{name}.sock,server=on,wait=off"]
        monitors += ["-mon", f"chardev={name},mode=control"]
    return [QEMU, *GOOD, *monitors, *more]


ANY = Allowed("/run/x", ("/srv/x",), ("/srv/q",), ("/boot",), (QEMU,))
