"""Watches the two QEMUs of a guest through a third monitor of their own, and judges who ran the guest, and when.

The product knows nothing of these monitors. Intervals are made from the STOP and RESUME events with QEMU's own time
stamps: both QEMUs are on this machine, so there is one clock.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from qmp_migrate.qemu.states import RUNNING_STATES

OPEN_S: Final = 1e12
_LOOK_S: Final = 0.005
_ANSWER_S: Final = 5.0


@dataclass
class Interval:
    """Some time during which a QEMU ran the guest, seconds since the epoch."""

    side: str
    begin: float
    end: float = OPEN_S


class NoAnswer(Exception):
    """The QEMU did not answer, or is not there."""


class Spy:
    """Watches one QEMU from the moment its socket is there. Use as a context manager.

    Args:
        side: The host's name.
        path: The monitor's socket.

    Attributes:
        events: ``(name, seconds, data)`` of everything that QEMU told.
        intervals: When it ran the guest.
    """

    def __init__(self, side: str, path: Path) -> None:
        self.side = side
        self.path = path
        self.events: list[tuple[str, float, dict[str, Any]]] = []
        self.intervals: list[Interval] = []
        self._sock: socket.socket | None = None
        self._answers: dict[int, Any] = {}
        self._number = 0
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"spy {side}", daemon=True)

    def __enter__(self) -> Spy:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def ask(self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float = _ANSWER_S) -> Any:
        """Run a command.

        Raises:
            NoAnswer: None came in time.
        """
        with self._changed:
            sock = self._sock
            if sock is None:
                raise NoAnswer(f"no QEMU on {self.side}")
            self._number += 1
            number = self._number
        message = {"execute": command, "arguments": arguments or {}, "id": number}
        try:
            sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise NoAnswer(str(error)) from error
        with self._changed:
            if not self._changed.wait_for(lambda: number in self._answers or self._sock is not sock, timeout):
                raise NoAnswer(f"{command} on {self.side}: none within {timeout} s")
            if number not in self._answers:
                raise NoAnswer(f"{command} on {self.side}: it ended")
            return self._answers.pop(number)

    def run_state(self) -> str | None:
        """Return ``query-status``; None where there is no QEMU, or it does not answer."""
        with contextlib.suppress(NoAnswer):
            return str(self.ask("query-status")["return"]["status"])
        return None

    def wait_event(self, name: str, seconds: float) -> None:
        """Wait until an event has come, since the beginning."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(n == name for n, _, _ in self.events), seconds), (
                f"no {name} on {self.side} within {seconds} s"
            )

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._over.is_set():
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(self.path))
            except OSError:
                sock.close()
                self._over.wait(_LOOK_S)
                continue
            with contextlib.suppress(OSError, ValueError), sock.makefile("rb") as lines:
                self._watch(sock, lines)
            self._ended()
            sock.close()

    def _watch(self, sock: socket.socket, lines: Any) -> None:
        for line in self._messages(lines):
            if "QMP" in line:
                sock.sendall(b'{"execute": "qmp_capabilities", "id": -1}\n')
            elif line.get("id") == -1:
                sock.sendall(b'{"execute": "query-status", "id": -2}\n')
            elif line.get("id") == -2:
                with self._changed:
                    self._sock = sock
                    if line["return"]["status"] in RUNNING_STATES:
                        self._begin(time.time())
                    self._changed.notify_all()
            else:
                self._take(line)

    def _messages(self, lines: Any) -> Iterator[dict[str, Any]]:
        for raw in lines:
            yield json.loads(raw)

    def _take(self, message: dict[str, Any]) -> None:
        with self._changed:
            if "event" in message:
                stamp = message["timestamp"]
                at = stamp["seconds"] + stamp["microseconds"] / 1e6
                self.events.append((message["event"], at, message.get("data", {})))
                if message["event"] == "RESUME":
                    self._begin(at)
                elif message["event"] in {"STOP", "SHUTDOWN"}:
                    self._end(at)
            elif "id" in message:
                self._answers[message["id"]] = message
            self._changed.notify_all()

    def _begin(self, at: float) -> None:
        if not self.intervals or self.intervals[-1].end != OPEN_S:
            self.intervals.append(Interval(self.side, at))

    def _end(self, at: float) -> None:
        if self.intervals and self.intervals[-1].end == OPEN_S:
            self.intervals[-1].end = at

    def _ended(self) -> None:
        with self._changed:
            self._sock = None
            self._end(time.time())
            self._changed.notify_all()


@dataclass
class Watch:
    """Both sides of one guest."""

    source: Spy
    destination: Spy
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Watch:
        self._stack.enter_context(self.source)
        self._stack.enter_context(self.destination)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @property
    def intervals(self) -> list[Interval]:
        """All intervals, by their beginning."""
        return sorted(self.source.intervals + self.destination.intervals, key=lambda i: i.begin)

    def overlaps(self) -> list[str]:
        """Say where two copies ran at the same time."""
        return overlaps(self.intervals)

    def pauses(self) -> list[float]:
        """Return for how long nobody ran the guest, between two times when somebody did, seconds."""
        all_of_them = self.intervals
        return [b.begin - a.end for a, b in pairwise(all_of_them)]


def overlaps(intervals: list[Interval]) -> list[str]:
    """Say where two copies ran at the same time; `intervals` are sorted by their beginning."""
    found = []
    for earlier, later in pairwise(intervals):
        if later.side != earlier.side and later.begin < earlier.end:
            end = min(earlier.end, later.end)
            told = f"{(end - later.begin) * 1000:.1f} ms" if end < OPEN_S else "to the end"
            found.append(f"two copies ran: {earlier.side} and {later.side}, {told}")
    return found
