"""``python -m hostagent.relay``: the same as ``qmp-hostagent relay``."""

from hostagent.relay.entry import main

raise SystemExit(main())
