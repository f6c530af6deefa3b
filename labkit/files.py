"""Your own files as documents and rows: txt, md, html, py, csv, tsv, jsonl, or a folder of them.

    file or folder -> bytes -> text (UTF-8, else Windows-1252) -> documents, or rows of columns

What cannot be used is an error that names the file, the place in it and the remedy.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit import text as cleaning
from labkit.errors import LabError

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".text", ".py", ".html", ".htm", ".csv", ".tsv", ".jsonl"}
BLOCK_CHARACTERS = 2000


def documents(path: str | Path, text_column: str = "text") -> list[str]:
    """The documents of a file or folder.

    A txt or md file alone is cut at its paragraphs into documents of about 2,000 characters; in a
    folder each file is a document; csv, tsv and jsonl give a document a row.

    Raises:
        LabError: when the path is missing, empty, binary or holds no text.
    """
    path = Path(path)
    if path.is_dir():
        files = [f for f in sorted(path.rglob("*")) if f.suffix.lower() in TEXT_SUFFIXES]
        files = [f for f in files if f.is_file() and f.stat().st_size > 0]
        if not files:
            raise LabError(
                f"{path} holds no text; put {', '.join(sorted(TEXT_SUFFIXES))} files into it."
            )
        found = [d for file in files for d in _of_one_file(file, text_column)]
    else:
        found = _of_one_file(path, text_column)
        if len(found) == 1:
            found = _blocks(found[0])
    return found


def _of_one_file(path: Path, text_column: str) -> list[str]:
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        return [t for t in column(path, rows(path), text_column) if t.strip()]
    text = read(path)
    return [cleaning.clean(text) if path.suffix.lower() in (".html", ".htm") else text]


def _blocks(text: str) -> list[str]:
    """Cut a text at its empty lines (or else at its lines) into about equal documents."""
    size = min(BLOCK_CHARACTERS, max(1, len(text) // 20))
    separator = "\n\n" if text.count("\n\n") >= 10 else "\n"
    blocks, current, length = [], [], 0
    for paragraph in text.split(separator):
        current.append(paragraph)
        length += len(paragraph)
        if length >= size:
            blocks.append(separator.join(current).strip("\n"))
            current, length = [], 0
    if current:
        blocks.append(separator.join(current).strip("\n"))
    return [block for block in blocks if block.strip()]


def rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a csv, tsv or jsonl file, each a dict from column to value; at least one row.

    Raises:
        LabError: when the path is missing, empty, binary or no table.
    """
    path = Path(path)
    source = read(path)
    if path.suffix.lower() == ".jsonl":
        found = []
        for number, line in enumerate(source.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise LabError(f"{path} line {number} is not JSON ({error}).") from error
            if not isinstance(row, dict):
                raise LabError(f'{path} line {number} must be an object such as {{"text": "..."}}.')
            found.append(row)
    elif path.suffix.lower() in (".csv", ".tsv"):
        import io

        import pandas

        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        try:
            table = pandas.read_csv(
                io.StringIO(source), sep=separator, dtype=str, keep_default_na=False
            )
        except ValueError as error:  # pandas' parser errors are ValueErrors
            reason = " ".join(str(error).split())
            raise LabError(f"{path} is not a valid table ({reason}).") from error
        found = [
            {str(key): value for key, value in row.items()} for row in table.to_dict("records")
        ]
    else:
        raise LabError(f"{path} must end in .csv, .tsv or .jsonl to hold labelled rows.")
    if not found:
        raise LabError(f"{path} has no rows; give at least one below the header.")
    return found


def column(path: str | Path, rows: Sequence[dict[str, Any]], name: str) -> list[str]:
    """One column of `rows`, as text.

    Raises:
        LabError: when a row lacks it; the message names the row and the columns that it has.
    """
    values = []
    for number, row in enumerate(rows, start=1):
        if row.get(name) is None:
            raise LabError(
                f"{path} row {number} has no column {name!r}; it has {', '.join(row) or 'none'}."
            )
        values.append(str(row[name]))
    return values


def read(path: Path) -> str:
    """The text of one file, with line ends as \\n.

    Raises:
        LabError: when it is missing, a folder, empty or binary.
    """
    if not path.exists():
        raise LabError(f"{path} does not exist; check the path.")
    if path.is_dir():
        raise LabError(f"{path} is a folder; name one file in it.")
    content = path.read_bytes()
    if not content.strip():
        raise LabError(f"{path} is empty; give a file with text in it.")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    if b"\0" in content:
        raise LabError(f"{path} is binary (it holds zero bytes), not text; export it as UTF-8.")
    text = decode(content)
    start = text[:100_000]
    strange = len(re.findall("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]", start))
    if strange > 0.01 * len(start):
        raise LabError(f"{path} is binary ({strange} control characters), not text.")
    return text.replace("\r\n", "\n")


def decode(content: bytes) -> str:
    """UTF-8 where it is valid, else Windows-1252 and Latin-1 for what that leaves undefined."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            return content.decode("cp1252")
        except UnicodeDecodeError:
            return content.decode("latin-1")
