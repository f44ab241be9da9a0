"""``--copy-storage`` with and without its value."""

from __future__ import annotations

import pytest

from qmp_migrate.cli.optional_value import written_out


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("web1 --to b --copy-storage", "web1 --to b --copy-storage=full"),
        ("--copy-storage web1 --to b", "--copy-storage=full web1 --to b"),
        ("web1 --copy-storage --to b", "web1 --copy-storage=full --to b"),
        ("web1 --copy-storage top --to b", "web1 --copy-storage top --to b"),
        ("web1 --copy-storage=top --to b", "web1 --copy-storage=top --to b"),
        ("web1 --to b", "web1 --to b"),
        ("-- --copy-storage", "-- --copy-storage"),
    ],
)
def test_alone_it_means_full(words: str, meant: str) -> None:
    assert written_out(words.split()) == meant.split()
