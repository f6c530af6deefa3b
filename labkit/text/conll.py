"""Files of words and tags, one word a line, as CoNLL's shared tasks have them.

    -DOCSTART-                     begins a document; none: every row is its own
    Amara<tab>B-PERSON             first column: the word; last column: its tag
    took<tab>O
                                   an empty line ends a row

Columns stand apart by tabs or, where a line has none, by spaces; those between the first and the
last are left out.

Source: Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050 (CoNLL-2003).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from labkit.atomic import write_text
from labkit.errors import LabError
from labkit.text import files
from labkit.text.bio import Tagged, check_row

DOCUMENT = "-DOCSTART-"
SUFFIXES = (".conll", ".bio", ".iob", ".iob2")


def read_conll(path: str | Path, known: Sequence[str] | None = None) -> list[Tagged]:
    """The rows of a file, each checked.

    Args:
        path: the file.
        known: the tags that there are; None: any.

    Raises:
        LabError: the file is missing, empty or binary, a line has one column only, or a row cannot
            be used; the message names the line or the row.
    """
    path = Path(path)
    rows: list[Tagged] = []
    words: list[str] = []
    tags: list[str] = []
    documents = 0

    begun = 0

    def end() -> None:
        if words:
            where = f"{path} row {len(rows) + 1} (from line {begun})"
            check_row(words, tags, where, known)
            document = f"document {documents}" if documents else f"row {len(rows) + 1}"
            rows.append(Tagged(words.copy(), tags.copy(), document))
            words.clear()
            tags.clear()

    lines = files.read(path).split("\n")
    for number, line in enumerate([*lines, ""], start=1):
        if line.startswith(DOCUMENT):
            end()
            documents += 1
        elif not line.strip():
            end()
        else:
            columns = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
            word, tag = columns[0].strip(), columns[-1].strip()
            if len(columns) < 2 or not word or not tag:
                raise LabError(
                    f"{path} line {number} is {line.strip()[:40]!r}: write a word, a tab and its "
                    "tag, and an empty line after each row"
                )
            if len(word.split()) > 1:
                raise LabError(
                    f"{path} line {number} has {word[:40]!r} as one word: give each word its line"
                )
            begun = begun if words else number
            words.append(word)
            tags.append(tag)
    if not rows:
        raise LabError(f"{path} has no row of words and tags: give at least one")
    return rows


def write_conll(path: str | Path, rows: Iterable[Tagged]) -> None:
    """Write what `read_conll` reads: a word, a tab and its tag; documents where rows name them."""
    lines: list[str] = []
    before = ""
    for row in rows:
        if row.document and row.document != before:
            lines += [f"{DOCUMENT}\tO", ""]
        before = row.document
        pairs = zip(row.words, row.tags, strict=True)
        lines += [*(f"{word}\t{tag}" for word, tag in pairs), ""]
    write_text(Path(path), "\n".join(lines))
