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


def texts_of(document: Any) -> list[tuple[str, str]]:
    """The text of a page: for each of its sections (anchor, its own text), in order.

    Args:
        document: a page as docutils reads it. Its first section, the page itself, has "".
    """
    from docutils import nodes

    found: list[tuple[str, str]] = []
    for section in document.findall(nodes.section):
        parts = [it for it in section.children if not isinstance(it, nodes.section | nodes.title)]
        text = " ".join(" ".join(_said(part)) for part in parts)
        found.append((section["ids"][0] if found else "", " ".join(text.split())))
    return found


def _said(node: Any) -> list[str]:
    """Paragraphs, code and outputs that are text; HTML and other raw forms are left out."""
    from docutils import nodes

    if isinstance(node, nodes.raw | nodes.comment):
        return []
    if isinstance(node, nodes.TextElement):
        return [node.astext()]
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
