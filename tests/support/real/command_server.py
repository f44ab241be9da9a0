"""The program behind `tests.support.real.commands`: it has imported the command line once, and forks for each command.

Started as ``python -m tests.support.real.command_server FD``. ``FD`` is a socket of sequenced packets; each packet is one
command as JSON (``words``, ``env``) with three descriptors: a stream that hears of its process, its standard output, its
standard error. It ends when the other end of ``FD`` is closed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from typing import Any

from qmp_migrate.cli.main import main
from qmp_migrate.fleet import controller as _imported_once

PACKET_BYTES = 1 << 16


def serve(requests: socket.socket) -> None:
    """Start what is asked for until nobody asks any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that watch are reaped by the kernel
    while True:
        packet, descriptors, _flags, _address = socket.recv_fds(requests, PACKET_BYTES, 3)
        if not packet:
            return
        if os.fork() == 0:
            requests.close()
            watch(json.loads(packet), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def watch(command: dict[str, Any], told: int, out: int, err: int) -> None:
    """Fork the command's process, tell its pid, wait for it, tell how it ended. Does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        os.close(told)
        run(command, out, err)
    os.close(out)
    os.close(err)
    with socket.socket(fileno=told) as channel:
        try:
            channel.sendall(f"{pid}\n".encode())
            _pid, status = os.waitpid(pid, 0)
            channel.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        except BrokenPipeError:  # whoever asked has gone
            pass
    os._exit(0)


def run(command: dict[str, Any], out: int, err: int) -> None:
    """Be the command: what ``python -m qmp_migrate.cli WORDS`` does after its imports. Does not return."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in ((1, out), (2, err)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(command["env"])
    sys.argv = ["qmp-migrate", *command["words"]]
    sys.modules["__main__"].__package__ = ""  # click calls a program after its module, else after argv[0]
    code = 0
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    assert _imported_once
    assert threading.active_count() == 1, "a fork of several threads is not one of them all"
    serve(socket.socket(fileno=int(sys.argv[1])))
