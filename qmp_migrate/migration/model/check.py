"""One line of a check: what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of ``qmp-migrate check``.

    Attributes:
        id: Stable, for programs.
        status: ``ok``, ``warn`` or ``fail``.
        text: What was found.
        hint: What to do about it, ``""`` where nothing needs doing.
        host: The host it concerns, or None.
    """

    id: str
    status: Status
    text: str
    hint: str = ""
    host: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """Return it for ``--json``."""
        return {"id": self.id, "status": self.status, "text": self.text, "hint": self.hint, "host": self.host}
