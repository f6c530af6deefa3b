"""The book's page about the command line, made from what `--help` says.

    labkit COMMAND --help ── `read` ──> text, {box: [(option, what it is)]} ── `page` ──> rst

Nothing on that page is written by hand: a new flag stands there when it stands in `options`.
"""

import re
from collections.abc import Callable, Sequence

from labkit.course.book.docstrings import as_rst

#: Columns in which `read` can tell one box from the next: wider, tyro puts them side by side.
WIDTH = 100

_HEAD = re.compile(r"(?P<option>[-\[]\S.*?)(?: {2,}(?P<said>.*))?")
Boxes = dict[str, list[tuple[str, str]]]


def page(names: Sequence[str], help_of: Callable[[Sequence[str]], str]) -> str:
    """All commands as one page of reStructuredText, in the order given.

    Args:
        names: the commands.
        help_of: what `labkit` prints for ["pretrain", "--help"], in `WIDTH` columns.
    """
    text, _ = read(help_of(["--help"]))
    lines = [*_heading("The command line", "="), *as_rst(text)]
    for name in names:
        text, boxes = read(help_of([name, "--help"]))
        lines += [*_heading(f"labkit {name}", "-"), *as_rst(text)]
        for title, options in boxes.items():
            lines += ["", f"**{title}**", ""]
            for option, said in options:
                said = " ".join(as_rst([said.removesuffix(" (default: )")])).strip()
                lines += [f"``{option}``", f"   {said}", ""]
    return "\n".join(lines) + "\n"


def read(shown: str) -> tuple[list[str], Boxes]:
    """What a `--help` says: its text, and the options of each box with what they are.

    >>> said = "usage: labkit x\\n\\nDo `x`.\\n\\n╭─ options ─╮\\n│ --a INT  One,  │\\n"
    >>> read(said + "│      two.      │\\n╰────────────────╯")
    (['Do `x`.'], {'options': [('--a INT', 'One, two.')]})
    """
    text: list[str] = []
    boxes: Boxes = {}
    title = ""
    for line in shown.splitlines():
        inside = line.strip("╭╮│╰╯─ ")
        if line.startswith("╭"):
            title = inside
            boxes[title] = []
        elif line.startswith("│"):
            found = _HEAD.fullmatch(line[2:].rstrip("│ "))
            if found:
                boxes[title].append((found["option"], found["said"] or ""))
            elif boxes[title] and inside:
                option, said = boxes[title][-1]
                boxes[title][-1] = option, f"{said} {inside}".strip()
        elif not line.startswith(("╰", "usage:")):
            text.append(line)
    return "\n".join(text).strip().split("\n"), boxes


def _heading(text: str, line: str) -> list[str]:
    return [text, line * len(text), ""]
