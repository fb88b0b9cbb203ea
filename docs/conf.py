"""Settings of the site, which `sphinx-build -E -W docs build/site` makes from the pages of this folder."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

import fiberstore

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import reference_pages  # noqa: E402  # of the folder that was just added

project = "fiberstore"
copyright = "the contributors of fiberstore; MIT licence"  # noqa: A001  # as Sphinx has it
release = version = fiberstore.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["examples/*/*"]
html_theme = "furo"
html_title = f"fiberstore {release}"
pygments_style = "default"
suppress_warnings = ["misc.highlighting_failure"]  # logs are not quite of any language

myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_inherit_docstrings = False  # a method of the contract is described once, there
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def setup(app: Sphinx) -> None:
    """Fill the pages that are generated, and let docstrings have blocks of code as Markdown has them."""
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", fences_to_directives, priority=100)  # before napoleon


def fill(_app: Sphinx, _name: str, content: list[str]) -> None:
    """Replace the marker of a generated part by the part."""
    content[0] = reference_pages.fill(content[0])


def fences_to_directives(_app: Sphinx, *about: object) -> None:
    """Turn the fences of a docstring, the last argument, into blocks of reStructuredText in place."""
    lines = about[-1]
    assert isinstance(lines, list)
    lines[:] = reference_pages.without_fences(lines)
