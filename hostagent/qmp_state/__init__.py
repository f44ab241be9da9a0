"""What a QEMU's answers mean: run state, role in a migration, reason of its end. Pure."""
