"""Sphinx configuration: `make doc` builds these pages and the API reference into docs/_build/html."""

import re
import sys
from pathlib import Path
from typing import Any

# Document this checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sb3_scoreflow

project = "sb3_scoreflow"
author = copyright = "sb3_scoreflow contributors"
version = release = sb3_scoreflow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "ScoRe-Flow for Stable-Baselines3", "page_width": "1100px"}

# The README is not a page here: its links point outside the built site.
suppress_warnings = ["myst.xref_missing"]

# Anchors for headings, as GitHub makes them.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
# Types go to the parameter list, which keeps long signatures readable.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"


def _link_readme(app: Any, docname: str, source: list[str]) -> None:
    """Pages link to ../README.md, which is outside this folder: here the link gives the file itself."""
    source[0] = re.sub(r"\]\(\.\./README\.md(#[\w-]+)?\)", "](path:../README.md)", source[0])


def setup(app: Any) -> None:
    app.connect("source-read", _link_readme)
