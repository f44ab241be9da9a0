"""How ``make images`` builds: what is whole stays, and what cannot be built is said."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

BUILT = ("vmlinuz", "initrd.img", "bare.elf", "manifest.json")
MISSING_TOOLS = ("gcc", "ld")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of its own with the images that were built in this one."""
    images = ROOT / "build/images"
    if not all((images / name).exists() for name in BUILT):
        pytest.skip("the images are not built: make images")
    shutil.copytree(ROOT / "vm-images", tmp_path / "vm-images")
    (tmp_path / "build/images").mkdir(parents=True)
    for name in BUILT:
        shutil.copy2(images / name, tmp_path / "build/images" / name)
    return tmp_path


@pytest.fixture
def no_compiler(tmp_path: Path) -> str:
    """A PATH with all programs of this machine but the compiler and the linker."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for directory in ("/bin", "/usr/bin"):
        for tool in Path(directory).iterdir():
            if tool.name not in MISSING_TOOLS and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    return str(tools)


def build(checkout: Path, *, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(checkout / "vm-images/build.sh")]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path}, timeout=60)


def times(checkout: Path) -> dict[str, int]:
    return {name: (checkout / "build/images" / name).stat().st_mtime_ns for name in BUILT}


def test_what_is_whole_stays(checkout: Path) -> None:
    before = times(checkout)
    done = build(checkout)
    assert (done.returncode, done.stdout) == (0, "build/images is up to date\n"), done.stderr
    assert times(checkout) == before
    with (checkout / "vm-images/bare/text.c").open("a") as file:
        file.write("/* changed */\n")
    assert build(checkout).returncode == 0
    changed = {name for name, time in times(checkout).items() if time != before[name]}
    assert changed == {"bare.elf", "manifest.json"}, "the Linux guest did not change"
    assert build(checkout).stdout == "build/images is up to date\n"


def test_a_damaged_image_is_built_again_with_the_same_bytes(checkout: Path) -> None:
    bare = checkout / "build/images/bare.elf"
    content = bare.read_bytes()
    bare.write_bytes(content[:-1])
    done = build(checkout)
    assert done.returncode == 0, done.stderr
    assert bare.read_bytes() == content


def test_without_a_compiler_the_linux_guest_that_is_there_stays(checkout: Path, no_compiler: str) -> None:
    (checkout / "build/images/bare.elf").unlink()
    done = build(checkout, path=no_compiler)
    assert done.returncode == 0, done.stderr
    assert "not there: gcc ld. No bare guest" in done.stderr
    assert "apt-get install gcc" in done.stderr
    assert (checkout / "build/images/vmlinuz").exists()


def test_without_a_compiler_nothing_can_be_built_and_the_reason_is_said(checkout: Path, no_compiler: str) -> None:
    (checkout / "build/images/initrd.img").unlink()
    done = build(checkout, path=no_compiler)
    assert done.returncode == 1
    assert "gcc is not there" in done.stderr
    assert "apt-get install gcc" in done.stderr
