"""Where the test guest is looked for, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmp_migrate.errors import RigError
from qmp_migrate.rig.guest.images import find_images


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The three directories that are looked at, none of which exists yet."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("QMP_MIGRATE_IMAGES", raising=False)
    return {
        "named": tmp_path / "named",
        "checkout": tmp_path / "work/build/images",
        "cache": tmp_path / "cache/qmp-migrate/images",
    }


def put_image(directory: Path, *names: str) -> None:
    directory.mkdir(parents=True)
    for name in names or ("vmlinuz", "initrd.img"):
        (directory / name).touch()


def test_the_checkout_goes_before_the_cache(places: dict[str, Path]) -> None:
    put_image(places["cache"])
    assert find_images().kernel == places["cache"] / "vmlinuz"
    put_image(places["checkout"])
    found = find_images()
    assert found.kernel == places["checkout"] / "vmlinuz"
    assert found.initrd == places["checkout"] / "initrd.img"


def test_the_named_directory_is_the_only_one(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    put_image(places["checkout"])
    monkeypatch.setenv("QMP_MIGRATE_IMAGES", str(places["named"]))
    # Silently taking another image than the one that was named would test something else.
    with pytest.raises(RigError, match="named"):
        find_images()
    put_image(places["named"])
    assert find_images().kernel == places["named"] / "vmlinuz"


@pytest.mark.parametrize("only", ["vmlinuz", "initrd.img"])
def test_half_an_image_is_none(places: dict[str, Path], only: str) -> None:
    put_image(places["checkout"], only)
    with pytest.raises(RigError) as caught:
        find_images()
    assert "make images" in (caught.value.hint or "")
    assert str(places["checkout"]) in caught.value.message


def test_a_relative_cache_home_is_ignored(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    put_image(Path("elsewhere/qmp-migrate/images"))
    monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
    monkeypatch.setenv("HOME", str(places["named"]))
    with pytest.raises(RigError, match=r"\.cache"):
        find_images()


def test_the_bare_guest_is_one_file(places: dict[str, Path]) -> None:
    put_image(places["checkout"])
    with pytest.raises(RigError, match=r"bare test guest's bare\.elf is not there"):
        find_images("bare")
    (places["checkout"] / "bare.elf").touch()
    found = find_images("bare")
    assert (found.kernel, found.initrd, found.kind) == (places["checkout"] / "bare.elf", None, "bare")
    assert find_images().kind == "linux"
