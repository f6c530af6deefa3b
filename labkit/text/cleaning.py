"""Cleaning text, finding duplicates, and splits that do not leak.

    clean:  fix_mojibake -> strip_markup -> normalize_unicode -> collapse_whitespace
    corpus: exact_duplicates, near_duplicates -> deduplicate -> split_by_hash -> leakage: none

Cleaning here repairs; it does not simplify. Case, punctuation, accents and stop words stay: a
generative model that never saw them cannot write them.

Sources: Broder 1997 (resemblance, MinHash); Lee et al. 2022, "Deduplicating training data makes
language models better".
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from labkit.errors import LabError

TAG = re.compile(r"<!--.*?-->|<(?:script|style)\b.*?</(?:script|style)\s*>", re.S | re.I)
BREAK = re.compile(r"</?(?:p|br|div|h[1-6]|li|tr|ul|ol|table|blockquote|pre|title)\b[^<>]*>", re.I)
INLINE = re.compile(r"</?[a-zA-Z][^<>]*>|<![^<>]*>")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff\ud800-\udfff]")


def clean(text: str) -> str:
    """Repair a text: mojibake, markup, Unicode, white space, in this order.

    >>> clean("<p>The caf\\u00c3\\u00a9  is   <b>open</b> &amp; warm.</p>")
    'The caf\\u00e9 is open & warm.'
    """
    return collapse_whitespace(normalize_unicode(strip_markup(fix_mojibake(text))))


def fix_mojibake(text: str) -> str:
    """Undo UTF-8 that was read as another encoding: `Ã©` becomes `é`.

    Source: Speer 2019, ftfy.
    """
    import ftfy

    return ftfy.fix_encoding(text)


def strip_markup(text: str) -> str:
    """Remove HTML tags, comments, scripts; a block tag becomes a new line, `&amp;` becomes `&`.

    A `<` that opens no tag stays: `if a < b` is text.
    """
    text = TAG.sub(" ", text)
    text = BREAK.sub("\n", text)
    text = INLINE.sub("", text)
    return html.unescape(text)


def normalize_unicode(text: str) -> str:
    """Compose characters (NFC), use `\\n` for every line end, drop invisible control characters.

    NFC keeps meaning: `²` stays `²`, where NFKC would make it `2`.
    """
    text = unicodedata.normalize("NFC", text)
    text = re.sub("\r\n?|\u2028|\u2029|\u0085", "\n", text)
    return CONTROL.sub("", text)


def collapse_whitespace(text: str) -> str:
    """One space between words, at most one empty line between paragraphs, none at the ends."""
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def words(text: str) -> list[str]:
    """Case-folded words, the unit in which texts are compared.

    >>> words("The key's HERE, now.")
    ['the', 'key', 's', 'here', 'now']
    """
    return re.findall(r"\w+", text.casefold())


def content_hash(text: str) -> str:
    """SHA-256 of the text's words: the same for texts that differ in case, space or punctuation."""
    return hashlib.sha256(" ".join(words(text)).encode("utf-8", "surrogatepass")).hexdigest()


class Duplicate(NamedTuple):
    """`dropped` repeats `kept`; both are positions in the list of texts."""

    kept: int
    dropped: int
    similarity: float
    """Jaccard similarity of their shingles, in [0, 1]; 1 for an exact duplicate."""


def exact_duplicates(texts: Sequence[str]) -> list[Duplicate]:
    """Texts whose words equal those of an earlier text (`content_hash`)."""
    first: dict[str, int] = {}
    found = []
    for i, text in enumerate(texts):
        kept = first.setdefault(content_hash(text), i)
        if kept != i:
            found.append(Duplicate(kept, i, 1.0))
    return found


def near_duplicates(
    texts: Sequence[str],
    threshold: float = 0.5,
    shingle_words: int = 5,
    permutations: int = 128,
) -> list[Duplicate]:
    """Texts that share most of their shingles (runs of words) with an earlier text.

    J(a, b) = |a ∩ b| / |a ∪ b| over shingle sets. MinHash with locality-sensitive hashing proposes
    pairs, at a threshold 0.15 lower so that few are missed; the true J then decides. What is
    similar to something similar is in the same cluster; the first text of a cluster is kept.

    Args:
        threshold: least Jaccard similarity of a duplicate, in (0, 1].
        shingle_words: words in a shingle, at least 1.
        permutations: hash functions of the MinHash, at least 16; more find more and cost more.

    Returns:
        One entry for each text to drop, in order; exact duplicates are among them.

    Raises:
        LabError: when an argument is out of range.

    Source: Broder 1997; Indyk and Motwani 1998 (locality-sensitive hashing).
    """
    shingles = _shingles(texts, threshold, shingle_words, permutations)
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    similarity: dict[int, float] = {}
    for a, b in _candidates(shingles, threshold, permutations):
        j = _jaccard(shingles[a], shingles[b])
        if j >= threshold:
            low, high = sorted((root(a), root(b)))
            parent[high] = low
            similarity[b] = max(j, similarity.get(b, 0.0))
            similarity[a] = max(j, similarity.get(a, 0.0))
    return [Duplicate(root(i), i, similarity[i]) for i in range(len(texts)) if root(i) != i]


