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
    "dataset_table",
    "loss_table",
    "method_table",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "torchrl-logo"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
