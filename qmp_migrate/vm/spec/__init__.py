"""A guest written down in SPEC.toml, and the command line that is made from it. Pure."""
