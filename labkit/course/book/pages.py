"""A chapter as a page of the book: the same cells, with outputs that a static page can show.

output of a widget     ──> the picture or the table of its saved state
picture and its words  ──> _static/figures/HASH.png, <img alt="the words">
badge                  ──> a link without a picture from the network
"""

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import nbformat

from labkit.course.book.docstrings import as_rst
from labkit.course.chapter import Chapter, by_part
from labkit.course.pictures import described
from labkit.course.report import STATIC_PRIORITY
from labkit.course.shows import shows

#: Where pages find the pictures.
FIGURES = "_static/figures"

_IMAGES = {"image/png": "png", "image/jpeg": "jpg"}


def page_of(notebook: Any, static: Path) -> Any:
    """The notebook as Sphinx should read it; its pictures are written to `static`.

    Args:
        notebook: an executed chapter; it is not changed.
        static: the folder that becomes `_static/figures` of the book, made if it is not there.

    Returns:
        A notebook without the state of its widgets, each of whose outputs has one form.
    """
    page = described(notebook)
    page.metadata = {k: v for k, v in page.metadata.items() if k != "widgets"}
    for cell in page.cells:
        if cell.cell_type == "code":
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
        html = _picture(output.data[best], _IMAGES[best], output.data["text/plain"], static)
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
    return f'<img class="figure" src="{FIGURES}/{name}" alt="{escape(words, quote=True)}">'


def index_of(found: Iterable[Chapter], package: Iterable[str]) -> str:
    """The first page: the chapters under their parts, each with what it shows, and the package.

    Args:
        found: the chapters, in order.
        package: names of the pages about the package, in order.
    """
    parts = by_part(found)
    lines = [line for part, its in parts.items() for line in _part(part, its)]
    trees = [_tree(part, [it.name for it in its], ":hidden:") for part, its in parts.items()]
    trees.append(_tree("The package", package, ":maxdepth: 1"))
    return "\n".join([_BEGINNING, *lines, *trees])


def _part(name: str, found: list[Chapter]) -> list[str]:
    lines = [f"**{name}**", ""]
    for chapter in found:
        said = " ".join(as_rst([shows(chapter)])).strip()
        lines += [f":doc:`{chapter.name}`", f"   {said or chapter.title}", ""]
    return lines


def _tree(caption: str, names: Iterable[str], option: str) -> str:
    entries = "\n".join(f"   {name}" for name in names)
    return f".. toctree::\n   :caption: {caption}\n   {option}\n\n{entries}\n"


_BEGINNING = """LLM Lab
=======

A course on large language models: how they work, how they are pretrained, and how all of their
parameters are fine-tuned. Each chapter is a notebook as it was run, with its outputs; nothing on
these pages computes. To run the chapters, move their sliders and have your exercises checked, open
them in the lab: ``labkit lab``. What each of them shows, with the figures of its run:
"""
