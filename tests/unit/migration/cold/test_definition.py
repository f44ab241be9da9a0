"""Definitions of guests that are shut down: what boots, what is opened for copying, what is judged."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from qmp_migrate.errors import HostUnreachable
from qmp_migrate.fleet import guests
from qmp_migrate.migration.cold import move
from qmp_migrate.migration.cold.definition import bootable, written
from qmp_migrate.migration.cold.plan import judge
from qmp_migrate.migration.cold.storage_qemu import argv, place
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.preflight.host_facts import BinaryFacts, HostFacts
from qmp_migrate.migration.storage.disk_plan import Judgement
from qmp_migrate.settings import HostSettings
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.paths import PathUse
from qmp_migrate.vm.destination import Derived

WORDS = [
    "/usr/bin/qemu-system-x86_64",
    "-name",
    "web1",
    "-machine",
    "pc-q35-7.2",
    "-m",
    "512",
    "-drive",
    "file=/srv/a,,b.qcow2,format=qcow2,if=virtio,cache=none",
    "-drive",
    "file=/srv/cd.iso,media=cdrom,format=raw",
    "-drive",
    "file=nbd://c/x,format=raw,if=virtio",
    "-S",
    "-incoming",
    "defer",
]
COMMAND = CommandLine.parse(WORDS)


@pytest.mark.parametrize("found", [None, "b"])
async def test_a_guest_that_is_shut_down_is_not_called_unknown(found: str | None) -> None:
    class Answers:
        def __init__(self, name: str) -> None:
            self.name, self.directory = name, f"/run/{name}/web1"
            self.host = self

        async def script(self, *_words: object) -> SimpleNamespace:
            if self.name == "a":
                raise HostUnreachable("a does not answer")
            return SimpleNamespace(text="defined" if self.name == found else "none")

    told = await guests.unknown("web1", [Answers(name) for name in "abc"])  # type: ignore[misc]  # as much of a side as is asked
    if found is None:
        assert told is None
        return
    assert told is not None
    assert (str(told), told.hint) == (
        "b: web1 is shut down: its QEMU on b has ended",
        "start it again: qmp-migrate vm start web1 --on b",
    )


def test_what_was_only_for_the_way_is_not_started_again() -> None:
    assert bootable(COMMAND).argv() == WORDS[:-3]
    assert bootable(bootable(COMMAND)).argv() == WORDS[:-3]
    assert b'"/usr/bin/qemu-system-x86_64"' in written(COMMAND)


def test_images_are_opened_as_the_guest_would_and_nothing_else() -> None:
    side = Side(None, HostSettings(address="h", run_dir="/run/q"), "web1")  # type: ignore[arg-type]
    bare = place(side, "d1")
    assert bare.directory == "/run/q/.copy-d1"
    words = argv(bare, COMMAND)
    assert words[1:3] == ["-M", "none"]
    drives = [word for option, word in pairwise(words) if option == "-drive"]
    assert drives == [
        "if=none,id=image0,file=/srv/a,,b.qcow2,format=qcow2,cache.direct=on",
        "if=none,id=image1,file=/srv/cd.iso,format=raw,readonly=on",
    ]


def steps(script: str, directory: Path, *, data: bytes = b"") -> None:
    subprocess.run(["sh", "-c", script, "sh", str(directory), "d1"], input=data, check=True, capture_output=True)


def test_the_definition_has_one_name_at_a_time_however_often_a_step_is_repeated(tmp_path: Path) -> None:
    source, destination = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    (source / "argv.json").write_text("old")

    def startable() -> list[str]:
        return [place.name for place in (source, destination) if (place / "argv.json").exists()]

    steps(move._STAGE, destination, data=b"new")
    assert startable() == ["a"]
    for _ in range(2):
        steps(move._RETIRE, source)
        assert startable() == []
    for _ in range(2):
        steps(move._INSTALL, destination)
        assert startable() == ["b"]
    assert (destination / "argv.json").read_text() == "new"
    for _ in range(2):
        steps(move._FORGET, source)
    assert not list(source.iterdir())


def test_what_was_staged_is_taken_back_and_what_was_there_stays(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    (old / "serial.log").write_text("x")
    for place_ in (new, old):
        steps(move._STAGE, place_, data=b"new")
        for _ in range(2):
            steps(move._UNSTAGE, place_)
    assert not new.exists()
    assert [path.name for path in old.iterdir()] == ["serial.log"]


HERE = HostFacts("a", run_dir="writable", kvm=True)
THERE = HostFacts("b", run_dir="absent", kvm=True)
BINARY = BinaryFacts("10.0.2", machines={"pc-q35-7.2": "pc-q35-7.2"})
DISK = PathUse("/srv/a.img", "disk", writable=True)


def judged(**changes: object) -> list[str]:
    facts = {
        "here": HERE,
        "there": THERE,
        "binary": BINARY,
        "derived": Derived(COMMAND, (), (), ()),
        "required": (DISK,),
        "paths": {DISK.path: "writable"},
        "storage": Judgement(),
    } | changes
    checks = judge(MigrationRequest("web1", "b"), **facts)  # type: ignore[arg-type]
    return [check.text for check in checks if check.status == "fail"]


def test_a_guest_whose_files_are_there_may_go() -> None:
    assert judged() == []
    assert judged(paths={}, storage=Judgement(judged=frozenset({DISK.path}))) == [], "it is copied"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"paths": {}}, "is absent"),
        ({"paths": {"/srv/a.img": "readable"}}, "is readable"),
        ({"binary": "no QEMU"}, "no QEMU"),
        ({"binary": BinaryFacts("10.0.2")}, "does not know the machine type"),
        ({"there": HostFacts("b", run_dir="writable", guest_directory=True)}, "has a guest named web1"),
        ({"there": HostFacts("b", run_dir="uncreatable")}, "run_dir"),
        ({"here": HostFacts("a", locked_by="somebody")}, "holds web1 on a: somebody"),
        ({"derived": Derived(COMMAND, (), (), ("bound to its host",))}, "bound to its host"),
        (
            {
                "derived": Derived(CommandLine.parse([*WORDS, "-accel", "kvm"]), (), (), ()),
                "there": HostFacts("b", run_dir="absent"),
            },
            "/dev/kvm",
        ),
    ],
)
def test_what_stands_against_it_is_said(changes: dict[str, object], said: str) -> None:
    (text,) = judged(**changes)
    assert said in text
