"""The per-host agent: sees the guests of its host and tells the bus about them. It never changes a guest."""
