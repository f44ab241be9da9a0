"""The program: its command line, its start, its service loop, and what it tells systemd."""
