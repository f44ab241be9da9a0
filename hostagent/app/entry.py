"""``qmp-hostagent``: the relay at once, everything else by way of the command line."""

from __future__ import annotations

import sys


def main() -> int | None:
    """Run it; the entry point of the distribution."""
    if sys.argv[1:2] == ["relay"]:
        from hostagent.relay.entry import main as relay

        return relay(sys.argv[2:])
    from hostagent.app.cli import main as command_line

    command_line()
    return None


if __name__ == "__main__":
    raise SystemExit(main())
