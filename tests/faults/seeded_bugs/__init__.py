"""Bugs that would lose a guest, seeded at run time."""
