"""Discovery: a guest is believed only where a live process proves to be it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hostagent.discovery.guests import Guest, discover, identify
from qmp_migrate.bus.messages.session import boot_id

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process as the guest `name` of a RUN_DIR, with all that a launch writes down."""
    processes = []

    def start(name: str, *, record: bool = True, words: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        directory = tmp_path / name
        directory.mkdir()
        argv = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", "odd) name (", "", *words]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout is not None
        process.stdout.readline()  # it has become what it is to be
        write_pid(directory, process.pid)
        if record:
            (directory / "argv.json").write_text(json.dumps(argv, indent=1))
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ticks_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def write_pid(directory: Path, pid: int, *, ticks: str | None = None, boot: str | None = None) -> None:
    (directory / "pid").write_text(f"{pid} {ticks or ticks_of(pid)} {boot or boot_id()}\n")


def test_a_guest_is_found_with_all_that_proves_it(start: Start, tmp_path: Path) -> None:
    process = start("web1")
    (guest,) = discover(tmp_path)
    assert (guest.name, guest.pid, guest.alive) == ("web1", process.pid, True)
    assert guest.argv[3:] == ("odd) name (", "")
    assert guest.monitor_path == tmp_path / "web1" / "agent.sock"
    assert abs(datetime.now(UTC) - guest.started_at) < timedelta(minutes=2)
    assert discover(tmp_path, frozenset({"web1"})) == []


def test_a_guest_without_record_is_known_by_its_monitor(start: Start, tmp_path: Path) -> None:
    start("web1", record=False)
    start("web2", record=False, words=("-qmp", f"unix:{tmp_path}/web2/agent.sock,server=on,wait=off"))
    assert [guest.name for guest in discover(tmp_path)] == ["web2"]


def test_a_pid_that_is_somebody_elses_now_is_no_guest(start: Start, tmp_path: Path) -> None:
    process = start("web1")
    directory = tmp_path / "web1"
    lies = {
        "another start time": {"ticks": str(int(ticks_of(process.pid)) + 1)},
        "another boot": {"boot": "0b0e4f0e-6a55-4a55-9d5b-1f6f0b1f7a10"},
    }
    for lie in lies.values():
        write_pid(directory, process.pid, **lie)
        assert identify(directory) is None
    write_pid(directory, os.getpid())  # alive, right time, right boot, but not the guest's command line
    assert identify(directory) is None
    write_pid(directory, process.pid)
    assert identify(directory) is not None


def test_an_end_is_seen_also_before_the_parent_takes_note(start: Start, tmp_path: Path) -> None:
    process = start("web1")
    (guest,) = discover(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert not guest.alive
    assert discover(tmp_path) == []
    process.communicate()
    assert not guest.alive


@pytest.mark.parametrize(
    "content", ["", "\n", "abc", "-1", "0", "1 2 3 4 5", "9" * 5000, "\x00\x01", "²", "4194305 1 x"], ids=repr
)
def test_a_broken_pid_file_is_no_guest(tmp_path: Path, content: str) -> None:
    (tmp_path / "web1").mkdir()
    (tmp_path / "web1" / "pid").write_text(content)
    assert discover(tmp_path) == []


@pytest.mark.parametrize("record", ["", "{", "[" * 100_000, "null", '{"a":1}', '["qemu"]'], ids=lambda text: text[:9])
def test_a_broken_record_is_no_proof(start: Start, tmp_path: Path, record: str) -> None:
    start("web1", record=False)
    (tmp_path / "web1" / "argv.json").write_text(record)
    assert discover(tmp_path) == []


def test_what_lies_about_is_left_alone(start: Start, tmp_path: Path) -> None:
    start("web1")
    (tmp_path / "a file").write_text("")
    (tmp_path / "file").write_text("")
    for name in ("UPPER", "..x", "+", "empty", "-x"):
        (tmp_path / name).mkdir()
    for name in ("pipe", "link", "directory"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "pid")  # opening it would wait for ever
    for file in ("pid", "argv.json"):
        (tmp_path / "link" / file).symlink_to(tmp_path / "web1" / file)
    (tmp_path / "linked").symlink_to(tmp_path / "web1")
    (tmp_path / "directory" / "pid").mkdir()
    assert [guest.name for guest in discover(tmp_path)] == ["web1"]


def test_no_run_dir_means_no_guests(tmp_path: Path) -> None:
    assert discover(tmp_path / "absent") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        discover(tmp_path / "file")


def test_a_guest_whose_process_cannot_be_looked_at_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError

    guest = Guest("web1", Path("/nowhere"), os.getpid(), 1, ())
    assert not guest.alive
    monkeypatch.setattr(Path, "read_text", refuse)
    assert guest.alive
