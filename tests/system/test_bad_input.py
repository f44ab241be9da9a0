"""Bad input: a clear error with a hint, the documented exit code, the guest untouched, nothing left behind."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.real.lab import Guest, Lab, qemus
from tests.support.real.lab_journal import assert_untouched


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    """One guest for all of them: none of these may touch it."""
    with lab.guest() as started:
        yield started


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["check", "web1", "--to", "bb"], 2, "did you mean 'b'"),
        (["migrate", "nobody", "--to", "b"], 2, "no host has a guest named 'nobody'"),
        (["migrate", "web1", "--to", "b", "--downtime-limit", "-5ms"], 2, "negative"),
        (["migrate", "web1", "--to", "b", "--downtime-limit", "3000000ms"], 2, "2000s"),
        (["migrate", "web1", "--to", "b", "--downtime-limit", "5"], 2, "300ms"),
        (["migrate", "web1", "--to", "b", "--bandwidth", "0"], 2, "hint"),
        (["migrate", "web1", "--to", "b", "--bandwidth", "1"], 2, "hint"),
        (["migrate", "web1", "--to", "b", "--mode", "teleport"], 2, "teleport"),
        (["migrate", "../web1", "--to", "b"], 2, "not a guest name"),
        (["migrate", "web+1", "--to", "b"], 2, "not a guest name"),
        (["migrate", "web#1", "--to", "b"], 2, "not a guest name"),
        (["migrate", "$(id)", "--to", "b"], 2, "not a guest name"),
        (["migrate", "web1\n", "--to", "b"], 2, "not a guest name"),
        (["migrate", "web1", "--to", "b/../a"], 2, "not a host name"),
        (["vm", "show", "$(reboot)"], 2, "not a guest name"),
        (["cancel", "nosuch"], 2, "qmp-migrate history"),
        (["report", "nosuch"], 2, "qmp-migrate history"),
        (["events", "--vm", "a/+"], 2, "not a guest name"),
    ],
)
def test_words_that_cannot_be_meant(lab: Lab, words: list[str], code: int, told: str) -> None:
    ran = lab.cli(*words, code=code)
    assert told in ran.err, ran.err
    assert "Traceback" not in ran.err
    assert "hint" in ran.err or "Usage" in ran.err


def test_destination_equals_source(lab: Lab, guest: Guest) -> None:
    for words in (["--to", "a"], ["--to", "a", "--from", "a"]):
        ran = lab.cli("migrate", guest.name, *words, "--json", code=2)
        assert "already on a" in ran.err
        assert ran.doc["error"]["code"] == "usage"
        assert ran.doc["schema"] in {"migration.result/1", "error/1"}
    assert_untouched(guest)


class TestSettings:
    def test_absent(self, lab: Lab) -> None:
        ran = lab.cli("vm", "list", config=lab.files / "nowhere.toml", code=78)
        assert "nowhere.toml" in ran.err

    def test_not_toml(self, lab: Lab) -> None:
        path = lab.files / "broken.toml"
        path.write_text("[hosts.a\naddress = 1")
        assert "not TOML" in lab.cli("vm", "list", config=path, code=78).err
        path.unlink()

    def test_typo_names_key_line_and_the_nearest_one(self, lab: Lab) -> None:
        path = lab.config(hosts_b={"migration_adress": "127.0.0.3"})
        ran = lab.cli("vm", "list", config=path, code=78)
        line = 1 + path.read_text().splitlines().index('migration_adress = "127.0.0.3"')
        assert f":{line}" in ran.err
        assert "'migration_address'" in ran.err

    def test_broken_journal_place(self, lab: Lab) -> None:
        path = lab.config(controller={"state": "sqlite:////proc/nowhere/journal.sqlite"})
        ran = lab.cli("vm", "list", config=path, code=1)
        assert "[controller] state" in ran.err


class TestSpec:
    def start(self, lab: Lab, text: str, code: int) -> str:
        path = lab.files / "bad.toml"
        path.write_text(text)
        ran = lab.cli("vm", "start", str(path), "--on", "a", code=code)
        assert "Traceback" not in ran.err
        path.unlink()
        return ran.err

    def test_typo(self, lab: Lab) -> None:
        told = self.start(lab, 'name = "x"\nmemroy = "256MiB"\n', 78)
        assert "bad.toml:2" in told
        assert "'memory'" in told

    @pytest.mark.parametrize("memory", ['"-1MiB"', '"0"', '"900TiB"', '"lots"', "true"])
    def test_absurd_memory(self, lab: Lab, memory: str) -> None:
        assert "memory" in self.start(lab, f'name = "x"\nmemory = {memory}\n', 78)

    def test_absent(self, lab: Lab) -> None:
        assert "cannot read" in lab.cli("vm", "start", "/nowhere.toml", "--on", "a", code=78).err

    def test_a_name_that_is_none(self, lab: Lab) -> None:
        assert "name" in self.start(lab, 'name = "../x"\n', 78)

    def test_qemu_says_why_it_did_not_start(self, lab: Lab) -> None:
        told = self.start(lab, 'name = "x"\naccel = "tcg"\nargs = ["-device", "no-such-device"]\n', 1)
        assert "no-such-device" in told, "QEMU's own words are shown"
        assert not (lab.run_dir("a") / "x").exists()

    def test_a_qemu_that_ends_after_it_has_made_its_socket(self, lab: Lab) -> None:
        real = shutil.which("qemu-system-x86_64")
        late = lab.files / "qemu-late"
        late.write_text(
            f"""#!/bin/sh
