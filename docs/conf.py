# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration: Markdown pages by MyST, reference by autodoc, nothing fetched from elsewhere."""

from importlib.metadata import version as installed_version

project = "rpcflow"
author = "The rpcflow authors"
copyright = "The rpcflow authors"
release = installed_version("rpcflow")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "explanation/states.md"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}
# `name` in a docstring is code.
default_role = "code"
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = "rpcflow"
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False
