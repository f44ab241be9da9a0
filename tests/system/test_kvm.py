"""Moves under KVM, with the guest that needs no operating system: every way, each version of QEMU, there and back.

Linux does not run under every KVM (see ``vm-images/README.md``), the bare guest does. Each move is a line of the table
``build/kvm-moves.md``, with what `query-kvm` said on both sides.
"""

from __future__ import annotations

import asyncio
import json
import socket
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from qmp_migrate.rig.guest.oracle import Computed, judge
from tests import ROOT
from tests.support.real.commands import Command
from tests.support.real.kvm import need_kvm
from tests.support.real.lab import Guest, Lab, wait_for
from tests.support.real.lab_journal import record
from tests.support.real.qemu_versions import known, why_missing
from tests.support.real.raw_qmp import qmp
from tests.support.real.tcp_proxy import Cable

pytestmark = pytest.mark.kvm

MIB: Final = 1 << 20
VERSIONS: Final = ("7.2", "10.0", "11.1")
GUEST: Final[dict[str, Any]] = {
    "bare": True,
    "accel": "kvm",
    "machine": "pc-q35-7.2",
    "memory": "128MiB",
    "append": "qm.ws=48 qm.rate=60 qm.tick=20",
}
TABLE: Final = ROOT / "build" / "kvm-moves.md"

Result = dict[str, Any]


class Way(NamedTuple):
    """How a guest is moved, and what its result must say."""

    words: tuple[str, ...]
    says: Callable[[Result], bool]


WAYS: Final = {
    "live": Way(("--no-encrypt",), lambda r: r["encrypted"] is False and r["channels"] == 1),
    "encrypted": Way((), lambda r: r["encrypted"] is True and r["channels"] == 1),
    "multifd-2": Way(("--channels", "2"), lambda r: r["encrypted"] is True and r["channels"] == 2),
    "multifd-4": Way(("--channels", "4"), lambda r: r["encrypted"] is True and r["channels"] == 4),
    "zstd": Way(("--compress", "zstd"), lambda r: r["encrypted"] is True and r["channels"] == 2),
    "postcopy": Way(("--mode", "postcopy"), lambda r: r["mode"] == "postcopy" and r["encrypted"] is True),
    "postcopy-multifd-2": Way(
        ("--mode", "postcopy", "--channels", "2"),
        lambda r: r["mode"] == "postcopy" and r["channels"] == 2 and r["encrypted"] is True,
    ),
    "postcopy-zstd": Way(
        ("--mode", "postcopy", "--compress", "zstd"),
        lambda r: r["mode"] == "postcopy" and r["channels"] == 2 and r["encrypted"] is True,
    ),
    "offline": Way(("--mode", "offline"), lambda r: r["mode"] == "offline"),
}
EACH_COMMIT: Final = {("11.1", "encrypted"), ("7.2", "postcopy")}

EVERY_WAY: Final = [
    pytest.param(version, way, marks=[] if (version, way) in EACH_COMMIT else [pytest.mark.full])
    for version in VERSIONS
    for way in WAYS
    if version == "11.1" or not way.startswith("postcopy-")
]


def settings(lab: Lab, version: str, **hosts_b: Any) -> Path:
    """Return settings in which both hosts have this QEMU; go on only where it runs the bare guest under KVM."""
    if version not in known():
        pytest.skip(why_missing(version))
    qemu = known()[version]
    asyncio.run(need_kvm(qemu))
    return lab.config(hosts_a={"qemu": qemu}, hosts_b={"qemu": qemu, **hosts_b})


def uses_kvm(guest: Guest, host: str) -> bool:
    return bool(qmp(guest.directory(host) / "qmp.sock", "query-kvm")["enabled"])


COLUMNS: Final = ("QEMU", "way", "move", "total, ms", "blackout, ms", "passes", "source: KVM", "destination: KVM")


