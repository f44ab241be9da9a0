"""When what happened in one migration: from its first byte to the guest's first instruction at the destination."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Timeline:
    """What happened when, on the controller's monotonic clock, seconds; None: not yet.

    Attributes:
        stopped: STOP at the source: the guest stands still, whoever stopped it.
        postcopy: The source has said ``postcopy-active``: it is stopped for good, and the destination gets the rest.
        switching: QEMU has stopped it, or has begun to hand it over: what is left takes a moment. Not set by a stop of ours,
            after which memory travels on for as long as it takes.
        completed: The source's ``completed``.
        loaded: The destination's ``completed``.
        resumed: RESUME at the destination.
        resets: How often the guest reset itself on the way.
        stop_missed: The guest had stopped before this controller listened: `stopped` is when that was seen, not when it was.
    """

    started: float = 0.0
    stopped: float | None = None
    switching: float | None = None
    postcopy: float | None = None
    completed: float | None = None
    loaded: float | None = None
    resumed: float | None = None
    resets: int = 0
    stop_missed: bool = False

    @property
    def blackout_ms(self) -> float:
        """STOP at the source to RESUME at the destination, milliseconds; 0 where not both were seen."""
        if self.stopped is None or self.resumed is None or self.stop_missed:
            return 0.0
        return round((self.resumed - self.stopped) * 1000, 1)
