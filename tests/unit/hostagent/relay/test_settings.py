"""What a host's owner allows: as it is read, explained, and made into a line of authorized_keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostagent.relay.argument_rules import path_below
from hostagent.relay.entry import main as entry
from hostagent.relay.settings import Allowed, BadSettings, read
from qmp_migrate.hosts import process_scripts
from tests.support.data.relay_requests import asked


def test_links_that_lead_out_are_followed_before_they_are_believed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/out").symlink_to("/etc")
    (tmp_path / "in/own").symlink_to(tmp_path / "in")
    roots = (str(tmp_path / "in"),)
    assert path_below(f"{tmp_path}/in/a/b", roots)
    assert path_below(f"{tmp_path}/in/own/a", roots)
    for path in (f"{tmp_path}/in", f"{tmp_path}/in/out/passwd", f"{tmp_path}/in/../x", f"{tmp_path}/inner", "in/a", ""):
        assert not path_below(path, roots), path


def test_settings_that_anybody_may_write_or_that_say_nonsense_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    assert read(path) == Allowed()
    path.write_text('run_dir = "/run/x"\nimages = ["/srv/images"]\n')
    assert read(path).images == ("/srv/images",)
    path.chmod(0o666)
    with pytest.raises(BadSettings, match="others"):
        read(path)
    path.chmod(0o600)
    for text in (
        "x = 1",
        'images = "/srv"',
        'images = ["srv"]',
        'run_dir = "/"',
        'qemus = ["/a/../b"]',
        "run_dir = [",
        "run_dir = 1",
    ):
        path.write_text(text)
        with pytest.raises(BadSettings):
            read(path)


def test_it_explains_and_makes_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings_file = tmp_path / "relay.toml"
    settings_file.write_text(f'run_dir = "{tmp_path}/run"\n')
    assert entry(["--settings", str(settings_file), "--explain", "id"]) == 77
    assert entry(["--settings", str(settings_file), "--explain", asked(process_scripts.LIST, f"{tmp_path}/run")]) == 0
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAA me\n")
    capsys.readouterr()
    assert entry(["--line", str(key)]) == 0
    line = capsys.readouterr().out
    assert line.startswith('restrict,command="')
    assert line.endswith(' relay" ssh-ed25519 AAAA me\n')
    assert entry(["--nonsense"]) == 2
