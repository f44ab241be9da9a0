"""One sample of the shoot-out: the link, the guest, what it says and what QEMU says."""
