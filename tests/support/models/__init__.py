"""Models: every cell, every history, every order of two controllers."""
