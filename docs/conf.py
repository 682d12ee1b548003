"""Sphinx settings: pages are Markdown, warnings are errors (`make docs`)."""

from sinkscope import __version__

project = "sinkscope"
author = "The sinkscope developers"
release = version = __version__
extensions = ["myst_parser"]
html_theme = "furo"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
suppress_warnings = ["toc.not_included"]  # pages about shipped models and decisions are reached by links
