"""Words for the pictures of a chapter: for who cannot see them, and for pages without a network.

    the output's own plain text                     a drawing, a plot that says what it shows
    else `*Figure: words*` that begins the next cell  a plot with a caption
    else NO_WORDS
    a badge                                         a link without its picture, which is elsewhere

The report of `labkit run` and the web book take them from here.
"""

import re
from typing import Any

import nbformat

#: What a picture without words of its own is called.
NO_WORDS = "What the cell above draws"
#: The forms of an output that are pictures.
PICTURES = ("image/png", "image/jpeg")

_CAPTION = re.compile(r"\s*\*Figure:\s+(?P<words>.+?)(?<![\s*])\*(?=\s|$)", re.DOTALL)
_BADGE = re.compile(r"\[!\[(?P<words>[^\]]*)\]\(https?:[^)]*\)\]\((?P<target>[^)]*)\)")
#: What IPython says of a figure by itself.
_UNSAID = "<Figure size"


def described(notebook: Any) -> Any:
    """The notebook, with the words of each picture as the plain text of its output, and no badge.

    Args:
        notebook: as nbformat reads it; it is not changed.

    >>> draw = nbformat.v4.new_code_cell("draw()")
    >>> draw.outputs = [nbformat.v4.new_output("display_data", {"image/png": "AAAA"})]
    >>> caption = nbformat.v4.new_markdown_cell("*Figure: the loss falls\\nwith `d_model`.* More.")
    >>> made = described(nbformat.v4.new_notebook(cells=[draw, caption]))
    >>> made.cells[0].outputs[0].data["text/plain"]
    'the loss falls with d_model.'
    """
    made: Any = nbformat.from_dict(notebook)
    followers = [*made.cells[1:], None]
    for cell, follower in zip(made.cells, followers, strict=True):
        if cell.cell_type == "markdown":
            cell.source = _BADGE.sub(r"[\g<words>](\g<target>)", cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if any(kind in data for kind in PICTURES):
                own = " ".join(data.get("text/plain", "").split())
                unsaid = not own or own.startswith(_UNSAID)
                data["text/plain"] = _caption(follower) if unsaid else own
    return made


def _caption(cell: Any) -> str:
    """The words of the caption that a cell begins with."""
    if cell is None or cell.cell_type != "markdown":
        return NO_WORDS
    found = _CAPTION.match(cell.source)
    if found is None:
        return NO_WORDS
    return " ".join(re.sub(r"[*`]", "", found["words"]).split())
