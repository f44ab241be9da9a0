"""What QEMU speaks: monitors, features, migration, encryption. Knows nothing of hosts (they meet in ``migration``)."""
