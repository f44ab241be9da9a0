"""`make dist`, `host setup` and the service, on a whole machine with systemd, sshd and dpkg of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.support.real import systemd_machine as machines
from tests.support.real.brokers import find_mosquitto, free_port, listens
from tests.support.real.lab import CLI, COMMAND_S, Ran, wait_for
from tests.support.real.systemd_machine import Machine

AGENT = "qmp-hostagent.service"
WAIT_S = 30.0

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(bool(machines.why_not()), reason=f"a machine with systemd: {machines.why_not()}"),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt-get install mosquitto"),
    pytest.mark.timeout(300),
]


@dataclass
class Site:
    """A machine, a broker that it can reach, and the controller's settings and keys."""

    machine: Machine
    directory: Path
    package: Path
    config: Path

    def cli(self, *words: str, code: int | None = 0) -> Ran:
        done = subprocess.run(
            [*CLI, "--config", str(self.config), *words],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"},
        )
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Ran(done.returncode, done.stdout, done.stderr)

    def setup(self, *words: str, code: int = 0) -> dict[str, Any]:
        login = ("--login-key", str(self.directory / "admin"), "--broker-dir", str(self.directory / "broker"))
        document: dict[str, Any] = self.cli("host", "setup", "a", *login, *words, "--json", code=code).doc
        assert document["schema"] == "host.setup/1"
        return document

    def states(self, document: dict[str, Any]) -> dict[str, str]:
        return {f"{step['id']} {step['text']}": step["state"] for step in document["steps"]}

    def agent(self, name: str) -> str:
        return self.machine.run("systemctl", "show", "-p", name, "--value", AGENT)


@pytest.fixture(scope="module")
def package() -> Iterator[Path]:
    """The package, as `make dist` builds it, but compressed in less time."""
    with tempfile.TemporaryDirectory(prefix="qm-") as out:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, str(ROOT)]
        subprocess.run(build, check=True, capture_output=True)
        [wheel] = Path(out).glob("*.whl")
        argv = [sys.executable, str(ROOT / "contrib/deb.py"), str(wheel), "--out", out, "--compression", "gzip"]
        subprocess.run(argv, check=True, capture_output=True)
        [found] = Path(out).glob("*.deb")
        yield found


@pytest.fixture(scope="module")
def site(package: Path) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="qm-") as name:
        directory = Path(name)
        for key in ("admin", "controller"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key], check=True)
        (directory / "machine").mkdir()
        with machines.machine(directory / "machine", (directory / "admin.pub").read_text().strip()) as up:
            scan = subprocess.run(["ssh-keyscan", up.address], capture_output=True, text=True, check=True)
            (directory / "known_hosts").write_text(scan.stdout)
            port = free_port()
            config = directory / "config.toml"
            config.write_text(
                f'[controller]\nstate = "sqlite:///{directory}/state.db"\n'
                f'[mqtt]\nurl = "mqtts://{up.outside}:{port}"\nca_file = "{directory}/broker/ca.crt"\n'
                f'cert_file = "{directory}/broker/identities/controller@main.crt"\n'
                f'key_file = "{directory}/broker/identities/controller@main.key"\n'
                f'[hosts.a]\naddress = "{up.address}"\nuser = "qmp"\nidentity_file = "{directory}/controller"\n'
                f'known_hosts = "{directory}/known_hosts"\n'
            )
            made = Site(up, directory, package, config)
            with broker(made, port):
                yield made


class broker:  # noqa: N801  a context manager
    def __init__(self, site: Site, port: int) -> None:
        directory = site.directory / "broker"
        (site.directory / "broker-state").mkdir()
        words = ["--host", "a", "--controller", "main", "--address", site.machine.outside, "--port", str(port)]
        words += ["--bind", site.machine.outside, "--state", str(site.directory / "broker-state"), "--run-as", "root"]
        site.cli("broker", "init", str(directory), *words)
        self._argv = [str(find_mosquitto()), "-c", str(directory / "mosquitto.conf")]
        self._log = site.directory / "broker.log"
        self._where = (site.machine.outside, port)

    def __enter__(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: listens(self._where[1], self._where[0]), WAIT_S, lambda: self._log.read_text())

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)


def test_a_bare_machine_becomes_a_host_and_stays_one(site: Site) -> None:
    # 1: a look, and nothing else
    looked = site.setup("--package", str(site.package), "--dry-run")
    assert (looked["changed"], looked["ready"], looked["dry_run"]) == (False, False, True)
    assert {step["id"] for step in looked["steps"] if step["state"] == "change"} == {
        "user",
        "key",
        "run-dir",
        "package",
        "file",
        "agent",
    }
    assert site.machine.run("getent", "passwd", "qmp", check=False) == ""
    # 2: the work; root has driven migrations from this machine before, and its journal stays its own
    site.machine.run("install", "-d", "-m", "0700", "/var/lib/qmp-migrate")
    done = site.setup("--package", str(site.package))
    assert (done["changed"], done["ready"]) == (True, True), site.states(done)
    assert "broker connected" in site.agent("StatusText")
    assert site.agent("Type") == "notify"
    assert site.machine.run("ps", "-o", "user=", "-p", site.agent("MainPID")) == "qmp"
    assert site.machine.run("stat", "-c", "%a %U:%G", "/etc/qmp-migrate/agent.key") == "640 root:qmp"
    assert site.machine.run("stat", "-c", "%a %U:%G", "/var/lib/qmp-migrate") == "700 root:root"
    # 3: the controller can use it, as a user without any right
    assert site.cli("vm", "list", "--json").doc["guests"] == []
    # 4: once more: nothing to do, nothing restarted
    first = site.agent("MainPID")
    again = site.setup("--package", str(site.package))
    assert (again["changed"], again["ready"]) == (False, True), site.states(again)
    assert site.agent("MainPID") == first
    # 5: what somebody has changed is set right; what is his is left alone
    site.machine.run(
        "sh", "-c", "echo QMP_HOSTAGENT_HOST=b >/etc/qmp-migrate/hostagent.env; chmod 755 /run/qmp-migrate"
    )
    site.machine.run("sh", "-c", "echo '# mine' >>/var/lib/qmp-hostagent/.ssh/authorized_keys")
    mended = site.setup()
    assert (mended["changed"], mended["ready"]) == (True, True), site.states(mended)
    assert site.agent("MainPID") != first
    assert "host a, broker connected" in site.agent("StatusText")
    keys = site.machine.run("cat", "/var/lib/qmp-hostagent/.ssh/authorized_keys").splitlines()
    assert keys == [(site.directory / "controller.pub").read_text().strip(), "# mine"]
    # 6: a renewed identity is brought there
    site.cli("broker", "renew", str(site.directory / "broker"), "a")
    renewed = site.setup()
    assert [step["text"] for step in renewed["steps"] if "agent.crt" in step["text"]] == ["/etc/qmp-migrate/agent.crt"]
    assert (renewed["changed"], renewed["ready"]) == (True, True), site.states(renewed)


