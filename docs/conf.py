"""Sphinx configuration: `make doc` builds these pages and the API reference into docs/_build/html."""

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml

# Document this checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sb3_scoreflow

project = "sb3_scoreflow"
author = copyright = "sb3_scoreflow contributors"
version = release = sb3_scoreflow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"sb3_scoreflow {release}"
html_theme_options = {"sidebar_hide_name": False, "navigation_with_keys": True}
html_static_path = ["static"]
html_css_files = ["tables.css"]

# Only what is to be typed is copied, not prompts and output.
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath", "fieldlist", "substitution"]
# Anchors for headings, as GitHub makes them.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
# Types go to the parameter list, which keeps long signatures readable.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"

_LINK = re.compile(r"\]\((?P<path>\.\./[^)#\s]*)(#[^)\s]*)?\)")
_PICTURES = (".gif", ".png", ".svg")


def _link_outside(app: Any, docname: str, source: list[str]) -> None:
    """
    Links to files outside this folder, which are right on GitHub, give the file itself here, and links to folders become
    text. Links that lead nowhere stay, so that the build fails on them.
    """

    def replace(match: re.Match[str]) -> str:
        target = (Path(app.srcdir) / docname).parent / match["path"]
        if target.is_dir():
            return "]{.folder}"
        linked = target.is_file() and not match["path"].endswith(_PICTURES)
        return f"](path:{match['path']})" if linked else match[0]

    source[0] = _LINK.sub(replace, source[0])


def _inline_formula(translator: Any, node: nodes.math) -> None:
    translator.body.append(_as_mathml(node))
    raise nodes.SkipNode


def _displayed_formula(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_as_mathml(node)}</div>')
    raise nodes.SkipNode


def _as_mathml(node: nodes.Element) -> str:
    """Formulas as MathML, which browsers show without a script; MathJax would be loaded from the network."""
    text = node.astext().replace(r"\dots", r"\ldots")  # docutils knows only the latter
    return str(latex2mathml.tex2mathml(text, as_block=isinstance(node, nodes.math_block)))


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (_inline_formula, None), (_displayed_formula, None))
    app.connect("source-read", _link_outside)
