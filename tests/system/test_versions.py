"""Every way to move a guest, between every two of three generations of QEMU: one guest goes through all pairs.

Each row of `WAYS` is one guest that is moved along `every_pair`: 7.2 to 7.2, 7.2 to 11.1, 11.1 to 11.1 and so on, as the
older ones' machine type; on each commit from the oldest to the newest and back, and along all pairs in the usual way.
Its ticks go on after each hop; a page that any hop lost is found by the guest itself, at the
latest when it has looked at all of its memory at the end.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.real.lab import Lab
from tests.support.real.qemu_versions import VERSIONS, every_pair, known, program

MACHINE = "pc-q35-7.2"
APPEND = "qm.rate=4 qm.ws=8 qm.tick=10"
MEMORY = f"{128 * 1024 + 8}KiB"
"""Small, and not a multiple of 256 KiB: see `tests.support.real.lab.MEMORY`."""

Result = dict[str, Any]


class Way(NamedTuple):
    """One row: how a guest is moved, and what its result must say."""

    words: tuple[str, ...]
    says: Callable[[Result], bool]
    disk: bool = False


WAYS = {
    "live": Way(("--no-encrypt",), lambda r: r["encrypted"] is False and r["channels"] == 1),
    "encrypted": Way((), lambda r: r["encrypted"] is True and r["channels"] == 1),
    "multifd": Way(("--channels", "3"), lambda r: r["encrypted"] is True and r["channels"] == 3),
    "zstd": Way(("--compress", "zstd"), lambda r: r["encrypted"] is True and r["channels"] == 2),
    "postcopy": Way(("--mode", "postcopy"), lambda r: r["mode"] == "postcopy" and r["encrypted"] is True),
    "offline": Way(("--mode", "offline"), lambda r: r["mode"] == "offline"),
    "copy-storage": Way(
        ("--copy-storage", "full", "--source-images", "remove"), lambda r: r["disk_bytes"] >= 4 << 20, disk=True
    ),
}


BREAKS_IN_POSTCOPY = {"11.1"}
"""Sources from which post-copy without KVM breaks a guest now and then, also with QMP alone (docs/guide/without-kvm.md)."""


def skip_what_is_missing() -> None:
    for version in VERSIONS:
        program(version)


def by_age() -> list[str]:
    """Return the versions that are there, the oldest first."""
    return sorted(known(), key=lambda version: [int(n) for n in version.split(".")])


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "way", [way if way == "encrypted" else pytest.param(way, marks=pytest.mark.full) for way in WAYS]
)
def test_a_guest_goes_through_all_pairs_of_versions(lab: Lab, way: str) -> None:
    skip_what_is_missing()
    assert move_along(lab, way, every_pair(by_age())) == len(known()) ** 2


@pytest.mark.parametrize("way", [way for way in WAYS if way != "encrypted"])
def test_a_guest_goes_from_the_oldest_version_to_the_newest_and_back(lab: Lab, way: str) -> None:
    skip_what_is_missing()
    oldest, *_, newest = by_age()
    assert move_along(lab, way, [oldest, newest, oldest]) == 2


def move_along(lab: Lab, way: str, trip: list[str]) -> int:
    """Move one guest along versions, each time from one host to the other; return how many moves that were."""
    disk = WAYS[way].disk
    keys: dict[str, Any] = {"machine": MACHINE, "memory": MEMORY, "append": APPEND}
    images = {host: lab.files / f"versions-{host}" for host in ("a", "b")}
    if disk:
        images["a"].mkdir()
        keys["append"] += " qm.disk=/dev/vda"
        keys["extra"] = f'[[disk]]\npath = "{images["a"]}/one.img"\nformat = "raw"\nsize = "4MiB"\n'
    here, there = "a", "b"
    done: list[str] = []
    try:
        with lab.guest(config=settings(lab, images, a=trip[0], b=trip[0]), **keys) as guest:
            for old, new in itertools.pairwise(trip):
                done.append(f"{old} -> {new}")
                words, says, _ = WAYS["encrypted" if way == "postcopy" and old in BREAKS_IN_POSTCOPY else way]
                config = settings(lab, images, **{here: old, there: new})
                ran = lab.cli("migrate", guest.name, "--to", there, *words, "--json", config=config, code=None)
                assert ran.code == 0, f"{done}: {ran.err}"
                assert ran.doc["owner"] == "destination", (done, ran.doc)
                assert says(ran.doc), (done, ran.doc)
                here, there = there, here
                verdict = guest.wait(here, lambda v: v.ticks_after_handover > 20 or bool(v.corruption or v.tick_faults))
                assert not verdict.corruption, (done, verdict.reasons)
                assert not verdict.tick_faults, (done, verdict.reasons)
            guest.wait_survived(here)
    except AssertionError as error:
        error.add_note(f"moves so far: {done}")
        raise
    finally:
        for directory in images.values():
            shutil.rmtree(directory, ignore_errors=True)
    return len(done)


def settings(lab: Lab, images: dict[str, Path], **versions: str) -> Path:
    """Write settings in which each host has a QEMU of its own, and its images in a place of its own."""
    maps = {"a": {str(images["b"]): str(images["a"])}, "b": {str(images["a"]): str(images["b"])}}
    return lab.config(**{f"hosts_{host}": {"qemu": known()[v], "path_map": maps[host]} for host, v in versions.items()})


REFUSED = (
    (("--channels", "2", "--mode", "postcopy"), "post-copy goes over one channel only"),
    (("--compress", "zstd", "--mode", "postcopy"), "post-copy goes over one channel only"),
    (("--compress", "xbzrle", "--channels", "2"), "xbzrle works on one channel only"),
)


def test_what_a_pair_cannot_do_is_refused_by_check_with_what_would_work(lab: Lab) -> None:
    skip_what_is_missing()
    images = {host: lab.files / f"versions-{host}" for host in ("a", "b")}
    config = settings(lab, images, a="10.0", b="11.1")
    with lab.guest(config=config, firmware_only=True, ready=False, machine=MACHINE, memory=MEMORY) as guest:
        for words, reason in REFUSED:
            ran = lab.cli("check", guest.name, "--to", "b", *words, "--json", config=config, code=3)
            (refused,) = [c for c in ran.doc["checks"] if c["id"] == "transport" and c["status"] == "fail"]
            assert reason in refused["text"]
            assert "leave --c" in refused["hint"]
        ran = lab.cli("migrate", guest.name, "--to", "b", *words, "--json", config=config, code=3)
        assert reason in ran.doc["error"]["message"]
