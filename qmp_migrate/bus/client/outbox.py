"""What waits to be published: data only, no I/O.

Three kinds, with three fates when the broker is slow or away:

- *state* (retained): the newest per topic is kept as long as it is true and sent again after every reconnect, because
  the broker may have forgotten everything. A cleared topic is a state too (the empty payload) until it has been sent.
- *events*: kept in order up to a limit of number and bytes, then the oldest go. Their ``seq`` shows the gap.
- *progress*: only the newest per topic is kept, nothing is ever sent twice, and it is the first to go.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

EVENT_LIMIT: Final = 2_000
EVENT_BYTES_LIMIT: Final = 8 * 1024 * 1024
BLAME_LIMIT: Final = 3
"""A message whose sending alone ended the connection this often is not sent again: it would do so for ever."""

Fate = Literal["state", "event", "progress"]


@dataclass(slots=True, eq=False)
class Entry:
    """One message on its way.

    Attributes:
        fate: Which of the three kinds.
        topic: Where to.
        payload: What; empty: clear the topic.
        qos: 0 or 1.
        blame: How often the connection ended while this was under way.
        number: Its place in the queue.
    """

    fate: Fate
    topic: str
    payload: bytes
    qos: int
    blame: int = 0
    number: int = 0

    @property
    def retain(self) -> bool:
        """Whether the broker keeps it."""
        return self.fate == "state"


class Outbox:
    """The queue: first in, first out, where a newer state or progress report takes the place of an older one.

    Every method returns at once.

    Attributes:
        dropped: Events and progress reports that were given up.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._states: dict[str, Entry] = {}  # all that is true now, sent or not
        self._queue: dict[int, Entry] = {}  # what waits, in order
        self._place: dict[tuple[Fate, str], int] = {}  # where a topic's state or progress waits
        self._next = 0
        self._events = 0
        self._event_bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put_state(self, topic: str, payload: bytes, *, qos: int = 1) -> None:
        """Take a state; it replaces an older one of its topic. An empty payload clears the topic."""
        entry = self._states[topic] = Entry("state", topic, payload, qos)
        self._put(entry)

    def put_event(self, topic: str, payload: bytes) -> None:
        """Take an event; when there are too many, progress goes first, then the oldest event."""
        if self._events >= EVENT_LIMIT or self._event_bytes + len(payload) > EVENT_BYTES_LIMIT:
            self._drop("progress")
        while self._events and (self._events >= EVENT_LIMIT or self._event_bytes + len(payload) > EVENT_BYTES_LIMIT):
            self._drop("event", 1)
        self._events += 1
        self._event_bytes += len(payload)
        self._put(Entry("event", topic, payload, 1))

    def put_progress(self, topic: str, payload: bytes) -> None:
        """Take a progress report; it replaces an older one of its topic, and goes nowhere while the queue is full."""
        if self._events >= EVENT_LIMIT:
            self.dropped += 1
        else:
            self._put(Entry("progress", topic, payload, 0))

    def resend_states(self, *, last: str | None = None) -> None:
        """Queue every state again, before all else: the broker may have forgotten it.

        Args:
            last: Topic that is sent after the other states (a status that says "all the rest is there now").
        """
        waiting = [entry for entry in self._queue.values() if entry.fate != "state"]
        states = sorted(self._states.values(), key=lambda entry: entry.topic == last)
        self._queue.clear()
        self._place.clear()
        for entry in (*states, *waiting):
            self._put(entry)

    def take(self, limit: int) -> list[Entry]:
        """Return what to send next, at most `limit` messages, in order.

        Nothing is removed: say `sent` or `failed` of each. One that was under way when a connection ended comes
        alone, so that the blame is certain the next time.
        """
        batch: list[Entry] = []
        for entry in self._queue.values():
            if entry.blame and batch:
                break
            batch.append(entry)
            if entry.blame or len(batch) >= limit:
                break
        return batch

    def sent(self, entry: Entry) -> None:
        """Note that the broker has a message."""
        entry.blame = 0
        self._remove(entry)
        if not entry.payload and self._states.get(entry.topic) is entry:
            del self._states[entry.topic]

    def failed(self, entry: Entry) -> bool:
        """Note that the connection ended while a message was under way.

        Returns:
            True if the message is given up, because it is what ends the connections.
        """
        if entry.fate == "progress":
            self._remove(entry)
            return False
        entry.blame += 1
        if entry.blame < BLAME_LIMIT:
            return False
        self.dropped += 1
        self._remove(entry)
        if self._states.get(entry.topic) is entry:
            del self._states[entry.topic]
        return True

    def _put(self, entry: Entry) -> None:
        number = self._place.get((entry.fate, entry.topic)) if entry.fate != "event" else None
        if number is None:
            number = self._next = self._next + 1
        if entry.fate != "event":
            self._place[entry.fate, entry.topic] = number
        entry.number = number
        self._queue[number] = entry

    def _remove(self, entry: Entry) -> None:
        if self._queue.get(entry.number) is not entry:
            return  # a newer one has taken its place meanwhile, or it was dropped
        del self._queue[entry.number]
        if entry.fate == "event":
            self._events -= 1
            self._event_bytes -= len(entry.payload)
        else:
            del self._place[entry.fate, entry.topic]

    def _drop(self, fate: Fate, limit: int | None = None) -> None:
        found = (entry for entry in self._queue.values() if entry.fate == fate)
        for entry in list(islice(found, limit)):
            self._remove(entry)
            self.dropped += 1
