"""WordPiece from scratch: BERT's tokenizer, and the two rules by which its pieces are chosen.

    "Unaffable!" --normalise, split--> unaffable | ! --longest match--> una ##ffa ##ble | !

A piece that continues a word is written with `##`. Encoding keeps no merges: from the left it takes
the longest piece in the vocabulary. What it cannot spell becomes `[UNK]`, and case, accents and
spaces are gone before it starts, so text does not come back: fine for a classifier, not for a model
that writes.

Which pieces to learn? The original picks the pair with the largest count(ab) / (count(a) count(b)),
whose merge raises the likelihood of the text under a unigram model the most; the `tokenizers` crate
picks the largest count(ab), as BPE does. `learn_by_count` and `learn_by_likelihood` are the two.

Sources: Schuster and Nakajima 2012, section 3; Wu et al. 2016, section 4.1; Devlin et al. 2019
(BERT's vocabulary and normalisation).
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from labkit.errors import LabError
from labkit.text.bpe import join_frequent_pairs

CONTINUES = "##"
UNKNOWN = "[UNK]"
LONGEST_WORD = 100  # characters; a longer word is unknown


# --- words -------------------------------------------------------------------------------------


def normalize(text: str) -> str:
    """BERT's uncased normalisation: no control characters, accents or capitals; 中 as a word.

    >>> normalize("Crème\\tBRÛLÉE")
    'creme brulee'
    """
    kept = (" " if c.isspace() else c for c in text if not _is_dropped(c))
    spaced = "".join(f" {c} " if _is_chinese(c) else c for c in kept)
    bare = (c for c in unicodedata.normalize("NFD", spaced) if unicodedata.category(c) != "Mn")
    return "".join(c.lower() for c in bare)


def split_words(text: str) -> list[str]:
    """A normalised text at its white space and around each punctuation mark.

    >>> split_words("don't stop.")
    ['don', "'", 't', 'stop', '.']
    """
    return "".join(f" {c} " if _is_punctuation(c) else c for c in text).split()


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word of the normalised texts occurs."""
    return Counter(word for text in texts for word in split_words(normalize(text)))


def _is_dropped(c: str) -> bool:
    return c in "\0\ufffd" or (c not in "\t\n\r" and unicodedata.category(c).startswith("C"))


def _is_chinese(c: str) -> bool:
    """CJK ideographs, as BERT's `_is_chinese_char` lists them."""
    return c > "\u33ff" and any(
        low <= ord(c) <= high
        for low, high in (
            (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF),
            (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F),
        )
    )  # fmt: skip


def _is_punctuation(c: str) -> bool:
    """Unicode's punctuation, and every ASCII sign that is neither letter nor digit."""
    sign = c.isascii() and c.isprintable() and not c.isalnum() and c != " "
    return sign or unicodedata.category(c).startswith("P")


# --- learning ----------------------------------------------------------------------------------


def spelled(word: str) -> list[str]:
    """A word as single characters, the continuing ones marked.

    >>> spelled("cat")
    ['c', '##a', '##t']
    """
    return [c if i == 0 else CONTINUES + c for i, c in enumerate(word)]


def alphabet(word_counts: Mapping[str, int]) -> list[str]:
    """All characters of the words, sorted, then all that continue a word."""
    every = {c for word in word_counts for c in word}
    continuing = {piece for word in word_counts for piece in spelled(word)[1:]}
    return sorted(every) + sorted(continuing)


def join(left: str, right: str) -> str:
    """The piece that two neighbours become.

    >>> join("un", "##do"), join("##d", "##o")
    ('undo', '##do')
    """
    return left + right.removeprefix(CONTINUES)


def learn_by_count(word_counts: Mapping[str, int], num_new: int) -> list[str]:
    """The alphabet, then pieces from the most frequent pairs: BPE under another name.

    Args:
        word_counts: word -> how often it occurs, from `count_words`.
        num_new: pieces beyond the alphabet, at least 0.

    Returns:
        The vocabulary in the order found, special tokens not included.

    Source: the `tokenizers` crate, `WordPieceTrainer`.
    """
    pieces = alphabet(word_counts)
    place = {piece: i for i, piece in enumerate(pieces)}
    words = [[place[piece] for piece in spelled(word)] for word in word_counts]
    join_frequent_pairs(words, list(word_counts.values()), pieces, join, num_new)
    return pieces


