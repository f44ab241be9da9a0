"""What the runs gave: a line for each, a table phase x fault, JSON and HTML."""

from __future__ import annotations

import html
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.cases.phases import PHASES
from tests.faults.cases.trial import PROVEN_S, RECOVERY_S, Result


def tell(result: Result, number: int, of: int) -> None:
    """Say how one run ended, at once."""
    word = "ok  " if result.passed else "FAIL"
    code = "killed" if result.code is None else f"exit {result.code}"
    recovered = f", recovered in {result.recover_s} s" if result.recover_s is not None else ""
    print(
        f"{number:>4}/{of} {word} {result.case:<42} {code}, {result.outcome}, guest at {result.owner}, "
        f"proven in {result.proven_s} s{recovered} ({result.total_s:.0f} s)",
        *(f"\n          {problem}" for problem in result.problems),
        file=sys.stderr,
        flush=True,
    )


def figures(results: Sequence[Result]) -> dict[str, Any]:
    """Return the numbers that are promised, measured."""
    proven = sorted(result.proven_s for result in results)
    restarts = sorted(r.recover_s for r in results if r.recover_s is not None and "/kill-controller" in r.case)
    return {
        "runs": len(results),
        "cases": len({result.case for result in results}),
        "failed": sum(not result.passed for result in results),
        "proven_s": _spread(proven) | {"limit": PROVEN_S},
        "recover_after_kill_s": _spread(restarts) | {"limit": RECOVERY_S},
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
    return {"median": statistics.median(values), "p99": p99, "max": values[-1]}


def cells(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """Return the results by fault and phase."""
    found: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        phase, _, fault = result.case.partition("/")
        found[fault][phase].append(result)
    return found


def _cell(runs: Sequence[Result]) -> str:
    if not runs:
        return ""
    owners = "|".join(sorted({{"destination": "D", "source": "S", "none": "-"}.get(r.owner, "?") for r in runs}))
    slowest = max(result.proven_s for result in runs)
    failed = sum(not result.passed for result in runs)
    return f"{owners} {slowest:.1f}" + (f" !{failed}/{len(runs)}" if failed else "")


def show(results: Sequence[Result]) -> None:
    """Print the table: where the guest was in the end, and the slowest time to a proven state, seconds."""
    phases = [phase.name for phase in PHASES] + sorted(
        {r.case.partition("/")[0] for r in results} - {phase.name for phase in PHASES}
    )
    phases = [phase for phase in phases if any(r.case.startswith(f"{phase}/") for r in results)]
    print("S: at the source, D: at the destination, -: nowhere; seconds to a proven state, the slowest; !: failed")
    print(f"{'':<28}" + "".join(f"{phase[:12]:>13}" for phase in phases))
    for fault, row in sorted(cells(results).items()):
        print(f"{fault:<28}" + "".join(f"{_cell(row.get(phase, [])):>13}" for phase in phases))
    print(json.dumps(figures(results)))
    for result in results:
        for problem in result.problems:
            print(f"FAIL {result.case} (seed {result.seed}): {problem}")


def write(directory: Path, results: Sequence[Result], *, complete: bool) -> None:
    """Write ``DIR.json`` and ``DIR.html`` beside the logs."""
    directory.mkdir(parents=True, exist_ok=True)
    document = {
        "schema": "faults/1",
        "complete": complete,
        "figures": figures(results),
        "runs": [result.to_dict() for result in results],
    }
    directory.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    directory.with_suffix(".html").write_text(_page(results))


def _page(results: Sequence[Result]) -> str:
    phases = [p.name for p in PHASES] + sorted({r.case.partition("/")[0] for r in results} - {p.name for p in PHASES})
    lines = [
        "<!doctype html><meta charset=utf-8><title>qmp-migrate: faults</title>",
        "<style>body{font:14px sans-serif}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:3px 6px}"
        ".ok{background:#dfd}.bad{background:#fbb}th{text-align:left}</style>",
        f"<h1>Phase x fault</h1><pre>{html.escape(json.dumps(figures(results), indent=1))}</pre>",
        "<p>S: the guest is at the source in the end, D: at the destination, -: nowhere (its QEMU was killed); "
        "seconds to a proven state, the slowest run. Empty: the fault is impossible there.</p>",
        "<table><tr><th>" + "".join(f"<th>{html.escape(phase)}" for phase in phases),
    ]
    for fault, row in sorted(cells(results).items()):
        lines.append(f"<tr><th>{html.escape(fault)}")
        for phase in phases:
            runs = row.get(phase, [])
            kind = "" if not runs else "ok" if all(r.passed for r in runs) else "bad"
            why = "; ".join(problem for run in runs for problem in run.problems) or "; ".join(
                sorted({r.said for r in runs})
            )
            lines.append(f"<td class='{kind}' title='{html.escape(why, quote=True)}'>{html.escape(_cell(runs))}")
    return "\n".join([*lines, "</table>"]) + "\n"
