"""The command line: parse, call, render. Thin, and quick to start: what a command needs is imported when it runs."""
