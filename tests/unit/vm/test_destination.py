"""The destination's command line: the same guest, in the destination's terms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.errors import ConfigError
from qmp_migrate.vm.commandline.command_line import CommandLine, Option
from qmp_migrate.vm.destination import Derived, derive_destination
from qmp_migrate.vm.host_dependencies import host_bound
from tests.support.data.command_lines import ALL, BY_HAND, LIBVIRT, PROXMOX
from tests.support.data.path_places import PLACES
from tests.support.guest_visible import guest_visible

A, B = "/run/a/web", "/run/b/web"


def _derive(*words: str, **changes: object) -> Derived:
    settings: dict[str, object] = {"binary": "/usr/bin/qemu", "source_dir": A, "dest_dir": B, "machine": "pc-q35-7.2"}
    return derive_destination(CommandLine.parse(["qemu", *words]), **{**settings, **changes})  # type: ignore[arg-type]


def _words(derived: Derived) -> list[str]:
    return derived.command.argv()


_MONITORS = [
    *("-chardev", f"socket,id=qmp-migrate-qmp,path={B}/qmp.sock,server=on,wait=off"),
    *("-mon", "chardev=qmp-migrate-qmp,mode=control"),
    *("-chardev", f"socket,id=qmp-migrate-agent,path={B}/agent.sock,server=on,wait=off"),
    *("-mon", "chardev=qmp-migrate-agent,mode=control"),
]


def test_a_bare_guest_gets_monitors_and_waits() -> None:
    derived = _derive("-M", "pc-q35-7.2", "-m", "512")
    assert _words(derived) == [
        *("/usr/bin/qemu", "-M", "pc-q35-7.2", "-m", "512"),
        *_MONITORS,
        *("-S", "-incoming", "defer"),
    ]
    assert derived.refusals == ()


def test_our_own_monitors_move_to_the_destinations_directory() -> None:
    source = [word.replace(B, A) for word in _MONITORS]
    assert _words(_derive("-M", "pc-q35-7.2", *source))[3:-3] == _MONITORS


@pytest.mark.parametrize("written", ["unix:{}/qmp.sock,server,nowait", "unix:{}/./qmp.sock,server=on,wait=off"])
@pytest.mark.parametrize("dest_dir", [A, B])
def test_a_monitor_that_is_there_in_old_notation_is_not_added_twice(written: str, dest_dir: str) -> None:
    derived = _derive("-M", "pc-q35-7.2", "-qmp", written.format(A), dest_dir=dest_dir)
    assert sum("qmp.sock" in word for word in _words(derived)) == 1
    assert sum("agent.sock" in word for word in _words(derived)) == 1


def test_waiting_comes_exactly_once_also_after_many_moves() -> None:
    words = ["-S", "-incoming", "tcp:0:4444", "-M", "pc-q35-7.2", "--incoming", "defer", "-S"]
    first = _derive(*words)
    back = _derive(*_words(first)[1:], source_dir=B, dest_dir=A)
    again = _derive(*_words(back)[1:])
    assert _words(again) == _words(first)
    assert _words(again).count("-S") == 1
    assert [o.value for o in again.command.named("incoming")] == ["defer"]
    assert any("tcp:0:4444" in change for change in first.changes)


def test_what_belongs_to_the_launcher_is_dropped_with_a_reason() -> None:
    derived = _derive("-M", "pc-q35-7.2", "-daemonize", "-pidfile", "/run/x.pid", "-loadvm", "s1")
    assert not any(derived.command.has(name) for name in ("daemonize", "pidfile", "loadvm"))
    assert len([change for change in derived.changes if "dropped" in change]) == 3
    assert derived.refusals == ()


@pytest.mark.parametrize(
    ("words", "pinned"),
    [
        (["-M", "q35,accel=kvm"], ["-M", "pc-q35-7.2,accel=kvm"]),
        (["-machine", "accel=kvm,type=q35"], ["-machine", "accel=kvm,type=pc-q35-7.2"]),
        (["-machine", "accel=kvm", "-M", "q35"], ["-machine", "accel=kvm", "-M", "pc-q35-7.2"]),
        (["-machine", "accel=kvm"], ["-machine", "type=pc-q35-7.2", "-machine", "accel=kvm"]),
        ([], ["-machine", "type=pc-q35-7.2"]),
        (["-M", "pc-q35-7.2"], ["-M", "pc-q35-7.2"]),
    ],
)
def test_the_machine_type_is_pinned(words: list[str], pinned: list[str]) -> None:
    assert _words(_derive(*words))[1 : 1 + len(pinned)] == pinned


@pytest.mark.parametrize(
    ("words", "pinned"),
    [
        (["-cpu", "Skylake-Server,+ssse3,enforce"], ["-cpu", "Skylake-Server-v1,+ssse3,enforce"]),
        (["-cpu", "Skylake-Server-v1"], ["-cpu", "Skylake-Server-v1"]),
        ([], ["-cpu", "Skylake-Server-v1"]),
    ],
)
def test_the_cpu_model_is_pinned(words: list[str], pinned: list[str]) -> None:
    derived = _derive(*words, machine=None, cpu="Skylake-Server-v1")
    assert _words(derived)[1 : 1 + len(pinned)] == pinned


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": "pc-q35-8.0"},
        {"machine": "pc-i440fx-7.2"},
        {"cpu": "Haswell-v2"},
    ],
)
def test_another_machine_or_cpu_is_refused(changes: dict[str, object]) -> None:
    derived = _derive("-M", "pc-q35-7.2", "-cpu", "Skylake-Server-v1", **changes)
    assert len(derived.refusals) == 1
    assert "cannot become" in derived.refusals[0]


def test_an_alias_that_nobody_pins_is_warned_about() -> None:
    assert any("machine type q35" in warning for warning in _derive("-M", "q35", machine=None).warnings)
    assert any("machine type not given" in warning for warning in _derive(machine=None).warnings)


@pytest.mark.parametrize(
    ("path", "mapped"),
    [
        ("/srv/a/x", "/mnt/x"),
        ("/srv/a", "/mnt"),
        ("/srv/ab/x", "/srv/ab/x"),
        ("/srv/a/deep/x", "/other/x"),
        ("/srv/a/deeper/x", "/mnt/deeper/x"),
        ("/srv/a/../b/x", "/srv/a/../b/x"),
        ("/srv/b/../a/x", "/mnt/x"),
        ("/srv//a/./x", "/mnt/x"),
        ("//srv/a/x", "/mnt/x"),
        ("srv/a/x", "srv/a/x"),
        (f"{A}/disk", f"{B}/disk"),
        (f"{A}2/disk", f"{A}2/disk"),
    ],
)
def test_paths_map_by_the_longest_whole_prefix(path: str, mapped: str) -> None:
    derived = _derive("-kernel", path, path_map={"/srv/a": "/mnt", "/srv/a/deep/": "/other"})
    assert derived.command.value("kernel") == mapped


def test_the_guests_directory_wins_over_the_path_map() -> None:
    derived = _derive("-kernel", f"{A}/k", "-initrd", "/run/a/other", path_map={A: "/wrong", "/run": "/mnt"})
    assert derived.command.value("kernel") == f"{B}/k"
    assert derived.command.value("initrd") == "/mnt/a/other"
    assert f"-kernel: {A}/k → {B}/k, the guest's directory at the destination" in derived.changes
    assert "-initrd: /run/a/other → /mnt/a/other, the path map says so" in derived.changes


def test_the_root_may_be_mapped_and_mapped_to() -> None:
    assert _derive("-kernel", "/k", path_map={"/": "/mnt"}).command.value("kernel") == "/mnt/k"
    assert _derive("-kernel", "/mnt/k", path_map={"/mnt": "/"}).command.value("kernel") == "/k"


@pytest.mark.parametrize("mapping", [{"srv": "/a"}, {"/a": "srv"}, {"/a": ""}])
def test_a_map_with_relative_paths_is_refused(mapping: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        _derive(path_map=mapping)


def test_a_socket_path_that_gets_too_long_is_refused() -> None:
    with pytest.raises(ConfigError, match="bytes"):
        _derive(dest_dir="/" + "x" * 100)


_place = st.sampled_from(PLACES).map(lambda place: [place[0] or "", place[1].format(f"{A}/f", f"{A}/sub/g")])
_plain = st.sampled_from(
    [
        ["-device", "virtio-net-pci,netdev=n,mac=52:54:00:00:00:01"],
        ["-device", '{"driver": "virtio-blk-pci", "drive": "d"}'],
        ["-m", "512"],
        ["-smp", "2,maxcpus=4"],
        ["-append", "console=ttyS0 -v"],
        ["-nodefaults"],
        ["-vnc", "127.0.0.2:1"],
        ["-serial", "tcp:127.0.0.2:44,server,nowait"],
    ]
)
_guests = st.lists(st.one_of(_place, _plain), max_size=8).map(
    lambda options: ["-M", "pc-q35-7.2", *(word for option in options for word in option if word)]
)


@given(_guests)
def test_there_and_back_is_the_same_command_line(words: list[str]) -> None:
    there = _derive(*words, address_map={"127.0.0.2": "127.0.0.3"})
    back = _derive(*_words(there)[1:], source_dir=B, dest_dir=A, address_map={"127.0.0.3": "127.0.0.2"})
    kept = [word for word in _flat(words) if word is not None]
    assert _words(back)[1 : 1 + len(kept)] == kept
    assert len(_words(back)) == 1 + len(kept) + len(_MONITORS) + 3
    assert (
        guest_visible(there.command) == guest_visible(back.command) == guest_visible(CommandLine.parse(["q", *words]))
    )


def _flat(words: list[str]) -> list[str]:
    """What a derivation keeps: all but the options that the launcher gives itself."""
    options = CommandLine.parse(["qemu", *words]).options
    kept = tuple(option for option in options if option.name not in {"pidfile"})
    return CommandLine("qemu", kept).argv()[1:]


@given(_guests)
def test_nothing_of_the_sources_directory_remains(words: list[str]) -> None:
    derived = _derive(*words)
    assert not [word for word in _words(derived) if A in word]
    assert not [warning for warning in derived.warnings if "still names" in warning]


def test_what_is_not_understood_is_left_and_named() -> None:
    derived = _derive("-netdev", f"user,id=n,guestfwd=tcp:10.0.2.1:1-cmd:cat {A}/x")
    assert any("still names" in warning for warning in derived.warnings)


def test_the_same_directory_on_both_hosts_changes_nothing_but_the_waiting() -> None:
    words = [word.replace(B, A) for word in _MONITORS]
    derived = _derive("-M", "pc-q35-7.2", *words, dest_dir=A)
    assert derived.changes == ("-S -incoming defer: waits for the guest's memory, runs when told",)
    assert derived.warnings == ()


@pytest.mark.parametrize("argv", ALL.values(), ids=ALL)
def test_device_order_and_everything_unnamed_stay_to_the_letter(argv: list[str]) -> None:
    source = CommandLine.parse(argv)
    derived = derive_destination(source, binary="q", source_dir=A, dest_dir=B)
    kept = [o for o in source.options if o.name not in {"S", "incoming", "daemonize", "pidfile"}]
    assert list(derived.command.options[: len(kept)]) == kept


@pytest.mark.parametrize(
    "words",
    [
        ["-device", "vfio-pci,host=01:00.0"],
        ["-device", '{"driver":"vfio-pci","host":"0000:01:00.0"}'],
        ["-device", "usb-host,hostbus=1,hostaddr=2"],
        ["-usbdevice", "host:1234:5678"],
        ["-snapshot"],
        ["-drive", "file=/a,snapshot=on"],
        ["-virtfs", "local,path=/a,mount_tag=t,security_model=none"],
        ["-device", "virtio-9p-pci,fsdev=f,mount_tag=t"],
        ["-add-fd", "fd=3,set=1"],
        ["-netdev", "tap,id=n,fd=3"],
        ["-netdev", '{"type":"tap","id":"n","fds":"3:4"}'],
        ["-blockdev", "file,node-name=f,filename=/dev/fdset/1"],
        ["-chardev", "socket,id=c,fd=5,server=on"],
        ["-tpmdev", "passthrough,id=t"],
        ["-object", "sev-guest,id=s,cbitpos=47,reduced-phys-bits=1"],
        ["--preconfig"],
        ["-device", "{'driver':'e1000'}"],
        ["-drive", "file=json:{bad"],
    ],
)
def test_what_cannot_go_along_is_refused_by_name(words: list[str]) -> None:
    refusals = _derive("-M", "pc-q35-7.2", *words).refusals
    assert len(refusals) == 1
    assert words[-1][:20] in refusals[0]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["-netdev", "tap,id=n,ifname=tap7"], "tap7"),
        (["-netdev", "bridge,id=n,br=br7"], "bridge br7"),
        (["-netdev", "user,id=n"], "end with the move"),
        (["-cpu", "host"], "microcode"),
        (["-serial", "stdio"], "the destination has its own"),
        (["-chardev", "pty,id=p"], "the destination has its own"),
        (["-readconfig", "/etc/q.cfg"], "not looked at"),
        (["-kernel", "vmlinuz"], "counts from the directory"),
        (["-vnc", "127.0.0.9:1"], "127.0.0.9"),
        (["-gdb", "tcp::1234"], "every address"),
        (["-qmp", "unix:/tmp/q,server,nowait"], "nothing else there may use it"),
        (["-qmp", "unix:/tmp/q,server"], "waits there for a client"),
        (["-frobnicate", "x"], "not an option"),
        (["-device", "vhost-vsock-pci,guest-cid=3"], "guest-cid"),
        (["-device", "vhost-user-fs-pci,chardev=c,tag=t"], "back end must be running"),
    ],
)
def test_what_must_be_ready_there_is_warned_about_not_refused(words: list[str], part: str) -> None:
    derived = _derive("-M", "pc-q35-7.2", *words)
    assert derived.refusals == ()
    assert any(part in warning for warning in derived.warnings), derived.warnings


def test_a_mapped_address_is_rewritten_with_a_warning() -> None:
    derived = _derive("-vnc", "127.0.0.2:1", address_map={"127.0.0.2": "127.0.0.3"})
    assert derived.command.value("vnc") == "127.0.0.3:1"
    assert any("127.0.0.3" in warning for warning in derived.warnings)
    assert any("instead of 127.0.0.2" in change for change in derived.changes)


def test_guests_from_the_wild() -> None:
    libvirt = host_bound(CommandLine.parse(LIBVIRT))
    assert [line.partition(" ")[0] for line in libvirt.refusals] == ["-netdev"]  # its tap is an open file
    proxmox = derive_destination(
        CommandLine.parse(PROXMOX), binary="kvm", source_dir=A, dest_dir=B, machine="pc-i440fx-7.2+pve0"
    )
    assert proxmox.refusals == ()
    assert proxmox.command.machine == "pc-i440fx-7.2+pve0"
    by_hand = derive_destination(
        CommandLine.parse(BY_HAND),
        binary="q",
        source_dir="/run/x/web",
        dest_dir=B,
        machine="pc-q35-7.2",
        path_map={"/srv/a": "/srv/b"},
        address_map={"127.0.0.2": "127.0.0.3"},
    )
    assert by_hand.refusals == ()
    text = " ".join(by_hand.command.argv())
    assert "/srv/a/in-guest" in text  # the guest's own text
    assert text.count("/srv/a") == 1
    assert "127.0.0.2" not in text


def test_guest_visible_forgets_the_host_and_nothing_else() -> None:
    first = CommandLine.parse(
        ["qemu", "--name", "a", "-M", "q35", "-hda", "/a", "-device", '{"driver":"e1000", "id":"n"}']
    )
    second = CommandLine.parse(
        ["kvm", "-machine", "q35", "-hda", "/b/c", "-device", '{"id":"n","driver":"e1000"}', "-D", "/log", *_MONITORS]
    )
    other = CommandLine.parse(["qemu", "-M", "q35", "-hda", "/a", "-device", "e1000e,id=n"])
    assert guest_visible(first) == guest_visible(second)
    assert guest_visible(first) != guest_visible(other)
    objects = [*_MONITORS[:2], "-object", "monitor-qmp,id=m,chardev=qmp-migrate-qmp"]
    assert guest_visible(CommandLine.parse(["qemu", *objects])) == ()
    shared = ["-chardev", "stdio,id=c,mux=on", "-mon", "c", "-serial", "chardev:c"]
    assert Option("-chardev", "stdio,id=c,mux=on") in guest_visible(CommandLine.parse(["qemu", *shared]))


def test_a_vcpu_that_was_plugged_in_is_of_the_pinned_model() -> None:
    argv = [
        "qemu",
        "-cpu",
        "qemu64",
        "-device",
        "qemu64-x86_64-cpu,core-id=1",
        "-device",
        '{"driver":"qemu64-x86_64-cpu"}',
    ]
    words = _derive(*argv, cpu="qemu64-v1").command.argv()
    assert "qemu64-v1-x86_64-cpu,core-id=1" in words
    assert '{"driver":"qemu64-v1-x86_64-cpu"}' in words
