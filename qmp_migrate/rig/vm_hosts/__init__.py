"""Hosts of the rig that are virtual machines: their start, their network, their power."""
