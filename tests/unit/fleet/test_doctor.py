"""What `doctor` makes of what a host's script printed."""

from __future__ import annotations

import pytest

from qmp_migrate.fleet.doctor import judge
from qmp_migrate.settings import HostSettings

GOOD = {
    "now": "100.5",
    "qemu": "QEMU emulator version 7.2.22",
    "run_dir": "there",
    "space": "1000000",
    "userfaultfd": "0",
}


def statuses(changes: dict[str, str], run_dir: str = "/run/q") -> dict[str, str]:
    text = "\n".join(f"{key} {value}" for key, value in (GOOD | changes).items())
    settings = HostSettings(address="192.0.2.1", run_dir=run_dir)
    return {check.id: check.status for check in judge("a", settings, text, 100.0, 101.0) if check.status != "ok"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, {}),
        ({"run_dir": "absent"}, {}),
        ({"qemu": "sh: qemu: not found"}, {"qemu": "fail"}),
        ({"run_dir": "unusable"}, {"run-dir": "fail"}),
        ({"lacks": "flock"}, {"tools": "fail"}),
        ({"space": "60000"}, {"space": "warn"}),
        ({"space": ""}, {"space": "warn"}),
        ({"now": "99.1"}, {}),
        ({"now": "98.9"}, {"clock": "warn"}),
        ({"now": "102.1"}, {"clock": "warn"}),
        ({"now": ""}, {"clock": "warn"}),
    ],
)
def test_each_thing_that_is_wrong_is_told(changes: dict[str, str], told: dict[str, str]) -> None:
    assert statuses(changes) == told


def test_run_directories_whose_sockets_get_too_long() -> None:
    assert statuses({}, "/" + "x" * 31) == {}
    assert statuses({}, "/" + "x" * 32) == {"path-length": "warn"}
    assert statuses({}, "/" + "x" * 94) == {"path-length": "fail"}
