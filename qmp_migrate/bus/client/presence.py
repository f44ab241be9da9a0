"""A publisher's own status: birth and last will on one topic.

MQTT keeps order per topic only, so "I am here" and "it is gone" must share a topic, or a will may overtake a birth.
And a will that is late must not win: each status carries its `Session`, and the owner of the topic listens to it and
says again what is true when an old will has been put there.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Literal

from qmp_migrate.bus.messages.registry import BusMessage, PresenceState, StatusMessage
from qmp_migrate.bus.messages.session import Session, begin_session

Verdict = Literal["ours", "stale", "rival"]


class Presence:
    """What a publisher says about itself.

    Args:
        topic: Its status topic.
        document: Makes the status message for a state and a session.
        ephemeral: Clear the topic after a clean end (a controller of one command), instead of leaving ``stopped``.

    Attributes:
        state: What is said in the next `current`.
        session: The present session.
    """

    def __init__(
        self, topic: str, document: Callable[[PresenceState, Session], StatusMessage], *, ephemeral: bool = False
    ) -> None:
        self.topic = topic
        self.ephemeral = ephemeral
        self.state: PresenceState = "ready"
        self.session = begin_session()
        self._document = document

    def begin(self) -> BusMessage:
        """Begin a new session and return its last will, to be left with the broker."""
        self.session = begin_session(self.session)
        return self._document("lost", self.session)

    def current(self) -> BusMessage:
        """Return the status as it is now."""
        return self._document(self.state, self.session)

    def outrank(self, message: BusMessage) -> bool:
        """Make our session newer than one that was left of an earlier boot, whose clock was ahead of ours.

        Sessions of different boots are ordered by the time at which they began. Where the clock has been set back in between
        (or was wrong before), what is left of the old one would look newer for ever: to us, and to whoever follows. What is
        left is known by that it was there before us (retained), or says ``lost`` or ``stopped``.

        Args:
            message: A status on our topic that `judge` takes for a rival's, and that is such a left-over.

        Returns:
            Whether it was: our status has to be said again.
        """
        if not isinstance(message, StatusMessage):
            return False
        theirs = Session(message.session, message.started_at)
        if theirs.id.rpartition(".")[0] == self.session.id.rpartition(".")[0]:
            return False  # the same boot counts, whatever the clock says
        self.session = Session(self.session.id, theirs.started_at + timedelta(milliseconds=1))
        return True

    def judge(self, message: BusMessage) -> Verdict:
        """Say whose a status is that was seen on our topic.

        Returns:
            ``ours`` (nothing to do), ``stale`` (an older session: say again what is true), ``rival`` (a newer
            session that we did not make: somebody else uses our name).
        """
        if not isinstance(message, StatusMessage):
            return "stale"
        theirs = Session(message.session, message.started_at)
        if theirs.id == self.session.id:
            return "ours"
        return "rival" if theirs.newer_than(self.session) else "stale"
