"""Your own files as documents and rows: txt, md, html, py, csv, tsv, jsonl, or a folder of them.

    file or folder -> bytes -> text (UTF-8, else Windows-1252) -> documents, or rows of columns

A file is read piece by piece: `stream` needs the memory of one piece, however large the file is.
What cannot be used is an error that names the file, the place in it and the remedy.
"""

import codecs
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.text import cleaning

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".text", ".py", ".html", ".htm", ".csv", ".tsv", ".jsonl"}
BLOCK_CHARACTERS = 2000
PIECE = 1 << 20
"""Characters (or bytes) read at a time."""


def documents(path: str | Path, text_column: str = "text") -> list[str]:
    """The documents of a file or folder, as `stream` gives them.

    Raises:
        LabError: when the path is missing, empty, binary or holds no text.
    """
    return list(stream(path, text_column))


def stream(path: str | Path, text_column: str = "text") -> Iterator[str]:
    """The documents of a file or folder, one after the other, in constant memory.

    A txt or md file alone is cut at its paragraphs into documents of about 2,000 characters; in a
    folder each file of up to a million characters is a document, a longer one is cut likewise; csv,
    tsv and jsonl give a document a row.

    Raises:
        LabError: when the path is missing, empty, binary or holds no text.
    """
    path = Path(path)
    if not path.is_dir():
        yield from _of_one_file(path, text_column, cut=True)
        return
    files = [f for f in sorted(path.rglob("*")) if f.suffix.lower() in TEXT_SUFFIXES]
    files = [f for f in files if f.is_file() and f.stat().st_size > 0]
    if not files:
        raise LabError(
            f"{path} holds no text; put {', '.join(sorted(TEXT_SUFFIXES))} files into it."
        )
    for file in files:
        yield from _of_one_file(file, text_column, cut=False)


def size(path: str | Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    path = Path(path)
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")))


def _of_one_file(path: Path, text_column: str, cut: bool) -> Iterator[str]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".jsonl"):
        for number, row in enumerate(iterate_rows(path), start=1):
            text = _value(path, number, row, text_column)
            if text.strip():
                yield text
    elif suffix in (".html", ".htm"):
        text = cleaning.clean(read(path))
        yield from _blocks(iter([text])) if cut else [text]
    else:
        pieces = _pieces(path)
        start = list(itertools.islice(pieces, 2))
        if len(start) == 1 and not cut:
            yield from start
        else:
            yield from _blocks(itertools.chain(start, pieces))


