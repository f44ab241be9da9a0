"""`vm stop` of a guest whose QEMU does not go when its guest does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.real.lab import Lab, qemus
from tests.support.real.qemu_versions import program

AHEAD = 4
"""QEMU takes eight commands before it reads no more."""


@contextmanager
def asked_all_the_time(monitor: Path) -> Iterator[None]:
    """Ask a QEMU so that a question is in its queue at any moment, also when it ends; a hanging one is waited for."""
    over = threading.Event()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(monitor))

    def ask() -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b'{"execute": "qmp_capabilities"}')
            connection.sendall(b'{"execute": "query-status"}' * AHEAD)
            with connection.makefile("rb") as answers:
                for line in answers:
                    if b'"return"' in line:
                        connection.sendall(b'{"execute": "query-status"}')
        over.wait()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextmanager
def monitored(lab: Lab, release: str) -> Iterator[tuple[Path, Path]]:
    """A QEMU whose guests have one more monitor, and where that is. Specs may not ask for one: outsiders do so."""
    qemu, monitor = lab.files / "monitored-qemu", lab.files / "more.sock"
    qemu.write_text(
        f"""#!/bin/sh
case "$*" in *guest=*) set -- "$@" -qmp unix:{monitor},server=on,wait=off ;; esac
exec {program(release)} "$@"
"""
    )
    qemu.chmod(0o755)
    yield qemu, monitor
    qemu.unlink()
    monitor.unlink(missing_ok=True)


def test_a_qemu_that_stays_when_its_guest_has_powered_off_is_ended(lab: Lab) -> None:
    with lab.guest(args=["-no-shutdown"]) as guest:
        lab.cli("vm", "stop", guest.name)
        assert not qemus(guest.name)
        assert not guest.directory("a").exists()


@contextmanager
def halted_at_its_shutdown(monitor: Path, pid: int) -> Iterator[None]:
    """A QEMU that gets no processor from its ``SHUTDOWN`` on, as one that waits for its storage."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(monitor))
        connection.sendall(b'{"execute": "qmp_capabilities"}')

        def watch() -> None:
            with contextlib.suppress(OSError), connection.makefile("rb") as said:
                for line in said:
                    if b'"SHUTDOWN"' in line:
                        connection.sendall(b'{"execute": "query-status"}')  # once it answers, it has told everybody
                    elif b'"shutdown"' in line:
                        os.kill(pid, signal.SIGSTOP)
                        return

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_qemu_that_does_not_answer_with_its_images_open_is_not_ended(lab: Lab) -> None:
    """It may still be writing to them."""
    image = lab.files / "slow.img"
    disk = f'[[disk]]\npath = "{image}"\nformat = "raw"\nsize = "4MiB"\n'
    try:
        with (
            monitored(lab, "7.2") as (qemu, monitor),
            lab.guest(config=lab.config(hosts_a={"qemu": str(qemu)}), args=["-no-shutdown"], extra=disk) as guest,
        ):
            with halted_at_its_shutdown(monitor, *qemus(guest.name)):
                ran = lab.cli("vm", "stop", guest.name, "--timeout", "12s", code=1)
                assert f"it holds {image} open" in ran.err
                assert qemus(guest.name)
            lab.cli("vm", "stop", guest.name)
            assert not qemus(guest.name)
    finally:
        image.unlink(missing_ok=True)


@pytest.mark.full
@pytest.mark.parametrize("release", ["7.2", "10.0", "11.1"])
def test_a_qemu_that_hangs_at_its_end_is_ended(lab: Lab, release: str) -> None:
    """QEMU up to 10.0 hangs for ever where a command is in its queue when its guest ends."""
    with (
        monitored(lab, release) as (qemu, monitor),
        lab.guest(config=lab.config(hosts_a={"qemu": str(qemu)})) as guest,
        asked_all_the_time(monitor),
    ):
        lab.cli("vm", "stop", guest.name)
        assert not qemus(guest.name)
        assert not guest.directory("a").exists()
