"""A chapter as a page of the book: the same cells, with outputs that a static page can show.

output of a widget     ──> the picture or the table of its saved state
picture and its words  ──> _static/figures/HASH.png, <img alt="the words">
badge                  ──> a link without a picture from the network
"""

import base64
import hashlib
import re
from html import escape
from pathlib import Path
from typing import Any

import nbformat

from labkit.course.report import STATIC_PRIORITY

#: What a picture without words of its own is called.
NO_WORDS = "What the cell above draws"
#: Where pages find the pictures.
FIGURES = "_static/figures"

_IMAGES = {"image/png": "png", "image/jpeg": "jpg"}
_BADGE = re.compile(r"\[!\[(?P<words>[^\]]*)\]\(https?:[^)]*\)\]\((?P<target>[^)]*)\)")


def page_of(notebook: Any, static: Path) -> Any:
    """The notebook as Sphinx should read it; its pictures are written to `static`.

    Args:
        notebook: an executed chapter; it is not changed.
        static: the folder that becomes `_static/figures` of the book, made if it is not there.

    Returns:
        A notebook without the state of its widgets, each of whose outputs has one form.
    """
    page: Any = nbformat.from_dict(notebook)
    page.metadata = {k: v for k, v in page.metadata.items() if k != "widgets"}
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = _BADGE.sub(r"[\g<words>](\g<target>)", cell.source)
        elif cell.cell_type == "code":
            shown = [_shown(output, static) for output in cell.outputs]
            cell.outputs = [output for output in shown if output is not None]
    return page


def _shown(output: Any, static: Path) -> Any:
    """An output in its best static form, or None if it has none."""
    if "data" not in output:  # a stream, or an error
        return output
    best = next((kind for kind in STATIC_PRIORITY if kind in output.data), None)
    if best is None:
        return None
    if best in _IMAGES:
        html = _picture(output.data[best], _IMAGES[best], output.data.get("text/plain", ""), static)
        return _with_data(output, {"text/html": html})
    return _with_data(output, {best: output.data[best]})


def _with_data(output: Any, data: dict[str, str]) -> Any:
    return nbformat.from_dict({**output, "data": data, "metadata": {}})


def _picture(coded: str, ending: str, words: str, static: Path) -> str:
    """Write a picture under a name that follows from its bytes; the HTML that shows it."""
    picture = base64.b64decode(coded)
    name = f"{hashlib.sha256(picture).hexdigest()[:16]}.{ending}"
    static.mkdir(parents=True, exist_ok=True)
    (static / name).write_bytes(picture)
    said = " ".join(words.split())
    alt = NO_WORDS if not said or said.startswith("<Figure size") else said
    return f'<img class="figure" src="{FIGURES}/{name}" alt="{escape(alt, quote=True)}">'


def index_of(chapters: list[str], package: list[str]) -> str:
    """The first page: what this is, the chapters in the course's order, the package's rooms.

    Args:
        chapters: names of the pages of chapters, in order.
        package: names of the pages about the package, in order.
    """
    return _INDEX.format(chapters=_entries(chapters), package=_entries(package))


def _entries(names: list[str]) -> str:
    return "\n".join(f"   {name}" for name in names)


_INDEX = """LLM Lab
=======

A course on large language models: how they work, how they are pretrained, and how all of their
parameters are fine-tuned. Each chapter is a notebook as it was run, with its outputs; nothing on
these pages computes. To run the chapters, move their sliders and have your exercises checked, open
them in the lab: ``labkit lab``.

.. toctree::
   :caption: Chapters
   :maxdepth: 1

{chapters}

.. toctree::
   :caption: The package
   :maxdepth: 1

{package}
"""