def tell(version: str, way: str, move: str, result: Result, *, source: bool, destination: bool) -> None:
    """Add a move to the table."""
    TABLE.parent.mkdir(exist_ok=True)
    figures = [result.get(name, "") for name in ("total_ms", "blackout_ms", "passes")]
    lines: list[Sequence[Any]] = [] if TABLE.exists() else [COLUMNS, ["---"] * len(COLUMNS)]
    lines.append([version, way, move, *figures, source, destination])
    with TABLE.open("a") as file:
        file.write("".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("version", "way"), EVERY_WAY)
def test_a_guest_is_moved_there_and_back(lab: Lab, version: str, way: str) -> None:
    words, says = WAYS[way]
    config = settings(lab, version)
    with lab.guest(config=config, **GUEST) as guest:
        for here, there in (("a", "b"), ("b", "a")):
            source = uses_kvm(guest, here)
            ran = lab.cli("migrate", guest.name, "--to", there, *words, "--json", config=config)
            assert ran.doc["owner"] == "destination", ran.doc
            assert says(ran.doc), ran.doc
            destination = uses_kvm(guest, there)
            tell(version, way, f"{here} to {there}", ran.doc, source=source, destination=destination)
            assert source
            assert destination
            guest.wait_survived(there)


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_network_cut_in_post_copy_is_gone_round(lab: Lab, cable: tuple[Cable, dict[str, str]], version: str) -> None:
    line, keys = cable
    config = settings(lab, version, **keys)
    slow = GUEST | {"append": "qm.ws=64 qm.rate=40 qm.tick=20"}
    with lab.guest(config=config, **slow) as guest:
        words = ("--mode", "postcopy", "--bandwidth", "12MiB", "--downtime-limit", "10ms", "--json")
        source = uses_kvm(guest, "a")
        process = lab.popen("migrate", guest.name, "--to", "b", *words, config=config)
        try:
            until(process, lambda text: "blackout" in text and "blackout about" not in text)
            line.down()
            out, err = process.communicate(timeout=90)
        finally:
            process.kill()
        result = json.loads(out)
        assert (result["outcome"], result["owner"]) == ("completed", "destination"), f"{result}\n{err}"
        destination = uses_kvm(guest, "b")
        tell(version, "postcopy, cut", "a to b", result, source=source, destination=destination)
        assert source
        assert destination
        guest.wait_survived("b")


@pytest.fixture
def cable(lab: Lab) -> Iterator[tuple[Cable, dict[str, str]]]:
    """A network for memory that can be cut, and what host ``b`` must be set to for it."""
    address = tomllib.loads(lab.settings.read_text())["hosts"]["b"]["address"]
    with socket.create_server((address, 0)) as free:
        port = free.getsockname()[1]
    with Cable((address, port), ("127.0.77.4", port)) as line:
        yield (
            line,
            {"migration_address": "127.0.77.4", "migration_listen": address, "migration_ports": f"{port}-{port}"},
        )


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_guest_goes_into_a_file_and_out_of_it(lab: Lab, version: str) -> None:
    config = settings(lab, version)
    file = lab.files / "kvm.state"
    with lab.guest(config=config, **GUEST) as guest:
        for here, there in (("a", "b"), ("b", "a")):
            source = uses_kvm(guest, here)
            assert lab.cli("save", guest.name, str(file), "--json", config=config).doc["owner"] == "file"
            back = lab.cli("restore", str(file), "--on", there, "--json", config=config).doc
            assert (back["owner"], back["state"]) == ("destination", "running")
            destination = uses_kvm(guest, there)
            tell(version, "save, restore", f"{here} to {there}", back, source=source, destination=destination)
            assert source
            assert destination
            guest.wait_survived(there)


# -- only the vCPUs that write ----------------------------------------------------------------------------------------

TWO_VCPUS: Final[dict[str, Any]] = GUEST | {
    "vcpus": 2,
    "dirty_ring": 1024,
    "append": "qm.ws=32 qm.rate=40 qm.tick=20 qm.compute=1",
}
"""It writes more than a slow link carries also where the machine has other things to do."""

