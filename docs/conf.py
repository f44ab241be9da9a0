"""Sphinx configuration: ``make docs``."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "qmp-migrate"
author = "the qmp-migrate contributors"
project_copyright = author
release = version = installed_version("qmp-migrate")

extensions = ["myst_parser"]
exclude_patterns = ["_build", "generated/*.md"]  # those are included by other pages
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"qmp-migrate {release}"
html_copy_source = False
nitpicky = True
