"""Verified, not believed: that the destination could take the disks, and that memory travels encrypted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.support.real.lab import Guest, Lab, wait_for
from tests.support.real.lab_journal import POLL_S, acts

OF_THE_GUEST = b"QMGPPAGE"
"""At the beginning of each page that the guest writes."""

WRITE_UNSHARED = 201
"""The byte of an image that QEMU looks at before it writes to it (block/file-posix.c, RAW_LOCK_SHARED_BASE + write)."""


@contextlib.contextmanager
def somebody_elses(image: Path) -> Iterator[None]:
    """Hold an image as another QEMU would that does not share it."""
    descriptor = os.open(image, os.O_RDWR)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, WRITE_UNSHARED, 1, 0))
        yield
    finally:
        os.close(descriptor)


def test_a_destination_that_cannot_take_the_disk_is_seen_and_the_guest_runs_on_at_the_source(lab: Lab) -> None:
    with lab.guest(disk=True) as guest:
        assert guest.disk is not None
        guest.wait("a", lambda v: len(v.journal) > 3)
        with somebody_elses(guest.disk):
            process = lab.popen("migrate", guest.name, "--to", "b", "--json")
            # The destination's `cont` is refused, so it goes; the source then needs the image, and tries again.
            wait_for(lambda: "resume-source" in acts(lab, guest) or process.poll() is not None, 60, every=POLL_S)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 4, err
        assert '"owner":"source"' in out.replace(" ", "")
        assert "lock" in err, "QEMU's own words"
        written = len(guest.verdict("a").journal)
        guest.wait("a", lambda v: len(v.journal) > written + 3)
        assert not guest.directory("b").exists()
        assert lab.cli("migrate", guest.name, "--to", "b", "--json").doc["warnings"] == []  # a fresh one takes it
        guest.wait_survived("b")


class Listener:
    """A wire-tap: a TCP forwarder between the source and the destination that looks for something in what passes."""

    def __init__(self, listen: tuple[str, int], to: tuple[str, int], wanted: bytes) -> None:
        self.found = False
        self.bytes = 0
        self._to, self._wanted = to, wanted
        self._server = socket.create_server(listen)
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self._server.close()

    def _serve(self) -> None:
        while self._server in select.select([self._server, self._stop], [], [])[0]:
            source = self._server.accept()[0]
            with source, socket.create_connection(self._to) as destination:
                self._forward(source, destination)

    def _forward(self, source: socket.socket, destination: socket.socket) -> None:
        tail = b""
        while True:
            ready = select.select([source, destination, self._stop], [], [])[0]
            if self._stop in ready:
                return
            for end in ready:
                data = end.recv(1 << 18)  # type: ignore[union-attr]
                if not data:
                    return
                (destination if end is source else source).sendall(data)
                if end is source:
                    self.bytes += len(data)
                    self.found = self.found or self._wanted in tail + data
                    tail = data[-len(self._wanted) :]


def test_what_travels_can_be_read_by_nobody_unless_that_was_asked_for(lab: Lab, guest: Guest) -> None:
    """Through an address that is forwarded to what QEMU binds to, as behind address translation."""
    own = tomllib.loads(lab.settings.read_text())["hosts"]["b"]["migration_address"]
    with socket.create_server((own, 0)) as probe:
        port = probe.getsockname()[1]
    config = lab.config(
        hosts_b={"migration_address": "127.0.0.99", "migration_listen": own, "migration_ports": f"{port}-{port}"}
    )
    seen = {}
    for words, encrypted in ([], True), (["--no-encrypt"], False):
        tap = Listener(("127.0.0.99", port), (own, port), OF_THE_GUEST)
        try:
            result = lab.cli("migrate", guest.name, "--to", "b", "--json", *words, config=config).doc
        finally:
            tap.close()
        assert result["encrypted"] is encrypted
        assert tap.bytes >= result["transferred_bytes"]
        seen[encrypted] = tap.found
        lab.cli("migrate", guest.name, "--to", "a", "--json")
    assert seen == {True: False, False: True}
    guest.wait_survived("a")