def _blocks(pieces: Iterator[str]) -> Iterator[str]:
    """Cut a text at its empty lines (or else at its lines) into about equal documents.

    The first piece decides which; a text of one short piece gives about twenty documents.
    """
    buffer, following = next(pieces, ""), next(pieces, None)
    least = BLOCK_CHARACTERS
    if following is None:
        least = min(least, max(1, len(buffer) // 20))
    separator = "\n\n" if buffer.count("\n\n") >= 10 else "\n"
    current: list[str] = []
    length = 0

    def block() -> str:
        return separator.join(current).strip("\n")

    ended = False
    while not ended:
        ended = following is None
        paragraphs = buffer.split(separator)
        if following is not None:  # the last paragraph may go on in it
            buffer = paragraphs.pop() + following
            following = next(pieces, None)
        for paragraph in paragraphs:
            current.append(paragraph)
            length += len(paragraph)
            if length >= least:
                if (text := block()).strip():
                    yield text
                current, length = [], 0
    if current and (text := block()).strip():
        yield text


def rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a csv, tsv or jsonl file, each a dict from column to value; at least one row.

    Raises:
        LabError: when the path is missing, empty, binary or no table.
    """
    return list(iterate_rows(path))


def iterate_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """`rows`, one at a time."""
    path = Path(path)
    _check_file(path)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl"):
        raise LabError(f"{path} must end in .csv, .tsv or .jsonl to hold labelled rows.")
    row = None
    for row in _json_rows(path) if suffix == ".jsonl" else _table_rows(path):
        yield row
    if row is None:
        raise LabError(f"{path} has no rows; give at least one below the header.")


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise LabError(f"{path} line {number} is not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise LabError(f'{path} line {number} must be an object such as {{"text": "..."}}.')
        yield row


def _table_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pandas

    encoding, errors = _inspect(path)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with pandas.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, chunksize=10_000,
            encoding=encoding, encoding_errors=errors,
        ) as tables:  # fmt: skip
            for table in tables:
                for row in table.to_dict("records"):
                    yield {str(key): value for key, value in row.items()}
    except ValueError as error:  # pandas' parser errors are ValueErrors
        reason = " ".join(str(error).split())
        raise LabError(f"{path} is not a valid table ({reason}).") from error


def _lines(path: Path) -> Iterator[str]:
    buffer = ""
    for piece in _pieces(path):
        *lines, buffer = (buffer + piece).split("\n")
        yield from lines
    yield buffer


def column(path: str | Path, rows: Sequence[dict[str, Any]], name: str) -> list[str]:
    """One column of `rows`, as text.

    Raises:
        LabError: when a row lacks it; the message names the row and the columns that it has.
    """
    return [_value(path, number, row, name) for number, row in enumerate(rows, start=1)]


def _value(path: str | Path, number: int, row: dict[str, Any], name: str) -> str:
    if row.get(name) is None:
        raise LabError(
            f"{path} row {number} has no column {name!r}; it has {', '.join(row) or 'none'}."
        )
    return str(row[name])


def read(path: Path) -> str:
    """The text of one file, with line ends as \\n.

    Raises:
        LabError: when it is missing, a folder, empty or binary.
    """
    return "".join(_pieces(path))


def _pieces(path: Path) -> Iterator[str]:
    """`read` in pieces of about a million characters."""
    encoding, errors = _inspect(path)
    with path.open(encoding=encoding, errors=errors, newline="") as file:
        held = ""
        while piece := file.read(PIECE):
            piece = held + piece
            held = "\r" if piece.endswith("\r") else ""  # its \n may come next
            yield piece[: len(piece) - len(held)].replace("\r\n", "\n")
        if held:
            yield held


def _check_file(path: Path) -> None:
    if not path.exists():
        raise LabError(f"{path} does not exist; check the path.")
    if path.is_dir():
        raise LabError(f"{path} is a folder; name one file in it.")


def _inspect(path: Path) -> tuple[str, str]:
    """Encoding and error handling of a text file, found by reading it once.

    Raises:
        LabError: when it is missing, a folder, empty or binary.
    """
    _check_file(path)
    decoders = {name: codecs.getincrementaldecoder(name)() for name in ("utf-8-sig", "cp1252")}
    start, blank, zeros = b"", True, False
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            start = start or piece
            blank = blank and not piece.strip()
            zeros = zeros or b"\0" in piece
            for name in list(decoders):
                try:
                    decoders[name].decode(piece)
                except UnicodeDecodeError:
                    del decoders[name]
    if "utf-8-sig" in decoders:
        try:
            decoders["utf-8-sig"].decode(b"", final=True)
        except UnicodeDecodeError:
            del decoders["utf-8-sig"]
    if blank:
        raise LabError(f"{path} is empty; give a file with text in it.")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16", "replace"
    if zeros:
        raise LabError(f"{path} is binary (it holds zero bytes), not text; export it as UTF-8.")
    encoding = next(iter(decoders), "latin-1")
    some = start[:100_000].decode(encoding, errors="ignore")
    strange = len(re.findall("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]", some))
    if strange > 0.01 * len(some):
        raise LabError(f"{path} is binary ({strange} control characters), not text.")
    return encoding, "strict"


def decode(content: bytes) -> str:
    """UTF-8 where it is valid, else Windows-1252 and Latin-1 for what that leaves undefined."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            return content.decode("cp1252")
        except UnicodeDecodeError:
            return content.decode("latin-1")
