"""What a search shows beside a title, also where no server is: a page opened from a folder may
not read other pages, but it may load a script, and the texts are one.

    doctrees ── texts ──> _static/texts.js ── search.html ── summaries.js ──> lines around the word

Sphinx's own summaries fetch each page that was found, and stay empty without a server.
"""

import json
from pathlib import Path
from typing import Any

from labkit.atomic import write_text


def setup(app: Any) -> dict[str, bool]:
    """Write the texts when the book is built, and name them on its page of the search."""
    app.connect("html-page-context", _on_the_search_page)
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def texts_of(document: Any) -> list[tuple[str, str, str]]:
    """The text of a page: of each of its sections (anchor, its own words, its code), in order.

    Args:
        document: a page as docutils reads it. Its first section, the page itself, has "".

    Formulas, which are LaTeX there, are left out (an ellipsis stands in a sentence), and so are
    raw forms such as HTML tables.
    """
    from docutils import nodes

    found: list[tuple[str, str, str]] = []
    for section in document.findall(nodes.section):
        said = [it for child in section.children for it in _said(child)]
        words = " ".join(" ".join(text for text, is_code in said if not is_code).split())
        code = " ".join(" ".join(text for text, is_code in said if is_code).split())
        found.append((section["ids"][0] if found else "", words, code))
    return found


def _said(node: Any) -> list[tuple[str, bool]]:
    """The texts below a node, each with whether it is code; sections speak for themselves."""
    from docutils import nodes

    silent = nodes.section | nodes.title | nodes.raw | nodes.comment | nodes.math_block
    if isinstance(node, silent):
        return []
    if isinstance(node, nodes.literal_block):
        return [(node.astext(), True)]
    if isinstance(node, nodes.TextElement):
        parts = node.findall(nodes.Text)
        spoken = ["…" if isinstance(part.parent, nodes.math) else part for part in parts]
        return [("".join(spoken), False)]
    return [text for child in node.children for text in _said(child)]


def _on_the_search_page(app: Any, name: str, template: str, context: Any, document: Any) -> None:
    if name == "search":
        for script in ("texts.js", "summaries.js"):
            app.add_js_file(script, loading_method="defer")


def _write(app: Any, error: Exception | None) -> None:
    if error is None:
        pages = sorted(app.env.found_docs)
        texts = {page: texts_of(app.env.get_doctree(page)) for page in pages}
        said = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
        write_text(Path(app.outdir) / "_static" / "texts.js", f"const TEXTS = {said};\n")
