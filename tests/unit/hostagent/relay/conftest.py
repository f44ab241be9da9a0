"""What a host's owner allows the relay."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostagent.relay.settings import Allowed
from tests.support.data.relay_requests import QEMU


@pytest.fixture
def allowed(tmp_path: Path) -> Allowed:
    for name in ("run/web1/tls", "run/.locks", "images", "qcow2", "boot"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (tmp_path / "images/out").symlink_to(tmp_path / "secret")
    (tmp_path / "run/link").symlink_to("/etc")
    return Allowed(
        str(tmp_path / "run"),
        (str(tmp_path / "images"),),
        (str(tmp_path / "qcow2"),),
        (str(tmp_path / "boot"), "/boot"),
        (QEMU,),
    )
