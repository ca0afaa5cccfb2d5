"""How the documentation is built: `make docs`, with warnings as errors."""

from __future__ import annotations

import re
from importlib.metadata import version as installed
from typing import Any

project = "infuser"
author = "The infuser developers"
version = release = installed("infuser")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_templates", "gallery/GALLERY_HEADER.rst", "sg_execution_times.rst"]
templates_path = ["_templates"]
html_static_path = ["_static"]
html_theme = "alabaster"
html_theme_options = {"description": "Shape and audit model behaviour through training data", "page_width": "1280px"}
html_show_copyright = False

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # else every field of a dataclass is described twice
napoleon_use_rtype = False
default_role = "code"  # docstrings put names between single backticks

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "plot_gallery": False,  # shown, not run: `make check` runs them
    "filename_pattern": r"$^",
    "image_scrapers": (),
    "reset_modules": (),
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 1e9,
}

# The docstrings are plain text with formulas: |v|, lambda_ij, x*. What reStructuredText would read as markup is
# escaped, outside backticks and doctests.
_MARKUP = re.compile(r"(`[^`\n]*`|https?://\S+)|([|*\\]|(?<=\w)_(?!\w))")


def _plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    doctest = False
    for i, line in enumerate(lines):
        doctest = line.lstrip().startswith(">>>") or (doctest and bool(line.strip()))
        if not doctest:
            lines[i] = _MARKUP.sub(lambda found: found[1] or "\\" + found[2], line)


def setup(app: Any) -> None:
    """Connect the escaping, which comes before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _plain, priority=100)
