"""How copying can end without the guest having moved, in words: what happened, where, and what to do. Pure."""

from __future__ import annotations

from qmp_migrate.errors import MigrationFailed, MonitorLost, NotConverging
from qmp_migrate.migration.convergence import ladder
from qmp_migrate.qemu.migration import RamInfo
from qmp_migrate.qemu.monitor import Event


def given_up(status: str, why: str | None, source: str) -> MigrationFailed:
    """Return what is told where the source says ``failed`` or ``cancelled``.

    Args:
        status: Which.
        why: QEMU's own reason, where it gives one.
        source: The host.
    """
    if status == "cancelled":
        return MigrationFailed(
            "the migration was cancelled at the source, and not by this controller",
            safe_at_source=True,
            code="cancelled_elsewhere",
            hint="the agent's guardian does so at pre-switchover when it has not heard of the controller for seconds",
            host=source,
        )
    return MigrationFailed(
        f"QEMU ended the migration: {status}" + (f": {why}" if why else ""), safe_at_source=True, host=source
    )


def monitor_closed(side: str, host: str) -> MonitorLost:
    """Return what is told where a monitor's connection has ended; `side` is ``source`` or ``destination``."""
    return MonitorLost(
        f"the {side}'s monitor closed during the migration",
        hint=f"its QEMU was ended, or the connection to its host was cut: see dmesg and the guest's qemu.log on {host}",
        host=host,
    )


def too_early(event: Event, destination: str) -> MigrationFailed:
    """Return what is told where the destination has begun to run, or has ended, before it should."""
    return MigrationFailed(
        f"the destination reports {event.name} before the source was completed",
        safe_at_source=False,
        code="unexpected_event",
        host=destination,
    )


def ended(shutdown: Event, host: str, *, doing: str = "moved") -> MigrationFailed:
    """Return what is told where the guest powers itself off, or somebody ends its QEMU, on the way.

    Args:
        shutdown: QEMU's word.
        host: Where.
        doing: What was being done with the guest meanwhile.
    """
    reason = str(shutdown.data.get("reason", "unknown"))
    match bool(shutdown.data.get("guest")), reason:
        case True, "guest-panic":
            code, what = "guest_panicked", f"the guest panicked while it was being {doing}, and its QEMU ended with it"
        case True, "guest-reset":
            code, what = "guest_shutdown", f"the guest reset itself while it was being {doing}, which ends its QEMU"
        case True, _:
            code, what = "guest_shutdown", f"the guest powered itself off while it was being {doing}"
        case _:
            code, what = (
                "source_ended",
                f"the QEMU on {host} was told to end ({reason}) while its guest was being {doing}",
            )
    return MigrationFailed(
        what,
        safe_at_source=False,
        code=code,
        hint="start it again where you want it; nothing is left at the destination"
        if doing == "moved"
        else "start it again where you want it",
        host=host,
    )


def panicked(source: str) -> MigrationFailed:
    """Return what is told where the guest's kernel panics on the way."""
    return MigrationFailed(
        "the guest panicked while it was being moved; it is left at the source as it is",
        safe_at_source=False,
        code="guest_panicked",
        hint="look at its serial log, dump it, or reset it there",
        host=source,
    )


def second_pass(ram: RamInfo | None, limit_ms: int, source: str) -> NotConverging:
    """Return what is told where a source that loses writes (`features.loses_writes`) would need a second pass.

    Args:
        ram: The latest numbers.
        limit_ms: The downtime limit in force, milliseconds.
        source: The host.
    """
    need = ""
    if ram and ram.throughput_bytes_per_s:
        need_ms = ladder.needed_ms(ram.remaining, ram.throughput_bytes_per_s)
        need = f" (about {need_ms} ms would have been enough)" if need_ms > limit_ms else ""
    return NotConverging(
        f"the guest dirtied more in the first pass than fits into the downtime limit of {limit_ms} ms{need}, and this QEMU "
        "without KVM would lose what it writes in a second one",
        hint="allow a longer pause (--downtime-limit), or run the guest under KVM or QEMU 9.0 or later",
        host=source,
    )