LIMITED: Final = "no vCPU may dirty more than"
SLOW_LINK: Final = ("--bandwidth", "6MiB", "--max-throttle", "95%", "--downtime-limit", "1s")


def until(process: Command, seen: Callable[[str], bool]) -> str:
    """Read what a command tells until a line is what is waited for; return that line."""
    told = []
    for line in process.stderr:
        told.append(line)
        if seen(line):
            return line
    raise AssertionError("".join(told))


def limits(guest: Guest, host: str) -> list[Any]:
    found: list[Any] = qmp(guest.directory(host) / "qmp.sock", "query-vcpu-dirty-limit")
    return found


def written_by(guest: Guest, host: str) -> list[float]:
    """Return what each vCPU writes while dirty pages are logged, MiB/s, as the dirty rings count it."""
    monitor = guest.directory(host) / "qmp.sock"
    qmp(monitor, "calc-dirty-rate", calc_time=1, mode="dirty-ring")
    said = wait_for(lambda: (a := qmp(monitor, "query-dirty-rate"))["status"] == "measured" and a, 60, every=0.2)
    return [one["dirty-rate"] for one in sorted(said["vcpu-dirty-rate"], key=lambda one: int(one["id"]))]


def need_writer(guest: Guest, least: int) -> float:
    """Go on only where the guest writes so many MiB/s: a machine with other things to do may not give it that.

    Returns:
        What its first vCPU writes, MiB/s.
    """
    rates = written_by(guest, "a")
    if rates[0] < least:
        pytest.skip(f"this guest writes {rates} MiB/s here now; {least} are needed")
    return rates[0]


def link_for(rate: float) -> tuple[str, ...]:
    """Return options with which a guest converges when it is limited, and else does not.

    The link carries 0.6 of what the guest writes. A pass over its 32 MiB takes 53 / rate seconds then, and the blackout
    may take 16 / rate. With the rings of `TWO_VCPUS` the limit may go down to a third of the rate.

    Args:
        rate: What the guest writes, MiB/s.
    """
    return "--bandwidth", f"{0.6 * rate:.0f}MiB", "--max-throttle", "95%", "--downtime-limit", f"{16_000 / rate:.0f}ms"


@pytest.mark.alone
def test_a_guest_that_dirties_more_than_the_link_carries_has_its_writing_vcpu_limited(lab: Lab) -> None:
    version = "11.1" if "11.1" in known() else "7.2"
    config = settings(lab, version)
    with lab.guest(config=config, **TWO_VCPUS) as guest:
        checks = lab.cli("check", guest.name, "--to", "b", "--json", config=config).doc["checks"]
        (throttle,) = [check for check in checks if check["id"] == "throttle"]
        assert "only the vCPUs that write are (dirty ring of 1024 entries)" in throttle["text"]
        rate = need_writer(guest, 9)
        # A cancel lifts it: the guest stays here, and is as fast as before.
        process = lab.popen("migrate", guest.name, "--to", "b", *SLOW_LINK, "--json", config=config)
        until(process, lambda line: LIMITED in line)
        found = record(lab, guest)
        assert found is not None
        lab.cli("cancel", found["id"], code=None)
        out, err = process.communicate(timeout=60)
        result = json.loads(out)
        if result["owner"] == "source":  # else it was quicker than the cancel
            assert limits(guest, "a") == [], err
            result = lab.cli("migrate", guest.name, "--to", "b", *link_for(rate), "--json", config=config).doc
        assert result["owner"] == "destination"
        assert any(LIMITED in step for step in result["steps"]), result["steps"]
        assert limits(guest, "b") == []
        guest.wait_survived("b")


