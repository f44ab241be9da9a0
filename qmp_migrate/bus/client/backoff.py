"""A broker that is away: said once, waited for patiently."""

from __future__ import annotations

import random
import time
from typing import Final

import structlog

FIRST_DELAY_S: Final = 0.2
MAX_DELAY_S: Final = 30.0
STABLE_S: Final = 10.0
"""A connection that lasted this long was a good one: the next attempts are quick again."""

log = structlog.get_logger("qmp_migrate.bus")


class Outage:
    """Counts failed attempts, says when an outage begins and ends, and how long to wait.

    Attributes:
        reason: Why the last attempt failed.
    """

    def __init__(self, url: str) -> None:
        self.reason = "still connecting"
        self._url = url
        self._since: float | None = None
        self._attempts = 0

    def began(self, reason: BaseException | str, *, lasted_s: float) -> float:
        """Note a failed or ended connection; logged only if it begins an outage.

        Args:
            reason: What happened.
            lasted_s: How long the attempt or connection lasted.

        Returns:
            Seconds to wait before the next attempt: doubled each time, capped, with jitter, so that a thousand agents
            do not come back in the same instant.
        """
        self.reason = _in_words(reason)
        if self._since is None:
            self._since = time.monotonic()
            if lasted_s >= STABLE_S:
                self._attempts = 0
            log.warning(
                "broker-unreachable",
                broker=self._url,
                reason=self.reason,
                consequence="nothing is published until it is back; migrations and guests are not affected",
            )
        delay = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._attempts, 16))
        self._attempts += 1
        return delay * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret

    @property
    def lasts(self) -> bool:
        """Whether there is an outage now; False while the first attempt is still under way."""
        return self._since is not None

    def ended(self) -> None:
        """Note that a connection stands; logged only if it ends an outage."""
        if self._since is not None:
            log.info("broker-back", broker=self._url, outage_s=round(time.monotonic() - self._since, 1))
            self._since = None


def _in_words(reason: BaseException | str) -> str:
    """Say why; aiomqtt's own words are a bare code, and what was going on is only in the arguments."""
    if isinstance(reason, BaseException):
        words = [str(part) for part in (*reason.args[:1], reason) if str(part)]
        return ": ".join(dict.fromkeys(words)) or type(reason).__name__
    return reason
