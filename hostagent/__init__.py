"""The per-host agent: sees the guests of its host, tells the bus about them, and guards them (`hostagent.guardian`)."""