case "$*" in *"-M none"*) exec {real} "$@";; esac
exec python3 -c 'import socket, sys, time
s = socket.socket(socket.AF_UNIX); s.bind("qmp.sock"); s.listen()
time.sleep(0.5); print("late: I do not like this after all", file=sys.stderr); sys.exit(1)'
"""
        )
        late.chmod(0o755)
        ran = lab.cli(
            "vm", "start", str(lab.spec("late")), "--on", "a", config=lab.config(hosts_a={"qemu": str(late)}), code=1
        )
        assert "I do not like this after all" in ran.err
        assert not (lab.run_dir("a") / "late").exists()

    def test_unknown_machine_type(self, lab: Lab) -> None:
        assert "pc-q35-99.9" in self.start(lab, 'name = "x"\naccel = "tcg"\nmachine = "pc-q35-99.9"\n', 1)

    def test_the_same_name_twice(self, lab: Lab, guest: Guest) -> None:
        for host in ("a", "b"):
            ran = lab.cli("vm", "start", str(guest.spec), "--on", host, code=1)
            assert "already on a" in ran.err or "already there" in ran.err, ran.err
        assert_untouched(guest)


class TestHosts:
    def test_ssh_refused(self, lab: Lab, guest: Guest) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.3", 0))
            config = lab.config(hosts_b={"port": taken.getsockname()[1]})
            ran = lab.cli("migrate", guest.name, "--to", "b", "--from", "a", config=config, code=69)
        assert "b:" in ran.err
        assert_untouched(guest)

    def test_unknown_host_key(self, lab: Lab, guest: Guest) -> None:
        empty = lab.files / "known_none"
        empty.write_text("")
        config = lab.config(hosts_b={"known_hosts": str(empty)})
        ran = lab.cli("migrate", guest.name, "--to", "b", "--from", "a", "--json", config=config, code=69)
        assert ran.doc["error"]["code"] == "host_key"
        assert "ssh-keyscan" in ran.err
        assert_untouched(guest)

    def test_changed_host_key(self, lab: Lab, guest: Guest) -> None:
        import tomllib

        hosts = tomllib.loads(lab.settings.read_text())["hosts"]
        lines = Path(hosts["a"]["known_hosts"]).read_text().splitlines()
        key_of_a = next(line for line in lines if "127.0.0.2" in line).split(" ", 1)[1]
        wrong = lab.files / "known_wrong"
        wrong.write_text(f"[127.0.0.3]:{hosts['b']['port']} {key_of_a}\n")
        config = lab.config(hosts_b={"known_hosts": str(wrong)})
        ran = lab.cli("migrate", guest.name, "--to", "b", "--from", "a", config=config, code=69)
        assert "has CHANGED" in ran.err
        assert_untouched(guest)

    def test_key_not_accepted(self, lab: Lab, guest: Guest) -> None:
        import subprocess

        key = lab.files / "stranger"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        config = lab.config(hosts_b={"identity_file": str(key)})
        ran = lab.cli("migrate", guest.name, "--to", "b", "--from", "a", "--json", config=config, code=69)
        assert ran.doc["error"]["code"] == "authentication"
        assert_untouched(guest)

    def test_qemu_missing_at_the_destination(self, lab: Lab, guest: Guest) -> None:
        config = lab.config(hosts_b={"qemu": "/usr/bin/no-such-qemu"})
        ran = lab.cli("migrate", guest.name, "--to", "b", config=config, code=3)
        assert "/usr/bin/no-such-qemu" in ran.err
        assert "[FAIL]" in lab.cli("check", guest.name, "--to", "b", config=config, code=3).out
        assert_untouched(guest)

    def test_qemu_missing_where_a_guest_is_started(self, lab: Lab) -> None:
        config = lab.config(hosts_a={"qemu": "/usr/bin/no-such-qemu"})
        ran = lab.cli("vm", "start", str(lab.spec("noqemu")), "--on", "a", config=config, code=1)
        assert "qemu-system-x86" in ran.err

    def test_what_is_no_qemu(self, lab: Lab, guest: Guest) -> None:
        config = lab.config(hosts_b={"qemu": "/bin/true"})
        ran = lab.cli("migrate", guest.name, "--to", "b", config=config, code=3)
        assert "/bin/true" in ran.err
        assert_untouched(guest)

    def test_machine_type_unknown_at_the_destination(self, lab: Lab, guest: Guest) -> None:
        real = shutil.which("qemu-system-x86_64")
        old = lab.files / "qemu-old"
        old.write_text(f'#!/bin/sh\n{real} "$@" | sed s/pc-q35-7.2/pc-q35-1.2/g\n')
        old.chmod(0o755)
        ran = lab.cli("migrate", guest.name, "--to", "b", config=lab.config(hosts_b={"qemu": str(old)}), code=3)
        assert "does not know the machine type pc-q35-7.2" in ran.err
        assert_untouched(guest)

    def test_port_taken(self, lab: Lab, guest: Guest) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.3", 0))
            taken.listen()
            port = taken.getsockname()[1]
            config = lab.config(hosts_b={"migration_ports": f"{port}-{port}"})
            ran = lab.cli("migrate", guest.name, "--to", "b", "--json", config=config, code=4)
        assert str(port) in ran.doc["error"]["message"]
        assert "migration_ports" in ran.doc["error"]["hint"]
        assert (ran.doc["outcome"], ran.doc["owner"]) == ("rolled_back", "source")
        assert_untouched(guest)

    def test_address_of_another_host(self, lab: Lab, guest: Guest) -> None:
        config = lab.config(hosts_b={"migration_address": "192.0.2.1"})
        ran = lab.cli("migrate", guest.name, "--to", "b", config=config, code=3)
        assert "192.0.2.1 is not an address of b" in ran.err
        assert_untouched(guest)

    def test_image_missing_at_the_destination(self, lab: Lab) -> None:
        with lab.guest(disk=True) as guest:
            assert guest.disk is not None
            config = lab.config(hosts_b={"path_map": {str(guest.disk): "/nowhere/disk.img"}})
            ran = lab.cli("migrate", guest.name, "--to", "b", config=config, code=3)
            assert "/nowhere/disk.img is not on b" in ran.err
            assert_untouched(guest)

    def test_run_dir_cannot_be_made(self, lab: Lab, guest: Guest) -> None:
        config = lab.config(hosts_b={"run_dir": "/etc/hostname/run"})
        ran = lab.cli("migrate", guest.name, "--to", "b", config=config, code=3)
        assert "/etc/hostname/run" in ran.err
        assert_untouched(guest)
        spec = lab.spec("norun")
        started = lab.cli("vm", "start", str(spec), "--on", "b", config=config, code=1)
        assert "/etc/hostname/run" in started.err

    def test_socket_path_too_long(self, lab: Lab, guest: Guest) -> None:
        long = f"/tmp/{'x' * 100}"
        config = lab.config(hosts_b={"run_dir": long})
        ran = lab.cli("migrate", guest.name, "--to", "b", config=config, code=3)
        assert "107" in ran.err
        assert_untouched(guest)
        assert not Path(long).exists()


class TestBroker:
    def test_a_dead_broker_disturbs_nothing_and_is_said_once(self, lab: Lab) -> None:
        with lab.guest() as guest, socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            config = lab.config(mqtt={"url": f"mqtt://127.0.0.1:{closed.getsockname()[1]}"})
            ran = lab.cli("migrate", guest.name, "--to", "b", "--json", config=config)
            assert ran.doc["outcome"] == "completed"
            told = [line for line in ran.err.splitlines() if "broker" in line]
            assert len(told) == 1, ran.err
            guest.wait_survived("b")

    def test_a_broker_that_swallows_everything_disturbs_nothing(self, lab: Lab) -> None:
        with lab.guest() as guest, socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            config = lab.config(mqtt={"url": f"mqtt://127.0.0.1:{silent.getsockname()[1]}"})
            ran = lab.cli("migrate", guest.name, "--to", "b", "--json", config=config)
            assert ran.doc["outcome"] == "completed"
            guest.wait_survived("b")

    def test_events_without_a_broker_says_so(self, lab: Lab) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            config = lab.config(mqtt={"url": f"mqtt://127.0.0.1:{closed.getsockname()[1]}"})
            ran = lab.cli("events", config=config, code=1)
        assert "hint" in ran.err


def test_json_on_standard_output_is_one_document_also_on_failure(lab: Lab) -> None:
    ran = lab.cli("migrate", "nobody", "--to", "b", "--json", code=2)
    document = json.loads(ran.out)
    assert document["schema"] == "migration.result/1"
    assert (document["outcome"], document["error"]["code"]) == ("failed", "guest_unknown")
    assert not qemus("nobody")
