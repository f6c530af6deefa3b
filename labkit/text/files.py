"""Your own files as documents and rows: txt, md, html, py, csv, tsv, jsonl, or a folder of them.

    file or folder -> bytes -> text (UTF-8, else guessed) -> documents, or rows of columns

A file is read piece by piece: `stream` needs the memory of one piece, however large the file is.
What cannot be used is an error that names the file, the place in it and the remedy.
"""

import codecs
import itertools
import json
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.text import cleaning

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".text", ".py", ".html", ".htm", ".csv", ".tsv", ".jsonl"}
DIVIDER = "<|endoftext|>"
"""Alone on a line between the documents of a txt or md file, as in those of TinyStories."""
BLOCK_CHARACTERS = 2000
PIECE = 1 << 20
"""Characters (or bytes) read at a time."""
SAMPLE = 1 << 16
"""Bytes from which an encoding is guessed."""
ASCII = bytes(range(128))
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".7z"}
BYTE_ORDER_MARKS = {  # the longer ones first: that of UTF-16 begins that of UTF-32
    "utf-32": (b"\xff\xfe\0\0", b"\0\0\xfe\xff"),
    "utf-16": (b"\xff\xfe", b"\xfe\xff"),
}
OTHER_SCRIPTS = (
    "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1251", "koi8_r", "cp1253", "cp1255",
    "cp1256",
)  # fmt: skip


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
    tsv and jsonl give a document a row. A txt or md file with lines that are `<|endoftext|>` and
    nothing else (one of them in its first million characters) is cut there alone.

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
    bad: list[LabError] = []
    for file in files:
        given = 0
        try:
            for text in _of_one_file(file, text_column, cut=False):
                yield text
                given += 1
        except LabError as error:
            if given:  # half of it is in use already
                raise
            bad.append(error)
            warnings.warn(f"left out: {error}", stacklevel=2)
    if len(bad) == len(files):
        raise LabError(f"{path} holds no file that can be read: {bad[0]}")


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
        if start and DIVIDER in start[0].split("\n"):
            yield from _divided(itertools.chain(start, pieces))
        elif len(start) == 1 and not cut:
            yield from start
        else:
            yield from _blocks(itertools.chain(start, pieces))


def _divided(pieces: Iterator[str]) -> Iterator[str]:
    """The documents between dividers, each without the line breaks around it."""
    held, document = "", []
    for piece in itertools.chain(pieces, [f"\n{DIVIDER}\n"]):
        *lines, held = (held + piece).split("\n")
        for line in lines:
            if line != DIVIDER:
                document.append(line)
                continue
            if (text := "\n".join(document).strip("\n")).strip():
                yield text
            document = []


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
        for paragraph in itertools.chain.from_iterable(map(_lines_of, paragraphs)):
            current.append(paragraph)
            length += len(paragraph)
            if length >= least:
                if (text := block()).strip():
                    yield text
                current, length = [], 0
    if current and (text := block()).strip():
        yield text


def _lines_of(paragraph: str) -> list[str]:
    """A paragraph as it is; one far longer than a document in pieces of words of that length."""
    if len(paragraph) <= 4 * BLOCK_CHARACTERS:
        return [paragraph]
    return textwrap.wrap(
        paragraph, BLOCK_CHARACTERS, replace_whitespace=False, drop_whitespace=False
    )


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
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise LabError(
                f"{path} line {number} holds half a character (a lone surrogate such as \\ud83d): "
                "write the whole character."
            ) from error
        except (ValueError, RecursionError) as error:
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
            f"{hint(row, name)}"
        )
    return str(row[name])


def hint(row: dict[str, Any], name: str) -> str:
    """What may be meant where a row lacks a column: a sentence, or nothing."""
    like = [column for column in row if column.strip().lower() == name.lower()]
    if like:
        return f" Is {like[0]!r} meant? Name it with the option for that column."
    if len(row) == 1 and (mark := next((m for m in ";\t|" if m in next(iter(row))), None)):
        return f" Its columns seem to be divided by {mark!r}: use commas, or tabs in .tsv."
    return ""


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
    if not path.is_file():
        raise LabError(f"{path} is no regular file (a device or a pipe); save the text in a file.")
    if path.suffix.lower() in COMPRESSED:
        raise LabError(f"{path} is compressed; unpack it first.")


def _inspect(path: Path) -> tuple[str, str]:
    """Encoding and error handling of a text file, found by reading it once.

    UTF-8 wherever most of what is not ASCII says so: single damaged bytes are replaced, and counted
    in a warning. Else the encoding is guessed, and a warning says which was taken.

    Raises:
        LabError: when it is missing, a folder, empty or binary.
    """
    _check_file(path)
    start, sample, blank, zeros = b"", b"", True, False
    high = bad = letters = 0
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            start = start or piece
            blank = blank and not piece.strip()
            zeros = zeros or b"\0" in piece
            text = decoder.decode(piece)
            beyond = len(piece.translate(None, ASCII))
            replaced = text.count("\ufffd")
            high += beyond
            letters += len(text) - (len(piece) - beyond) - replaced
            bad += replaced - piece.count(b"\xef\xbf\xbd")  # one that the writer meant
            if bad and len(sample) < SAMPLE:
                sample += b"\n".join(x for x in piece.split(b"\n") if x.translate(None, ASCII))
    bad += decoder.decode(b"", final=True).count("\ufffd")
    if blank:
        raise LabError(f"{path} is empty; give a file with text in it.")
    for name, marks in BYTE_ORDER_MARKS.items():
        if start.startswith(marks):
            return name, "replace"
    if zeros:
        raise LabError(f"{path} is binary (it holds zero bytes), not text; export it as UTF-8.")
    if bad <= 0 or letters >= 2 * bad:
        encoding = "utf-8-sig"
        if bad > 0:
            warnings.warn(
                f"{path} is UTF-8 with {bad} damaged bytes, which were replaced", stacklevel=2
            )
    else:
        encoding = guess_encoding(sample[:SAMPLE])
    some = start[:100_000].decode(encoding, errors="ignore")
    strange = len(re.findall("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]", some))
    if strange > 0.01 * len(some):
        raise LabError(f"{path} is binary ({strange} control characters), not text.")
    if encoding != "utf-8-sig":
        warnings.warn(
            f"{path} is not UTF-8 and was read as {encoding}: if that is wrong, save it as UTF-8",
            stacklevel=2,
        )
    return encoding, "replace"


def guess_encoding(content: bytes) -> str:
    """The likeliest encoding of text that is not UTF-8, as Python names it.

    Scripts other than the Latin one are told apart by the kept detector; of the encodings of Latin
    letters, which differ in a few accents, Windows-1252 is taken, as browsers do.
    """
    from charset_normalizer import from_bytes

    found = from_bytes(content, cp_isolation=[*OTHER_SCRIPTS, "cp1250", "cp1252"]).best()
    return found.encoding if found is not None and found.encoding in OTHER_SCRIPTS else "cp1252"


def decode(content: bytes) -> str:
    """UTF-8 where it is valid, else Windows-1252 and Latin-1 for what that leaves undefined."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            return content.decode("cp1252")
        except UnicodeDecodeError:
            return content.decode("latin-1")
