"""Old English to modern: the King James Version beside the World English Bible, verse by verse.

    kjv_bible ── verse_id ── web_bible ──> pairs ── by book ──> train, validation, test
                                              └── WordTable: which new word stands for an old one

A whole book is in one part, because verses of a chapter tell one story; and a training verse that
shares half of its runs of words with a held-out one is left out, because books quote one another.

Two readers that understand nothing are the measure of every model: the source itself, copied (most
of its words stay), and each word exchanged for its most likely partner, found by counting.

Source: Brown et al. 1993, "The Mathematics of Statistical Machine Translation", section 4.1
(IBM Model 1).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labkit.errors import LabError
from labkit.text import cleaning
from labkit.text.remembered import remembered

if TYPE_CHECKING:
    from datasets import DatasetDict

#: Stories, poems and letters in each part; none of them retells another book at length.
VALIDATION_BOOKS = ("Esther", "Proverbs", "1 Corinthians", "Hebrews")
TEST_BOOKS = ("Ruth", "Job", "Jonah", "Acts", "Romans", "James")
#: Runs of so many words are compared, and so large a share of the shorter verse's makes a twin.
RUN, SHARE = 4, 0.5

_TOKEN = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


def verses(
    validation: Sequence[str] = VALIDATION_BOOKS, test: Sequence[str] = TEST_BOOKS
) -> DatasetDict:
    """Verses of King James ("text") and of the World English Bible ("target"), split by book.

    Columns text, target, book, verse_id (bbcccvvv). Some 31,000 pairs.

    Args:
        validation, test: books as `web_bible` names them; all others are for training.

    Raises:
        LabError: an unknown book, a book in both parts, or no book for a part.
    """
    from datasets import Dataset, DatasetDict

    from labkit.text import corpora

    titles = corpora.bible_books()
    parts = {"validation": tuple(validation), "test": tuple(test)}
    for part, books in parts.items():
        if unknown := [book for book in books if book not in titles]:
            raise LabError(f"there is no book {unknown[0]!r}; the books are {', '.join(titles)}")
        if not books:
            raise LabError(f"{part} names 0 books: give at least 1 of {', '.join(titles)}")
    if shared := sorted(set(validation) & set(test)):
        raise LabError(f"{shared[0]!r} is in validation and in test: a book is in one part")
    of_book = {book: part for part, books in parts.items() for book in books}
    rows: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    for verse_id, old, new in corpora.bible_verses():
        book = titles[verse_id // 1_000_000 - 1]
        row = {"text": old, "target": new, "book": book, "verse_id": verse_id}
        rows[of_book.get(book, "train")].append(row)
    rows["validation"] = _apart(rows["validation"], rows["test"])
    rows["train"] = _apart(rows["train"], rows["test"] + rows["validation"])
    return DatasetDict({part: Dataset.from_list(some) for part, some in rows.items()})


def _apart(rows: list[dict], held: list[dict]) -> list[dict]:
    """Rows of which neither side is (nearly) one of the held rows'."""
    for side in ("text", "target"):
        texts, others = [row[side] for row in rows], [row[side] for row in held]
        gone = set(_twin_places(texts, others))
        rows = [row for i, row in enumerate(rows) if i not in gone]
    return rows


def _twin_places(texts: list[str], held: list[str]) -> list[int]:
    """Indices of the texts that have a twin; the search takes a second and is made once."""

    def search() -> list[int]:
        return [i for i, is_twin in enumerate(twins(texts, held)) if is_twin]

    code = (Path(file).read_bytes() for file in (__file__, cleaning.__file__))
    causes = (*code, *texts, b"held", *held)
    return remembered("verses", causes, search, lambda it: set(it) <= set(range(len(texts))))


def twins(texts: Sequence[str], held: Sequence[str]) -> list[bool]:
    """Whether each text shares half of the shorter one's runs of words with a held text.

    Exact, by an index of the held texts' runs; a text of fewer than `RUN` words is one run.

    >>> twins(["In the beginning God made it", "And he went away"], ["in the beginning God!"])
    [True, False]
    """
    runs_of_held = [_runs(text) for text in held]
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, runs in enumerate(runs_of_held):
        for run in runs:
            index[run].append(number)
    found = []
    for text in texts:
        runs = _runs(text)
        common = Counter(number for run in runs for number in index.get(run, ()))
        found.append(
            any(
                count >= SHARE * min(len(runs), len(runs_of_held[number]))
                for number, count in common.items()
            )
        )
    return found


