"""``python -m qmp_migrate.cli``: the command line without its entry point."""

from qmp_migrate.cli.main import main

main()
