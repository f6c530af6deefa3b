"""Sphinx's settings for the book, read by Sphinx alone; the chapters come from `pages`."""

import labkit
from labkit.course.report import HIDE, SHOW

project = "LLM Lab"
author = "The LLM Lab authors"
release = labkit.__version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "labkit.course.book.docstrings",  # before napoleon: it reads what this one writes
    "sphinx.ext.napoleon",
    "labkit.course.book.formulas",
    "labkit.course.book.search",
]

# Chapters: outputs as they were saved. Formulas between dollar signs, as the report reads them.
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = SHOW
nb_code_prompt_hide = HIDE
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_allow_space = False  # $5 and $6 are prices
myst_dmath_allow_labels = False
myst_dmath_double_inline = True
myst_heading_anchors = 3
myst_update_mathjax = False
html_math_renderer = "mathml"

# The package: signatures with short types, members in the order of their file.
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
default_role = "code"
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries = False
suppress_warnings = ["ref.python"]  # words such as prompt are attributes of several classes

html_theme = "sphinx_book_theme"
html_title = "LLM Lab"
html_css_files = ["book.css", "shared.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # `search` has another way
html_theme_options = {
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "use_download_button": False,
    "navigation_with_keys": False,
}
