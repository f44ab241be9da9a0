"""``qmp-hostagent relay``: the forced command. Few imports: it is started for each command of the controller."""

from __future__ import annotations

import hashlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import syslog
from pathlib import Path
from typing import Final, NoReturn

from hostagent.relay import qmp_filter
from hostagent.relay.argument_rules import Refused, check
from hostagent.relay.request import CONNECT, INPUT_LIMIT, Request, load, understand
from hostagent.relay.settings import Allowed, BadSettings, read

STATUS: Final = 77
"""Exit status of a refusal (EX_NOPERM)."""
MARK: Final = "qmp-relay: refused: "
PIECE: Final = 1 << 16
REASONS: Final = 100
"""So many refusals of one session are logged; each is answered."""
ENVIRONMENT: Final = ("HOME", "USER", "LOGNAME", "LANG", "XDG_RUNTIME_DIR")
LOCK_LINE: Final = re.compile(r"(?:lock|unlock)\t[3-9]\t([^\t]+)\t[^\t]*|beat\t*")


def main(settings: Path) -> NoReturn:
    """Do what ``SSH_ORIGINAL_COMMAND`` asks for, or refuse it."""
    syslog.openlog("qmp-relay", syslog.LOG_PID, syslog.LOG_AUTH)
    try:
        allowed = read(settings)
        request = understand(os.environ.get("SSH_ORIGINAL_COMMAND", ""), allowed, load())
        if request.guests_pid is not None and not _is_guest(request.guests_pid, allowed):
            raise Refused(f"{request.name}: process {request.guests_pid[0]} is no guest's")
        if request.groups_pid is not None and not _is_command(request.groups_pid):
            raise Refused(f"{request.name}: process {request.groups_pid[0]} is no command of the controller's")
        _do(request, allowed)
    except Refused as refused:
        _refuse(str(refused.args[0]))
    except BadSettings as error:
        _refuse(f"the relay's settings: {error}")


def _refuse(reason: str) -> NoReturn:
    line = reason.encode("ascii", "backslashreplace").decode().replace("\n", " ")[:500]
    syslog.syslog(
        syslog.LOG_WARNING, f"refused: {line} (from {os.environ.get('SSH_CONNECTION', 'nowhere').split()[0]})"
    )
    if os.environ.get("SSH_ORIGINAL_COMMAND", "").startswith(f"{CONNECT} connect"):
        _write(1, f"refused: {line}\n".encode())  # there, only this way leads back
    sys.stderr.write(f"{MARK}{line}\n")
    sys.stderr.flush()
    os._exit(STATUS)


def _do(request: Request, allowed: Allowed) -> NoReturn:
    if request.how == "connect":
        _connect(request, allowed)
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    environment = {**kept, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    if request.how == "locks":
        _hold_locks(request, allowed, environment)
    if request.record is not None or request.input_digest:
        _run_with(request, _whole_input(), environment)
    os.execvpe(request.argv[0], list(request.argv), environment)  # noqa: S606  that is what it is for


def _whole_input() -> bytes:
    data = b""
    while piece := os.read(0, PIECE):
        data += piece
        if len(data) > INPUT_LIMIT:
            raise Refused("more input than is taken")
    return data


def _run_with(request: Request, data: bytes, environment: dict[str, str]) -> NoReturn:
    if request.record is not None:
        try:
            words = json.loads(data)
        except (ValueError, RecursionError):
            words = None
        if words != list(request.record):
            raise Refused(f"{request.name}: what is to be written down is not what is to be started")
    elif hashlib.sha256(data).hexdigest() != request.input_digest:
        raise Refused(f"{request.name}: other questions than the controller's")
    _end(subprocess.run(request.argv, input=data, env=environment, check=False).returncode)


def _hold_locks(request: Request, allowed: Allowed, environment: dict[str, str]) -> NoReturn:
    """Run the holder of locks; each line to it must be about a lock of ours."""
    process = subprocess.Popen(request.argv, stdin=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    rest = b""
    try:
        while piece := os.read(0, PIECE):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                _check_lock(line.decode("utf-8", "replace"), allowed)
                process.stdin.write(line + b"\n")
            process.stdin.flush()
            if len(rest) > PIECE:
                raise Refused("a line that does not end")
    except OSError:
        pass
    except Refused:
        process.stdin.close()
        process.terminate()
        raise
    process.stdin.close()
    _end(process.wait())


def _check_lock(line: str, allowed: Allowed) -> None:
    match = LOCK_LINE.fullmatch(line)
    if match is None:
        raise Refused(f"{line[:60]!r} is not said to a holder of locks")
    if match[1] is not None:
        check("lock", match[1], allowed)


def _connect(request: Request, allowed: Allowed) -> NoReturn:
    """Pass a monitor's words on, and what is allowed of the controller's."""
    monitor = socket.socket(socket.AF_UNIX)
    try:
        monitor.connect(request.path)
    except OSError as error:
        sys.stdout.write(f"error {error.strerror}\n")
        sys.stdout.flush()
        os._exit(1)
    os.write(1, b"ok\n")
    said: set[object] = set()
    objects = qmp_filter.Objects()
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(monitor, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is monitor:
                    if not _pass_on(monitor):
                        os._exit(0)
                    continue
                data = os.read(0, PIECE)
                if not data:
                    os._exit(0)
                for line in objects.feed(data):
                    try:
                        monitor.sendall(qmp_filter.checked(line, allowed))
                    except OSError:  # QEMU has ended: what it said before is unread yet
                        while _pass_on(monitor):
                            pass
                        os._exit(0)
                    except Refused as refused:
                        reason, identifier = (*refused.args, None)[:2]
                        if reason not in said and len(said) < REASONS:
                            said.add(reason)
                            syslog.syslog(syslog.LOG_WARNING, f"refused: {request.name}: {str(reason)!a}")
                        _write(1, qmp_filter.answer(str(reason), identifier))


def _pass_on(monitor: socket.socket) -> bool:
    """Pass on a piece of what a monitor says; return whether there may be more."""
    try:
        data = monitor.recv(PIECE)
    except OSError:
        return False
    _write(1, data)
    return bool(data)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _end(status: int) -> NoReturn:
    os._exit(status if status >= 0 else 128 - status)


def _is_guest(process: tuple[str, str], allowed: Allowed) -> bool:
    """Tell whether a pid file in RUN_DIR names this process."""
    try:
        with os.scandir(allowed.run_dir) as entries:
            for entry in entries:
                try:
                    words = (Path(entry.path) / "pid").read_text("ascii").split()
                except (OSError, UnicodeDecodeError):
                    continue
                if words[:2] == list(process):
                    return True
    except OSError:
        pass
    return False


def _is_command(process: tuple[str, str]) -> bool:
    """Tell whether a process is a command that was started for the controller: under ``timeout``, in a group of its own."""
    try:
        words = Path(f"/proc/{process[0]}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return True  # gone: nothing will be ended
    return os.path.basename(words[0]) == b"timeout" and words[1:2] == [b"-k"]
