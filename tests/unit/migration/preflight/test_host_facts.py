"""What is learnt of a host and of a QEMU binary from what they print."""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.aio import gather_all
from qmp_migrate.errors import CommandFailed, HostUnreachable, LaunchFailed
from qmp_migrate.hosts.base import Completed
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.preflight import host_facts
from qmp_migrate.migration.preflight.host_facts import HostFacts
from qmp_migrate.settings import HostSettings

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.0.0/24 2 0 2
        |-- 10.0.0.0
           /24 link UNICAST
        |-- 10.0.0.11
           /32 host LOCAL
        |-- 10.0.0.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.0.0.11
        /32 host LOCAL
"""
IF_INET6 = """\
fe800000000000005054fffe123456aa 02 40 20 80     eth0
20010db8000000000000000000000011 02 40 00 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
"""


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


# -- addresses ----------------------------------------------------------------------------------------------------


def test_local_addresses_are_those_that_the_kernel_takes_for_its_own() -> None:
    networks = host_facts.parse_fib_trie(FIB_TRIE)
    assert [str(network) for network in networks] == ["10.0.0.11/32", "127.0.0.0/8", "127.0.0.1/32"]


def test_ipv6_addresses() -> None:
    found = {str(network) for network in host_facts.parse_if_inet6(IF_INET6)}
    assert found == {"fe80::5054:fffe:1234:56aa/128", "2001:db8::11/128", "::1/128"}


def test_the_files_of_this_machine_are_understood() -> None:
    assert ipaddress.ip_network("127.0.0.0/8") in host_facts.parse_fib_trie(Path("/proc/net/fib_trie").read_text())
    if (inet6 := Path("/proc/net/if_inet6")).exists():
        host_facts.parse_if_inet6(inet6.read_text())


@given(st.text())
def test_words_of_another_kind_are_skipped(text: str) -> None:
    host_facts.parse_host("a", text)


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("10.0.0.11", True),
        ("127.0.0.3", True),  # all of 127/8 is, listed or not
        ("2001:db8::11", True),
        ("2001:0db8:0::11", True),
        ("10.0.0.12", False),
        ("10.0.0.255", False),
        ("2001:db8::12", False),
        ("0.0.0.0", False),
        ("b.example", None),
        ("localhost", None),
    ],
)
def test_whose_address_it_is(address: str, own: bool | None) -> None:
    host = host_facts.parse_host("b", f"fib {encoded(FIB_TRIE)}\nif6 {encoded(IF_INET6)}\n")
    assert host.has_address(address) is own


def test_where_no_address_could_be_read_none_is_called_foreign() -> None:
    assert host_facts.parse_host("b", f"fib {encoded(FIB_TRIE)[:-3]}").has_address("10.0.0.11") is None


# -- a host -------------------------------------------------------------------------------------------------------

PRINTED = f"""\
boot_id 0d3ce1d8-8c5b-4f0e-9a38-2b0a1e6d5f10
mem_total 16384
mem_available 8192
qemu 14680064.1700000000.1234
run_dir writable
guest_directory yes
locked root@ctl pid 17 migration m1 since 12:00
kvm yes
cmdline {encoded(b"/usr/bin/qemu-system-x86_64" + bytes(1) + b"-name" + bytes(1) + b"caf" + bytes([233, 0]))}
cpu_flags fpu vme sse2
cpu_model  Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz
fib {encoded(FIB_TRIE)}
if6
a line of a later version
"""


def test_everything_a_host_tells() -> None:
    host = host_facts.parse_host("b", PRINTED)
    assert host.name == "b"
    assert (host.mem_total, host.mem_available) == (16384 * 1024, 8192 * 1024)
    assert (host.qemu_stamp, host.run_dir, host.guest_directory) == ("14680064.1700000000.1234", "writable", True)
    assert host.locked_by == "root@ctl pid 17 migration m1 since 12:00"
    assert host.kvm is True
    assert host.cmdline == ("/usr/bin/qemu-system-x86_64", "-name", "caf\udce9")  # any bytes, as the kernel has them
    assert host.cpu_flags == {"fpu", "vme", "sse2"}
    assert host.cpu_model == "Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz"
    assert host.boot_id.startswith("0d3ce1d8")


def test_a_host_that_tells_nothing_has_nothing() -> None:
    assert host_facts.parse_host("b", "") == HostFacts("b")
    assert host_facts.parse_host("b", "mem_total much\ncmdline !!!\nkvm") == HostFacts("b", kvm=True)


# -- asking ---------------------------------------------------------------------------------------------------------


@dataclass
class Talking:
    """A host that answers each command with the next of its outputs."""

    outputs: list[bytes | Completed | Exception]
    name: str = "b"
    ran: list[list[str]] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)

    async def run(
        self, argv: Sequence[str], *, input: bytes = b"", timeout: float = 0, check: bool = True
    ) -> Completed:
        self.ran.append(list(argv))
        self.inputs.append(input)
        output = self.outputs.pop(0)
        if isinstance(output, Exception):
            raise output
        return output if isinstance(output, Completed) else Completed(0, output, b"some words on stderr")

    async def script(self, source: str, args: Sequence[str] = (), *, input: bytes = b"", **_: Any) -> Completed:
        return await self.run(args, input=input)


SETTINGS = HostSettings(address="10.0.0.12")


async def test_a_host_is_asked_once(tmp_path: Path) -> None:
    host = Talking([PRINTED.encode()])
    found = await host_facts.gather_host(host, SETTINGS, "web1", pid=17)
    assert found == host_facts.parse_host("b", PRINTED)
    assert host.ran == [["/run/qmp-migrate", "web1", "/usr/bin/qemu-system-x86_64", "17"]]


async def test_paths_are_told_one_by_one() -> None:
    host = Talking([b"absent\nunreadable\nreadable\nwritable\n"])
    paths = ["/srv/a", "/srv/b c", "/srv/$(id)", "-x"]
    assert await host_facts.path_states(host, paths) == dict(
        zip(paths, ["absent", "unreadable", "readable", "writable"], strict=True)
    )
    assert await host_facts.path_states(Talking([]), []) == {}


async def test_sizes_are_told_one_by_one() -> None:
    assert await host_facts.file_sizes(Talking([b"4096\nabsent\n"]), ["/srv/a", "/srv/b"]) == [4096, None]
    assert await host_facts.file_sizes(Talking([]), []) == []


def said(*messages: Any) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)


GREETING = {"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}
VERSION = {"return": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "id": "query-version"}
MACHINES = {
    "return": [
        {"name": "pc-q35-7.2", "alias": "q35", "cpu-max": 288, "deprecated": False},
        {"name": "pc-q35-2.4", "cpu-max": 255, "deprecated": True},
        {"name": "none", "cpu-max": 1},
    ],
    "id": "query-machines",
}
CPUS = {
    "return": [
        {"name": "Skylake-Server", "alias-of": "Skylake-Server-v1", "unavailable-features": ["avx512f", "avx512f"]},
        {"name": "Skylake-Server-v1", "unavailable-features": ["avx512f"]},
        {"name": "qemu64", "unavailable-features": []},
        {"name": "host"},
    ],
    "id": "query-cpu-definitions",
}
EVENT = {"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": False}}
CAPABILITIES = {
    "return": [{"capability": "multifd", "state": False}, {"capability": "postcopy-ram", "state": False}],
    "id": "query-migrate-capabilities",
}
PARAMETERS = {"return": {"multifd-channels": 2, "multifd-compression": "none"}, "id": "query-migrate-parameters"}
SCHEMA = {
    "return": [
        {"name": "migrate-set-parameters", "meta-type": "command", "arg-type": "12", "ret-type": "0"},
        {"name": "12", "meta-type": "object", "members": [{"name": "multifd-compression", "type": "34"}]},
        {"name": "34", "meta-type": "enum", "members": [{"name": "none"}, {"name": "zstd"}], "values": ["none"]},
    ],
    "id": "query-qmp-schema",
}
NO_POSTCOPY = {
    "id": "migrate-set-capabilities",
    "error": {"class": "GenericError", "desc": "Postcopy is not supported"},
}
MIGRATION = (CAPABILITIES, PARAMETERS, SCHEMA, {"return": {}, "id": "migrate-set-capabilities"})
WHOLE = said(
    GREETING, {"return": {}, "id": "qmp_capabilities"}, VERSION, MACHINES, CPUS, *MIGRATION, EVENT, {"return": {}}
)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with await Journal.open(f"sqlite:///{tmp_path}/journal.sqlite") as opened:
        yield opened


async def test_a_binary_is_asked_what_it_can_do(journal: Journal) -> None:
    host = Talking([WHOLE])
    found = await host_facts.probe_binary(host, SETTINGS, HostFacts("b", "boot", qemu_stamp="1.2.3"), "tcg", journal)
    assert found.version == "7.2.22"
    assert found.machines["q35"] == found.machines["pc-q35-7.2"] == "pc-q35-7.2"
    assert found.deprecated == {"pc-q35-2.4"}
    assert found.cpus["Skylake-Server-v1"] == found.cpus["Skylake-Server"] == ("avx512f",)
    assert found.cpus["qemu64"] == found.cpus["host"] == ()
    assert found.cpu_aliases == {"Skylake-Server": "Skylake-Server-v1"}
    (argv,) = host.ran
    assert argv[:2] == [SETTINGS.run_dir, SETTINGS.qemu]
    assert argv[argv.index("-accel") + 1] == "tcg"
    assert "-S" in argv
    assert b'"execute": "quit"' in host.inputs[0]
    abilities = found.abilities
    assert (abilities.host, abilities.version, abilities.no_postcopy) == ("b", "7.2.22", "")
    assert abilities.capabilities == {"multifd", "postcopy-ram"}
    assert abilities.parameters == {"multifd-channels", "multifd-compression"}
    assert abilities.compressions == {"none", "zstd"}


@pytest.mark.parametrize(
    ("desc", "stderr", "told"),
    [
        (  # 7.2 says it on its standard error
            "Postcopy is not supported",
            "qemu: a warning\npostcopy_ram_supported_by_host: userfaultfd not available: Operation not permitted",
            "Postcopy is not supported: userfaultfd not available: Operation not permitted",
        ),
        (  # 10.0 in its answer
            "Postcopy is not supported: Userfaultfd not available: Operation not permitted",
            "",
            "Postcopy is not supported: Userfaultfd not available: Operation not permitted",
        ),
        ("Parameter 'capability' does not accept value 'postcopy-ram'", "qemu: a warning", ""),
    ],
)
async def test_whether_a_binary_may_take_guests_in_post_copy_is_tried(
    journal: Journal, desc: str, stderr: str, told: str
) -> None:
    refused = {"id": "migrate-set-capabilities", "error": {"class": "GenericError", "desc": desc}}
    output = said(VERSION, MACHINES, CPUS, CAPABILITIES, PARAMETERS, SCHEMA, refused, {"return": {}, "id": "quit"})
    host = Talking([Completed(0, output, stderr.encode())])
    found = await host_facts.probe_binary(host, SETTINGS, HostFacts("b", userfaultfd="0"), "tcg", journal)
    assert found.abilities.no_postcopy == (told or desc)
    await host_facts.probe_binary(Talking([WHOLE]), SETTINGS, HostFacts("b", userfaultfd="1"), "tcg", journal)
    (argv,) = host.ran
    assert argv[argv.index("-incoming") + 1] == "defer", "only then QEMU looks whether userfaultfd may be used"


async def test_and_again_only_when_something_is_different(journal: Journal) -> None:
    host = Talking([WHOLE] * 5)
    first = await host_facts.probe_binary(host, SETTINGS, HostFacts("b", "boot", qemu_stamp="1.2.3"), "tcg", journal)
    again = await host_facts.probe_binary(host, SETTINGS, HostFacts("b", "boot", qemu_stamp="1.2.3"), "tcg", journal)
    assert first == again
    assert len(host.ran) == 1
    other = SETTINGS.model_copy(update={"qemu": "/opt/qemu"})
    for settings, boot, stamp, accel in [
        (SETTINGS, "boot", "1.2.4", "tcg"),  # upgraded
        (SETTINGS, "boot2", "1.2.3", "tcg"),  # another kernel may give KVM guests other CPU features
        (SETTINGS, "boot", "1.2.3", "kvm"),
        (other, "boot", "1.2.3", "tcg"),
    ]:
        before = len(host.ran)
        await host_facts.probe_binary(host, settings, HostFacts("b", boot, qemu_stamp=stamp), accel, journal)
        assert len(host.ran) == before + 1, (boot, stamp, accel)


async def test_a_binary_that_does_not_start_is_shown_with_its_words(journal: Journal) -> None:
    words = "qemu-system-x86_64: -accel kvm: Could not access KVM kernel module"
    host = Talking([CommandFailed("exit 1", returncode=1, stderr=words, host="b")])
    with pytest.raises(LaunchFailed) as caught:
        await host_facts.probe_binary(host, SETTINGS, HostFacts("b"), "kvm", journal)
    assert caught.value.stderr == words
    assert "accelerator kvm" in caught.value.message
    assert caught.value.host == "b"


@pytest.mark.parametrize(
    "output",
    [b"", b"Hello, world\n", said(GREETING), WHOLE[:400], b"[]", said({"return": 5, "id": "query-version"})],
)
async def test_a_program_that_is_no_qemu_is_refused_and_not_remembered(journal: Journal, output: bytes) -> None:
    host = Talking([output, WHOLE])
    with pytest.raises(LaunchFailed, match="does not answer as a QEMU does"):
        await host_facts.probe_binary(host, SETTINGS, HostFacts("b"), "tcg", journal)
    assert (await host_facts.probe_binary(host, SETTINGS, HostFacts("b"), "tcg", journal)).version == "7.2.22"


# -- answers in a stream --------------------------------------------------------------------------------------------


def test_answers_are_found_by_their_ids_among_everything_else() -> None:
    found, refused = host_facts._answers(f"a word\n{WHOLE.decode()}")
    assert {"qmp_capabilities", "query-version", "query-machines", "query-cpu-definitions", "None"} <= set(found)
    assert not refused
    found, refused = host_facts._answers(json.dumps(VERSION) + json.dumps(NO_POSTCOPY) + json.dumps(MACHINES))
    assert found.keys() == {"query-version", "query-machines"}
    assert refused == {"migrate-set-capabilities": "Postcopy is not supported"}


def test_what_is_cut_off_is_left_out() -> None:
    text = said(VERSION, MACHINES).decode()
    assert set(host_facts._answers(text[:-20])[0]) == {"query-version"}
    assert host_facts._answers("") == host_facts._answers("{{{") == ({}, {})


@given(st.text())
def test_answers_in_noise_are_no_error(text: str) -> None:
    host_facts._answers(text)


# -- several at once --------------------------------------------------------------------------------------------------


async def test_all_are_awaited_and_an_error_of_ours_comes_first() -> None:
    ended = []

    async def work(result: Any) -> Any:
        ended.append(result)
        if isinstance(result, Exception):
            raise result
        return result

    assert await gather_all(work(1), work(2)) == [1, 2]
    ours = HostUnreachable("no route", host="b")
    with pytest.raises(HostUnreachable):
        await gather_all(work(RuntimeError("x")), work(ours), work(3))
    assert len(ended) == 5
