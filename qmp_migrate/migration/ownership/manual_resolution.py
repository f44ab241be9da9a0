"""What is known of a parked migration, and the commands that would settle it: for the person who is called.

Pure: states in, words out.
"""

from __future__ import annotations

from dataclasses import dataclass

from qmp_migrate.migration.ownership.decision import Destination, Facts, Source
from qmp_migrate.migration.ownership.decision_postcopy import AT_DESTINATION, AT_SOURCE


@dataclass(frozen=True, slots=True)
class Names:
    """How things are called in the commands: the migration's id, the guest, and the two hosts."""

    id: str
    vm: str
    source: str
    destination: str


def ways_out(source: Source, destination: Destination, facts: Facts, names: Names) -> list[str]:
    """Return what would settle a parked migration, the best way first; each line is a command with what it is right for."""
    recover = f"qmp-migrate recover {names.id}"
    here, there = names.source, names.destination
    if facts.split_brain:
        return [
            f"look at both copies of {names.vm} first: which one's users and disks are right?",
            f"{recover} --owner destination   (the copy on {there} is the guest; the one on {here} is ended)",
            f"{recover} --owner source   (the copy on {here} is the guest; stop the one on {there} first: it is then ended)",
        ]
    lines: list[str] = []
    if source is Source.UNKNOWN:
        lines += [
            f"{recover} --wait   (goes on as soon as {here} answers)",
            f"{recover} --fenced {here}   (only if you have proof that {here} is switched off)",
        ]
    if destination is Destination.UNKNOWN:
        lines += [
            f"{recover} --wait   (goes on as soon as {there} answers)",
            f"{recover} --fenced {there}   (only if you have proof that {there} is switched off)",
        ]
    if source in AT_SOURCE or destination in AT_DESTINATION:
        return _in_postcopy(lines, recover, names)
    if destination is Destination.HANGS:
        lines += [
            f"{recover} --wait   (goes on as soon as the QEMU on {there} answers)",
            f"if it never will: end that QEMU on {there} (SIGKILL), then {recover}",
        ]
    if lines:
        return lines
    match source, destination:
        case Source.HANGS | Source.SWITCHES, _:
            lines = [f"{recover} --wait   (goes on as soon as the QEMU on {here} answers)"]
            if source is Source.HANGS:
                lines.append(f"if it never will: end that QEMU on {here} (SIGKILL), then {recover}")
        case Source.DEAD, Destination.LOADED:
            lines = [
                f"{recover} --owner destination   (runs the copy that {there} has loaded: right unless the guest ran on "
                f"at {here} after the hand-over and wrote to its disks)",
                f"qmp-migrate vm stop {names.vm} --on {there} --force   (ends that copy; then start it from its disks)",
            ]
        case Source.COMPLETED, Destination.ABSENT if facts.surely_never_ran:
            lines = [f"{recover}   (tries again: the destination never ran, so the guest may run on at {here})"]
        case Source.COMPLETED | Source.STOPPED | Source.HALTED, Destination.ABSENT:
            lines = [
                f"{recover} --owner source   (resumes the guest at {here} as it was at the hand-over: right only if it "
                f"has not run at {there} since, else its disks are newer than its memory)",
                f"qmp-migrate vm stop {names.vm} --on {here} --force   (ends that copy; then start it from its disks)",
            ]
        case Source.RUNS, Destination.HALTED:
            lines = [
                f"{recover} --owner source   (the copy that runs on {here} is the guest; the one on {there} is ended)",
            ]
        case _:
            lines = [recover]
    return lines


def _in_postcopy(lines: list[str], recover: str, names: Names) -> list[str]:
    """The guest's memory is on both hosts: only a new connection saves it, and neither QEMU may be ended."""
    return [
        *lines,
        f"{recover} --wait   (makes a new connection as soon as one is possible; end neither QEMU: each has memory that "
        "exists nowhere else)",
        f"where the network between {names.source} and {names.destination} will not come back: give {names.destination} "
        f"another migration_address in the settings, then {recover}",
    ]
