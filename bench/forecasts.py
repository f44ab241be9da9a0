"""How wrong forecasts are: ``python -m bench.forecasts``. Guests that dirty 0.1 to 1.2 of what the link carries are moved.

For each one a forecast is made, the guest is moved as foretold, and the result says how wrong the time was. The link is
limited by ``max-bandwidth``. Writes ``build/bench-forecasts.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.fleet import ROOT
from bench.guest import Guest, Machine, loses_writes, settled
from bench.measure import environment
from bench.scenarios import MIB, Scenario
from qmp_migrate import Controller, MigrationRequest, QmpMigrateError, load_settings, parse_spec
from qmp_migrate.rig import down, up
from qmp_migrate.rig.guest.accelerator_probe import probe_accel
from qmp_migrate.rig.guest.images import find_images

QEMU: Final = "qemu-system-x86_64"
LINK_MIB: Final = 40
SETTLED_S: Final = 60.0
MOVED_S: Final = 180.0


@dataclass(frozen=True)
class Case:
    """One kind of migration: what the guest dirties of the link, and how it is moved."""

    share: float
    mode: str = "live"
    policy: str = "default"
    ws_mib: int = 192
    link_mib: int = LINK_MIB

    def __str__(self) -> str:
        return f"{self.mode} {self.policy}, dirties {self.share:g} of {self.link_mib or 'all'} MiB/s over {self.ws_mib} MiB"


CASES: Final = (
    *(Case(share) for share in (0.0, 0.1, 0.5, 0.8, 1.2)),
    *(Case(1.2, policy=policy) for policy in ("gentle", "finish")),
    Case(2.0, ws_mib=16),
    Case(0.5, link_mib=0),
    Case(0.8, "offline"),
    Case(0.8, "postcopy"),
)


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.forecasts", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1, metavar="N")
    parser.add_argument(
        "--only", nargs="+", type=int, metavar="CASE", help=f"numbers of cases, from 0 to {len(CASES) - 1}"
    )
    options = parser.parse_args()
    os.chdir(ROOT)
    return asyncio.run(_main(options))


async def _main(options: argparse.Namespace) -> int:
    image = find_images()
    accel = await probe_accel(QEMU, image)
    around = await environment.describe(QEMU, accel)
    machine = Machine(shutil.which(QEMU) or QEMU, accel, image, loses_writes(accel, around["qemu"]))
    cases = [case for number, case in enumerate(CASES) if options.only is None or number in options.only]
    directory = Path(tempfile.mkdtemp(prefix="qmp-bench-forecast-"))
    rows: list[dict[str, Any]] = []
    try:
        state = await up(directory / "rig", 2)
        try:
            async with Controller.open(load_settings(state.settings_file)) as controller:
                for number in range(options.repeats * len(cases)):
                    case = cases[number % len(cases)]
                    rows.append(await _take(controller, case, machine, state.hosts[0].run_dir, number))
                    print(rows[-1], file=sys.stderr, flush=True)
        finally:
            await down(directory / "rig")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    (ROOT / "build/bench-forecasts.json").write_text(json.dumps({"environment": around, "rows": rows}, indent=1) + "\n")
    _show(rows)
    return 0


async def _take(controller: Controller, case: Case, machine: Machine, run_dir: Path, number: int) -> dict[str, Any]:
    scenario = Scenario("forecast", str(case), rate_mib_s=round(case.share * LINK_MIB), ws_mib=case.ws_mib)
    guest = Guest(f"f{number}", scenario, machine)
    source = run_dir / guest.name
    row: dict[str, Any] = {"case": str(case)}
    await controller.start(parse_spec(guest.spec(source), source="bench", base_dir=str(source)), on="a")
    try:
        async with asyncio.timeout(SETTLED_S):
            await settled(source)
        request = MigrationRequest(
            guest.name,
            "b",
            mode=case.mode,  # type: ignore[arg-type]
            policy=case.policy,
            bandwidth_bytes_per_s=case.link_mib * MIB,
        )
        async with asyncio.timeout(MOVED_S):
            try:
                result = await controller.migrate(
                    request, on_forecast=lambda report: row.update(_told(report.to_dict()))
                )
            except QmpMigrateError as error:
                row["error"] = error.code
                result = error.result
        row |= {"outcome": result.outcome, "total_ms": result.total_ms, "blackout_ms": result.blackout_ms}
        row |= {"bytes": result.transferred_bytes, "passes": result.passes, "steps": result.steps}
        row["error_percent"] = (result.forecast or {}).get("error_percent")
    except TimeoutError:
        row["error"] = "not done in time"
    finally:
        for host in ("a", "b"):
            try:
                await controller.stop(guest.name, on=host, force=True)
            except QmpMigrateError:
                continue
    return row


def _told(report: dict[str, Any]) -> dict[str, Any]:
    measured = report["measured"]
    return {
        "told": {
            name: report[name]
            for name in ("outlook", "total_ms", "blackout_ms", "transferred_bytes", "passes", "steps")
        },
        "link_mib_s": round(measured["link_bytes_per_s"] / MIB, 1),
        "dirty_mib_s": round(measured["dirty_bytes_per_s"] / MIB, 1),
        "present_mib": measured["present_bytes"] // MIB,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("case", "outlook", "outcome", "told, s", "took, s", "error, %", "blackout told, ms", "was, ms"):
        table.add_column(heading)
    for row in rows:
        told = row.get("told")
        if told is None or "total_ms" not in row:
            table.add_row(row["case"], "-", str(row.get("error")))
            continue
        table.add_row(
            row["case"],
            told["outlook"],
            row.get("error") or row["outcome"],
            f"{told['total_ms'] / 1000:.1f}",
            f"{row['total_ms'] / 1000:.1f}",
            f"{row['error_percent']}",
            f"{told['blackout_ms']:.0f}",
            f"{row['blackout_ms']:.0f}",
        )
    console = Console(highlight=False, soft_wrap=True, width=200)
    console.print(table)
    errors = [abs(row["error_percent"]) for row in rows if row.get("error_percent") is not None]
    if errors:
        console.print(f"median of the error: {median(errors):.0f} % over {len(errors)} migrations")


if __name__ == "__main__":
    sys.exit(main())
