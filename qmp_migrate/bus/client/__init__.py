"""The connection to the broker: publishing, subscribing, presence, and what is done in an outage."""
