"""Tables that read well in JupyterLab, on GitHub and in a terminal.

GitHub drops style sheets from outputs, so the table is plain HTML: alignment by attribute, the best
value in bold.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

from labkit.errors import LabError


class Table:
    """Rows of named cells; displays itself as HTML, prints itself as aligned text."""

    def __init__(self, header: Sequence[str], cells: Sequence[Sequence[str]], bold: set, note: str):
        self.header, self.cells, self.bold, self.note = list(header), list(cells), bold, note
        self.numeric = [
            all(_looks_numeric(row[j]) for row in self.cells) for j in range(len(self.header))
        ]

    def _repr_html_(self) -> str:
        def cell(tag: str, text: str, j: int, bold: bool = False) -> str:
            side = "right" if self.numeric[j] else "left"
            inner = f"<b>{escape(text)}</b>" if bold else escape(text)
            return f'<{tag} align="{side}" style="text-align:{side}">{inner}</{tag}>'

        head = "".join(cell("th", name, j) for j, name in enumerate(self.header))
        body = "".join(
            "<tr>"
            + "".join(cell("td", text, j, (i, j) in self.bold) for j, text in enumerate(row))
            + "</tr>"
            for i, row in enumerate(self.cells)
        )
        note = f"<p><small>{escape(self.note)}</small></p>" if self.note else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"

    def __repr__(self) -> str:
        lines = [self.header, *self.cells]
        widths = [max(len(line[j]) for line in lines) for j in range(len(self.header))]
        text = "\n".join(
            "  ".join(
                value.rjust(width) if numeric else value.ljust(width)
                for value, width, numeric in zip(line, widths, self.numeric, strict=True)
            ).rstrip()
            for line in lines
        )
        return f"{text}\n{self.note}" if self.note else text


def table(
    rows: Any,
    *,
    best: Mapping[str, Literal["max", "min"]] | None = None,
    digits: int | Mapping[str, int] = 3,
    note: str = "",
) -> Table:
    """A tidy table; the best value of a column in bold.

    Args:
        rows: a list of dicts (one a row), a dict of name -> dict (the name becomes the first
            column), or a pandas DataFrame.
        best: column -> "max" or "min": where the winner stands in bold (ties: all of them).
        digits: significant decimals for floats, for all columns or by column.
        note: one line under the table: what the interval is, how many seeds.

    Returns:
        A Table; leave it as the last line of a cell, or display() it.

    >>> table([{"model": "a", "loss": 1.25}, {"model": "b", "loss": 1.5}], digits=2)
    model  loss
    a      1.25
    b      1.50
    """
    records = _records(rows)
    if not records:
        raise LabError("table() got no rows; give it at least one dict of column -> value.")
    header = list(dict.fromkeys(name for record in records for name in record))
    for column in best or {}:
        if column not in header:
            raise LabError(f"best names the column {column!r}; the table's columns are {header}.")

    def places(column: str) -> int:
        return digits if isinstance(digits, int) else digits.get(column, 3)

    cells = [
        [_format(record.get(column, ""), places(column)) for column in header] for record in records
    ]
    bold = set()
    for column, direction in (best or {}).items():
        values = [_number(record.get(column)) for record in records]
        known = [value for value in values if value is not None and math.isfinite(value)]
        if known:
            winner = max(known) if direction == "max" else min(known)
            j = header.index(column)
            bold |= {(i, j) for i, value in enumerate(values) if value == winner}
    return Table(header, cells, bold, note)


def _records(rows: Any) -> list[dict[str, Any]]:
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return [{str(k): v for k, v in record.items()} for record in rows.to_dict("records")]
    if isinstance(rows, Mapping):
        return [{"": str(name), **record} for name, record in rows.items()]
    return [dict(record) for record in rows]


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _format(value: Any, places: int) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, str)):
        return str(value)
    number = _number(value)
    if number is None:
        return str(value)
    if isinstance(value, int) or type(value).__name__.startswith(("int", "uint")):
        return f"{int(value):,}"
    if number != 0 and abs(number) < 10**-places:
        return f"{number:.1e}"
    return f"{number:,.{places}f}"


def _looks_numeric(text: str) -> bool:
    return not text or text.lstrip("+-−").replace(",", "")[:1].isdigit() or text in ("nan", "inf")
