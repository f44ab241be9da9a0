"""The bus at scale: many agents, one Mosquitto, one follower. `make bench SET=bus`; docs/reference/bus-scale.md."""