@pytest.mark.full
@pytest.mark.parametrize("version", VERSIONS)
def test_a_controller_that_dies_leaves_a_limit_that_recover_lifts(lab: Lab, version: str) -> None:
    config = settings(lab, version)
    with lab.guest(config=config, **TWO_VCPUS) as guest:
        need_writer(guest, 9)
        process = lab.popen("migrate", guest.name, "--to", "b", *SLOW_LINK, "--json", config=config)
        until(process, lambda line: LIMITED in line)
        process.kill()
        process.communicate()
        found = record(lab, guest)
        assert found is not None
        lab.cli("recover", found["id"], "--back", config=config)
        if guest.pid("a") is not None:  # else it had arrived before
            assert limits(guest, "a") == []
            guest.wait_survived("a")


def computing(rates: list[Computed]) -> float:
    """Return what the vCPU that computes does, rounds per second of the guest's own time."""
    first, last = rates[0], rates[-1]
    assert last.mono_ns > first.mono_ns, rates
    return (last.rounds - first.rounds) * 1e9 / (last.mono_ns - first.mono_ns)


def slowed_to(lab: Lab, config: Path, *, by: str, ring: int) -> float:
    """Move a guest, and return what its computing vCPU keeps of its rate once it is slowed down.

    The link carries 100 MiB/s, or 0.6 of what the guest writes where that is less: it must not converge by itself.
    Both rates are of the time in which memory is copied: before that step, and from a second after it to the switchover.

    Args:
        by: ``dirty-limit``: the policy's own choice; ``cpu-throttle``: `tune` asks for 60 % when copying has begun, and
            its effect is measured from when QEMU says so.
        ring: Entries of each vCPU's dirty ring.
    """
    wanted = GUEST | {
        "vcpus": 2,
        "dirty_ring": ring,
        "memory": "1GiB",
        "append": "qm.ws=384 qm.rate=160 qm.tick=20 qm.compute=1",
    }
    with lab.guest(config=config, **wanted) as guest:
        link = min(100.0, 0.6 * need_writer(guest, 30))
        words = ("--bandwidth", f"{link:.0f}MiB", "--max-throttle", "70%", "--downtime-limit", "1s", "--json")
        process = lab.popen("migrate", guest.name, "--to", "b", *words, config=config)
        until(process, lambda line: "copying memory" in line)
        begun = guest.verdict("a").computed[-1].mono_ns
        if by == "cpu-throttle":
            wait_for(lambda: guest.verdict("a").computed[-1].mono_ns > begun + 2_000_000_000, 60, every=0.2)
            found = record(lab, guest)
            assert found is not None
            lab.cli("tune", found["id"], "--throttle", "60%", config=config)
            until(process, lambda line: "throttled 60 %" in line)  # QEMU begins at the end of a pass
        else:
            until(process, lambda line: LIMITED in line)
        acted = guest.verdict("a").computed[-1].mono_ns
        out, err = process.communicate(timeout=120)
        result = json.loads(out)
        assert result["owner"] == "destination", err
        guest.wait_survived("b")
        at_source = judge(guest.logs("b")[:1]).computed
        before = [one for one in at_source if begun <= one.mono_ns <= acted]
        after = [one for one in at_source if one.mono_ns >= acted + 1_000_000_000]
        kept = computing(after) / computing(before)
        print(
            f"{by}: the computing vCPU keeps {kept:.2f} of its rate; link {link:.0f} MiB/s, {result['total_ms']} ms, "
            f"{result['steps']}"
        )
        return kept


@pytest.mark.full
@pytest.mark.alone
@pytest.mark.timeout(400)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_vcpu_that_computes_goes_on_as_before_under_a_dirty_limit_and_not_under_a_throttle(
    lab: Lab, version: str
) -> None:
    config, ring = settings(lab, version), 1024 if version == "7.2" else 4096  # 7.2 hardly limits with longer rings
    limited = slowed_to(lab, config, by="dirty-limit", ring=ring)
    throttled = slowed_to(lab, config, by="cpu-throttle", ring=ring)
    assert limited >= 0.9
    assert throttled < 0.8
