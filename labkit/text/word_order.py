"""Word order: were two neighbouring words of this sentence exchanged?

    the crude oil market has surged     0   as written
    the crude market oil has surged     1   two neighbours exchanged

Whoever counts words cannot tell, for both hold the same ones; labels cost nothing, so there are as
many as there are sentences. The first and the last word stay where they are, and only plain words
move: capitals and punctuation would give the place away.

Source: the bigram-shift task of Conneau et al. 2018, arXiv:1805.01070, "What you can cram into a
single vector", on other text and with other limits.
"""

import hashlib
import random
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.errors import LabError
from labkit.text.remembered import remembered

if TYPE_CHECKING:
    from datasets import DatasetDict

#: Words of a sentence that the task takes.
SHORTEST, LONGEST = 8, 25
AS_WRITTEN, EXCHANGED = 0, 1
CLASSES = ("as written", "exchanged")

_BORDER = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')]))\s+(?=["'(]?[A-Z])""")


class Sentence(NamedTuple):
    """One example of the task."""

    text: str
    """In small letters, words divided by one space."""
    label: int
    """`AS_WRITTEN` or `EXCHANGED`."""
    place: int
    """Index of the first of the two words that were exchanged; -1 where none were."""


def sentences(text: str) -> list[str]:
    """The sentences of a text: cut after . ! or ? (and a quote) where a capital follows."""
    return [piece for line in text.splitlines() for piece in _BORDER.split(line.strip()) if piece]


def exchangeable(words: list[str]) -> list[int]:
    """The places i at which words i and i + 1 can change places.

    Both hold letters only and differ, and neither is the first or the last word.
    """
    return [
        i
        for i in range(1, len(words) - 2)
        if words[i].isalpha() and words[i + 1].isalpha() and words[i] != words[i + 1]
    ]


def exchange(words: list[str], place: int) -> list[str]:
    """The words with those at `place` and `place` + 1 exchanged; the list stays as it is.

    Raises:
        LabError: there is no word after that place.
    """
    if not 0 <= place < len(words) - 1:
        raise LabError(f"place {place} is out of range: choose 0 to {len(words) - 2}")
    return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]


def examples(text: str, seed: int = 0) -> Iterator[Sentence]:
    """One example for each sentence of a text that has `SHORTEST` to `LONGEST` words.

    Which half is exchanged, and where, follows from the sentence and the seed alone.
    """
    for sentence in sentences(text):
        words = sentence.lower().split()
        places = exchangeable(words)
        if not (SHORTEST <= len(words) <= LONGEST and places):
            continue
        digest = hashlib.sha256(f"{seed} {' '.join(words)}".encode()).digest()
        chance = random.Random(digest)
        if chance.random() < 0.5:
            yield Sentence(" ".join(words), AS_WRITTEN, -1)
        else:
            place = chance.choice(places)
            yield Sentence(" ".join(exchange(words, place)), EXCHANGED, place)


def word_order(
    name: str = "bbc_news", validation: float = 0.1, test: float = 0.1, seed: int = 0
) -> "DatasetDict":
    """The task on a corpus: splits of the columns text, label, place and document.

    A document's sentences are all on one side; a sentence that stands in several of them is kept
    once, in the first split that has it (test, validation, train).

    Args:
        name: a corpus of `corpora.names()` or a path, as in `corpora.load`.
        validation, test, seed: as in `corpora.load`; seed also draws what is exchanged.

    Raises:
        LabError: as `corpora.load`; a split has no such sentence.
    """
    import pyarrow as pa
    from datasets import Dataset, DatasetDict, Features, Value

    from labkit.text import corpora

    documents = corpora.load(name, validation=validation, test=test, seed=seed)
    texts = {split: list(documents[split]["text"]) for split in SPLITS}
    ours = name in corpora.names()  # nobody else's sentences are kept
    rows = _remembered(texts, seed) if ours else _rows(texts, seed)
    kinds = {
        "text": Value("string"),
        "label": Value("int64"),
        "place": Value("int64"),
        "document": Value("int64"),
    }
    features = Features(kinds)
    splits = DatasetDict()
    for split in ("train", "validation", "test"):
        if not rows[split]:
            raise LabError(
                f"the {split} part of {name!r} has no sentence of {SHORTEST} to {LONGEST} words: "
                "give longer texts"
            )
        columns = dict(zip(kinds, zip(*rows[split], strict=True), strict=True))
        splits[split] = Dataset(pa.table(columns, schema=features.arrow_schema))
    return splits


#: The order in which a sentence of several parts finds its own.
SPLITS = ("test", "validation", "train")


def _rows(texts: dict[str, list[str]], seed: int) -> dict[str, list[list[Any]]]:
    """[text, label, place, document] of every example of each split."""
    seen: set[tuple[str, ...]] = set()
    return {split: list(_new(texts[split], seed, seen)) for split in SPLITS}


def _remembered(texts: dict[str, list[str]], seed: int) -> dict[str, list[list[Any]]]:
    """`_rows`, made once."""

    def fits(found: Any) -> bool:
        return set(found) == set(SPLITS) and all(
            isinstance(text, str) and label in (AS_WRITTEN, EXCHANGED) and place >= -1
            and 0 <= document < len(texts[split])
            for split in SPLITS
            for text, label, place, document in found[split]
        )  # fmt: skip

    counts = " ".join(str(len(texts[split])) for split in SPLITS)
    causes = (Path(__file__).read_bytes(), sys.version, str(seed), counts)
    every = (text for split in SPLITS for text in texts[split])
    return remembered("word_order", (*causes, *every), lambda: _rows(texts, seed), fits)


def _new(texts: Iterable[str], seed: int, seen: set[tuple[str, ...]]) -> Iterator[list[Any]]:
    for document, text in enumerate(texts):
        for it in examples(text, seed):
            words = tuple(sorted(it.text.split()))  # the same for both orders
            if words not in seen:
                seen.add(words)
                yield [*it, document]
