"""What runs the tests: `make check`, `make test`, `make steady` and `make test-full`.

`steps` runs commands side by side and says how long each took; `plan` says which commands there are; `record` is the pytest
plugin that writes down each test's outcome as soon as it is known, so that a run that was interrupted can go on; `table`
reads that back. Nothing here runs a failed test again.

The standard library suffices for all but the plugin: `make test` runs this before the virtual environment exists.
"""
