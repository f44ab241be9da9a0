"""Faults at each phase of a migration, with real QEMUs, a real sshd and the real command line. See README.md."""
