"""`host setup`: which steps a machine needs, what its agent is told, and what is refused before anything is touched."""

from __future__ import annotations

import base64
import dataclasses
import re
from pathlib import Path

import pytest

from qmp_migrate.errors import ConfigError, HostUnknown, RemoteError, UsageError
from qmp_migrate.fleet.provisioning import scripts
from qmp_migrate.fleet.provisioning.host_spec import Asked, make_wish
from qmp_migrate.fleet.provisioning.plan import File, Machine, Package, Step, Wish, key_blob, plan
from qmp_migrate.settings import Settings
from tests import ROOT

KIND = b"ssh-ed25519"
BLOB = base64.b64encode(len(KIND).to_bytes(4, "big") + KIND + bytes(36)).decode()
KEY = f"ssh-ed25519 {BLOB} me@controller"
PACKAGE = Package(Path("x.deb"), "d1", 12_000_000, "0.1.0", "amd64", 11)
FILES = (File("/etc/qmp-migrate/hostagent.env", b"X=1\n", 0o640, for_user=True),)
WISH = Wish("a", "qmp", "/run/qmp-migrate", "/usr/bin/qemu-system-x86_64", KEY, PACKAGE, True, FILES)
READY = {
    "uid": "0",
    "kernel": "Linux",
    "machine": "x86_64",
    "os": "Debian",
    "dpkg": "amd64",
    "python": "3.11",
    "kvm": "yes",
    "kvm_group": "yes",
    "qemu": "7.2",
    "home": "/var/lib/qmp-hostagent",
    "shell": "/bin/sh",
    "groups": "qmp kvm",
    "group": "qmp",
    "key": "present",
    "run_dir": "700 qmp",
    "package": "0.1.0",
    "package_digest": "d1",
    "systemd": "yes",
    "agent_active": "active",
    "agent_enabled": "enabled",
    "agent_status": "host a, broker connected, guests 3",
    "sshd_streamlocal": "yes",
    "sshd_sessions": "10",
}
THERE = {FILES[0].path: (FILES[0].digest, "640", "root:qmp")}
BARE = {
    name: READY[name] for name in ("uid", "kernel", "machine", "os", "dpkg", "python", "kvm", "kvm_group", "systemd")
}


def states(steps: list[Step]) -> dict[str, str]:
    return {step.id: step.state for step in steps}


def test_a_machine_that_is_ready_needs_nothing() -> None:
    assert set(states(plan(WISH, Machine(READY, THERE))).values()) == {"ok"}


def test_a_bare_machine_needs_everything_in_an_order_that_works() -> None:
    steps = plan(WISH, Machine(BARE))
    todo = [step.id for step in steps if step.state == "change"]
    assert todo == ["user", "key", "run-dir", "package", "file", "agent"]
    assert states(steps)["qemu"] == "warn"


@pytest.mark.parametrize(
    ("facts", "changes"),
    [
        ({"groups": "qmp"}, {"user", "agent"}),
        ({"key": ""}, {"key"}),
        ({"run_dir": "755 qmp"}, {"run-dir"}),
        ({"run_dir": "700 root"}, {"run-dir"}),
        ({"package_digest": "d2"}, {"package", "agent"}),
        ({"package": "", "package_digest": "d1"}, {"package", "agent"}),
        ({"agent_active": "failed"}, {"agent"}),
        ({"agent_enabled": "disabled"}, {"agent"}),
    ],
)
def test_what_is_not_so_is_done_and_the_agent_starts_anew_only_where_it_matters(
    facts: dict[str, str], changes: set[str]
) -> None:
    steps = plan(WISH, Machine(READY | facts, THERE))
    assert {step.id for step in steps if step.state == "change"} == changes
    assert not [step for step in steps if step.state == "fail"]


@pytest.mark.parametrize(
    "found",
    [("other", "640", "root:qmp"), (FILES[0].digest, "644", "root:qmp"), (FILES[0].digest, "640", "root:root"), None],
)
def test_a_file_that_differs_in_content_or_rights_is_written(found: tuple[str, str, str] | None) -> None:
    steps = plan(WISH, Machine(READY, {FILES[0].path: found} if found else {}))
    assert {step.id for step in steps if step.state == "change"} == {"file", "agent"}


@pytest.mark.parametrize(
    ("facts", "refused", "says"),
    [
        ({"kernel": "FreeBSD"}, "system", "not Linux"),
        ({"dpkg": ""}, "system", "no dpkg"),
        ({"dpkg": "arm64", "package_digest": "d2"}, "package", "is for amd64"),
        ({"python": "3.13", "package_digest": "d2"}, "package", "Python 3.11"),
        ({"shell": "/usr/sbin/nologin"}, "user", "nologin"),
        ({"sshd_streamlocal": "no"}, "sshd", "AllowStreamLocalForwarding"),
        ({"kill_user_processes": "yes"}, "logind", "every guest"),
    ],
)
def test_what_only_a_person_can_mend_is_refused(facts: dict[str, str], refused: str, says: str) -> None:
    [step] = [step for step in plan(WISH, Machine(READY | facts, THERE)) if step.state == "fail"]
    assert step.id == refused
    assert says in step.text


