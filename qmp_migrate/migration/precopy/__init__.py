"""Copying of guest memory while the guest runs: the runner, the policy runner, and how copying fails."""
