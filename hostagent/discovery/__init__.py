"""The QEMU processes of this host: guests of ours, and those that somebody else has started."""
