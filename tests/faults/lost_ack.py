"""``python -m tests.faults.lost_ack``: the lost acknowledgement, many times over, on one or more QEMUs.

The destination has loaded everything, its acknowledgement is swallowed, then the connection is reset: the source runs on by
itself while a full copy waits at the destination. A second running copy is one `cont` away; there must never be one.
The guest is the firmware alone, which runs and says nothing: who runs is told by the two QEMUs' own events.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from qmp_migrate.errors import MigrationFailed, QmpMigrateError
from qmp_migrate.fleet.controller import Controller
from qmp_migrate.migration.lifecycle.engine import Engine
from qmp_migrate.settings import MqttSettings, load
from qmp_migrate.vm.spec.guest_spec import parse_spec
from tests.faults.lab.spy import Spy, Watch
from tests.faults.lab.stand import Stand, qemus, remove, stand
from tests.support.real.lab import Guest

LOADED_S: Final = 20.0


def main() -> int:
    """Run it; returns the exit code: 1 where two copies ran, or a run ended otherwise than it must."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.lost_ack", description="Lose the acknowledgement.")
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="on each QEMU (default: 100)")
    parser.add_argument(
        "--qemu", action="append", default=[], metavar="FILE", help="a QEMU; default: the installed one"
    )
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    bad = 0
    for binary in options.qemu or [""]:
        chosen = {"a": binary, "b": binary} if binary else {}
        with stand(7, chosen) as place:
            bad += asyncio.run(_many(place, binary or "installed", options.runs))
    return 1 if bad else 0


async def _many(place: Stand, name: str, runs: int) -> int:
    """Lose it again and again; return how often something was wrong."""
    bad = splits = 0
    began = time.monotonic()
    settings = place.settings()
    quiet = load(settings).model_copy(update={"mqtt": MqttSettings()})
    with _guest(place) as guest:
        spec = parse_spec(guest.spec.read_text(), source="spec", base_dir=str(guest.spec.parent))
        async with Controller.open(quiet) as controller:
            await controller.start(spec, on="a")
            version = "?"
            for number in range(runs):
                found, version = await _once(place, controller, guest)
                splits += any("two copies" in problem for problem in found)
                bad += bool(found)
                for problem in found:
                    print(f"{name} run {number}: {problem}", flush=True)
            await controller.stop(guest.name, on="a", force=True)
    each = (time.monotonic() - began) / max(1, runs)
    print(f"QEMU {version}: {runs} runs, {splits} split brains, {bad} otherwise wrong than must be ({each:.1f} s each)")
    return bad


@contextlib.contextmanager
def _guest(place: Stand) -> Iterator[Guest]:
    name = f"l{uuid.uuid4().hex[:8]}"
    sock = place.spies("a") / f"{name}.sock"
    args = ["-chardev", f"socket,id=spy,path={sock},server=on,wait=off", "-mon", "chardev=spy,mode=control"]
    spec = place.lab.spec(name, firmware_only=True, memory="65544KiB", args=args)
    guest = Guest(place.lab, name, spec, None)
    try:
        yield guest
    finally:
        remove(guest)
        for path in (spec, sock, place.spies("b") / f"{name}.sock"):
            Path(path).unlink(missing_ok=True)


async def _once(place: Stand, controller: Controller, guest: Guest) -> tuple[list[str], str]:
    """Lose one acknowledgement; return what is wrong, and QEMU's version."""
    held = Engine._held
    problems: list[str] = []
    with Watch(*(Spy(host, place.spies(host) / f"{guest.name}.sock") for host in ("a", "b"))) as watch:

        async def lose(engine: Engine) -> None:
            await held(engine)
            place.migration.drop("back")

        async def cut() -> None:
            end = time.monotonic() + LOADED_S
            while time.monotonic() < end:
                if any(n == "MIGRATION" and d.get("status") == "completed" for n, _, d in watch.destination.events):
                    place.migration.reset()
                    return
                await asyncio.sleep(0.005)
            problems.append("the destination never had everything")
            place.migration.reset()

        Engine._held = lose  # type: ignore[method-assign]
        cutting = asyncio.create_task(cut())
        try:
            await controller.migrate(guest.name, to="b", guarded=True, limits=controller.settings.watchdog.limits)
            problems.append("it was completed without an acknowledgement")
        except MigrationFailed as error:
            if error.exit_code != 4:
                problems.append(f"exit code {error.exit_code}: {error}")
        except QmpMigrateError as error:
            problems.append(f"{type(error).__name__}: {error}")
        finally:
            Engine._held = held  # type: ignore[method-assign]
            await cutting
            place.migration.up()
        problems += watch.overlaps()
        if (state := await asyncio.to_thread(watch.source.run_state)) != "running":
            problems.append(f"the source is {state}")
        if list(qemus(guest.name)) != [guest.pid("a")]:
            problems.append(f"QEMUs are left: {qemus(guest.name)}")
        if not any(name == "RESUME" for name, _, _ in watch.source.events):
            problems.append("the source did not resume")
        answer = await asyncio.to_thread(watch.source.ask, "query-version")
        version = answer["return"]["qemu"]
    return problems, f"{version['major']}.{version['minor']}.{version['micro']}"


if __name__ == "__main__":
    sys.exit(main())
