"""Words with tags as token ids: one word may be several pieces, and its tag stands on the first.

    words    Zofia             lost    the     harbourmaster       's ...
    tags     B-PERSON          O       O       B-PERSON
    pieces   zo    ##fia       lost    the     harbour   ##master
    labels   B     -100        O       O       B         -100

Long rows are read in windows that begin and end between words, and never inside a span, so no word
is lost and none is cut. What the tokenizer drops (a word of control characters) is read as its
unknown token: every word keeps a place.

Legend: T positions (pieces and marks).

Source: Devlin et al. 2019, arXiv:1810.04805, section 5.3 (the first piece is what is tagged).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from labkit.batches.long_texts import Marks
from labkit.batches.types import IGNORE_INDEX, Example
from labkit.errors import LabError
from labkit.text.bio import Tagged, check_row
from labkit.text.tokenizers import Tokenizer

if TYPE_CHECKING:
    import pandas as pd

Pieces = list[list[int]]


class Window(NamedTuple):
    """Words start to end - 1 of a row, read at once."""

    row: int
    start: int
    end: int


def word_pieces(tokenizer: Tokenizer, rows: Sequence[Sequence[str]]) -> list[Pieces]:
    """The token ids of each word of each row, at least one a word, without marks.

    Words are read as they stand in a line, divided by spaces: where a vocabulary has other tokens
    for a word after a space, it is those.
    """
    lines = [" ".join(words) for words in rows]
    encodings = tokenizer.backend.encode_batch(lines, add_special_tokens=False)
    found = []
    for words, encoding in zip(rows, encodings, strict=True):
        ends = list(itertools.accumulate(len(word) + 1 for word in words))  # the space included
        pieces: Pieces = [[] for _ in words]
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            last = max(start, end - 1)
            word = bisect.bisect_right(ends, last)
            if word + 1 < len(words) and last == ends[word] - 1:
                word += 1  # nothing but the space: it leads to the next word
            pieces[min(word, len(words) - 1)].append(token)
        found.append([ids or [_unknown(tokenizer)] for ids in pieces])
    return found


def _unknown(tokenizer: Tokenizer) -> int:
    name = getattr(tokenizer.backend.model, "unk_token", None)
    known = None if name is None else tokenizer.backend.token_to_id(name)
    return tokenizer.end_of_text_id if known is None else known


def windows(
    pieces: Pieces, room: int, row: int = 0, tags: Sequence[str] | None = None
) -> list[Window]:
    """A row in windows of whole words, each as full as it can be.

    Args:
        pieces: of each word.
        room: tokens of a window, marks not counted.
        row: its number.
        tags: of the words; a window then never begins inside a span. None: they are not known.

    Raises:
        LabError: a word, or a span of words, has more pieces than a window.
    """
    found, start, filled = [], 0, 0
    for place, ids in enumerate(pieces):
        if len(ids) > room:
            raise LabError(
                f"word {place + 1} of row {row + 1} has {len(ids)} pieces, and a window has room "
                f"for {room}: choose a longer max_length, or shorten the word"
            )
        if filled + len(ids) > room:
            end = place
            while tags is not None and end > start and tags[end].startswith("I-"):
                end -= 1
            if end == start:
                raise LabError(
                    f"the span at word {start + 1} of row {row + 1} has more than the {room} "
                    "pieces of a window: choose a longer max_length"
                )
            found.append(Window(row, start, end))
            start, filled = end, sum(len(before) for before in pieces[end:place])
        filled += len(ids)
    return [*found, Window(row, start, len(pieces))]


def tagged_examples(
    tokenizer: Tokenizer,
    rows: Sequence[Tagged],
    tags: Sequence[str],
    max_length: int,
    label: Literal["first", "all"] = "first",
) -> list[Example]:
    """Rows of words and tags as windows of token ids and labels.

    Args:
        tokenizer: of the model.
        rows: words and tags, checked here.
        tags: names of the tags, in the order of the scores.
        max_length: tokens of a window, marks included.
        label: the first piece of each word counts, or all: those after a first B-X are then I-X.
            A CRF reads words, so it takes "first" only.

    Returns:
        Items with `input_ids` (T,), `labels` (T,): a tag, or `IGNORE_INDEX`. At least one a row.

    Raises:
        LabError: a row is empty, has another number of tags than of words, a tag outside BIO or
            not among `tags`; a word or a span does not fit.
    """
    for number, row in enumerate(rows, start=1):
        check_row(row.words, row.tags, f"row {number}", tags)
    numbers = {name: i for i, name in enumerate(tags)}
    marks = Marks(*tokenizer.marks)
    room = marks.room(max_length)
    examples = []
    for number, pieces in enumerate(word_pieces(tokenizer, [row.words for row in rows])):
        own = rows[number].tags
        for window in windows(pieces, room, number, own):
            labels = []
            for ids, tag in zip(_of(window, pieces), own[window.start : window.end], strict=True):
                rest = IGNORE_INDEX if label == "first" else numbers[_goes_on(tag)]
                labels += [numbers[tag], *[rest] * (len(ids) - 1)]
            examples.append(_example(window, pieces, labels, marks))
    return examples


def word_examples(
    tokenizer: Tokenizer, rows: Sequence[Sequence[str]], max_length: int
) -> tuple[list[Example], list[Window]]:
    """Rows of words alone, to be tagged: `labels` is 0 where a word begins.

    Returns:
        Items as in `tagged_examples`, and the window of each.

    Raises:
        LabError: a row is empty, or a word does not fit into a window.
    """
    for number, words in enumerate(rows, start=1):
        if not words:
            raise LabError(f"row {number} is empty: give at least one word")
    marks = Marks(*tokenizer.marks)
    room = marks.room(max_length)
    examples, places = [], []
    for number, pieces in enumerate(word_pieces(tokenizer, rows)):
        for window in windows(pieces, room, number):
            labels = []
            for ids in _of(window, pieces):
                labels += [0, *[IGNORE_INDEX] * (len(ids) - 1)]
            examples.append(_example(window, pieces, labels, marks))
            places.append(window)
    return examples, places


def _of(window: Window, pieces: Pieces) -> Pieces:
    return pieces[window.start : window.end]


def _goes_on(tag: str) -> str:
    return f"I-{tag[2:]}" if tag.startswith("B-") else tag


def _example(window: Window, pieces: Pieces, labels: list[int], marks: Marks) -> Example:
    before, after = ([IGNORE_INDEX] * len(ids) for ids in marks)
    inside = [token for ids in _of(window, pieces) for token in ids]
    return {
        "input_ids": marks.around(inside),
        "labels": torch.tensor([*before, *labels, *after]),
    }


def piece_table(
    tokenizer: Tokenizer, words: Sequence[str], tags: Sequence[str] | None = None
) -> pd.DataFrame:
    """A row a word: `word`, its `pieces` as the tokenizer names them, its `tag` where given."""
    import pandas as pd

    (pieces,) = word_pieces(tokenizer, [words])
    names = [" ".join(str(tokenizer.backend.id_to_token(i)) for i in ids) for ids in pieces]
    columns = {"word": list(words), "pieces": names}
    return pd.DataFrame(columns if tags is None else {**columns, "tag": list(tags)})
