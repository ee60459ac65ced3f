"""Settings of the site: `python -m sphinx -W --keep-going -b html docs out/site` builds it."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import optax_ext  # noqa: E402

project = "optax_ext"
author = "The optax_ext authors"
copyright = author
version = release = optax_ext.__version__

extensions = [
  "myst_parser",
  "sphinx.ext.autodoc",
  "sphinx.ext.autosummary",
  "sphinx.ext.napoleon",
  "sphinx_copybutton",
  "sphinx_design",
  "sphinx_gallery.gen_gallery",
  "site_links",
  "site_docstrings",
  "site_gallery",
]
exclude_patterns = [
  "**/GALLERY_HEADER.rst",
  "tutorials",
  "sg_execution_times.rst",
  "gallery/**/*.ipynb",
  "gallery/**/*.py",
]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

# A name of our own must lead somewhere. Other projects' pages are not asked, so that a build needs no host.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?s)(?!optax_ext\.((compare|linen|nnx)\.)?\w+$).*")]
default_role = "py:obj"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the arguments' descriptions say it in words
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False

sphinx_gallery_conf = {
  "examples_dirs": ["tutorials", "../examples"],
  "gallery_dirs": ["gallery/tutorials", "gallery/examples"],
  "filename_pattern": r"/(fine_tune_nnx|compare|compose|structure|train_digits_linen)\.py$",  # the fast ones
  "reset_argv": "site_gallery.arguments",
  "image_scrapers": ["matplotlib", "site_gallery.saved_pictures"],
  "within_subsection_order": "FileNameSortKey",
  "abort_on_example_error": True,
  "remove_config_comments": True,
  "show_memory": False,
  "show_signature": False,
  "min_reported_time": 1e9,
  "write_computation_times": False,
  "download_all_examples": False,
}

html_theme = "sphinx_book_theme"
html_title = "optax_ext"
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
  "show_toc_level": 2,
  "use_download_button": False,
  "use_fullscreen_button": False,
  "home_page_in_toc": True,
  "navbar_persistent": [],  # the sidebar has the search
}
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_selector = "div:not(.equation):not(.highlight-none) > div.highlight > pre"
