"""The journal's schema, version by version: run by Alembic, in order, each once."""