def test_no_package_given_keeps_the_one_that_is_there_and_is_refused_where_there_is_none() -> None:
    wish = dataclasses.replace(WISH, package=None)
    assert states(plan(wish, Machine(READY, THERE)))["package"] == "ok"
    assert states(plan(wish, Machine(READY | {"package": ""}, THERE)))["package"] == "fail"


def test_an_agent_without_its_broker_and_a_machine_without_systemd_are_told_of() -> None:
    lonely = plan(WISH, Machine(READY | {"agent_status": "host a, broker not connected, guests 0"}, THERE))
    assert states(lonely)["agent"] == "warn"
    container = plan(WISH, Machine({**READY, "systemd": ""}, THERE))
    assert states(container)["agent"] == "warn"


def test_a_key_with_other_options_is_left_alone() -> None:
    steps = plan(WISH, Machine(READY | {"key": "other"}, THERE))
    assert states(steps)["key"] == "warn"


@pytest.mark.parametrize(
    "line", ["", "ssh-ed25519", f"ssh-ed25519 {BLOB[:-5]}!", f"ssh-rsa {BLOB}", f"{KEY}\n{KEY}", "x y z"]
)
def test_what_is_no_public_key_is_refused(line: str) -> None:
    with pytest.raises(UsageError):
        key_blob(line)


def test_a_key_may_have_options_before_it() -> None:
    assert key_blob(f'restrict,command="x y" {KEY}') == BLOB


def test_what_the_machine_says_is_read_and_nobody_but_root_is_believed() -> None:
    said = "uid 0\nkernel Linux\ngroups qmp kvm\nkvm_group yes\nfile ab 640 root:qmp /etc/a b\n"
    found = scripts.machine(said, "a")
    assert found.get("groups") == "qmp kvm"
    assert found.files == {"/etc/a b": ("ab", "640", "root:qmp")}
    for output in ("", "uid 1000\n", "kernel Linux\n"):
        with pytest.raises(RemoteError, match="not root"):
            scripts.machine(output, "a")


def settings(directory: Path, **host: str) -> Settings:
    (directory / "key.pub").write_text(KEY + "\n")
    section = {"address": "192.0.2.1", "user": "qmp", "identity_file": str(directory / "key"), **host}
    return Settings.model_validate(
        {"mqtt": {"url": "mqtt://broker"}, "hosts": {"a": {name: value for name, value in section.items() if value}}}
    )


def environment(wish: Wish) -> str:
    [found] = [file for file in wish.files if file.path.endswith(".env")]
    return found.content.decode()


def test_the_settings_become_the_agents(tmp_path: Path) -> None:
    wish = make_wish(settings(tmp_path), "a", Asked())
    assert [line for line in environment(wish).splitlines() if not line.startswith("#")] == [
        "QMP_HOSTAGENT_HOST=a",
        "QMP_HOSTAGENT_MQTT=mqtt://broker",
        "QMP_HOSTAGENT_RUN_DIR=/run/qmp-migrate",
    ]
    assert [file.path for file in wish.files] == ["/etc/qmp-migrate/hostagent.env"]
    other = make_wish(
        settings(tmp_path, user="vm", run_dir="/srv/my guests"), "a", Asked(url="mqtts://b:1", metrics="127.0.0.1:1")
    )
    assert 'QMP_HOSTAGENT_RUN_DIR="/srv/my guests"' in environment(other)
    assert "QMP_HOSTAGENT_METRICS=127.0.0.1:1" in environment(other)
    assert {file.path for file in other.files} >= {
        "/etc/tmpfiles.d/qmp-migrate-host.conf",
        "/etc/systemd/system/qmp-hostagent.service.d/50-setup.conf",
    }


def test_every_service_that_is_named_is_one_that_the_package_brings() -> None:
    """In the scripts, in the settings of systemd, and in what people are told to type."""
    brought = {path.name for path in (ROOT / "contrib" / "systemd").glob("*.service")}
    places = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("contrib/**/*.*")]
    places += [path for top in ("qmp_migrate", "hostagent") for path in (ROOT / top).rglob("*.py")]
    named = {
        (name, str(path.relative_to(ROOT)))
        for path in places
        if path.is_file() and "_build" not in path.parts and path.suffix != ".pyc"
        for name in re.findall(r"\bqmp-[a-z.-]+\.service\b", path.read_text())
    }
    assert {name for name, _ in named} >= brought
    assert not [(name, place) for name, place in named if name not in brought]


def test_a_host_with_a_relay_gets_a_key_that_is_bound_to_it(tmp_path: Path) -> None:
    wish = make_wish(settings(tmp_path, access="relay"), "a", Asked())
    assert wish.key == f'restrict,command="/usr/bin/qmp-hostagent relay" {KEY}'
    assert wish.key_blob == BLOB


def test_what_is_missing_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(HostUnknown, match="'z'"):
        make_wish(settings(tmp_path), "z", Asked())
    for user in ("", "root", "Not A Name"):
        with pytest.raises(ConfigError, match="a user of their own"):
            make_wish(settings(tmp_path, user=user), "a", Asked())
    with pytest.raises(ConfigError, match="no broker"):
        make_wish(settings(tmp_path).model_copy(update={"mqtt": Settings().mqtt}), "a", Asked())
    keyless = settings(tmp_path)
    (tmp_path / "key.pub").unlink()
    with pytest.raises(ConfigError, match="no public key"):
        make_wish(keyless, "a", Asked())
