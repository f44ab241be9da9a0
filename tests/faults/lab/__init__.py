"""Where cases run: a rig with cables, the traps in the controller, and the spy on both QEMUs."""
