"""Several channels and compression on real QEMU: in force as the result says, and with the guest safe when they break."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.real.interrupted import killed_while_copying, quickened
from tests.support.real.lab import Guest, Lab, interrupt, wait_for
from tests.support.real.lab_journal import wait_for_phase
from tests.support.real.raw_qmp import qmp
from tests.support.real.tcp_proxy import Cable

TLS_HANDSHAKE = b"\x16\x03"
MAIN_MAGIC = b"QEVM"
MULTIFD_MAGIC = bytes.fromhex("11223344")

USUAL = {"multifd-channels": 2, "multifd-compression": "none", "xbzrle-cache-size": 64 << 20, "tls-creds": ""}


def assert_as_usual(guest: Guest, host: str) -> None:
    """Nothing of a migration stays set in the guest's QEMU."""
    on = [
        entry["capability"]
        for entry in qmp(guest.directory(host) / "qmp.sock", "query-migrate-capabilities")
        if entry["state"]
    ]
    assert on == []
    parameters = qmp(guest.directory(host) / "qmp.sock", "query-migrate-parameters")
    assert {name: parameters[name] for name in USUAL} == USUAL


@contextmanager
def cabled(lab: Lab, **watchdog: str) -> Iterator[tuple[Path, Cable]]:
    """Lead what goes to ``b`` through a cable that a test can look into, and cut."""
    near, far = "127.0.13.2", "127.0.13.3"
    with socket.create_server((near, 0)) as free:
        port = free.getsockname()[1]
    to_b = {"migration_listen": near, "migration_address": far, "migration_ports": f"{port}-{port}"}
    with Cable((near, port), (far, port)) as cable:
        yield lab.config(hosts_b=to_b, **({"watchdog": watchdog} if watchdog else {})), cable


def test_each_channel_is_there_and_encrypted_and_the_destination_keeps_nothing(lab: Lab, guest: Guest) -> None:
    with cabled(lab) as (config, cable):
        result = lab.cli("migrate", guest.name, "--to", "b", "--channels", "3", "--json", config=config).doc
        assert (result["outcome"], result["channels"], result["encrypted"]) == ("completed", 3, True)
        assert [head[:2] for head in cable.heads] == [TLS_HANDSHAKE] * 4, "three for memory, one beside them"
        assert result["transferred_bytes"] <= cable.moved["there"] * 1.05
        guest.wait_survived("b")
        assert_as_usual(guest, "b")


def test_in_the_clear_the_channels_are_seen_to_carry_compressed_memory(lab: Lab) -> None:
    # What the bare guest writes cannot be compressed.
    with cabled(lab) as (config, cable), lab.guest(bare=False) as guest:
        words = ("--compress", "zstd", "--no-encrypt")
        result = lab.cli("migrate", guest.name, "--to", "b", *words, "--json", config=config).doc
        assert (result["outcome"], result["channels"], result["encrypted"]) == ("completed", 2, False)
        assert sorted(head[:4] for head in cable.heads) == sorted([MAIN_MAGIC, MULTIFD_MAGIC, MULTIFD_MAGIC])
        guest.wait_survived("b")
        assert_as_usual(guest, "b")
        # What QEMU counts does not tell: 7.2 counts what it compressed, 10.0 what travelled.
        compressed = cable.moved["there"]
        lab.cli("migrate", guest.name, "--to", "a", config=config)
        lab.cli("migrate", guest.name, "--to", "b", *words[2:], config=config)
        assert compressed < 0.75 * (cable.moved["there"] - compressed)


def test_xbzrle_leaves_one_channel(lab: Lab, guest: Guest) -> None:
    result = lab.cli("migrate", guest.name, "--to", "b", "--compress", "xbzrle", "--json").doc
    assert (result["outcome"], result["channels"], result["encrypted"]) == ("completed", 1, True)
    guest.wait_survived("b")
    assert_as_usual(guest, "b")


@pytest.mark.parametrize("end", ["watchdog", "cancel"])
def test_channels_into_a_black_hole_end_with_the_guest_at_its_source(lab: Lab, guest: Guest, end: str) -> None:
    """QEMU by itself waits for minutes, and a cancel of multifd may hang until the connections are torn down."""
    with cabled(lab, stall="2s" if end == "watchdog" else "60s") as (config, cable):
        words = ("--channels", "3", "--bandwidth", "4MiB", "--json")  # far from its end when the network goes
        process = lab.popen("migrate", guest.name, "--to", "b", *words, config=config)
        wait_for_phase(lab, guest, "copying", config=config)
        wait_for(lambda: cable.moved["there"] > 4 << 20, 60)
        cable.swallow()
        if end == "cancel":
            interrupt(process)
        out, err = process.communicate(timeout=60)
    result = json.loads(out)
    assert result["owner"] == "source", err
    assert process.returncode == (4 if end == "watchdog" else 6), err
    assert result["error"]["code"] == ("stalled" if end == "watchdog" else "cancelled")
    before = guest.verdict("a").last_tick
    guest.wait("a", lambda v: v.last_tick > before + 20)
    assert not guest.directory("b").exists()
    assert_as_usual(guest, "a")


def test_channels_whose_controller_is_killed_are_driven_on(lab: Lab, guest: Guest) -> None:
    migration = killed_while_copying(lab, guest, "--channels", "3", "--compress", "zlib")
    [result] = quickened(lab, migration, "recover", migration, "--json").doc["migrations"]
    assert (result["outcome"], result["channels"], result["encrypted"]) == ("completed", 3, True)
    guest.wait_survived("b")
    assert_as_usual(guest, "b")


def test_channels_whose_controller_is_killed_are_taken_back(lab: Lab, guest: Guest) -> None:
    migration = killed_while_copying(lab, guest, "--channels", "3", "--compress", "zlib")
    lab.cli("recover", migration, "--back")
    guest.wait_survived("a")
    assert_as_usual(guest, "a")
