"""The probe of a QEMU binary, with real QEMUs, over a connection that takes its answers slowly."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from qmp_migrate.migration.preflight import host_facts
from tests.support.real.qemu_versions import VERSIONS, known, program


@pytest.mark.parametrize("version", VERSIONS)
def test_no_answer_is_lost_where_they_are_read_late(version: str, tmp_path: Path) -> None:
    """QEMU that ends drops what a pipe has not taken: 64 KiB of 250 KiB came through."""
    if version not in known():
        pytest.skip(f"no QEMU {version} here: make qemus")
    argv = [program(version), "-M", "none", "-nodefaults", "-display", "none", "-S", "-accel", "tcg", "-qmp", "stdio"]
    argv += ["-incoming", "defer"]
    words = ["sh", "-c", host_facts._PROBE, "sh", str(tmp_path), *argv]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(host_facts.questions())
        process.stdin.close()
        time.sleep(1.0)  # nobody reads meanwhile: this cannot be waited for
        said = process.stdout.read().decode()
    assert process.returncode == 0
    answers, _ = host_facts._answers(said)
    assert {name for name, _ in host_facts._QUESTIONS} <= set(answers) | {"migrate-set-capabilities"}
    assert len(said) > 1 << 17
    assert list(tmp_path.iterdir()) == []
