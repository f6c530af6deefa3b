"""The course as a web book: static pages with search, made from the notebooks as they were saved.

    notebooks/NN_name.ipynb ── pages ──────> NN_name.ipynb, _static/figures/ ─┐
    labkit/**/*.pyi ────────── reference ──> package/ROOM.rst                 ├─ Sphinx ──> OUT/
    conf, formulas, docstrings, search, static/ ──────────────────────────────┘

Nothing is executed: outputs are those of the committed run. Nothing is fetched: formulas are
MathML, as in the report of `labkit run`, widgets are the picture of their saved state, and styles
and scripts lie beside the pages. `OUT/index.html` opens from a folder, without a server.

Sources: Sphinx (BSD-2-Clause), MyST-NB (BSD-3-Clause) and sphinx-book-theme (BSD-3-Clause) do the
work; latex2mathml (MIT) writes the formulas. They are the extra `book`; a learner needs none of it.
"""

from labkit.course.book.building import build_book

__all__ = ["build_book"]
