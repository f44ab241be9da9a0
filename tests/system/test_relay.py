"""A guest moves between hosts on which the controller has no shell: its key is bound to the relay on both."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.real.lab import Lab


@contextmanager
def relays(lab: Lab) -> Iterator[Path]:
    """Bind the rig's key to the relay; both hosts know it by the same file, so the address tells which settings count."""
    import tomllib

    images = ROOT / "build" / "images"
    hosts = tomllib.loads(lab.settings.read_text())["hosts"]
    for host in hosts.values():
        settings = lab.files / f"relay-{host['address']}.toml"
        settings.write_text(
            f'run_dir = "{host["run_dir"]}"\nimages = ["{lab.files}"]\nreadable = ["{images}"]\n'
            'qemus = ["/usr/bin/qemu-system-x86_64"]\n'
        )
        settings.chmod(0o600)
    public = Path(f"{hosts['a']['identity_file']}.pub")
    line = public.read_text()
    relay = f"{sys.executable} -m hostagent.relay --settings {lab.files}/relay-$3.toml"
    command = f"cd {ROOT} && set -- $SSH_CONNECTION && {relay}"
    public.write_text(f'restrict,command="{command}" {line}')
    try:
        yield lab.config(hosts_a={"access": "relay"}, hosts_b={"access": "relay"})
    finally:
        public.write_text(line)


@pytest.mark.parametrize("mode", ["live", "postcopy"])
def test_a_guest_moves_through_two_relays(lab: Lab, mode: str) -> None:
    with lab.guest() as guest, relays(lab) as config:
        listed = lab.cli("vm", "list", "--json", config=config).doc["guests"]
        assert guest.name in {found["name"] for found in listed}
        result = lab.cli("migrate", guest.name, "--to", "b", "--mode", mode, "--json", config=config).doc
        assert (result["outcome"], result["owner"], result["warnings"]) == ("completed", "destination", []), result
        guest.wait_survived("b")
        assert lab.cli("status", config=config).code == 0
        back = lab.cli("migrate", guest.name, "--to", "a", "--json", config=config).doc
        assert back["owner"] == "destination", back
        lab.cli("vm", "stop", guest.name, "--on", "a", "--force", config=config)


def test_a_guest_is_started_through_a_relay_and_what_it_may_not_is_refused_first(lab: Lab) -> None:
    with relays(lab) as config:
        spec = lab.spec("relayed", firmware_only=True)
        lab.cli("vm", "start", str(spec), "--on", "a", config=config)
        try:
            refused = lab.cli("vm", "save", "relayed", "--on", "a", "--to", "/tmp/x", config=config, code=None)
            assert refused.code != 0
            shown = lab.cli("vm", "show", "relayed", "--on", "a", "--json", config=config).doc
            assert shown["state"] == "running"
        finally:
            lab.cli("vm", "stop", "relayed", "--on", "a", "--force", config=config)
        evil = lab.spec("evil", firmware_only=True, extra='args = ["-device", "loader,file=/etc/passwd"]\n')
        ran = lab.cli("vm", "start", str(evil), "--on", "a", config=config, code=None)
        assert ran.code == 1
        assert "the relay does not allow it" in ran.err
        assert "hint:" in ran.err
        assert not (lab.run_dir("a") / "evil").exists()
