"""A guest saved to a file and restored from it."""
