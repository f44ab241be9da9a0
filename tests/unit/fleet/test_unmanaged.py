"""QEMUs of others: what their command lines and their processes tell."""

from __future__ import annotations

import base64

import pytest

from hostagent.qmp_state.exit_reason import ending
from qmp_migrate.errors import AdoptionRefused, UsageError
from qmp_migrate.fleet.adoption.unmanaged import choose, parse
from qmp_migrate.vm.commandline.absolute_paths import starting_directory, with_absolute_paths
from qmp_migrate.vm.commandline.command_line import CommandLine

BY_HAND = "qemu-system-x86_64 -name web1 -hda disk.img -cdrom /iso/a.iso -serial file:log/serial -monitor stdio"


def word(text: str) -> str:
    return base64.b64encode(text.encode()).decode() or "-"


def line(argv: str, *, pid: int = 7, cwd: str = "/home/me", pwd: str = "-", opened: str = "-", unit: str = "-") -> str:
    words = word("\0".join(argv.split()) + "\0")
    return f"qemu {pid} 100 1000 {word(cwd)} {pwd} {opened} {unit} - {words}"


def test_relative_paths_count_from_where_it_was_started() -> None:
    absolute = with_absolute_paths(CommandLine.parse(BY_HAND.split()), "/home/me").argv()
    assert "/home/me/disk.img" in absolute
    assert "/iso/a.iso" in absolute
    assert "file:/home/me/log/serial" in absolute
    assert "stdio" in absolute
    assert with_absolute_paths(CommandLine.parse(BY_HAND.split()), "").argv() == BY_HAND.split()


@pytest.mark.parametrize(
    ("extra", "pwd", "opened", "found"),
    [
        ("", "/elsewhere", [], "/home/me"),
        ("-daemonize", "/elsewhere", ["/srv/vms/disk.img", "/iso/a.iso"], "/srv/vms"),
        ("-daemonize", "/elsewhere", ["/srv/vms/log/serial", "/srv/vms/disk.img"], "/srv/vms"),
        ("-daemonize", "/elsewhere", ["/srv/x/disk.img", "/srv/y/log/serial"], "/elsewhere"),
        ("-daemonize", "/elsewhere", [], "/elsewhere"),
        ("-daemonize", "", [], ""),
    ],
)
def test_where_a_daemonized_qemu_was_started(extra: str, pwd: str, opened: list[str], found: str) -> None:
    command = CommandLine.parse([*BY_HAND.split(), *extra.split()])
    assert starting_directory(command, now="/home/me", pwd=pwd, opened=opened) == found


def test_what_the_host_prints_is_read_and_nonsense_is_left_out() -> None:
    text = "\n".join(
        [
            "boot 8a2f",
            line(f"{BY_HAND} -qmp unix:m.sock,server=on,wait=off -qmp tcp:127.0.0.1:4444,server=on"),
            line(
                "qemu-system-x86_64 -chardev socket,id=c,path=/m,server=on -mon c,mode=control",
                pid=8,
                unit="web.service",
            ),
            "qemu x y z",
            "qemu 1 2 3 ! ! ! ! ! !",
            "",
        ]
    )
    first, second = parse(text)
    assert first.monitor_paths == ["/home/me/m.sock"]
    assert len(first.other_monitors) == 2
    assert (first.process.words, first.uid) == (["7", "100", "8a2f"], 1000)
    assert (second.monitor_paths, second.unit) == (["/m"], "web.service")
    assert choose([first, second], "8", "a") is second
    assert choose([first, second], "/home/me/../me/m.sock", "a") is first
    for wrong in ("9", "/none"):
        with pytest.raises(AdoptionRefused) as refused:
            choose([first, second], wrong, "a")
        assert "7 (web1)" in (refused.value.hint or "")
    with pytest.raises(UsageError):
        choose([first], "m.sock", "a")


@pytest.mark.parametrize(
    ("reason", "role", "status", "watched", "word"),
    [
        (None, "source", "completed", True, "migrated"),
        ("host-qmp-quit", "source", "completed", True, "migrated"),
        ("guest-shutdown", "idle", None, True, "shutdown"),
        ("guest-panic", "idle", None, True, "panic"),
        ("host-qmp-quit", "idle", None, True, "quit"),
        ("host-signal", "idle", None, True, "killed"),
        (None, "idle", None, True, "crashed"),
        (None, "idle", None, False, "unknown"),
        (None, "source", "active", True, "crashed"),
        ("subsystem-reset", "idle", None, True, "subsystem-reset"),
    ],
)
def test_why_it_ended(reason: str | None, role: str, status: str | None, watched: bool, word: str) -> None:
    assert ending(shutdown_reason=reason, role=role, migration_status=status, watched=watched) == word
