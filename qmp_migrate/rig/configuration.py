"""The files a rig is used with: settings for the controller, and specs of its test guests."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

from qmp_migrate.rig.guest.accelerator_probe import CPU, Accelerator
from qmp_migrate.rig.guest.images import KERNEL_WORDS, GuestImage
from qmp_migrate.rig.state import RigState


def settings_text(state: RigState, *, identity_file: Path, known_hosts: Path, qemu: str) -> str:
    """Return the settings for the controller (DESIGN §6).

    Args:
        state: The rig.
        identity_file: Private key that its hosts accept.
        known_hosts: File with its hosts' keys.
        qemu: Path of the QEMU binary.
    """
    lines = [
        "# Written by: qmp-migrate rig up",
        "[controller]",
        _line("state", f"sqlite:///{state.directory / 'journal.sqlite'}"),
        "",
        "[mqtt]",
        _line("url", state.broker_url),
    ]
    for host in state.hosts:
        lines += [
            "",
            f"[hosts.{host.name}]",
            _line("address", host.address),
            f"port = {host.port}",
            _line("user", host.user or getpass.getuser()),
            _line("identity_file", str(identity_file)),
            _line("known_hosts", str(known_hosts)),
            _line("migration_address", host.migration_address or host.address),
            _line("run_dir", str(host.run_dir)),
            _line("qemu", qemu),
            *([f"time_factor = {host.time_factor:g}"] if host.time_factor != 1 else []),
        ]
    return "\n".join(lines) + "\n"


def guest_text(*, name: str, accel: Accelerator, image: GuestImage, firmware: str | None = None) -> str:
    """Return a spec of a test guest (DESIGN §6): one vCPU, 512 MiB, no disk, no network.

    It rewrites a working set of 64 MiB with 8 MiB/s and ticks 50 times a second, so that a migration has something to do
    and its blackout shows in the serial log.

    Args:
        name: Its name.
        accel: ``kvm`` or ``tcg``: what was proven to run this guest on this machine.
        image: Its files.
        firmware: Firmware that starts it, by the name under which QEMU finds it; ``None``: QEMU's default.
    """
    lines = [
        "# Written by: qmp-migrate rig up",
        _line("name", name),
        _line("machine", "pc-q35-7.2"),
        _line("cpu", CPU[image.kind]),
        # Not a multiple of 256 KiB: so QEMU before 9.0 loses no writes in a live migration without KVM.
        "# 8 KiB more than 512 MiB: see docs/guide/without-kvm.md",
        _line("memory", f"{512 * 1024 + 8}KiB"),
        "vcpus = 1",
        _line("accel", accel),
        _line("kernel", str(image.kernel)),
        *([] if image.initrd is None else [_line("initrd", str(image.initrd))]),
        *([] if firmware is None else [_line("firmware", firmware)]),
        _line("append", f"{KERNEL_WORDS} qm.ws=64 qm.rate=8 qm.tick=20"),
    ]
    return "\n".join(lines) + "\n"


def _line(key: str, value: str) -> str:
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"  # a JSON string is a TOML string
