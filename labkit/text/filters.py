"""Filters of a pool of texts that need no training, and how to judge any filter.

    texts ──> signals ──> rules ────────────────> broken: names of the rules that a text breaks
         ├──> cleaning.near_duplicates ─────────> clusters ──> the first of each that is still there
         └──> contamination.contained_passages ─> leaking: texts that hold a passage of the test
    dropped, kinds ──> judge_filter ────────────> precision, recall, and the share of each kind

A filter answers with positions to drop. Rules first, copies last: the text of a cluster that stays
should be one that the other filters let through. Learned filters: `labkit.models.quality`.

Sources: Rae et al. 2021, arXiv:2112.11446, table A1 (a selection of its rules with its limits;
runs are counted in words here, in characters there, and the rule on ASCII is ours); Raffel et al.
2020, arXiv:1910.10683, section 2.2 (C4).
"""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from labkit.text.cleaning import Duplicate, words
from labkit.text.contamination import contained_passages

#: English words of which a text has at least two.
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))


class Signals(NamedTuple):
    """What rules look at; shares lie in [0, 1]."""

    words: int
    mean_word_length: float
    """Characters a word, cut at white space."""
    alphabetic: float
    """Share of words with at least one letter."""
    ascii: float
    """Share of ASCII characters."""
    stop_words: int
    """Occurrences of `STOP_WORDS`."""
    repeated_lines: float
    """Share of lines that stand above already, where numbers do not count as a difference."""
    top_bigram: float
    """Share of the letters in the commonest pair of words."""
    repeated_runs: float
    """Share of the words that lie in a run of five words which occurs twice or more."""


#: Rule -> (lowest, highest) of a signal.
RULES: dict[str, tuple[float, float]] = {
    "words": (50, 100_000),
    "mean_word_length": (3, 10),
    "alphabetic": (0.8, 1),
    "ascii": (0.9, 1),
    "stop_words": (2, float("inf")),
    "repeated_lines": (0, 0.3),
    "top_bigram": (0, 0.2),
    "repeated_runs": (0, 0.15),
}


def signals(text: str) -> Signals:
    """Count what the rules of a text are about.

    >>> signals("the cat and the dog").stop_words
    3
    """
    pieces, read = text.split(), words(text)
    lines = [" ".join(w for w in words(line) if not w.isdigit()) for line in text.splitlines()]
    lines = [line for line in lines if line]
    pairs = Counter(itertools.pairwise(read))
    (first, second), times = pairs.most_common(1)[0] if pairs else (("", ""), 0)
    top = times * len(first + second) if times > 1 else 0
    return Signals(
        words=len(pieces),
        mean_word_length=_share(sum(map(len, pieces)), len(pieces)),
        alphabetic=_share(sum(any(c.isalpha() for c in w) for w in pieces), len(pieces)),
        ascii=_share(sum(c.isascii() for c in text), len(text)),
        stop_words=sum(word in STOP_WORDS for word in read),
        repeated_lines=_share(len(lines) - len(set(lines)), len(lines)),
        top_bigram=_share(top, sum(map(len, read))),
        repeated_runs=_in_repeated_runs(read, 5),
    )


def broken_rules(text: str) -> list[str]:
    """Names of the rules in `RULES` that a text breaks; none for a good one."""
    found = signals(text)._asdict()
    return [name for name, (low, high) in RULES.items() if not low <= found[name] <= high]


def clusters(duplicates: Sequence[Duplicate], count: int) -> list[int]:
    """For each of `count` texts the first text of its cluster: itself if it repeats none."""
    first = list(range(count))
    for found in duplicates:
        first[found.dropped] = found.kept
    return first


def repeats(first: Sequence[int], gone: Collection[int] = ()) -> set[int]:
    """All but one of each cluster: the first that is not gone already stays.

    Args:
        first: from `clusters`.
        gone: positions that other filters dropped.

    >>> repeats([0, 0, 0, 3], gone={0})
    {2}
    """
    taken: set[int] = set()
    found = set()
    for i, cluster in enumerate(first):
        if i in gone:
            continue
        if cluster in taken:
            found.add(i)
        taken.add(cluster)
    return found


def leaking(texts: Sequence[str], tests: Sequence[str], run_words: int = 13) -> set[int]:
    """Positions of texts that hold a run of words of a test text.

    `contained_passages`, asked from the other side: drop the page, not the test.

    Args:
        texts: of the pool.
        tests: all that a model will be tested on.
        run_words: shortest run that counts, at least 1.
    """
    found = contained_passages(tests, texts, run_words)
    return {i for i, passage in enumerate(found) if passage.share > 0}


class Judged(NamedTuple):
    """A filter against the labels."""

    precision: float
    """Share of what it dropped that was bad; 1 if it dropped nothing."""
    recall: float
    """Share of what was bad that it dropped; 1 if nothing was."""
    dropped: dict[str, float]
    """Share of each kind that it dropped."""


def judge_filter(dropped: Collection[int], kinds: Sequence[str], bad: Collection[str]) -> Judged:
    """Precision and recall of a filter whose task are the kinds in `bad`.

    Args:
        dropped: positions.
        kinds: the kind of each text.
        bad: kinds that this filter should drop.

    >>> judge_filter({0, 1}, ["leak", "clean", "leak"], {"leak"})[:2]
    (0.5, 0.5)
    """
    dropped = set(dropped)
    all_of = Counter(kinds)
    gone_of = Counter(kinds[i] for i in dropped)
    hits = sum(gone_of[kind] for kind in bad)
    there = sum(all_of[kind] for kind in bad)
    return Judged(
        hits / len(dropped) if dropped else 1.0,
        hits / there if there else 1.0,
        {kind: gone_of[kind] / all_of[kind] for kind in all_of},
    )


def _in_repeated_runs(read: Sequence[str], length: int) -> float:
    runs = [tuple(read[i : i + length]) for i in range(len(read) - length + 1)]
    times = Counter(runs)
    covered = [False] * len(read)
    for i, run in enumerate(runs):
        if times[run] > 1:
            covered[i : i + length] = [True] * length
    return _share(sum(covered), len(read))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
