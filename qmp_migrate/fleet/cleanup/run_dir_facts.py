"""What a host's run directory holds, as facts: one script per host, and a few questions to each QEMU that lives.

Nothing is judged here and nothing is changed. Names come from a directory that others may write into as well, so they
travel between NUL bytes and are never read by a shell.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field
from typing import Any, Final

from qmp_migrate.errors import FileFailed, QmpMigrateError
from qmp_migrate.hosts.process import ProcessId
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.qemu import features
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.qemu.monitor import Monitor

ASK_S: Final = 5.0
"""For all questions to one QEMU together; what has not answered by then is said to be silent."""

_FACTS: Final = script("cleanup/run_dir_facts")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a run directory.

    Attributes:
        path: Relative to the run directory; bytes that are not UTF-8 as surrogates.
        kind: ``d`` directory, ``f`` file, ``l`` symbolic link, ``s`` socket, else as ``find -printf %y`` says.
        uid: Its owner.
        age_s: Seconds since it was last written.
    """

    path: str
    kind: str
    uid: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Record:
    """What a guest directory's ``pid`` file says.

    Attributes:
        process: The process that it names; None: the file is damaged and proves nothing.
        alive: True/False with proof, None: the host cannot tell.
    """

    process: ProcessId | None
    alive: bool | None


@dataclass(frozen=True, slots=True)
class Process:
    """A living process whose command line names the run directory."""

    pid: int
    uid: int
    start_time: int
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Qemu:
    """What a QEMU says of itself.

    Attributes:
        run_state, status: ``query-status`` and ``query-migrate``.
        uuid: The guest's.
        capabilities: Migration capabilities that are on.
        tls_creds: The migration parameter.
        credentials: Ids of ``tls-creds-psk`` objects.
        problem: Why it could not be asked; all else is empty then.
    """

    run_state: str = ""
    status: str = ""
    uuid: str = ""
    capabilities: frozenset[str] = frozenset()
    tls_creds: str = ""
    credentials: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RunDir:
    """All that was found under one host's ``RUN_DIR``.

    Attributes:
        host: The host's name.
        path: ``RUN_DIR``.
        uid: The SSH user.
        entries: What is in it, three levels deep; what is in quarantine is left out.
        records: Guest directory to what its ``pid`` file says.
        holders: Guest name to who holds its lock, for locks that are held now.
        processes: Processes with the run directory in their argv, whoever started them.
        qemus: Guest name to what its QEMU says; only those that live and are not locked were asked.
    """

    host: str
    path: str
    uid: int = 0
    boot_id: str = ""
    entries: tuple[Entry, ...] = ()
    records: dict[str, Record] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    processes: tuple[Process, ...] = ()
    qemus: dict[str, Qemu] = field(default_factory=dict)


async def gather(side: Side) -> RunDir:
    """Look at a host's run directory; QEMUs are not asked.

    Args:
        side: Any guest's side on that host.

    Raises:
        CommandFailed, FileFailed: It cannot be looked at.
        TransportError: The host cannot be asked.
    """
    await side.host.connect()
    done = await side.host.script(_FACTS, [side.settings.run_dir], timeout=30)
    if done.truncated:
        raise FileFailed(
            f"{side.settings.run_dir} holds more than can be listed",
            hint="something else writes there: look at it by hand",
            host=side.name,
        )
    return parse(side.name, side.settings.run_dir, done.stdout)


def parse(host: str, run_dir: str, output: bytes) -> RunDir:
    """Parse what the script printed.

    Args:
        host: The host's name.
        run_dir: ``RUN_DIR``.
        output: Its standard output.

    Raises:
        FileFailed: It is not what the script prints.
    """
    uid = boot_id = now = ""
    entries, processes = list[Entry](), list[Process]()
    records, holders = dict[str, Record](), dict[str, str]()
    try:
        for text in output.decode("utf-8", "surrogateescape").split("\0")[:-1]:
            kind, _, rest = text.partition("\t")
            match kind:
                case "h":
                    uid, boot_id, now = rest.split("\t")
                case "e":
                    what, owner, written, path = rest.split("\t", 3)
                    entries.append(Entry(path, what, int(owner), float(now) - float(written)))
                case "r":
                    line, stat, name = rest.split("\t", 2)
                    records[name] = _record(line, stat, boot_id)
                case "l":
                    held, owner, name = rest.split("\t", 2)
                    if held == "held":
                        holders[name.removesuffix(".lock")] = owner
                case "p":
                    pid, owner, argv, stat = rest.split("\t", 3)
                    words = base64.b64decode(argv).decode("utf-8", "surrogateescape").split("\0")[:-1]
                    started = _started(stat)
                    if owner and started:  # else it ended meanwhile
                        processes.append(Process(int(pid), int(owner), started, tuple(words)))
        found = int(uid)
    except ValueError as error:
        raise FileFailed(
            f"the host gave no usable answer about {run_dir}: {error}",
            hint="it needs GNU findutils, coreutils and util-linux; does its login shell print something of its own?",
            host=host,
        ) from error
    return RunDir(host, run_dir, found, boot_id, tuple(entries), records, holders, tuple(processes))


def _started(stat: str) -> int | None:
    """Return the start time of a living process from ``/proc/PID/stat``; None where none lives, a zombie included."""
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or (fields[0] in {"Z", "X", "x"} and int(fields[17]) <= 1):
        return None
    return int(fields[19])


def _record(line: str, stat: str, boot_id: str) -> Record:
    words = line.split()
    if len(words) != 3 or not (words[0].isdigit() and words[1].isdigit()):
        return Record(None, None)
    process = ProcessId(int(words[0]), int(words[1]), words[2])
    if process.boot_id != boot_id:
        return Record(process, False)
    if stat == "?":
        return Record(process, None)
    return Record(process, _started(stat) == process.start_time)


async def ask(side: Side) -> Qemu:
    """Ask a guest's QEMU what it is and what is in force in it. Never raises."""
    try:
        async with asyncio.timeout(ASK_S):
            return await _ask(await side.attach())
    except TimeoutError:
        return Qemu(problem="it does not answer")
    except (QmpMigrateError, AttributeError, TypeError, KeyError, ValueError) as error:
        return Qemu(problem=str(error))
    finally:
        await side.detach()


async def _ask(monitor: Monitor) -> Qemu:
    status = await qmp.run_status(monitor)
    info = await qmp.query(monitor)
    known = await features.probe(monitor)
    objects: list[dict[str, Any]] = await monitor.execute("qom-list", {"path": "/objects"})
    uuid = await monitor.execute("query-uuid")
    return Qemu(
        run_state=status.status,
        status=info.status,
        uuid=str(uuid["UUID"]),
        capabilities=frozenset(name for name, on in known.capabilities.items() if on),
        tls_creds=str(known.parameters.get("tls-creds") or ""),
        credentials=tuple(str(o["name"]) for o in objects if o["type"] == "child<tls-creds-psk>"),
    )
