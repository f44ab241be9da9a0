"""The messages of the bus: their types, topics, schemas and encoding."""
