"""Tests that need KVM: skipped where it runs no guest, unless KVM is required."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmp_migrate.rig.guest.images import GuestImage
from tests.support.real import kvm


@pytest.mark.parametrize(("required", "ends"), [(False, "skip"), (True, "fail")])
async def test_without_kvm(required: bool, ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def probed(qemu: str, image: GuestImage) -> str:
        return "tcg"

    monkeypatch.setattr(kvm, "probe_accel", probed)
    monkeypatch.setattr(kvm, "find_images", lambda kind: GuestImage(Path("/bare.elf")))
    monkeypatch.setattr(kvm, "REQUIRED", required)
    outcome = {"skip": pytest.skip.Exception, "fail": pytest.fail.Exception}[ends]
    with pytest.raises(outcome, match="does not run under KVM with a-qemu"):
        await kvm.need_kvm("a-qemu")


async def test_without_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMP_MIGRATE_IMAGES", str(tmp_path))
    monkeypatch.setattr(kvm, "REQUIRED", False)
    with pytest.raises(pytest.skip.Exception, match="make images"):
        await kvm.need_kvm("a-qemu")
