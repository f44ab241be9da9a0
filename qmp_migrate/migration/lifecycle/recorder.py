"""What one migration tells: its phase, its result, its events; to the journal first and then to whoever watches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qmp_migrate.errors import JournalError, QmpMigrateError
from qmp_migrate.migration.forecast.prediction import against_fact
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.model.phases import AFTER_COMMIT, Phase, check_step
from qmp_migrate.migration.model.reporter import MigrationView, Reporter
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult, Outcome, Owner

_LAST = frozenset({Phase.DONE, Phase.ROLLED_BACK, Phase.PARKED})


@dataclass(slots=True)
class Chronicle:
    """Keeps the journal, the reporters and the result document of one migration in step.

    Attributes:
        phase: The phase it is in.
        result: Grows until `end`.
        lenient: From the commit on, and on the way back, a journal that fails must not stop what has to be done: its
            errors become warnings.
        rev: Rises with every change that is told.
        started_at: Seconds since the epoch.
        foretold: The forecast that was made of this migration (`measurement.remembered`), or None.
    """

    request: MigrationRequest
    journal: Journal
    reporter: Reporter
    result: MigrationResult
    phase: Phase = Phase.PREFLIGHT
    lenient: bool = False
    rev: int = 1
    started_at: float = field(default_factory=time.time)
    foretold: Mapping[str, Any] | None = None
    _begun: float = field(init=False)

    def __post_init__(self) -> None:
        # One that another controller began is as old as the journal says; from here on clocks may be set.
        self._begun = time.monotonic() - (time.time() - self.started_at)

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self.phase in _LAST

    async def intent(self, act: str, **data: Any) -> None:
        """Write down what is about to be done; durable on return. Raises `JournalError`: then do not do it."""
        with self._journal_errors():
            await self.journal.intent(self.request.id, act, **data)

    def did(self, act: str, **data: Any) -> None:
        """Write down what came of it."""
        self.journal.result(self.request.id, act, **data)

    async def enter(self, phase: Phase, **columns: Any) -> None:
        """Enter a phase: journal, then reporters.

        Raises:
            ValueError: The graph has no such step.
            JournalError: It could not be written.
        """
        check_step(self.phase, phase)
        self.phase = phase
        self.rev += 1
        with self._journal_errors():
            await self.journal.enter(self.request.id, phase, **columns)
        self.reporter.phase(self.view())

    def pass_through(self, phase: Phase) -> None:
        """Tell of a phase that was over before it could be told: no disk write of its own."""
        check_step(self.phase, phase)
        self.phase = phase
        self.journal.note(self.request.id, phase.value)

    async def turn_back(self) -> None:
        """Enter `rolling-back` from wherever it is; a journal that fails does not stop the way back."""
        self.phase = Phase.ROLLING_BACK
        self.lenient = True
        self.rev += 1
        with self._journal_errors():
            await self.journal.enter(self.request.id, Phase.ROLLING_BACK)
        self.reporter.phase(self.view())

    @contextlib.contextmanager
    def _journal_errors(self) -> Iterator[None]:
        try:
            yield
        except JournalError as error:
            if not self.lenient:
                raise
            self.warn(str(error))

    async def end(self, phase: Phase, outcome: Outcome, owner: Owner, error: QmpMigrateError | None) -> None:
        """Enter a last phase, with the outcome. A journal that fails becomes a warning: the guest is where it is."""
        result = self.result
        result.outcome, result.owner = outcome, owner
        result.total_ms = max(0, int((time.monotonic() - self._begun) * 1000))
        result.error = error.to_dict() if error else None
        if self.foretold is not None:
            result.forecast = against_fact(self.foretold, result)
        self.phase = phase
        self.rev += 1
        try:
            await self.journal.enter(self.request.id, phase, outcome=outcome, owner=owner, result=result.to_dict())
        except JournalError as failure:
            self.warn(f"the end of this migration is not in the journal: {failure}")
        self.reporter.phase(self.view())
        self.event("done", outcome=outcome, owner=owner)

    def view(self) -> MigrationView:
        """Return the migration as others see it now."""
        owner = "destination" if self.phase in {*AFTER_COMMIT, Phase.POSTCOPY} else "source"
        return MigrationView(
            id=self.request.id,
            vm=self.request.vm,
            source=self.result.source,
            destination=self.result.destination,
            mode=self.request.mode,
            phase=self.phase.value,
            rev=self.rev,
            started_at=self.started_at,
            outcome=self.result.outcome if self.ended else None,
            owner=self.result.owner if self.ended else owner,
            error=self.result.error if self.ended else None,
        )

    def event(self, kind: str, **data: Any) -> None:
        """Tell that something happened once."""
        payload: Mapping[str, Any] = {"id": self.request.id, "vm": self.request.vm, **data}
        self.journal.note(self.request.id, kind, **data)
        self.reporter.event(kind, payload)

    def warn(self, text: str) -> None:
        """Tell, once, of something that harms nobody now, and put it into the result."""
        if text in self.result.warnings:
            return
        self.result.warnings.append(text)
        self.event("warning", text=text)

    @contextlib.contextmanager
    def tolerate(self, what: str) -> Iterator[None]:
        """Make a warning of an error in the block: the guest is where it belongs, whatever fails here."""
        try:
            yield
        except QmpMigrateError as error:
            self.warn(f"{what}: {error}")
