"""The devices of a running guest: queried, compared with the command line, and written as options again."""
