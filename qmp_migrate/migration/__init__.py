"""One migration: preflight, engine, handover, convergence, journal. Where ``qemu``, ``hosts`` and ``vm`` meet."""
