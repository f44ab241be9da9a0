"""The relay: what the controller sends is done, and nothing else. Behind a real sshd: `tests/component/test_relay.py`."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostagent.relay import script_registry
from hostagent.relay.argument_rules import Refused
from hostagent.relay.executor import _check_lock
from hostagent.relay.request import PROBE
from hostagent.relay.settings import Allowed
from qmp_migrate.hosts import files, lock_scripts, process_scripts
from qmp_migrate.hosts import shell_command as host_command
from qmp_migrate.hosts.fenced import FENCE
from qmp_migrate.hosts.shell_command import behind_login_shell
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.migration.preflight import host_facts
from tests.support.data.relay_requests import ANY, BOOT, KNOWN, QEMU, argv, asked, request


def test_the_scripts_that_are_known_are_those_that_are_sent() -> None:
    assert script_registry.FILE.read_text() == script_registry.written(), (
        "run: python -m hostagent.relay.script_registry"
    )


def test_what_the_controller_sends_is_done_as_it_was_sent(allowed: Allowed) -> None:
    guest = f"{allowed.run_dir}/web1"
    command = asked(process_scripts.IDENTIFY, guest)
    assert request(command, allowed).argv == tuple(shlex.split(command))
    epoch = f"{allowed.run_dir}/.locks/web1.epoch"
    assert request(asked(FENCE + process_scripts.DISCARD, epoch, "3", guest), allowed).how == "run"
    assert request(asked(guest_locks._BUMP, epoch, "0", "migration m-1"), allowed).how == "run"
    for script in (process_scripts.KILL, process_scripts.KILL_CLOSED):
        kill = request(asked(script, "17", "1234", BOOT, "100", "KILL"), allowed)
        assert kill.guests_pid == ("17", "1234")
    probe = [QEMU, *(word or "tcg" for word in PROBE)]
    assert request(shlex.join(behind_login_shell(probe, 10.0)), allowed).input_digest == KNOWN["questions"]
    with_ring = ["kvm,dirty-ring-size=4096" if word == "tcg" else word for word in probe]
    assert request(shlex.join(behind_login_shell(with_ring, 10.0)), allowed).input_digest == KNOWN["questions"]
    through_a_file = asked(host_facts._PROBE, allowed.run_dir, *probe)
    assert request(through_a_file, allowed).input_digest == KNOWN["questions"]
    for refused in (["/bin/sh", *probe[1:]], [*probe, "-daemonize"], probe[:1], []):
        with pytest.raises(Refused):
            request(asked(host_facts._PROBE, allowed.run_dir, *refused), allowed)
    with pytest.raises(Refused):
        request(asked(host_facts._PROBE, "/etc", *probe), allowed)
    for accelerator in ("kvm,dirty-ring-size=/x", "kvm,device=/dev/x", "tcg,dirty-ring-size=4096", "qtest"):
        other = [accelerator if word == "tcg" else word for word in probe]
        with pytest.raises(Refused):
            request(shlex.join(behind_login_shell(other, 10.0)), allowed)
    words = argv(allowed)
    launch = asked(process_scripts.LAUNCH, guest, "2000", "qmp.sock", "qemu.log", "9", *words)
    assert request(launch, allowed).record == tuple(words)
    assert request(shlex.join(["qmp-relay", "connect", f"{guest}/qmp.sock"]), allowed).how == "connect"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "sh",
        "bash -i",
        "id",
        "sh -c id",
        "scp -t /tmp",
        "/usr/lib/openssh/sftp-server",
        "internal-sftp",
        "qmp-relay connect /etc/passwd",
        "qmp-relay connect",
        "qmp-relay connect a b",
        "sh -c 'id' sh",
        "'unfinished",
        "a\nb",
        f"{QEMU} -monitor stdio",
    ],
)
def test_anything_else_is_refused(command: str, allowed: Allowed) -> None:
    with pytest.raises(Refused):
        request(command, allowed)


def test_the_same_words_in_another_notation_are_refused(allowed: Allowed) -> None:
    command = asked(process_scripts.LIST, allowed.run_dir)
    request(command, allowed)
    for other in (
        f"{command}; id",
        f"{command} && id",
        f"{command} $(id)",
        f"{command}\nid",
        f" {command}",
        f"{command} >x",
    ):
        with pytest.raises(Refused):
            request(other, allowed)


@pytest.mark.parametrize(
    ("source", "args"),
    [
        (files.READ, ["/etc/passwd", "0", "10"]),
        (files.READ, ["{run}/../secret", "0", "10"]),
        (files.READ, ["{run}/web1/../../secret", "0", "10"]),
        (files.READ, ["{run}/link/passwd", "0", "10"]),
        (files.READ, ["{run}/.locks/web1.epoch", "0", "10"]),
        (files.READ, ["{run}/web1/tls-m1/keys.psk", "0", "10"]),
        (files.WRITE, ["{run}/web1/a\nb", "0600", "1"]),
        (files.WRITE, ["{run}/web1/pid", "0600", "1"]),
        (files.WRITE, ["{run}/web1/argv.json", "0600", "1"]),
        (files.WRITE, ["{run}/web1/x/serial.log.1", "0600", "1"]),
        (files.WRITE, ["{run}/.locks/serial.log.1", "0600", "1"]),
        (files.WRITE, ["{run}/web1", "0600", "1"]),
        (files.WRITE, ["{run}/web1/x", "u+s", "1"]),
        (process_scripts.IDENTIFY, ["{run}/link"]),
        (process_scripts.IDENTIFY, ["{run}/.."]),
        (process_scripts.IDENTIFY, ["{run}/web1/tls"]),
        (process_scripts.IDENTIFY, ["{run}/web1", "more"]),
        (process_scripts.IDENTIFY, []),
        (process_scripts.KILL, ["-1", "0", BOOT, "1", "KILL"]),
        (process_scripts.KILL, ["1;id", "0", BOOT, "1", "KILL"]),
        (process_scripts.LIST, ["/"]),
        (guest_locks._BUMP, ["{run}/.locks/../x.epoch", "0", "x"]),
        (guest_locks._BUMP, ["{run}/.locks/x.sh", "0", "x"]),
        (guest_locks._BUMP, ["{run}/.locks/x.epoch", "0", "two\nlines"]),
        (guest_locks._BUMP, ["{run}/.locks/x.lock", "0", "x"]),
        (lock_scripts.END_HOLDER, ["{run}/.locks/x.epoch", "123"]),
    ],
)
def test_a_known_script_with_other_arguments_is_refused(source: str, args: list[str], allowed: Allowed) -> None:
    with pytest.raises(Refused):
        request(asked(source, *(arg.replace("{run}", allowed.run_dir) for arg in args)), allowed)


def test_a_script_that_differs_by_one_character_is_unknown(allowed: Allowed) -> None:
    for source in (process_scripts.LIST + " ", process_scripts.LIST.replace("cd", "rm", 1) + "#", FENCE + "id"):
        with pytest.raises(Refused, match="does not know"):
            request(asked(source, allowed.run_dir), allowed)


@pytest.mark.timeout(900)
@settings(max_examples=1500, deadline=None)
@given(st.text(max_size=200))
def test_no_text_is_a_command(text: str) -> None:
    with pytest.raises(Refused):
        request(text, ANY)


@pytest.mark.timeout(900)
@settings(max_examples=1500, deadline=None)
@given(
    st.lists(st.text(max_size=30), max_size=6), st.sampled_from(sorted(k for k in vars(process_scripts) if k.isupper()))
)
def test_no_arguments_lead_out(args: list[str], name: str) -> None:
    source = getattr(process_scripts, name)
    try:
        found = request(asked(source, *(arg.replace("\0", "") for arg in args)), ANY)
    except Refused:
        return
    assert all("/" not in word or word.startswith("/run/x") for word in found.argv[-len(args) :] if args)


def test_the_controller_knows_a_refusal_when_it_sees_one() -> None:
    from hostagent.relay.executor import MARK, STATUS
    from qmp_migrate.errors import RelayRefused
    from qmp_migrate.hosts.base import Completed

    assert host_command.RELAY_STATUS == STATUS
    with pytest.raises(RelayRefused, match="no shell here"):
        host_command.not_refused(Completed(STATUS, b"", f"{MARK}no shell here\n".encode()), "a")
    assert host_command.not_refused(Completed(STATUS, b"", b"else"), "a").returncode == STATUS


def test_a_holder_of_locks_is_told_of_locks_only(allowed: Allowed) -> None:
    lock = f"{allowed.run_dir}/.locks/web1.lock"
    for line in (f"lock\t3\t{lock}\tme, since now", f"unlock\t3\t{lock}\t", "beat\t\t\t", "beat"):
        _check_lock(line, allowed)
    for line in (
        "",
        "lock",
        "lock\t3\t.profile\tx\tmore",
        "lock\t3\t.profile\tx",
        f"lock\t1\t{lock}\tx",
        f"lock\t33\t{lock}\tx",
        f"lock\t\t{lock}\tx",
        f"lock\t3\t{allowed.run_dir}/x\tx",
        f"lock\t3\t{allowed.run_dir}/.locks/../x.lock\tx",
        f"lock 3 {lock} x",
        "beat\tx",
        "exec\tx",
    ):
        with pytest.raises(Refused):
            _check_lock(line, allowed)
