"""Many agents on one Mosquitto: how late messages are, what is lost, what it costs. `make bench SET=bus ARGS=…`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.bus.real_agent import measure as measure_real_agent

TICK = os.sysconf("SC_CLK_TCK")
PAGE = resource.getpagesize()
WAIT_S = 180.0
PER_PROCESS = 500
LOST_SHARE = 10
"""One agent in so many loses its connection without a word, in the test of last wills."""
CONFIG = """listener {port} 127.0.0.1
allow_anonymous true
persistence false
message_size_limit 65536
max_packet_size 69632
max_inflight_messages 200
max_queued_messages 100000
max_queued_bytes 268435456
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
{user}
"""


def say(text: str) -> None:
    """Show progress."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@dataclass
class Child:
    """A process that answers orders."""

    process: subprocess.Popen[str]
    name: str

    @classmethod
    def start(cls, name: str, module: str, *words: str) -> Child:
        """Start it."""
        argv = [sys.executable, "-m", module, *words]
        return cls(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True), name)

    def ask(self, order: str) -> dict[str, Any]:
        """Give an order and read the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Cost:
    """CPU seconds and memory of a process up to now."""

    cpu_s: float
    rss_bytes: int

    @classmethod
    def of(cls, pid: int) -> Cost:
        """Look at a process."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls((int(fields[11]) + int(fields[12])) / TICK, int(fields[21]) * PAGE)


