"""Formulas of the book as MathML, as in the report: a browser draws them without any script.

    $...$, $$...$$ ── MyST ──> math nodes ── `labkit.course.report.mathml` ──> <math>...</math>

A formula that cannot be converted stays as LaTeX, and Sphinx warns of it.
"""

from html import escape
from typing import Any

from labkit.course.report import mathml


def setup(app: Any) -> dict[str, bool]:
    """Add the renderer `mathml` to Sphinx, which calls this."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: Any, node: Any) -> None:
    translator.body.append(_converted(node, block=False))
    _done()


def _block(translator: Any, node: Any) -> None:
    translator.body.append(f'<div class="math">{_converted(node, block=True)}</div>\n')
    _done()


def _converted(node: Any, block: bool) -> str:
    from sphinx.util import logging

    latex = node.astext()
    try:
        return mathml(latex, block)
    except Exception as error:  # whatever LaTeX it does not know
        said = f"this formula cannot be converted ({error}): {latex}"
        logging.getLogger(__name__).warning(said, location=node)
        return f"<code>{escape(latex)}</code>"


def _done() -> None:
    from docutils import nodes

    raise nodes.SkipNode
