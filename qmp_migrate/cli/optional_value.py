"""An option whose value may be left out: ``--copy-storage`` alone means ``--copy-storage full``.

Typer cannot express that, so it is written out before it parses.
"""

from __future__ import annotations

from typing import Any, Final

from typer.core import TyperCommand

MAY_BE_BARE: Final = {"--copy-storage": ("full", "top")}
"""Options, and the values they take; the first is what a bare one means."""


class Moving(TyperCommand):
    """A command with such options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, with the values written out."""
        return super().parse_args(ctx, written_out(args))


def written_out(args: list[str]) -> list[str]:
    """Return the words with the values of bare options added; a word behind one that is no value of it is left to itself."""
    written: list[str] = []
    for position, word in enumerate(args):
        if word == "--":
            return [*written, *args[position:]]
        values = MAY_BE_BARE.get(word)
        following = args[position + 1] if position + 1 < len(args) else None
        written.append(word if values is None or following in values else f"{word}={values[0]}")
    return written
