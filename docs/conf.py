from __future__ import annotations

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

# Tutorials print their own results and not TorchRL's remarks, and do not report to anybody.
os.environ["RL_LOGGING_LEVEL"] = "WARNING"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

project = "torchrl-logo"
author = "torchrl-logo contributors"
copyright = "2026, torchrl-logo contributors"
release = version = installed_version("torchrl-logo")

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

extensions = [
    "api_reference",
    "dataset_table",
    "loss_table",
    "mathml",
    "method_table",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "templates", "tutorials/backreferences"]
templates_path = ["templates"]
html_theme = "furo"
html_title = "torchrl-logo"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["math.css", "wide.css"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# The tutorials are run here, and one that raises ends the build.
sphinx_gallery_conf = {
    "examples_dirs": "../examples/tutorials",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"/\d\d_",
    "within_subsection_order": "FileNameSortKey",
    "doc_module": ("torchrl_logo",),
    "backreferences_dir": "tutorials/backreferences",
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 0,
    "default_thumb_file": str(Path(__file__).parent / "images" / "pipeline.svg"),
}

# A reference to a name of this package that is not there is an error. Those to other projects
# stay text: their inventories are on the net, and this builds without it.
nitpicky = True
# Private classes and type variables in signatures have no page.
nitpick_ignore_regex = [(r"py:.*", r"(?!torchrl_logo\.).*|.*\._.*|.*\.T")]
