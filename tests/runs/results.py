"""What the records of a run say: counts, and a table of the failures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """How one test ended: see `record`."""

    id: str
    outcome: str
    seconds: float
    text: str = ""


@dataclass(frozen=True)
class Failure:
    """One line of the table.

    Attributes:
        where: The stage, and the round of `make steady`.
        test: Its id, or what else failed.
        reason: The error in one line.
        seed: Of that run (`--hypothesis-seed`, `PYTHONHASHSEED`); `None`: it had none.
        log: What was said.
    """

    where: str
    test: str
    reason: str
    seed: int | None
    log: Path


def read(record: Path) -> list[Result]:
    """Read a record; a last line that was cut off, because the run was killed while writing it, does not count."""
    if not record.exists():
        return []
    results = []
    for line in record.read_text(errors="replace").splitlines():
        try:
            results.append(Result(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return results


def keep_whole_lines(record: Path) -> None:
    """Write a record anew without what `read` passes over, so that it can be added to."""
    if record.exists():
        lines = [json.dumps(vars(result)) + "\n" for result in read(record)]
        record.write_text("".join(lines))


def reason_of(text: str) -> str:
    """Return the error of a test in one line: the first line that pytest marks with `E`, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    return (marked or lines[-1:] or ["no reason was recorded"])[0]


def failures(where: str, record: Path, seed: int | None) -> list[Failure]:
    """Return the failed tests of a record; write what each one said into a file of its own beside it."""
    found = []
    for number, result in enumerate((one for one in read(record) if one.outcome == "failed"), start=1):
        log = record.with_name(f"{record.stem}-failure-{number}.log")
        log.write_text(f"{result.id}\nseed: {seed}\n\n{result.text}\n")
        found.append(Failure(where, result.id, reason_of(result.text), seed, log))
    return found


def counts(results: Iterable[Result]) -> str:
    """Return `12 passed, 1 failed, 3 skipped`."""
    counted = Counter(result.outcome for result in results)
    words = [
        f"{counted[word]:,} {word}" for word in ("passed", "failed", "skipped") if counted[word] or word == "passed"
    ]
    return ", ".join(words)


def table(found: Sequence[Failure]) -> str:
    """Return the failures as text, each in three lines: ids and paths are too long for columns."""
    if not found:
        return "no failures"
    lines = [f"{len(found)} failure{'s' if len(found) > 1 else ''}:"]
    for failure in found:
        seed = f", seed {failure.seed}" if failure.seed is not None else ""
        lines += [f"  {failure.where}{seed}: {failure.test}", f"    {failure.reason[:200]}", f"    {failure.log}"]
    often = Counter(failure.test for failure in found)
    if len(found) > len(often):
        lines += ["by test:", *(f"  {count:4} {test}" for test, count in often.most_common())]
    return "\n".join(lines)