def learn_by_likelihood(
    word_counts: Mapping[str, int], num_new: int, min_count: int = 1
) -> list[str]:
    """The alphabet, then pieces from the pairs with the largest count(ab) / (count(a) count(b)).

    Args:
        word_counts: word -> how often it occurs.
        num_new: pieces beyond the alphabet, at least 0.
        min_count: rarer pairs are passed over; with 1 the rarest pairs of all come first.

    Returns:
        The vocabulary in the order found; shorter where no pair is left.

    Cost: a pass over all words for each piece: for thousands of words, not for millions.
    Source: Wu et al. 2016, section 4.1, with the score as it is usually quoted.
    """
    if num_new < 0 or min_count < 1:
        raise LabError(f"num_new={num_new} must be at least 0, min_count={min_count} at least 1.")
    pieces = dict.fromkeys(alphabet(word_counts))
    words = [(spelled(word), count) for word, count in word_counts.items()]
    full = len(pieces) + num_new
    while len(pieces) < full:
        single, pairs = Counter[str](), Counter[tuple[str, str]]()
        for parts, count in words:
            for part in parts:
                single[part] += count
            for pair in pairwise(parts):
                pairs[pair] += count
        frequent = [pair for pair, count in pairs.items() if count >= min_count]
        if not frequent:
            break
        left, right = min(
            frequent,
            key=lambda ab: (-Fraction(pairs[ab], single[ab[0]] * single[ab[1]]), ab),
        )
        pieces[join(left, right)] = None
        words = [(_joined(parts, left, right), count) for parts, count in words]
    return list(pieces)


def _joined(parts: list[str], left: str, right: str) -> list[str]:
    if left not in parts or right not in parts:
        return parts
    out: list[str] = []
    i = 0
    while i < len(parts):
        here = parts[i : i + 2] == [left, right]
        out.append(join(left, right) if here else parts[i])
        i += 2 if here else 1
    return out


# --- encoding ----------------------------------------------------------------------------------


class WordPiece:
    """Text to pieces by greedy longest match."""

    def __init__(self, vocabulary: Sequence[str], unknown: str = UNKNOWN) -> None:
        """
        Args:
            vocabulary: the pieces; the position of a piece is its id.
            unknown: the piece for words that cannot be spelled; it must be in the vocabulary.

        Raises:
            LabError: when it is not.
        """
        self.vocabulary = list(vocabulary)
        self.unknown = unknown
        self._id_of = {piece: i for i, piece in enumerate(self.vocabulary)}
        if unknown not in self._id_of:
            raise LabError(f"The vocabulary has no {unknown!r} for unknown words; add it.")
        self._longest = max(len(piece) for piece in self.vocabulary)

    @classmethod
    def load(cls, folder: str | Path) -> WordPiece:
        """The vocabulary of a BERT folder in the `transformers` format.

        Raises:
            LabError: when its `tokenizer.json` is missing or holds no WordPiece model.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise LabError(f"{folder} holds no tokenizer.json; give the folder of a BERT.")
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
        if model.get("type") != "WordPiece":
            raise LabError(f"{path} holds a {model.get('type')} model; WordPiece is needed.")
        return cls(sorted(model["vocab"], key=model["vocab"].__getitem__), model["unk_token"])

    def pieces(self, word: str) -> list[str]:
        """One word of a normalised text as pieces.

        From the left the longest piece that fits, those after the first with `##`; if one place
        fits none, or the word is longer than 100 characters, the whole word is unknown.
        """
        if len(word) > LONGEST_WORD:
            return [self.unknown]
        found: list[str] = []
        start = 0
        while start < len(word):
            prefix = CONTINUES if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                if prefix + word[start:end] in self._id_of:
                    found.append(prefix + word[start:end])
                    start = end
                    break
            else:
                return [self.unknown]
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without `[CLS]` and `[SEP]`."""
        return [
            self._id_of[piece]
            for word in split_words(normalize(text))
            for piece in self.pieces(word)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The pieces joined, words apart by one space: the normalised words, not the text."""
        pieces = [self.vocabulary[i] for i in ids]
        return " ".join(pieces).replace(f" {CONTINUES}", "")
