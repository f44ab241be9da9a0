"""The one door through which a migration tells what happens: to the bus, to a terminal, to a test.

A reporter's methods return at once and never raise: what watches a migration must not be able to disturb it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class MigrationView:
    """A migration as others see it; becomes ``migration/<id>/state`` on the bus.

    Attributes:
        phase: One of `qmp_migrate.migration.model.phases.Phase`.
        outcome: None until it has ended; then as in ``migration.result/1``.
        owner: ``source``, ``destination``, ``none`` or ``unknown``.
        error: The ``error`` member of the result, or None.
        started_at: Seconds since the epoch.
        rev: Rises with every change.
    """

    id: str
    vm: str
    source: str
    destination: str
    mode: str
    phase: str
    rev: int
    started_at: float
    outcome: str | None = None
    owner: str = "source"
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Numbers of a running migration; becomes ``migration/<id>/progress`` on the bus.

    Attributes:
        status: QEMU's word.
        percent: 0 to 100; never goes back.
        expected_blackout_ms: What QEMU expects now, None while it cannot know.
        eta_ms: Until switchover, None while it does not converge.
        seq: Rises by one with each report.
        disk_transferred_bytes, disk_total_bytes: Of disks that are copied along; ``status`` is ``mirroring`` while they are
            and memory is not yet.
    """

    id: str
    seq: int
    status: str
    percent: float
    transferred_bytes: int
    remaining_bytes: int
    total_bytes: int
    throughput_bytes_per_s: int
    dirty_bytes_per_s: int
    pass_number: int
    throttle_percent: int
    expected_blackout_ms: int | None
    eta_ms: int | None
    elapsed_ms: int
    disk_transferred_bytes: int = 0
    disk_total_bytes: int = 0


class Reporter(Protocol):
    """Follows one or more migrations."""

    def phase(self, view: MigrationView) -> None:
        """A phase was entered, or the migration has ended (``view.outcome`` is set)."""

    def progress(self, progress: Progress) -> None:
        """New numbers; the newest make older ones worthless."""

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Something happened once: ``step``, ``warning``, ``switchover``, ``committed``, ``rolled-back``, ``done``.

        `data` has ``id`` (the migration's) and what belongs to the kind.
        """


class Reporters:
    """Several reporters as one; one that fails is skipped, and the others go on."""

    def __init__(self, reporters: Sequence[Reporter] = ()) -> None:
        self._reporters = tuple(reporters)

    def phase(self, view: MigrationView) -> None:
        """See `Reporter.phase`."""
        for reporter in self._reporters:
            with contextlib.suppress(Exception):
                reporter.phase(view)

    def progress(self, progress: Progress) -> None:
        """See `Reporter.progress`."""
        for reporter in self._reporters:
            with contextlib.suppress(Exception):
                reporter.progress(progress)

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """See `Reporter.event`."""
        for reporter in self._reporters:
            with contextlib.suppress(Exception):
                reporter.event(kind, data)
