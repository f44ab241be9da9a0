"""One QEMU of a migration: its host, its process, its monitor, and the lock that guards it."""
