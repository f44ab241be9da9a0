"""The standing service behind ``qmp-migrate notify``: listens to the bus, and tells those who want to know. Once each.

What was delivered is kept in a small file, so that a restart neither repeats what was told nor misses migrations that ended
meanwhile (they are in the bus's retained state). Each receiver has a queue of its own: one that hangs holds up nobody.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.consume.name_conflicts import Conflicts
from qmp_migrate.bus.consume.ordered import follow
from qmp_migrate.bus.consume.staleness import Silence, with_pauses
from qmp_migrate.bus.messages.registry import HostStatus
from qmp_migrate.errors import ConfigError
from qmp_migrate.fleet.notifications import rules
from qmp_migrate.fleet.notifications.delivery import Receiver, deliver
from qmp_migrate.fleet.notifications.rules import Filter, Notice

QUEUE: Final = 1000
REMEMBERED: Final = 5000
LOOK_S: Final = 1.0

log = structlog.get_logger("qmp_migrate.notify")


@dataclass(frozen=True, slots=True)
class Target:
    """One ``[[notify]]``.

    Attributes:
        receiver: Whom to tell.
        filter: What.
        deadline_s: How long it is tried.
    """

    receiver: Receiver
    filter: Filter
    deadline_s: float = 300.0


class Delivered:
    """Ids of notices that need not be told again; survives a restart where there is a file.

    Args:
        path: The file; None: it is forgotten at the end.

    Raises:
        ConfigError: The file is there, and cannot be read.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._ids: OrderedDict[str, None] = OrderedDict()
        self.fresh = True
        """Nothing was remembered: this is the first start."""
        if path is not None and path.exists():
            try:
                found = json.loads(path.read_text("utf-8"))
                self._ids = OrderedDict.fromkeys(str(each) for each in found["delivered"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{path} cannot be read: {error}", hint="remove it: some notices come twice then"
                ) from error
            self.fresh = False

    def __contains__(self, key: str) -> bool:
        return key in self._ids

    def add(self, key: str) -> None:
        """Remember one, and write it down."""
        self._ids[key] = None
        while len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)
        if self._path is None:
            return
        fresh = self._path.with_name(f"{self._path.name}.new")
        try:
            fresh.write_text(json.dumps({"schema": "notify.delivered/1", "delivered": list(self._ids)}), "utf-8")
            fresh.replace(self._path)
        except OSError as error:
            log.warning("delivered-not-written", path=str(self._path), reason=str(error))


class Notifier:
    """Tells targets what happens, until cancelled.

    Args:
        targets: Whom, and what.
        delivered: What was told before.
    """

    def __init__(self, targets: Sequence[Target], delivered: Delivered) -> None:
        self._targets = targets
        self._delivered = delivered
        self._queues: list[deque[Notice]] = [deque() for _ in targets]
        self._wake = [asyncio.Event() for _ in targets]
        self._pending: set[tuple[int, str]] = set()
        self._counted = 0

    async def run(self, client: BusClient) -> None:
        """Listen and tell.

        Args:
            client: A started client.

        Raises:
            BusError: The broker refuses the subscription.
        """
        tasks = [asyncio.create_task(self._serve(number)) for number in range(len(self._targets))]
        try:
            await self._listen(client)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, client: BusClient) -> None:
        silence, conflicts, looked = Silence(), Conflicts(), 0.0
        clock = asyncio.get_running_loop().time
        async for news in with_pauses(follow(client), LOOK_S):
            if news is not None:
                silence.hear(news.received, clock())
                conflicts.hear(news.received, clock())
                # What was so before we came is not news, but for migrations that ended while we were away.
                old = news.received.retained and (
                    self._delivered.fresh or isinstance(news.received.message, HostStatus)
                )
                if (notice := rules.of(news.received)) is None:
                    pass
                elif not old:
                    self.tell(notice)
                elif self._delivered.fresh:  # nor will it be news when the service comes a second time
                    for number in range(len(self._targets)):
                        self._delivered.add(f"{number}:{notice.id}")
            if (now := clock()) - looked < LOOK_S:
                continue
            looked = now
            for document in silence.fallen(now):
                self._counted += 1
                self.tell(rules.silent(document, self._counted))
            for document in conflicts.found(now):
                self._counted += 1
                if (notice := rules.conflict(document, self._counted)) is not None:
                    self.tell(notice)

    def tell(self, notice: Notice) -> None:
        """Put a notice into the queue of everyone who wants it and has not had it."""
        for number, target in enumerate(self._targets):
            key = f"{number}:{notice.id}"
            if not target.filter.admits(notice) or key in self._delivered or (number, notice.id) in self._pending:
                continue
            queue = self._queues[number]
            if len(queue) >= QUEUE:
                gone = queue.popleft()
                self._pending.discard((number, gone.id))
                log.warning("notice-given-up", receiver=str(target.receiver), id=gone.id, reason="too many wait")
            queue.append(notice)
            self._pending.add((number, notice.id))
            self._wake[number].set()

    async def _serve(self, number: int) -> None:
        target, queue = self._targets[number], self._queues[number]
        while True:
            while queue:
                notice = queue.popleft()
                why = await deliver(target.receiver, notice, deadline_s=target.deadline_s)
                self._pending.discard((number, notice.id))
                if why is None:
                    log.info("notice-delivered", receiver=str(target.receiver), kind=notice.kind, id=notice.id)
                else:
                    log.warning(
                        "notice-not-delivered",
                        receiver=str(target.receiver),
                        kind=notice.kind,
                        id=notice.id,
                        reason=why,
                    )
                self._delivered.add(f"{number}:{notice.id}")
            self._wake[number].clear()
            await self._wake[number].wait()
