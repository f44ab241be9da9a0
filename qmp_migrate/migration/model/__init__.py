"""Data types of a migration: the request, its phases, check lines, progress and the reporter interface."""
