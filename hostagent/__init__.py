"""The per-host agent: sees the guests of its host and tells the bus about them. All that it ever
changes: a guest whose controller is gone in a guarded switchover runs on (`hostagent.guardian`)."""
