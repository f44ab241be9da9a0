"""Command lines: read without loss, and asked what the guest is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.errors import InvalidQuantity, UsageError
from qmp_migrate.vm.commandline.command_line import CommandLine, Option, is_versioned
from qmp_migrate.vm.commandline.netdevs import netdevs
from qmp_migrate.vm.commandline.option_table import FLAGS, IMPLIED_KEY, WITH_VALUE
from tests.support.data.command_lines import ALL, BY_HAND, LIBVIRT, PROXMOX

_text = st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=12)
_dashes = st.sampled_from(["-", "--"])


def _words(dashes: str, name: str, value: str) -> list[str]:
    return [dashes + name] if name in FLAGS else [dashes + name, value]


_option = st.builds(_words, _dashes, st.sampled_from(sorted(FLAGS | WITH_VALUE)), _text)
_argv = st.lists(st.one_of(_option, _text.filter(lambda word: word[:1] != "-").map(lambda word: [word]))).map(
    lambda groups: ["qemu", *(word for group in groups for word in group)]
)


@given(_argv)
def test_any_command_line_comes_back_word_for_word(argv: list[str]) -> None:
    assert CommandLine.parse(argv).argv() == argv


@pytest.mark.parametrize("argv", ALL.values(), ids=ALL)
def test_command_lines_from_the_wild_come_back_word_for_word(argv: list[str]) -> None:
    assert CommandLine.parse(argv).argv() == argv


@given(_argv)
def test_proc_cmdline_is_the_same_words(argv: list[str]) -> None:
    raw = b"".join(word.encode("utf-8", "surrogatepass") + b"\0" for word in argv)
    parsed = CommandLine.from_proc(raw).argv()
    assert [word.encode("utf-8", "surrogateescape") for word in parsed] == raw.split(b"\0")[:-1]


def test_every_option_with_properties_is_an_option_with_a_value() -> None:
    assert set(IMPLIED_KEY) <= WITH_VALUE
    assert not FLAGS & WITH_VALUE


def test_an_argument_may_start_with_a_dash_and_a_bare_word_is_an_image() -> None:
    command = CommandLine.parse(["qemu", "-append", "-S", "disk.img", "--snapshot", "-kernel", "--daemonize"])
    assert [option.name for option in command.options] == ["append", "", "snapshot", "kernel"]
    assert not command.has("S")
    assert not command.has("daemonize")
    assert command.value("append") == "-S"


@pytest.mark.parametrize("flag", sorted(FLAGS))
def test_a_word_behind_an_option_without_argument_is_an_image(flag: str) -> None:
    assert CommandLine.parse(["qemu", f"-{flag}", "disk.img"]).options == (Option(f"-{flag}"), Option("", "disk.img"))


def test_an_empty_argument_is_an_argument() -> None:
    assert CommandLine.parse(["qemu", "-append", "", "-S"]).options == (Option("-append", ""), Option("-S"))


@pytest.mark.parametrize("argv", [[], [""], ["qemu", "-m"], ["qemu", "-append", "a\0b"], ["ld-linux-x86-64.so.2"]])
def test_what_is_no_command_line_is_refused(argv: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        CommandLine.parse(argv)
    assert caught.value.hint


def test_a_dynamic_loader_in_front_is_not_the_program() -> None:
    argv = ["/opt/lib/ld-linux-x86-64.so.2", "--library-path", "/opt/lib", "/opt/qemu", "-m", "1G"]
    command = CommandLine.parse(argv)
    assert command.binary == "/opt/qemu"
    assert command.memory_bytes == 1 << 30
    assert command.argv() == argv


def test_unknown_options_are_kept_and_named() -> None:
    command = CommandLine.parse([*PROXMOX, "-frobnicate", "-S"])
    assert [option.flag for option in command.unknown()] == ["-id", "-frobnicate"]
    assert command.options[0] == Option("-id", "100")
    assert command.has("S")


def test_what_libvirts_guest_is() -> None:
    guest = CommandLine.parse(LIBVIRT)
    assert guest.name == "web"
    assert guest.uuid == "0b1fbd3d-7e0a-4c39-8e1f-5a6f6a9f3f10"
    assert guest.memory_bytes == guest.max_memory_bytes == 2 << 30
    assert (guest.vcpus, guest.max_vcpus) == (2, 2)
    assert guest.machine == "pc-q35-7.2"
    assert guest.cpu == "Skylake-Server-IBRS"
    assert guest.accelerators == ("kvm",)
    assert guest.incoming is None


def test_what_proxmoxs_guest_is() -> None:
    guest = CommandLine.parse(PROXMOX)
    assert guest.name == "web"
    assert guest.memory_bytes == 2 << 30
    assert (guest.vcpus, guest.max_vcpus) == (4, 4)
    assert guest.machine == "pc+pve0"
    assert guest.value("pidfile") == "/var/run/qemu-server/100.pid"
    assert guest.has("daemonize")


def test_what_a_guest_by_hand_is() -> None:
    guest = CommandLine.parse(BY_HAND)
    assert guest.memory_bytes == 3 << 29
    assert guest.max_memory_bytes == 4 << 30
    assert guest.memory_slots == 2
    assert (guest.vcpus, guest.max_vcpus) == (4, 4)
    assert guest.machine == "q35"
    assert guest.accelerators == ("kvm",)
    assert guest.values("L") == ("/srv/a/roms",)
    assert guest.value("runas") == "nobody"


@pytest.mark.parametrize(
    ("words", "vcpus", "maximum"),
    [
        ([], 1, 1),
        (["-smp", "4"], 4, 4),
        (["-smp", "cpus=2,maxcpus=8"], 2, 8),
        (["-smp", "2,sockets=2,cores=2"], 2, 4),
        (["-smp", "sockets=2,dies=2,threads=2"], 8, 8),
        (["-smp", "maxcpus=6"], 6, 6),
        (["-smp", "2", "-smp", "maxcpus=4"], 2, 4),
        (["-machine", "q35,smp.cpus=3"], 3, 3),
    ],
)
def test_vcpus(words: list[str], vcpus: int, maximum: int) -> None:
    command = CommandLine.parse(["qemu", *words])
    assert (command.vcpus, command.max_vcpus) == (vcpus, maximum)


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([], 128 << 20),
        (["-m", "512"], 512 << 20),
        (["-m", "size=1G,slots=1,maxmem=2G"], 1 << 30),
        (["-m", "512", "-m", "1G"], 1 << 30),
        (["-machine", "q35,memory.size=2G"], 2 << 30),
    ],
)
def test_memory(words: list[str], size: int) -> None:
    assert CommandLine.parse(["qemu", *words]).memory_bytes == size


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("tcg",)),
        (["-accel", "kvm,dirty-ring-size=4096", "-accel", "tcg"], ("kvm", "tcg")),
        (["-M", "q35,accel=kvm:tcg"], ("kvm", "tcg")),
        (["-enable-kvm"], ("kvm",)),
    ],
)
def test_accelerators(words: list[str], expected: tuple[str, ...]) -> None:
    assert CommandLine.parse(["qemu", *words]).accelerators == expected


def test_machine_type_may_come_in_any_of_several_options() -> None:
    command = CommandLine.parse(["qemu", "-machine", "accel=kvm", "-M", "usb=off,type=pc-q35-7.2"])
    assert command.machine == "pc-q35-7.2"


@pytest.mark.parametrize("words", [["-m", "lots"], ["-smp", "many"]])
def test_nonsense_is_an_error_of_ours(words: list[str]) -> None:
    command = CommandLine.parse(["qemu", *words])
    with pytest.raises(InvalidQuantity):
        _ = (command.memory_bytes, command.vcpus)


def test_aliases_are_not_versioned() -> None:
    assert is_versioned("pc-q35-7.2")
    assert not is_versioned("q35")


def test_brief_masks_secrets() -> None:
    for argument in ("secret,id=s,data=geheim", '{"qom-type":"secret","data":"geheim","id":"s"}'):
        brief = Option("-object", argument).brief
        assert "geheim" not in brief
        assert "***" in brief
    assert len(Option("-append", "x" * 500).brief) == 80


def test_netdevs() -> None:
    words = ["-netdev", "tap,id=n0,ifname=t0", "-nic", "model=e1000", "-nic", "none", "-net", "nic", "-net", "user"]
    found = netdevs(CommandLine.parse(["qemu", *words, "-netdev", '{"type":"user","id":"n1"}']))
    assert [(net.kind, net.id) for net in found] == [("tap", "n0"), ("user", None), ("user", None), ("user", "n1")]
    assert found[0].properties.get("ifname") == "t0"
