"""QEMU processes that somebody else has started: found, and adopted."""
