"""QEMU processes on a host: started so that they outlive us, known by more than a pid, killed only when proven ours.

Each call is one round trip. Where nothing can be proven, an error is raised: a process is never called dead because
it could not be asked (DESIGN rule 5).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

from qmp_migrate.errors import ConnectionLost, GuestExists, LaunchFailed, LockBusy, UsageError
from qmp_migrate.hosts import process_scripts as scripts
from qmp_migrate.hosts.base import Host, check_unix_path

#: A command line that is longer would not pass ``execve`` as one argument (128 KiB on Linux, quoting included).
ARGV_LIMIT = 96 * 1024
#: Seconds for a QEMU to start, unless its host is a slow one.
LAUNCH_S = 20.0
#: Seconds for a script beyond the time it waits itself.
_MARGIN_S = 10.0
#: Seconds a killed process may take to be gone: the kernel frees its memory first, 100 GiB take a while.
_KILL_S = 60.0


@dataclass(frozen=True, slots=True)
class ProcessId:
    """Proof of which process is meant, on one host.

    Attributes:
        pid: Process id.
        start_time: When it started, in clock ticks since boot (``/proc/PID/stat``, field 22).
        boot_id: Which boot of the machine (``/proc/sys/kernel/random/boot_id``).
    """

    pid: int
    start_time: int
    boot_id: str

    @property
    def words(self) -> list[str]:
        """The three as the scripts take them."""
        return [str(self.pid), str(self.start_time), self.boot_id]

    @classmethod
    def of(cls, words: Sequence[str]) -> ProcessId:
        """Return the process that `words` means."""
        pid, start_time, boot_id = words
        return cls(int(pid), int(start_time), boot_id)


async def launch(
    host: Host,
    *,
    directory: str,
    argv: Sequence[str],
    timeout: float = LAUNCH_S,
    ready: str = "qmp.sock",
    log: str = "qemu.log",
) -> ProcessId:
    """Start a process, by default a QEMU, and wait until it is ready.

    Makes ``directory`` (0700) with ``argv.json``, ``pid`` and the log. A launch that fails leaves nothing running, and
    no directory that was not there before.

    Args:
        host: Where.
        directory: ``RUN_DIR/NAME`` of the guest; becomes the working directory.
        argv: The whole command line.
        timeout: Seconds until it must be ready.
        ready: The file in ``directory`` whose appearance says so: the monitor socket of a QEMU.
        log: The file in ``directory`` for its standard output and error.

    Raises:
        GuestExists: A process that was started there is still alive.
        LockBusy: Another launch there is under way at this moment.
        LaunchFailed: It ended, or was not ready in time; carries what it wrote.
        CommandFailed: The directory cannot be used.
        ConnectionLost: Unknown whether it runs: see :func:`identify`.
    """
    check_unix_path(host.name, f"{directory}/{ready}")
    size = sum(len(word.encode("utf-8", "surrogateescape")) + 3 for word in argv)
    if size > ARGV_LIMIT:
        raise UsageError(f"the command line is too long: {size} bytes, at most {ARGV_LIMIT}", host=host.name)
    record = json.dumps(list(argv), indent=1).encode() + b"\n"
    args = [directory, str(round(timeout * 100)), ready, log, str(len(record)), *argv]
    done = await host.script(scripts.LAUNCH, args, input=record, timeout=timeout + _MARGIN_S)
    answer, _, written = done.stdout.decode("utf-8", "replace").partition("\n")
    written = written.strip()
    match answer.split():
        case ["live", *words]:
            return ProcessId.of(words)
        case ["exists", pid]:
            raise GuestExists(
                f"what was started in {directory} is still running (process {pid})",
                hint="look at it with: qmp-migrate vm list",
                host=host.name,
            )
        case ["starting"]:
            raise LockBusy(f"another launch is under way in {directory}", hint="try again", host=host.name)
        case ["died", status]:
            raise LaunchFailed(
                f"{argv[0]} {_ending(int(status))} before it was ready: {_telling_line(written, argv[0])}",
                stderr=written,
                hint=_launch_hint(int(status)),
                host=host.name,
            )
        case _:
            raise LaunchFailed(
                f"{argv[0]} made no {directory}/{ready} within {timeout:g} s and was killed",
                stderr=written,
                hint="does its command line make that file? is the host overloaded, or its storage stuck?",
                host=host.name,
            )


async def identify(host: Host, directory: str) -> ProcessId | None:
    """Return the process that was started in ``directory``, or ``None`` when it is proven that there is none alive.

    Raises:
        CommandFailed: The host cannot tell.
        TransportError: The host cannot be asked.
    """
    done = await host.script(scripts.IDENTIFY, [directory])
    match done.text.split():
        case ["live", *words]:
            return ProcessId.of(words)
        case ["gone", *_] | ["none"]:
            return None
    raise _unproven(host, directory)


async def command_line(host: Host, pid: ProcessId) -> list[str]:
    """Return a process's command line, word by word.

    Raises:
        CommandFailed: It has ended, or may not be looked at.
        TransportError: The host cannot be asked.
    """
    text = (await host.script(scripts.COMMAND_LINE, [str(pid.pid)])).text
    return [word.decode("utf-8", "surrogateescape") for word in base64.b64decode(text).split(b"\0")[:-1]]


async def list_all(host: Host, run_dir: str) -> dict[str, ProcessId | None]:
    """Return every guest that was started under ``run_dir``: name to process, ``None`` where it is proven gone.

    Raises:
        CommandFailed: The host cannot tell.
        TransportError: The host cannot be asked.
    """
    found: dict[str, ProcessId | None] = {}
    for line in (await host.script(scripts.LIST, [run_dir])).text.splitlines():
        match line.rsplit(" ", 4):
            case [name, "live", *words]:
                found[name] = ProcessId.of(words)
            case [name, "gone", *_]:
                found[name] = None
            case _:
                raise _unproven(host, run_dir)
    return found


async def is_alive(host: Host, pid: ProcessId) -> bool:
    """Tell whether the process lives. Both answers are proven: a reboot, a reused pid and a zombie count as dead.

    Raises:
        CommandFailed: The host cannot tell.
        TransportError: The host cannot be asked.
    """
    return _live(host, (await host.script(scripts.IS_ALIVE, pid.words)).text, pid)


async def kill(host: Host, pid: ProcessId) -> bool:
    """Kill the process (SIGKILL) if it is the one that is meant, and wait until it is gone.

    Returns:
        True when it is proven gone (also when it was before); False when it resists for a minute, as a process does
        that waits for dead storage.

    Raises:
        CommandFailed: Not allowed, or the host cannot tell.
        TransportError: The outcome is unknown.
    """
    return not _live(host, await _wait(host, scripts.KILL, pid, _KILL_S, "KILL"), pid)


async def kill_closed(host: Host, pid: ProcessId) -> str:
    """Kill a QEMU whose guest has ended, if it has closed its images: one that does not answer may still be writing to them.

    Returns:
        ``""`` when it is proven gone; else what it still holds open, as a person reads it, and it was not touched.

    Raises:
        CommandFailed: Not allowed, or the host cannot tell.
        TransportError: The outcome is unknown.
    """
    answer = await _wait(host, scripts.KILL_CLOSED, pid, _KILL_S, "KILL")
    if answer.startswith("holds "):
        return answer.removeprefix("holds ")
    return "memory, after a signal that ends it" if _live(host, answer, pid) else ""


async def terminate(host: Host, pid: ProcessId, timeout: float) -> bool:
    """Ask the process to end (SIGTERM) if it is the one that is meant, and wait.

    Args:
        host: Where.
        pid: The process.
        timeout: Seconds.

    Returns:
        True when it is proven gone, False when it still lives after ``timeout``.

    Raises:
        CommandFailed: Not allowed, or the host cannot tell.
        TransportError: The outcome is unknown.
    """
    return not _live(host, await _wait(host, scripts.KILL, pid, timeout, "TERM"), pid)


async def wait_gone(host: Host, pid: ProcessId, timeout: float) -> bool:
    """Wait until the process is proven gone.

    Args:
        host: Where.
        pid: The process.
        timeout: Seconds; 0 looks once.

    Returns:
        True when it is gone, False when it still lives after ``timeout``.

    Raises:
        CommandFailed: The host cannot tell.
        TransportError: The host cannot be asked.
    """
    return not _live(host, await _wait(host, scripts.WAIT_GONE, pid, timeout), pid)


async def _wait(host: Host, script: str, pid: ProcessId, seconds: float, *more: str) -> str:
    args = [*pid.words, str(round(seconds * 100)), *more]
    return (await host.script(script, args, timeout=seconds + _MARGIN_S)).text


def _live(host: Host, answer: str, pid: ProcessId) -> bool:
    if answer not in ("live", "gone"):
        raise _unproven(host, f"process {pid.pid}")
    return answer == "live"


def _unproven(host: Host, what: str) -> ConnectionLost:
    return ConnectionLost(
        f"the host gave no usable answer about {what}",
        hint="its login shell may print or do something of its own in non-interactive sessions",
        host=host.name,
    )


def _telling_line(log: str, program: str) -> str:
    """Pick the line that says what is wrong: the last one that the program signed with its name, else the last."""
    lines = log.splitlines() or ["it wrote nothing"]
    signed = [line for line in lines if line.startswith(f"{program.rpartition('/')[2]}:")]
    return (signed or lines)[-1]


def _ending(status: int) -> str:
    return f"was ended by signal {status - 128}" if status > 128 else f"ended with status {status}"


def _launch_hint(status: int) -> str:
    if status == 127:
        return "is it installed on the host? its `qemu` setting tells where QEMU is"
    if status == 0:
        return "a QEMU with -daemonize cannot be supervised: leave it out"
    return "its own words say what it did not like"
