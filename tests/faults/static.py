"""Faults that are there from the beginning: a port taken, a full disk, a host whose QEMU builds another machine."""

from __future__ import annotations

from typing import Final

from tests.faults.trial import Case

STATIC: Final[tuple[Case, ...]] = ()
