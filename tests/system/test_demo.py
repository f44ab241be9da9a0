"""What README shows first: the demonstration, as it is run by `make demo`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_demo_proves_that_the_guest_survived_and_leaves_nothing(tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("qmp-demo-*"))
    done = subprocess.run(
        [sys.executable, "-m", "qmp_migrate.cli", "rig", "demo"], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("every number once: ok", "memory", "blackout", "owner now", "encrypted", "nothing left", "bus |"):
        assert words in done.stdout, done.stdout
    assert set(Path("/tmp").glob("qmp-demo-*")) == before
