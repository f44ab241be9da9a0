"""What the journal keeps, as a person reads it: migrations, saves, restores and moves of shut-down guests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qmp_migrate.cli.render import against, duration
from qmp_migrate.migration.journal.operations import Operation
from qmp_migrate.migration.journal.store import Entry, MigrationRecord, controller_lives
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.vm.units import about_size


def left_behind(records: Sequence[MigrationRecord]) -> list[MigrationRecord]:
    """Return those that no controller drives and that have not ended with one owner."""
    return [
        record
        for record in records
        if record.phase is Phase.PARKED or (record.outcome is None and controller_lives(record.controller) is False)
    ]


def past_table(records: Sequence[MigrationRecord], operations: Sequence[Operation] = ()) -> RenderableType:
    """Return migrations and operations as one table, newest first."""
    if not records and not operations:
        return Text("no migrations")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("ID", "GUEST", "FROM", "TO", "PHASE", "OUTCOME", "OWNER", "STARTED", "TOTAL", "BLACKOUT"):
        table.add_column(heading, justify="right" if heading in {"TOTAL", "BLACKOUT"} else "left", no_wrap=True)
    rows = [(record.started_at, _migration_row(record)) for record in records]
    rows += [(operation.started_at, _operation_row(operation)) for operation in operations]
    for _, row in sorted(rows, reverse=True):
        table.add_row(*row)
    return table


def _migration_row(record: MigrationRecord) -> tuple[str, ...]:
    result = record.result or {}
    outcome = record.outcome or "under way"
    if record.outcome is None and controller_lives(record.controller) is False:
        outcome = "controller gone"
    return (
        record.id,
        record.vm,
        record.source,
        record.destination,
        record.phase.value,
        outcome,
        record.owner or "-",
        local_time(record.started_at),
        duration(result["total_ms"]) if result.get("total_ms") else "-",
        f"{result['blackout_ms']:.1f} ms" if result.get("blackout_ms") else "-",
    )


def ends(operation: Operation) -> tuple[str, str]:
    """Return from where to where the guest goes: host names, or ``file``."""
    if operation.kind == "save":
        return operation.host, "file"
    if operation.kind == "restore":
        return "file", operation.host
    return operation.host, str(operation.data.get("destination", "-"))


def owner(operation: Operation) -> str | None:
    """Return who has the guest, as the operation's result says; None as long as it has not ended."""
    found = (operation.data.get("result") or {}).get("owner")
    return None if operation.outcome is None or found is None else str(found)


def seconds(operation: Operation) -> float | None:
    """Return how long it took from its first row to its end; None as long as it has not ended."""
    return None if operation.outcome is None else max(operation.updated_at - operation.started_at, 0.0)


def _outcome(operation: Operation) -> str:
    """Return how it ended, or that it did not."""
    return operation.outcome or ("controller gone" if operation.left else "under way")


def _operation_row(operation: Operation) -> tuple[str, ...]:
    """Return the row of `history`: in place of a migration's phase, what it is and the step where it stands."""
    took = seconds(operation)
    step = operation.kind if operation.outcome is not None else f"{operation.kind}: {operation.step}"
    return (
        operation.id,
        operation.vm,
        *ends(operation),
        step,
        _outcome(operation),
        owner(operation) or "-",
        local_time(operation.started_at),
        "-" if took is None else duration(took * 1000),
        "-",
    )


def local_time(at: float) -> str:
    """Return a moment, seconds since 1970, as a clock on the wall shows it."""
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def operation_story(operation: Operation) -> RenderableType:
    """Return one operation as a person reads it. Its row keeps the last step only; the result tells the rest."""
    source, destination = ends(operation)
    result: dict[str, Any] = operation.data.get("result") or {}
    lines = [Text(f"{operation.id}: {operation.kind} of {operation.vm} {source} -> {destination}", style="bold")]
    facts = [("started", local_time(operation.started_at))]
    if "path" in operation.data:
        facts.append(("file", f"{operation.data['path']} on {operation.host}"))
    if result.get("format"):
        facts.append(("format", str(result["format"])))
    if result.get("kept"):
        facts.append(("kept as", str(result["kept"])))
    for key in ("stored_bytes", "disk_bytes"):
        if result.get(key):
            facts.append((key.removesuffix("_bytes"), about_size(result[key])))
    for key in ("stop_ms", "write_ms", "prove_ms", "verify_ms", "load_ms"):
        if result.get(key):
            facts.append((key.removesuffix("_ms"), duration(result[key])))
    took = seconds(operation)
    if took is not None:
        facts.append(("total", duration(took * 1000)))
    facts += [("warning", str(warning)) for warning in result.get("warnings", ())]
    lines += [Text(f"  {name:<8} {value}") for name, value in facts]
    if operation.outcome is not None:
        lines.append(Text(f"outcome: {operation.outcome}, owner: {owner(operation) or '-'}", style="bold"))
    elif operation.left:
        lines.append(Text(f"not ended, last step: {operation.step}; no controller drives it", style="yellow"))
        lines.append(Text(f"settle it with: qmp-migrate recover {operation.id}"))
    else:
        lines.append(Text(f"under way, step: {operation.step}", style="yellow"))
    if result.get("error"):
        lines.append(Text(f"error: {result['error']['message']}"))
    return Group(*lines)


def story(record: MigrationRecord, entries: Sequence[Entry]) -> RenderableType:
    """Return a migration's journal as a person reads it."""
    lines: list[RenderableType] = [
        Text(f"{record.id}: {record.vm} {record.source} -> {record.destination} ({record.mode})", style="bold")
    ]
    for entry in entries:
        text = f"{(entry.at - record.started_at) * 1000:9.1f} ms  {entry.kind:<7} {entry.act}"
        data = {key: value for key, value in entry.data.items() if key != "argv"}
        if data:
            text += "  " + " ".join(f"{key}={value}" for key, value in data.items())
        lines.append(Text(text, style="bold" if entry.kind == "phase" else ""))
    if record.outcome is None:
        lines.append(Text("not ended", style="yellow"))
    else:
        lines.append(Text(f"outcome: {record.outcome}, owner: {record.owner}", style="bold"))
        if (record.result or {}).get("forecast"):
            lines.append(Text(f"forecast: {against((record.result or {})['forecast'])}"))
        error = (record.result or {}).get("error")
        if error:
            lines.append(Text(f"error: {error['message']}"))
    return Group(*lines)
