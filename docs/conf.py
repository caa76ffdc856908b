from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

project = "torchrl-logo"
author = "torchrl-logo contributors"
copyright = "2026, torchrl-logo contributors"
release = version = installed_version("torchrl-logo")

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

extensions = [
    "api_reference",
    "dataset_table",
    "loss_table",
    "method_table",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "templates"]
templates_path = ["templates"]
html_theme = "furo"
html_title = "torchrl-logo"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# A reference to a name of this package that is not there is an error. Those to other projects
# stay text: their inventories are on the net, and this builds without it.
nitpicky = True
# Private classes and type variables in signatures have no page.
nitpick_ignore_regex = [(r"py:.*", r"(?!torchrl_logo\.).*|.*\._.*|.*\.T")]