def deduplicate(
    texts: Sequence[str], threshold: float = 0.5
) -> tuple[list[int], list[Duplicate], list[Duplicate]]:
    """Positions to keep, then the exact and the near duplicates that were dropped."""
    exact = exact_duplicates(texts)
    gone = {d.dropped for d in exact}
    kept = [i for i in range(len(texts)) if i not in gone]
    near = [
        Duplicate(kept[d.kept], kept[d.dropped], d.similarity)
        for d in near_duplicates([texts[i] for i in kept], threshold)
    ]
    gone |= {d.dropped for d in near}
    return [i for i in kept if i not in gone], exact, near


def split_by_hash(
    texts: Sequence[str], validation: float = 0.1, test: float = 0.1, seed: int = 0
) -> dict[str, list[int]]:
    """Positions for train, validation and test, decided by each text's content alone.

    A text keeps its split when others come and go, and equal texts fall into the same split.

    Args:
        validation: expected share of the validation split, in [0, 1).
        test: expected share of the test split, in [0, 1); the two sum to less than 1.
        seed: another seed draws other splits.

    Raises:
        LabError: when the shares are out of range.
    """
    check_shares(validation, test)
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for i, text in enumerate(texts):
        splits[split_of(text, validation, test, seed)].append(i)
    return splits


def check_shares(validation: float, test: float) -> None:
    """Raise a LabError unless both shares lie in [0, 1) and leave something to train on."""
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise LabError(
            f"The shares validation={validation} and test={test} must lie in [0, 1) and sum to "
            "less than 1, so that something is left to train on."
        )


def split_of(text: str, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> str:
    """The split of one text, `train`, `validation` or `test`; arguments as in `split_by_hash`."""
    digest = hashlib.sha256(f"{seed}:{content_hash(text)}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if share < test else "validation" if share < test + validation else "train"


def leakage(
    train: Sequence[str],
    test: Sequence[str],
    threshold: float = 0.5,
    shingle_words: int = 5,
    permutations: int = 128,
) -> list[Duplicate]:
    """Test texts that (nearly) stand in the training texts; an empty list is what you want.

    Returns:
        One entry for each such test text: `kept` is its closest position in `train`, `dropped` its
        position in `test`.
    """
    texts = [*train, *test]
    shingles = _shingles(texts, threshold, shingle_words, permutations)
    closest: dict[int, Duplicate] = {}
    for a, b in _candidates(shingles, threshold, permutations):
        if not a < len(train) <= b:
            continue
        j = _jaccard(shingles[a], shingles[b])
        if j >= threshold and (b not in closest or closest[b].similarity < j):
            closest[b] = Duplicate(a, b - len(train), j)
    return [closest[b] for b in sorted(closest)]


def _shingles(
    texts: Sequence[str], threshold: float, shingle_words: int, permutations: int
) -> list[frozenset[int]]:
    """The set of hashed shingles of each text; one shorter than a shingle is one shingle."""
    if not 0 < threshold <= 1:
        raise LabError(f"threshold is {threshold}; a similarity lies in (0, 1], such as 0.5.")
    if shingle_words < 1 or permutations < 16:
        raise LabError(
            f"shingle_words={shingle_words} must be at least 1 and permutations={permutations} at "
            "least 16."
        )
    shingled = []
    for text in texts:
        tokens = words(text)
        last = max(1, len(tokens) - shingle_words + 1)
        runs = (" ".join(tokens[i : i + shingle_words]) for i in range(last))
        shingled.append(frozenset(zlib.crc32(r.encode("utf-8", "surrogatepass")) for r in runs))
    return shingled


def _candidates(
    shingles: Sequence[frozenset[int]], threshold: float, permutations: int
) -> Iterator[tuple[int, int]]:
    """Pairs a < b that share a band of their MinHash signatures."""
    import numpy as np
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=max(0.1, threshold - 0.15), num_perm=permutations)
    empty = MinHash(permutations, hashfunc=int)
    for b, shingle_set in enumerate(shingles):
        signature = empty.copy()
        signature.update_batch(np.fromiter(sorted(shingle_set), dtype=np.uint64))
        for a in sorted(int(str(key)) for key in lsh.query(signature)):
            yield a, b
        lsh.insert(b, signature)


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / len(a | b)
