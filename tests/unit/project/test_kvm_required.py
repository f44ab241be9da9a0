"""``KVM=require``: what is marked ``kvm`` fails where it would be skipped, for whatever reason, and nothing else does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import pytest

from tests.support.real import kvm


def judged(outcome: Literal["passed", "failed", "skipped"], *, marked: bool) -> pytest.TestReport:
    item: Any = SimpleNamespace(get_closest_marker=lambda name: name == "kvm" and marked)
    why = ("test_x.py", 1, "Skipped: no QEMU 11.1") if outcome == "skipped" else None
    return kvm.judged(item, pytest.TestReport("x", ("x", 1, "x"), {}, outcome, why, "call"))


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("marked", [False, True])
def test_a_skipped_test_has_failed_where_kvm_is_required_for_it(
    monkeypatch: pytest.MonkeyPatch, required: bool, marked: bool
) -> None:
    monkeypatch.setattr(kvm, "REQUIRED", required)
    report = judged("skipped", marked=marked)
    assert report.outcome == ("failed" if required and marked else "skipped")
    if report.outcome == "failed":
        assert "KVM=require, and this was skipped" in str(report.longrepr)
        assert "no QEMU 11.1" in str(report.longrepr)
    assert judged("passed", marked=marked).outcome == "passed"