def test_the_service_sees_guests_survives_and_is_watched(site: Site) -> None:
    site.setup("--package", str(site.package))
    machine = site.machine
    spec = site.directory / "web1.toml"
    spec.write_text('name = "web1"\nmachine = "pc-q35-7.2"\nmemory = "64MiB"\nvcpus = 1\naccel = "tcg"\n')
    site.cli("vm", "start", str(spec), "--on", "a")
    try:
        wait_for(lambda: "guests 1" in site.agent("StatusText"), WAIT_S, lambda: journal(machine))
        guest = machine.run("sh", "-c", "cut -d' ' -f1 /run/qmp-migrate/web1/pid")
        # It hangs: systemd ends it and starts another one; the guest does not notice.
        machine.run("sh", "-c", f"mkdir -p /run/systemd/system/{AGENT}.d")
        machine.run("sh", "-c", f"printf '[Service]\\nWatchdogSec=2s\\n' >/run/systemd/system/{AGENT}.d/test.conf")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", AGENT)
        hung = site.agent("MainPID")
        machine.run("kill", "-STOP", hung)
        wait_for(lambda: site.agent("MainPID") not in {hung, "0"}, WAIT_S, lambda: journal(machine))
        wait_for(lambda: site.agent("ActiveState") == "active", WAIT_S, lambda: journal(machine))
        wait_for(lambda: "guests 1" in site.agent("StatusText"), WAIT_S, lambda: journal(machine))
        assert int(site.agent("NRestarts")) >= 1  # on a busy machine one that does not hang may take 2 s, too
        assert machine.run("cut", "-d ", "-f1", "/run/qmp-migrate/web1/pid") == guest
        assert Path(f"/proc/{machine.pid}").exists()
        machine.run("kill", "-0", guest)
    finally:
        site.cli("vm", "stop", "web1", "--on", "a", "--force", code=None)


def test_what_is_wrong_is_said_before_anything_is_touched(site: Site, tmp_path: Path) -> None:
    site.setup("--package", str(site.package))
    other = site.cli("host", "setup", "z", code=None)
    assert (other.code, "known: a" in other.err) == (2, True), other.err
    rubbish = tmp_path / "x.deb"
    rubbish.write_bytes(b"not a package")
    assert "make dist" in site.cli("host", "setup", "a", "--package", str(rubbish), code=78).err
    denied = site.cli("host", "setup", "a", "--login-key", str(site.directory / "controller"), code=69)
    assert "hint:" in denied.err
    # A user who is not root and has no sudo rule
    key = str(site.directory / "controller")
    refused = site.cli("host", "setup", "a", "--login", "qmp", "--login-key", key, code=1)
    assert "--login" in refused.err, refused.err
    # Something that only a person can mend
    drop_in = "/etc/systemd/logind.conf.d/mine.conf"
    site.machine.run(
        "sh", "-c", f"mkdir -p {Path(drop_in).parent}; printf '[Login]\\nKillUserProcesses=yes\\n' >{drop_in}"
    )
    refused_steps = site.setup(code=3)
    assert [step["id"] for step in refused_steps["steps"] if step["state"] == "fail"] == ["logind"]
    site.machine.run("rm", drop_in)


def test_what_the_package_brought_goes_with_it(site: Site) -> None:
    site.setup("--package", str(site.package))
    site.machine.run("dpkg", "--purge", "qmp-migrate")
    assert site.machine.run("systemctl", "is-active", AGENT, check=False) == "inactive"
    for path in ("/usr/lib/qmp-migrate", "/etc/qmp-migrate", "/usr/bin/qmp-hostagent", f"/lib/systemd/system/{AGENT}"):
        assert site.machine.run("ls", "-d", path, check=False) == "", path


@pytest.mark.parametrize("unit", ["qmp-hostagent", "qmp-migrate-notify", "qmp-migrate-home-assistant"])
def test_the_units_are_as_hard_as_we_say(site: Site, unit: str) -> None:
    site.setup("--package", str(site.package))
    report = json.loads(site.machine.run("systemd-analyze", "security", "--json=short", f"{unit}.service"))
    assert report
    site.machine.run("systemd-analyze", "security", "--threshold=20", f"{unit}.service")


def journal(machine: Machine) -> str:
    return machine.run("journalctl", "-u", AGENT, "-n", "20", "-o", "cat", "--no-pager", check=False)