@dataclass
class Broker:
    """A Mosquitto with the limits that `broker init` writes."""

    directory: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Start it, on the same port each time."""
        if not self.port:
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                self.port = sock.getsockname()[1]
        config = self.directory / "mosquitto.conf"
        config.write_text(CONFIG.format(port=self.port, user="user root" if os.geteuid() == 0 else ""))
        path = os.environ["PATH"] + ":/usr/sbin"
        with (self.directory / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["mosquitto", "-c", str(config)], stdout=log, stderr=log, env={**os.environ, "PATH": path}
            )

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"mqtt://127.0.0.1:{self.port}"


def wait(what: str, ready: Callable[[], bool], seconds: float = WAIT_S) -> float:
    """Wait until something is so; return how long it took."""
    began, told = time.monotonic(), time.monotonic()
    while not ready():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"bus: {what}: not within {seconds:g} s")
        if time.monotonic() - told > 5:
            told = time.monotonic()
            say(f"  … {what}: {told - began:.0f} s")
        time.sleep(0.1)
    took = time.monotonic() - began
    say(f"  {what}: {took:.1f} s")
    return took


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run it all; return the figures."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    total = options.agents * options.guests
    with tempfile.TemporaryDirectory(prefix="qm-bus-") as name:
        broker = Broker(Path(name))
        broker.start()
        children: list[Child] = []
        try:
            return _run(options, broker, children, total)
        finally:
            for child in children:
                child.end()
            broker.stop(signal.SIGKILL)


def _run(options: argparse.Namespace, broker: Broker, children: list[Child], total: int) -> dict[str, Any]:
    follower = Child.start("follower", "bench.bus.follower", "--url", broker.url)
    children.append(follower)

    def agents(first: int, count: int, migrations: int = 0) -> Child:
        words = ["--url", broker.url, "--first", str(first), "--agents", str(count), "--guests", str(options.guests)]
        child = Child.start("agents", "bench.bus.agents", *words, "--interval", "5", "--migrations", str(migrations))
        children.append(child)
        return child

    def count() -> dict[str, Any]:
        return follower.ask("count")

    doomed = max(1, options.agents // LOST_SHARE)
    report: dict[str, Any] = {"agents": options.agents, "guests": total, "migrations": options.migrations}
    say(f"{options.agents} agents with {options.guests} guests each, {options.migrations} migrations at 4 Hz")
    groups = [agents(0, doomed)]
    for first in range(doomed, options.agents, PER_PROCESS):
        many = min(PER_PROCESS, options.agents - first)
        groups.append(agents(first, many, options.migrations if first == doomed else 0))
    report["all_known_s"] = wait(
        "all agents connected, all guests known",
        lambda: (c := count())["states"] == total and c["ready"] == options.agents,
    )
    say(f"  steady for {options.seconds} s")
    assert broker.process is not None
    watched = {"broker": broker.process.pid, "follower": follower.process.pid}
    watched |= {f"agents{number}": group.process.pid for number, group in enumerate(groups)}
    time.sleep(min(5.0, options.seconds))
    before, began = {key: Cost.of(pid) for key, pid in watched.items()}, time.monotonic()
    first_count = count()
    follower.ask("measure")
    time.sleep(options.seconds)
    report["latency"] = follower.ask("measured")
    passed = time.monotonic() - began
    last_count = count()
    after = {key: Cost.of(pid) for key, pid in watched.items()}
    cpu = {key: 100 * (after[key].cpu_s - before[key].cpu_s) / passed for key in watched}
    mine = [key for key in watched if key.startswith("agents")]
    report["messages_per_s"] = round((last_count["messages"] - first_count["messages"]) / passed)
    report["cpu_percent"] = {
        "broker": round(cpu["broker"], 1),
        "follower": round(cpu["follower"], 1),
        "one_simulated_agent": round(sum(cpu[key] for key in mine) / options.agents, 3),
    }
    report["rss_mb"] = {key: round(after[key].rss_bytes / 1e6, 1) for key in ("broker", "follower")}
    report["load"] = os.getloadavg()[0]

    late = Child.start("late", "bench.bus.follower", "--url", broker.url)
    children.append(late)
    report["late_joiner_s"] = wait(
        "a subscriber that comes late knows all", lambda: late.ask("count")["states"] == total
    )
    late.end()

    say("  the broker is killed, and comes back empty")
    broker.stop(signal.SIGKILL)
    broker.start()
    # The follower knows it all still, and is told of no change: a new one shows what the broker has.
    fresh = Child.start("fresh", "bench.bus.follower", "--url", broker.url)
    children.append(fresh)
    report["after_broker_loss_s"] = wait(
        "all is known again", lambda: (c := fresh.ask("count"))["states"] == total and c["ready"] == options.agents
    )
    fresh.end()

    say(f"  {doomed} agents lose their connection")
    groups[0].end()
    report["wills_s"] = wait("all of them are lost", lambda: count()["lost"] == doomed)
    report["wills"] = doomed

    for group in groups[1:]:
        group.ask("hush")
    wait("nothing waits to be sent", lambda: all(group.ask("waiting")["waiting"] == 0 for group in groups[1:]))
    truth: dict[str, str] = {}
    for group in groups[1:]:
        truth |= group.ask("states")["states"]
    known: dict[str, str] = {}

    def equal() -> bool:
        known.clear()
        known.update(follower.ask("states")["states"])
        return all(known.get(vm) == state for vm, state in truth.items())

    with contextlib.suppress(SystemExit):
        wait("follower and agents agree", equal, 20)
    report["lost_states"] = sum(known.get(vm) != state for vm, state in truth.items())
    report["compared"] = len(truth)
    final = count()
    report |= {name: final[name] for name in ("refused", "conflicts")}
    report["dropped"] = sum(group.ask("waiting")["dropped"] for group in groups[1:])
    return report


def table(report: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [
        f"{report['agents']} agents, {report['guests']:,} guests, {report['migrations']} migrations at 4 Hz, "
        f"{report['messages_per_s']:,} messages/s; {report['machine']}; load {report['load']:.1f}",
        "",
        "| publish to subscriber | messages | p50 | p99 |",
        "|---|---:|---:|---:|",
    ]
    for kind, each in report["latency"].items():
        lines.append(f"| `{kind}` | {each['count']:,} | {each['p50_ms']} ms | {each['p99_ms']} ms |")
    lines += ["", "| what | |", "|---|---:|"]
    cpu, rss = report["cpu_percent"], report["rss_mb"]
    for text, value in (
        ("guest states lost", f"{report['lost_states']} of {report['compared']:,}"),
        ("all agents connected, all guests known to a follower", f"{report['all_known_s']:.1f} s"),
        ("a subscriber that comes late knows all", f"{report['late_joiner_s']:.1f} s"),
        ("broker killed and back empty: all known again", f"{report['after_broker_loss_s']:.1f} s"),
        (f"{report['wills']} agents killed at once: all seen as lost", f"{report['wills_s']:.1f} s"),
        ("broker: CPU, memory", f"{cpu['broker']} % of a core, {rss['broker']} MB"),
        ("follower (`events --json`): CPU, memory", f"{cpu['follower']} % of a core, {rss['follower']} MB"),
        ("one simulated agent: CPU", f"{cpu['one_simulated_agent']} % of a core"),
    ):
        lines.append(f"| {text} | {value} |")
    if real := report.get("real_agent"):
        lines.append(
            f"| a real agent with {real['guests']} guests: CPU, memory | {real['cpu_percent']} % of a core, "
            f"{real['rss_mb']} MB ({real['pss_mb']} MB of its own) |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, and write build/bench-bus.json."""
    parser = argparse.ArgumentParser(prog="make bench SET=bus", description=__doc__)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--guests", type=int, default=20, help="Of each agent.")
    parser.add_argument("--migrations", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="The steady part.")
    parser.add_argument(
        "--real-guests", type=int, default=50, help="Of one real agent, measured alone; 0: leave it out."
    )
    parser.add_argument("--real-seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("build/bench-bus.json"))
    options = parser.parse_args()
    report: dict[str, Any] = {
        "schema": "bench.bus/1",
        "machine": f"{os.cpu_count()} cores, {platform.python_version()}",
    }
    report |= run(options)
    if options.real_guests:
        report["real_agent"] = measure_real_agent(options.real_guests, options.real_seconds, say)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write(table(report) + "\n")
    return 1 if report["lost_states"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
