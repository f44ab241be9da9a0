"""Whether this machine's KVM runs the bare guest: tests marked ``kvm`` are skipped without, and fail with ``KVM=require``."""

from __future__ import annotations

import os
from typing import Final

import pytest

from qmp_migrate.errors import RigError
from qmp_migrate.rig.guest.accelerator_probe import probe_accel
from qmp_migrate.rig.guest.images import find_images

REQUIRED: Final = os.environ.get("KVM") == "require"


async def need_kvm(qemu: str) -> None:
    """Skip the test, or fail it where KVM is required, unless the bare guest runs under KVM with a QEMU."""
    try:
        if await probe_accel(qemu, find_images("bare")) == "kvm":
            return
        why = f"the bare guest does not run under KVM with {qemu}"
    except RigError as error:
        why = f"{error}: {error.hint}"
    if REQUIRED:
        pytest.fail(why)
    pytest.skip(why)


def judged(item: pytest.Item, report: pytest.TestReport) -> pytest.TestReport:
    """Return a test's report; with ``KVM=require`` a test marked ``kvm`` that was skipped, for any reason, has failed."""
    if REQUIRED and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("kvm"):
        report.outcome = "failed"
        report.longrepr = f"KVM=require, and this was skipped: {report.longrepr}"
    return report
