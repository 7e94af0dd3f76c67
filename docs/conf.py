"""The documentation site: `sphinx-build -W docs site` (extra `docs`). Every page is Markdown; those of the components
and commands are written by generate.py, and not kept in git."""

import sys
from pathlib import Path

from docutils.parsers.rst import Directive
from docutils.utils import new_document
from myst_parser.parsers.sphinx_ import MystParser

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import generate  # noqa: E402  (beside this file)

from rkd import __version__  # noqa: E402

project = "rkd"
author = "The rkd developers"
copyright = author
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]

html_theme = "furo"
html_title = f"rkd {__version__}"
html_static_path = ["_static"]
html_css_files = ["rkd.css"]
html_theme_options = {
    "source_repository": "https://github.com/rkd-toolkit/rkd/",
    "source_branch": "main",
    "source_directory": "docs/",
}
highlight_language = "text"  # commands, tables of the terminal and formulas stand in plain fences
myst_enable_extensions = ["deflist", "attrs_inline"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False


class Markdown(Directive):
    """Content in Markdown, within what autodoc writes as reStructuredText."""

    has_content = True

    def run(self):
        document = new_document("docstring", self.state.document.settings)
        MystParser().parse("\n".join(self.content), document)
        return document.children


def as_markdown(app, what, name, obj, options, lines):
    """rkd's docstrings are Markdown."""
    if any(lines):
        lines[:] = [".. markdown::", "", *(f"    {line}" for line in lines), ""]


def setup(app):
    app.add_directive("markdown", Markdown)
    app.connect("autodoc-process-docstring", as_markdown)
    generate.write_pages(DOCS)
    return {"parallel_read_safe": True}
