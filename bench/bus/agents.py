"""Simulated agents: real connections, real messages, made-up guests. One process serves many; orders come on standard input.

Each agent is the product's own `Publisher` (session, last will, retained state, clearing of what is not its), so its traffic
is what an agent's is. The process prints one JSON line per answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from typing import Any

import structlog

from hostagent.publisher import Publisher
from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.messages.field_types import now
from qmp_migrate.bus.messages.registry import HostInfo, HostLoad, HostVm, MigrationProgress
from qmp_migrate.bus.messages.topics import Kind, Topics
from tests.support.data.golden_messages import golden_of

TOPICS = Topics()
CHANGE_S = 20.0
"""Each agent changes the state of one of its guests this often, and tells of a QMP event with it."""


class SimulatedAgent:
    """One host with its guests."""

    def __init__(self, url: str, host: str, guests: int, interval_s: float, rng: random.Random) -> None:
        self.host = host
        self.publisher = Publisher(BrokerAddress.parse(url), TOPICS, host, interval_s=interval_s)
        self._rng, self._interval_s = rng, interval_s
        template = {**golden_of(Kind.HOST_VM), "host": host, "role": "idle", "migration_status": None}
        self.guests = {
            f"{host}-g{number}": HostVm.model_validate_json(
                json.dumps({**template, "vm": f"{host}-g{number}", "runstate": "running"})
            )
            for number in range(guests)
        }
        self._load = HostLoad.model_validate_json(json.dumps({**golden_of(Kind.HOST_LOAD), "host": host}))
        self._info = HostInfo.model_validate_json(json.dumps({**golden_of(Kind.HOST_INFO), "host": host}))
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Publish what is, connect, and go on."""
        self.publisher.info(self._info)
        for vm, state in self.guests.items():
            self.publisher.expect(vm)
            self.publisher.guest(state)
        self.publisher.client.start()
        jobs = (self._loads(), self._changes(), self.publisher.clear_strangers())
        self._tasks = [asyncio.create_task(job) for job in jobs]

    async def _loads(self) -> None:
        await asyncio.sleep(self._rng.random() * self._interval_s)
        while True:
            self.publisher.load(self._load.model_copy(update={"at": now()}))
            await asyncio.sleep(self._interval_s)

    async def _changes(self) -> None:
        await asyncio.sleep(self._rng.random() * CHANGE_S)
        while True:
            self.change(self._rng.choice(sorted(self.guests)))
            await asyncio.sleep(CHANGE_S)

    def change(self, vm: str) -> None:
        """A guest is paused, or goes on."""
        old = self.guests[vm]
        runstate = "paused" if old.runstate == "running" else "running"
        self.guests[vm] = old.model_copy(update={"runstate": runstate, "at": now()})
        self.publisher.qmp_event(vm, "STOP" if runstate == "paused" else "RESUME", {}, seconds=time.time())
        self.publisher.guest(self.guests[vm])

    def hush(self) -> None:
        """Change nothing any more: for the count at the end."""
        for task in self._tasks[:2]:
            task.cancel()


async def progress(client: BusClient, migrations: int) -> None:
    """Report all migrations, four times a second each, spread over the time."""
    template = MigrationProgress.model_validate_json(json.dumps(golden_of(Kind.MIGRATION_PROGRESS)))
    names = [f"m-bench-{number}" for number in range(migrations)]
    began, sent = asyncio.get_running_loop().time(), 0
    while names:
        due = int((asyncio.get_running_loop().time() - began) * 4 * len(names))
        for number in range(sent, due):
            name = names[number % len(names)]
            report = template.model_copy(update={"id": name, "at": now(), "seq": number + 1})
            client.publish_progress(TOPICS.migration_progress(name), report)
        sent = due
        await asyncio.sleep(0.01)


async def serve(options: argparse.Namespace) -> None:
    """Run the agents, and answer orders."""
    rng = random.Random(options.first)
    hosts = [f"h{number:04d}" for number in range(options.first, options.first + options.agents)]
    agents = [SimulatedAgent(options.url, host, options.guests, options.interval, rng) for host in hosts]
    for agent in agents:
        agent.start()
        await asyncio.sleep(0.002)  # as machines do, they do not all come in the same instant
    controller = None
    if options.migrations:
        controller = BusClient(BrokerAddress.parse(options.url), TOPICS, role="controller")
        controller.start()
        told = asyncio.create_task(progress(controller, options.migrations))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while order := (await reader.readline()).decode().strip():
        answer: dict[str, Any] = {}
        if order == "connected":
            answer["connected"] = sum(agent.publisher.client.connected for agent in agents)
        elif order == "hush":
            for agent in agents:
                agent.hush()
            if controller is not None:
                told.cancel()
        elif order == "waiting":
            answer["waiting"] = sum(agent.publisher.client.waiting for agent in agents)
            answer["dropped"] = sum(agent.publisher.client.dropped for agent in agents)
        elif order == "states":
            answer["states"] = {vm: state.runstate for agent in agents for vm, state in agent.guests.items()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Serve until standard input ends."""
    # Standard output carries answers; that a broker goes and comes back is told by nobody a thousand times.
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(40)
    )
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--agents", type=int, required=True)
    parser.add_argument("--guests", type=int, required=True)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--migrations", type=int, default=0)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
