"""The relay: what a controller's key may do on a host where it has no shell.

A forced command in ``authorized_keys`` runs it for each command of the controller. It knows the controller's scripts by
their SHA-256, checks every argument of each, QEMU's command line and every QMP command, and refuses what it does not know.
What it lets through is run as it was checked, with no shell in between.
"""