def _runs(text: str) -> set[tuple[str, ...]]:
    words = cleaning.words(text)
    return {tuple(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))}


class WordTable:
    """Each old word and the new one that most likely stands for it: IBM Model 1.

        p(new | old) = prod_j (1 / (S + 1)) sum_i t(new_j | old_i),   i = 0: no old word at all

    EM: every new word is shared out among the old words of its verse in proportion to t, and t is
    counted again from the shares. Where a word stands does not count.

    `table` maps old words (small letters) to new ones; `table(text)` exchanges them.
    """

    def __init__(
        self,
        olds: Sequence[str],
        news: Sequence[str],
        rounds: int = 5,
        most: int = 10_000,
        least: int = 3,
    ):
        """
        Args:
            olds, news: equally many texts, at least one.
            rounds: of EM, at least 1.
            most: of more pairs, this many are drawn.
            least: words seen less often stay: rare ones become partners of whatever is near.

        Raises:
            LabError: no pair, or sides of unequal length.
        """
        if not olds or len(olds) != len(news):
            raise LabError(
                f"{len(olds)} old and {len(news)} new texts: give equally many, 1 or more"
            )
        rows = np.random.default_rng(0).permutation(len(olds))[:most]
        pairs = [(_small(str(olds[i])), _small(str(news[i]))) for i in rows.tolist()]
        old_ids = {"": 0}  # no old word
        new_ids: dict[str, int] = {}
        olds_of, news_of, groups, group = [], [], [], 0
        for old, new in pairs:
            from_ = [0, *(old_ids.setdefault(word, len(old_ids)) for word in old)]
            to = [new_ids.setdefault(word, len(new_ids)) for word in new]
            olds_of.append(np.tile(np.array(from_), len(to)))
            news_of.append(np.repeat(np.array(to, dtype=np.int64), len(from_)))
            groups.append(np.repeat(np.arange(group, group + len(to)), len(from_)))
            group += len(to)
        old_L, new_L, group_L = map(np.concatenate, (olds_of, news_of, groups))
        width = max(1, len(new_ids))
        kinds_K, kind_L = np.unique(old_L * width + new_L, return_inverse=True)
        old_K, new_K = kinds_K // width, kinds_K % width
        t_K = np.ones(len(kinds_K))
        for _ in range(rounds):
            chance_L = t_K[kind_L]
            share_L = chance_L / np.bincount(group_L, chance_L)[group_L]
            count_K = np.bincount(kind_L, share_L, minlength=len(kinds_K))
            t_K = count_K / np.bincount(old_K, count_K)[old_K]
        seen = Counter(word for old, _ in pairs for word in old)
        common = {word for word, count in seen.items() if count >= least}
        self._keep(old_K, new_K, t_K, list(old_ids), list(new_ids), common)

    def _keep(
        self,
        old_K: np.ndarray,
        new_K: np.ndarray,
        t_K: np.ndarray,
        olds: list[str],
        news: list[str],
        common: set[str],
    ) -> None:
        best: dict[int, int] = {}
        for k in np.argsort(t_K, kind="stable").tolist():  # the likeliest comes last and stays
            best[int(old_K[k])] = k
        best = {old: k for old, k in best.items() if olds[old] in common}
        self.table = {olds[old]: news[new_K[k]] for old, k in best.items()}
        self.probability = {olds[old]: float(t_K[k]) for old, k in best.items()}

    def __call__(self, text: str) -> str:
        """The text with each word exchanged; an unknown word, a mark or a space stays."""
        return _TOKEN.sub(lambda found: self._exchanged(found[0]), text)

    def _exchanged(self, word: str) -> str:
        new = self.table.get(word.casefold())
        if new is None or not word[0].isalnum() or not new[0].isalnum():
            return word
        return new[0].upper() + new[1:] if word[0].isupper() else new


def _small(text: str) -> list[str]:
    return [token.casefold() for token in _TOKEN.findall(text)]
