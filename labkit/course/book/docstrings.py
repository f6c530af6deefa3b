"""The package's docstrings, which are plain text, as reStructuredText for Sphinx.

    a drawing, a table in columns, an indented example ──> a literal block, to the letter
    `name`, and everything else                        ──> ``name``, marks without a meaning

A paragraph is a drawing if it is indented, or if a line of it has arrows, boxes or columns.
The sections `Args:`, `Returns:`, `Raises:` are left to Sphinx's napoleon.
"""

import inspect
import re
from typing import Any, get_origin

_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes|Example|Examples|Note):$")
_DRAWN = re.compile(r"[─│┌┐└┘├┤┬┴┼▶]|──|--+>|->  |\S {3,}\S")
_LITERAL = re.compile(r"(`[^`]+`)")
_MARKS = re.compile(r"([\\*|])|(?<=\w)(_)(?!\w)")


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText that says the same.

    >>> as_rst(["Give `x` twice.", "", "    x ──> x, x"])
    ['Give ``x`` twice.', '', '::', '', '    x ──> x, x', '']
    """
    made: list[str] = []
    in_section = False
    for block in _blocks(lines):
        indented = _indented(block)
        in_section = bool(_SECTION.match(block[0])) or (in_section and indented)
        if block[0].lstrip().startswith(">>>"):
            made += [*block, ""]
        elif in_section:
            made += [*_plain(block), ""]
        elif indented or any(_DRAWN.search(line) for line in block):
            margin = "" if indented else "    "
            made += ["::", "", *(margin + line for line in block), ""]
        else:
            made += [*_plain(block), ""]
    return made


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx, which calls this, read docstrings through `as_rst`."""
    app.connect("autodoc-process-docstring", _rewrite, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _rewrite(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    kind = get_origin(obj) or type(obj)
    borrowed = (
        what in ("data", "attribute") and lines[:1] == (inspect.getdoc(kind) or "").split("\n")[:1]
    )
    # What `dict` says of itself is not about a name that stands for one.
    lines[:] = [] if borrowed else as_rst(list(lines))


def _blocks(lines: list[str]) -> list[list[str]]:
    """Paragraphs: lines between empty lines. Indented ones that follow each other are one."""
    found: list[list[str]] = []
    for paragraph in re.split(r"\n(?:[ \t]*\n)+", "\n".join(lines).strip("\n")):
        block = paragraph.split("\n")
        drawn = _indented(block)
        if drawn and found and _indented(found[-1]):
            found[-1] += ["", *block]
        elif block != [""]:
            found.append(block)
    return found


def _plain(block: list[str]) -> list[str]:
    """Text in which only names between backticks are marked."""
    parts = _LITERAL.split("\n".join(block))
    for i, part in enumerate(parts):
        parts[i] = f"`{part}`" if i % 2 else _MARKS.sub(r"\\\g<0>", part)
        if i and i % 2 == 0 and part[:1].isalnum():  # `name`s: a mark must end before a letter
            parts[i] = "\\ " + parts[i]
    return "".join(parts).split("\n")


def _indented(block: list[str]) -> bool:
    return all(not line or line.startswith("    ") for line in block)
