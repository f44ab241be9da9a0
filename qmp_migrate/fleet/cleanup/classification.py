"""What is a leftover, whose it is, and what may be done with it: facts in, findings out. No clock, no I/O.

The rule behind all of it: what may be the only copy of a guest is never touched, what is not provably ours is never
touched, and a guest that somebody holds (its lock, a migration that the journal has not closed) is left to that one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, Literal

from qmp_migrate.fleet.cleanup.run_dir_facts import Entry, Process, Qemu, RunDir
from qmp_migrate.qemu import states
from qmp_migrate.vm.names import NAME_PATTERN

Verdict = Literal["ours", "maybe-only-copy", "not-ours"]
Action = Literal[
    "kept", "would-remove", "would-quarantine", "would-put-back", "removed", "quarantined", "put-back"
]  # fmt: skip

TEMPORARY_S: Final = 3600.0
"""A temporary file of ours that is younger may belong to a write that is under way."""

OUR_CAPABILITIES: Final = ("events", "late-block-activate", "pause-before-switchover", "return-path", "validate-uuid")
"""Migration capabilities that a migration of ours switches on."""

_NIL_UUID: Final = "00000000-0000-0000-0000-000000000000"
_RECORDS: Final = frozenset({"pid", "argv.json", "qemu.log"})  # any of these: a directory that we made
_DEFINITION: Final = frozenset({"argv.json", "serial.log.1"})
_KEYS: Final = re.compile(r"tls-m[0-9a-z]{1,40}")
_TEMPORARY: Final = re.compile(r"(pid\.new|(argv\.json|serial\.log\.1)\.[A-Za-z0-9]{8})")
_LOCKS_TEMPORARY: Final = re.compile(r"(.+)\.(?:epoch|beat)\.new")


class Kind(StrEnum):
    """What can be left on a host, or in the journal."""

    OPEN_MIGRATION = "open-migration"  # the journal has not closed it, and its controller is gone
    KEY_DIRECTORY = "key-directory"  # a migration's TLS key that nobody needs any more
    WAITING_DESTINATION = "waiting-destination"  # a QEMU that waits for memory that nobody will send
    LOADED_DESTINATION = "loaded-destination"  # has all of a guest and was never told to run
    STOPPED_SOURCE = "stopped-source"  # has sent all of a guest and was never ended
    UNDRIVEN = "undriven-migration"  # a migration goes on in QEMU, and no controller holds the guest
    WIRING = "wiring"  # a running guest with a migration's capabilities or credentials in force
    DIRECTORY = "directory"  # of a guest whose QEMU is gone
    LOCK_FILE = "lock-file"
    TEMPORARY_FILE = "temporary-file"
    UNPROVEN = "unproven"  # nobody can say whether a QEMU lives there, or it does not answer
    STRAY_QEMU = "stray-qemu"  # has sockets of ours and no record
    NOT_OURS = "not-ours"


@dataclass(frozen=True, slots=True)
class Finding:
    """One leftover.

    Attributes:
        kind: What it is.
        host: Where.
        vm: The guest's name; None where it belongs to none.
        path: The file or directory; unprintable characters escaped.
        pid: The process.
        verdict: Whose it is.
        action: What was done, or would be done with ``--remove``.
        why: For people: what it is and why it is treated so.
        hint: What settles it, ``""`` where ``--remove`` does.
        about: Further identity: the migration's id, the host that runs the guest.
    """

    kind: Kind
    host: str
    verdict: Verdict
    action: Action
    why: str
    vm: str | None = None
    path: str | None = None
    pid: int | None = None
    hint: str = ""
    about: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same finding in a second look."""
        return self.kind, self.host, self.vm, self.path, self.pid, self.about

    @property
    def left(self) -> bool:
        """It is ours and still there."""
        return self.verdict != "not-ours" and self.action not in {"removed", "quarantined", "put-back"}

    def to_dict(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        names = ("kind", "host", "vm", "path", "pid", "verdict", "action", "why", "hint")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class OpenMigration:
    """A migration that the journal has not closed; ``driven``: its controller lives (None: that cannot be told)."""

    id: str
    vm: str
    source: str
    destination: str
    driven: bool | None


def classify(
    places: Mapping[str, RunDir],
    migrations: Sequence[OpenMigration] = (),
    *,
    mine: Collection[tuple[str, str]] = (),
) -> list[Finding]:
    """Return what is left, in the order in which it is to be removed.

    Args:
        places: Host name to what was found there; hosts that could not be asked are absent.
        migrations: What the journal has not closed.
        mine: Host and guest of locks that the caller itself holds.
    """
    places = {
        host: replace(place, holders={vm: who for vm, who in place.holders.items() if (host, vm) not in mine})
        for host, place in places.items()
    }
    busy = {vm for place in places.values() for vm in place.holders}
    busy |= {m.vm for m in migrations if m.driven is True}
    findings = [_open(m) for m in migrations if m.driven is not True and m.vm not in busy]
    claimed = busy | {m.vm for m in migrations}
    for place in places.values():
        findings += _Look(place, places, claimed, busy).findings()
    order = list(Kind)
    return sorted(findings, key=lambda f: (order.index(f.kind), f.host, f.vm or "", f.path or ""))


def _open(m: OpenMigration) -> Finding:
    gone = "its controller is gone" if m.driven is False else "its controller is on another machine, if it lives"
    why = f"migration {m.id} of {m.vm} from {m.source} to {m.destination} has not ended, and {gone}"
    hint = f"qmp-migrate recover {m.id}"
    return Finding(Kind.OPEN_MIGRATION, m.source, "maybe-only-copy", "kept", why, vm=m.vm, hint=hint, about=m.id)


def shown(text: str) -> str:
    """Return a name that others chose so that it can be printed: what is unprintable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_name(text: str) -> bool:
    """Tell whether a guest can have this name (DESIGN rule 10)."""
    return NAME_PATTERN.fullmatch(text) is not None and ".." not in text


@dataclass(frozen=True, slots=True)
class _Look:
    """One host's facts, beside everybody else's. `claimed`: guests that are somebody's business; `busy`: locked ones."""

    place: RunDir
    places: Mapping[str, RunDir]
    claimed: Collection[str]
    busy: Collection[str]

    def findings(self) -> Iterator[Finding]:
        for entry in self.place.entries:
            if "/" not in entry.path and entry.path not in {".locks", ".quarantine"}:
                yield from self._top(entry)
            elif entry.path in {".locks", ".quarantine"} and not self._own(entry, "d"):
                yield self._foreign(entry)
        yield from self._locks()
        yield from self._strays()

    # -- small words ------------------------------------------------------------------------------------------------

    def _own(self, entry: Entry, kind: str) -> bool:
        return entry.kind == kind and entry.uid == self.place.uid

    def _below(self, directory: str) -> Iterator[tuple[str, Entry]]:
        prefix = directory + "/"
        for entry in self.place.entries:
            if entry.path.startswith(prefix):
                yield entry.path.removeprefix(prefix), entry

    def _finding(self, kind: Kind, verdict: Verdict, action: Action, why: str, **more: Any) -> Finding:
        if "path" in more:
            more["path"] = shown(f"{self.place.path}/{more['path']}")
        return Finding(kind, self.place.host, verdict, action, why, **more)

    def _foreign(self, entry: Entry) -> Finding:
        what = {"l": "a symbolic link", "d": "a directory", "f": "a file"}.get(entry.kind, "no file of ours")
        whose = "" if entry.uid == self.place.uid else f" of user id {entry.uid}"
        why = f"{what}{whose} that we did not make: left alone"
        return self._finding(Kind.NOT_OURS, "not-ours", "kept", why, path=entry.path)

    # -- directories of guests --------------------------------------------------------------------------------------

    def _top(self, entry: Entry) -> Iterator[Finding]:
        name = entry.path
        if not is_name(name) or not self._own(entry, "d"):
            yield self._foreign(entry)
            return
        if name in self.claimed:
            return
        files = {below for below, _ in self._below(name)}
        if name not in self.place.records and not files & _RECORDS:
            keys = list(self._keys(name))
            yield from keys or [self._foreign(entry)]
            return
        record = self.place.records.get(name)
        if record is None and "argv.json" in files and files <= _DEFINITION:
            return  # a shut-down guest that was moved here, and not started yet
        if record is not None and (record.process is None or record.alive is None):
            yield self._unproven(name, None, "its `pid` file proves nothing about the QEMU that was started there")
        elif record is None or record.process is None or not record.alive:
            yield from self._ended(name)
        else:
            yield from self._living(name, record.process.pid, self.place.qemus.get(name, Qemu(problem="was not asked")))

    def _unproven(self, name: str, pid: int | None, why: str) -> Finding:
        hint = f"look for it by hand on that host (ps, {self.place.path}/{name}); never start the guest before you know"
        return self._finding(Kind.UNPROVEN, "maybe-only-copy", "kept", why, vm=name, path=name, pid=pid, hint=hint)

    def _keys(self, name: str) -> Iterator[Finding]:
        for below, entry in self._below(name):
            if _KEYS.fullmatch(below) and self._own(entry, "d"):
                why = "the TLS key of a migration that is over: a secret that nobody needs"
                yield self._finding(Kind.KEY_DIRECTORY, "ours", "would-remove", why, vm=name, path=f"{name}/{below}")

    def _ended(self, name: str) -> Iterator[Finding]:
        yield from self._keys(name)
        user = next((p for p in self.place.processes if self._uses(p, name)), None)
        if user is not None:
            why = f"its QEMU is gone, but process {user.pid} names it in its command line"
            yield self._finding(
                Kind.DIRECTORY, "ours", "kept", why, vm=name, path=name, hint="see what that process is"
            )
            return
        why = "its QEMU is proven gone; logs and records go to quarantine, nothing is deleted"
        yield self._finding(Kind.DIRECTORY, "ours", "would-quarantine", why, vm=name, path=name)

    def _uses(self, process: Process, name: str) -> bool:
        here = f"{self.place.path}/{name}/"
        return "-c" not in process.argv and any(here in word for word in process.argv)

    def _living(self, name: str, pid: int, qemu: Qemu) -> Iterator[Finding]:
        if qemu.problem:
            yield self._unproven(name, pid, f"its QEMU lives but cannot be asked: {qemu.problem}")
            return
        waits = self._waits_for_memory(pid)
        if qemu.run_state == "inmigrate" and qemu.status in {"none", "setup", "failed"}:
            yield self._waiting(name, pid, waits)
            return
        if states.under_way(qemu.status):
            why = f"a migration goes on in it ({qemu.status}) and no controller holds the guest"
            hint = "whoever started it must end it: qmp-migrate recover, on the controller whose journal knows it"
            yield self._finding(Kind.UNDRIVEN, "maybe-only-copy", "kept", why, vm=name, path=name, pid=pid, hint=hint)
            return
        yield from self._keys(name)
        yield from self._temporaries(name)
        if qemu.run_state in states.RUNNING_STATES:
            yield from self._wiring(name, pid, qemu)
        elif qemu.status == "completed" and qemu.run_state == "postmigrate":
            yield self._stopped(name, pid, qemu)
        elif qemu.status == "completed" and "return-path" in qemu.capabilities:
            # Ours has return-path on until it was told to run and unwired: without it, a user has paused his guest.
            yield self._loaded(name, pid, qemu) if waits else self._stopped(name, pid, qemu)

    def _waits_for_memory(self, pid: int) -> bool:
        """Tell whether it was started as a destination of ours is: ``-S -incoming defer``."""
        argv = next((p.argv for p in self.place.processes if p.pid == pid), ())
        return "-S" in argv and ("-incoming", "defer") in pairwise(argv)

    def _waiting(self, name: str, pid: int, waits: bool) -> Finding:
        if not waits:
            why = "a QEMU that waits for a guest's memory, but was not started as our destinations are: left alone"
            return self._finding(Kind.NOT_OURS, "not-ours", "kept", why, vm=name, path=name, pid=pid)
        why = "a destination that waits for a guest's memory, which nobody will send: it holds nothing"
        return self._finding(
            Kind.WAITING_DESTINATION, "ours", "would-remove", why, vm=name, path=name, pid=pid
        )  # fmt: skip

    def _runs_elsewhere(self, name: str, uuid: str) -> str | None:
        """Return the host on which the same guest is seen running now."""
        for other in self.places.values():
            qemu = other.qemus.get(name)
            if other.host == self.place.host or qemu is None or qemu.problem or uuid == _NIL_UUID:
                continue
            if qemu.uuid == uuid and qemu.run_state in states.RUNNING_STATES and not states.under_way(qemu.status):
                return other.host
        return None

    def _loaded(self, name: str, pid: int, qemu: Qemu) -> Finding:
        where = self._runs_elsewhere(name, qemu.uuid)
        more: dict[str, Any] = {"vm": name, "path": name, "pid": pid, "about": where or ""}
        if where is not None:
            why = f"a destination that has loaded the guest and never ran it; the guest runs on {where}"
            return self._finding(Kind.LOADED_DESTINATION, "ours", "would-remove", why, **more)
        why = "a destination that has loaded the guest and never ran it: may be the only copy of the guest"
        hint = (
            "its journal is on the controller that moved it: qmp-migrate recover there. Else, when every other host has "
            f"proven that it has no copy: qmp-migrate vm stop {name} --on {self.place.host} --force, and start it anew"
        )
        return self._finding(Kind.LOADED_DESTINATION, "maybe-only-copy", "kept", why, hint=hint, **more)

    def _stopped(self, name: str, pid: int, qemu: Qemu) -> Finding:
        where = self._runs_elsewhere(name, qemu.uuid)
        why = "a source that has sent the guest and was never ended: may be the only copy of the guest"
        hint = (
            f"its journal is on the controller that moved it: qmp-migrate recover there; it must never be continued "
            f"while {'the other' if where is None else where} may run it. Never ended by --remove"
        )
        if where is not None:
            why = f"a source that has sent the guest, which runs on {where} now"
            hint = f"when you are sure of that: qmp-migrate vm stop {name} --on {self.place.host} --force"
        more: dict[str, Any] = {"vm": name, "path": name, "pid": pid, "hint": hint, "about": where or ""}
        return self._finding(Kind.STOPPED_SOURCE, "maybe-only-copy", "kept", why, **more)

    def _wiring(self, name: str, pid: int, qemu: Qemu) -> Iterator[Finding]:
        left = [credentials for credentials in qemu.credentials if _KEYS.fullmatch(credentials)]
        if _KEYS.fullmatch(qemu.tls_creds) and qemu.tls_creds not in left:
            left.append(qemu.tls_creds)
        if "return-path" in qemu.capabilities:
            left += sorted(qemu.capabilities & set(OUR_CAPABILITIES))
        if left:
            why = (
                f"it runs, with settings of a migration that is over: {', '.join(left)}; they are put back, it runs on"
            )
            yield self._finding(Kind.WIRING, "ours", "would-put-back", why, vm=name, path=name, pid=pid)

    def _temporaries(self, name: str) -> Iterator[Finding]:
        for below, entry in self._below(name):
            if _TEMPORARY.fullmatch(below) and self._own(entry, "f") and entry.age_s > TEMPORARY_S:
                yield self._temporary(name, entry)

    def _temporary(self, name: str, entry: Entry) -> Finding:
        why = "a temporary file of a write that was cut off"
        return self._finding(Kind.TEMPORARY_FILE, "ours", "would-remove", why, vm=name, path=entry.path)

    # -- locks and processes ----------------------------------------------------------------------------------------

    def _locks(self) -> Iterator[Finding]:
        for below, entry in self._below(".locks"):
            name, _, ending = below.rpartition(".")
            temporary = _LOCKS_TEMPORARY.fullmatch(below)
            if temporary is not None and is_name(temporary[1]) and self._own(entry, "f"):
                if entry.age_s > TEMPORARY_S and temporary[1] not in self.busy:
                    yield self._temporary(temporary[1], entry)
            elif not is_name(name) or ending not in {"lock", "beat", "epoch"} or not self._own(entry, "f"):
                yield self._foreign(entry)
            elif ending != "epoch" and name not in self.busy and name not in self.place.holders:
                why = "a lock that nobody holds" if ending == "lock" else "signs of life of a lock that nobody holds"
                yield self._finding(Kind.LOCK_FILE, "ours", "would-remove", why, vm=name, path=entry.path)

    def _strays(self) -> Iterator[Finding]:
        here = re.compile(re.escape(self.place.path) + r"/([^/,]+)/(?:qmp|agent)\.sock\b")
        for process in self.place.processes:
            if process.uid != self.place.uid or "-c" in process.argv:
                continue
            names = {match[1] for word in process.argv for match in here.finditer(word)}
            for name in sorted(names - set(self.busy)):
                record = self.place.records.get(name)
                known = record.process if record is not None else None
                if known is not None and (known.pid, known.start_time) == (process.pid, process.start_time):
                    continue
                why = "a QEMU with sockets of ours, but without a record of ours: not provably ours alone, never ended"
                yield self._finding(
                    Kind.STRAY_QEMU,
                    "maybe-only-copy",
                    "kept",
                    why,
                    vm=shown(name),
                    pid=process.pid,
                    hint="look at it by hand: it may run a guest; its command line is in /proc",
                )
