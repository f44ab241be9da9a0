"""The follower: what `qmp-migrate events` does, with a stopwatch. Answers orders on standard input, one JSON line each."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import defaultdict
from typing import Any

import structlog

from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.consume.name_conflicts import Conflicts
from qmp_migrate.bus.consume.ordered import follow
from qmp_migrate.bus.consume.staleness import Silence, with_pauses
from qmp_migrate.bus.messages.registry import HostLoad, HostStatus, HostVm, MigrationProgress
from qmp_migrate.bus.messages.topics import Kind, Topics
from qmp_migrate.cli.commands.events import LOOK_S, document

TOPICS = Topics()


class Seen:
    """What the follower knows, and how late it came."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.hosts: dict[str, str] = {}
        self.late_ms: dict[str, list[float]] = defaultdict(list)
        self.messages = self.missed = self.refused = self.conflicts = self.silences = 0
        self.measuring = False

    def take(self, news: Any) -> None:
        """Take one message."""
        received, moment = news.received, time.time()
        self.messages += 1
        self.missed += news.missed
        self.refused += received.error is not None
        message, address = received.message, received.address
        if address is not None and address.kind is Kind.HOST_VM:
            if message is None:
                self.states.pop(address.vm, None)
            elif isinstance(message, HostVm):
                self.states[message.vm] = message.runstate
        if isinstance(message, HostStatus):
            self.hosts[message.host] = message.state
        if self.measuring and not received.retained and isinstance(message, HostVm | HostLoad | MigrationProgress):
            self.late_ms[address.kind.value].append((moment - message.at.timestamp()) * 1000)
        json.dumps(document(news))  # what `events --json` does with it


def percentile(values: list[float], share: float) -> float | None:
    """Return a percentile, nearest rank."""
    ranked = sorted(values)
    return round(ranked[min(len(ranked) - 1, int(share * len(ranked)))], 1) if ranked else None


async def serve(url: str) -> None:
    """Follow, and answer."""
    seen = Seen()
    silence, conflicts = Silence(), Conflicts()

    async def listen(client: BusClient) -> None:
        looked = 0.0
        async for news in with_pauses(follow(client), LOOK_S):
            if news is not None:
                silence.hear(news.received, time.monotonic())
                conflicts.hear(news.received, time.monotonic())
                seen.take(news)
            if (at := time.monotonic()) - looked >= LOOK_S:
                looked = at
                seen.silences += len(silence.fallen(at))
                seen.conflicts += len(conflicts.found(at))

    async with BusClient(BrokerAddress.parse(url), TOPICS, role="events") as client:
        listening = asyncio.create_task(listen(client))
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while order := (await reader.readline()).decode().strip():
            assert not listening.done(), listening
            answer: dict[str, Any] = {}
            if order == "count":
                hosts = list(seen.hosts.values())
                answer = {
                    "states": len(seen.states),
                    "ready": hosts.count("ready"),
                    "lost": hosts.count("lost"),
                    "messages": seen.messages,
                    "missed": seen.missed,
                    "refused": seen.refused,
                    "conflicts": seen.conflicts,
                    "silences": seen.silences,
                }
            elif order == "measure":
                seen.late_ms.clear()
                seen.measuring = True
            elif order == "measured":
                seen.measuring = False
                answer = {
                    kind: {"count": len(ms), "p50_ms": percentile(ms, 0.5), "p99_ms": percentile(ms, 0.99)}
                    for kind, ms in sorted(seen.late_ms.items())
                }
            elif order == "states":
                answer = {"states": seen.states}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        listening.cancel()


def main() -> None:
    """Serve until standard input ends."""
    # Standard output carries answers; that a broker goes and comes back is told by nobody a thousand times.
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(40)
    )
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    asyncio.run(serve(parser.parse_args().url))


if __name__ == "__main__":
    main()
