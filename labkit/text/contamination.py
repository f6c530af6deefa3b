"""Has the model read the test? Passages of test texts that stand in training texts, word for word.

    test texts ──> every run of 13 words ──┐
                                           ├──> runs in both ──> share of each test text's words
    training texts, one by one ────────────┘                     that such a run covers

`cleaning.leakage` finds test texts that are nearly a training text. A test text may also stand
inside a longer one, or a question with its answer inside a page about everything: there the texts
have little in common as wholes. Runs of 13 words are long enough to be rare by chance; what they
miss is a paraphrase or a translation.

Source: Brown et al. 2020, arXiv:2005.14165, appendix C (13-grams).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from labkit.errors import LabError
from labkit.text.cleaning import words


class Contained(NamedTuple):
    """What of a test text stands in the training texts."""

    share: float
    """Of its words, 0 to 1."""
    passage: str
    """The longest piece that does, in small letters and without punctuation; "" if none does."""


def contained_passages(
    train: Iterable[str], test: Sequence[str], run_words: int = 13
) -> list[Contained]:
    """How much of each test text stands in the training texts, word for word.

    Args:
        train: read once, one by one; it may be larger than memory.
        test: the texts in question; their runs of words are held.
        run_words: shortest passage that counts, at least 1; a test text that is shorter counts if
            all of it stands there.

    Raises:
        LabError: run_words is below 1.

    >>> contained_passages(["one two three four five"], ["zero two three four"], run_words=3)
    [Contained(share=0.75, passage='two three four')]
    """
    if run_words < 1:
        raise LabError(f"run_words {run_words} is out of range: choose at least 1")
    cut = [words(text) for text in test]
    wanted: dict[int, set[tuple[str, ...]]] = {}
    for each in cut:
        length = min(run_words, len(each))
        wanted.setdefault(length, set()).update(run for _, run in _runs(each, length))
    wanted.pop(0, None)
    found: set[tuple[str, ...]] = set()
    for text in train:
        read = words(text)
        for length, runs in wanted.items():
            found.update(run for _, run in _runs(read, length) if run in runs)
    return [_contained(each, min(run_words, len(each)), found) for each in cut]


def _runs(read: list[str], length: int) -> Iterable[tuple[int, tuple[str, ...]]]:
    return ((i, tuple(read[i : i + length])) for i in range(len(read) - length + 1))


def _contained(each: list[str], length: int, found: set[tuple[str, ...]]) -> Contained:
    if not each:
        return Contained(0.0, "")
    covered = [False] * len(each)
    for i, run in _runs(each, length):
        if run in found:
            covered[i : i + length] = [True] * length
    longest, piece = [], []
    for word, inside in zip(each, covered, strict=True):
        piece = [*piece, word] if inside else []
        longest = piece if len(piece) > len(longest) else longest
    return Contained(sum(covered) / len(each), " ".join(longest))
