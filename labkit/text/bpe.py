"""Byte-pair encoding from scratch, on bytes: learn merges, encode, stream a file, decode.

    bytes --UTF-8--> text --split--> words --> bytes of a word --merges by rank--> token ids
      ^                                                                               |
      +------------------- the bytes of each token, one after the other --------------+

Learning counts every neighbouring pair of tokens once and then keeps the counts up to date: a merge
touches only the words that hold its pair. Bytes that are not UTF-8 travel as escaped characters
(Python's `surrogateescape`), so every file has ids, and its ids give it back.

A word is what GPT-2 calls one, cut at `LONGEST_WORD` characters. No token crosses the end of a
word, so a file can be encoded piece by piece, in memory that does not grow with it.

Written to be read; `labkit.text.tokenizers` runs the same algorithm in the `tokenizers` crate, and
the tests hold the two together: same merges, same ids.

Sources: Gage 1994 (byte pairs); Sennrich, Haddow, Birch 2016, algorithm 1; Radford et al. 2019,
section 2.2 (bytes, words).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import regex

from labkit.errors import LabError

Token = TypeVar("Token", bytes, str)
Merge = tuple[bytes, bytes]

LONGEST_WORD = 1024
#: GPT-2's words: a contraction, letters, digits or other signs with one space before them, white
#: space. Only the limit on their length is ours; it is what bounds the memory of a stream.
WORD_PATTERN = (
    r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}{1,N}| ?\p{N}{1,N}| ?[^\s\p{L}\p{N}]{1,N}"
    r"|\s{1,N}(?!\S)|\s{1,N}"
).replace("{1,N}", f"{{1,{LONGEST_WORD}}}")
_WORD, _SPACE = regex.compile(WORD_PATTERN), regex.compile(r"\s")
_SEEN_AHEAD = 2  # characters after a word that may still change it: 're is the longest contraction
_CACHED_WORDS, _CACHED_BYTES = 2**16, 32


# --- text, words, bytes ------------------------------------------------------------------------


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: a space shows as `Ġ`, a new line as `Ċ`.

    Source: Radford et al. 2019, `bytes_to_unicode` in encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in printable}
    hidden = [byte for byte in range(256) if byte not in alphabet]
    alphabet.update({byte: chr(0x100 + i) for i, byte in enumerate(hidden)})
    return alphabet


#: The 256 tokens that every vocabulary starts with, in the order of their ids: the crate sorts them
#: by their printable character. The order matters: it breaks ties between pairs.
SINGLE_BYTES = tuple(bytes([b]) for b, _ in sorted(byte_alphabet().items(), key=lambda it: it[1]))


def split_words(text: str) -> list[str]:
    """The words of a text, spaces included: joined, they are the text.

    >>> split_words("It's 42 degrees.")
    ['It', "'s", ' 42', ' degrees', '.']
    """
    return _WORD.findall(text)


def settled(text: str) -> int:
    """How far a growing text may be cut off: what stands before has its words, whatever follows.

    The cut lies at the end of a word that two more characters have confirmed, and never between
    white space and a word: alone, `"  "` is one word, but in `"  a"` its second space belongs to a.

    >>> settled("It's 42 degr")
    7
    """
    end = 0
    for match in _WORD.finditer(text):
        stop = match.end()
        if stop > len(text) - _SEEN_AHEAD:
            break
        if not _SPACE.match(text, stop - 1) or _SPACE.match(text, stop):
            end = stop
    return end


def cut_between_words(chunks: Iterable[str]) -> Iterator[str]:
    """The same text in pieces that end between words, however the chunks were cut.

    Cost: memory for one chunk and one word.
    """
    rest = ""
    for chunk in chunks:
        rest += chunk
        end = settled(rest)
        if end:
            yield rest[:end]
        rest = rest[end:]
    if rest:
        yield rest


def count_words(texts: Iterable[str]) -> Counter[bytes]:
    """How often each word occurs, as UTF-8 bytes: all that BPE learns from.

    Raises:
        LabError: when a text is not a str, or holds half a surrogate pair.
    """
    if isinstance(texts, str):
        raise LabError("count_words needs a list of texts, not one string; write [text].")
    counts: Counter[str] = Counter()
    for text in texts:
        check_text(text)
        counts.update(split_words(text))
    return Counter({word.encode(): count for word, count in counts.items()})


def check_text(text: str) -> None:
    """Refuse what has no UTF-8 form.

    Raises:
        LabError: when the text is not a str, or holds half a surrogate pair.
    """
    if not isinstance(text, str):
        raise LabError(f"A text must be a str, not {type(text).__name__}; decode bytes first.")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise LabError(
            "The text holds half a surrogate pair, which has no UTF-8 form; pass it through "
            "labkit.text.cleaning.clean first."
        )


# --- learning ----------------------------------------------------------------------------------


def learn_merges(word_counts: Mapping[bytes, int], num_merges: int) -> list[Merge]:
    """Join the most frequent neighbouring pair of tokens, again and again.

    Args:
        word_counts: word -> how often it occurs, from `count_words`.
        num_merges: new tokens to make, at least 0; fewer where every word has become one token.

    Returns:
        (left, right) in the order found; the order is the rank that encoding goes by.

    Raises:
        LabError: when `num_merges` is negative.

    Cost: one pass over the words, then per merge the words that hold its pair.
    Source: Sennrich, Haddow, Birch 2016, algorithm 1; ties as in the `tokenizers` crate.
    """
    tokens = list(SINGLE_BYTES)
    place = {token: i for i, token in enumerate(tokens)}
    words = [[place[word[i : i + 1]] for i in range(len(word))] for word in word_counts]
    return join_frequent_pairs(
        words, list(word_counts.values()), tokens, lambda left, right: left + right, num_merges
    )


def join_frequent_pairs(
    words: list[list[int]],
    counts: Sequence[int],
    tokens: list[Token],
    join: Callable[[Token, Token], Token],
    num_new: int,
) -> list[tuple[Token, Token]]:
    """The engine of BPE, for tokens of any kind; WordPiece shares it.

    The queue holds (-count, pair, words with that pair). A count on it may be out of date, but only
    too high: then the pair goes back with its true count. Equal counts: the pair with the smaller
    ids first. Two merges that spell the same token share its id.

    Args:
        words: each word as positions in `tokens`; changed in place.
        counts: how often each word occurs.
        tokens: the alphabet; new tokens are appended.
        join: spells the token that a pair becomes.
        num_new: tokens to append.
    """
    if num_new < 0:
        raise LabError(f"{num_new} merges are asked for; give 0 or more.")
    place = {token: i for i, token in enumerate(tokens)}
    pair_counts: Counter[tuple[int, int]] = Counter()
    where: dict[tuple[int, int], set[int]] = {}
    for w, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += counts[w]
            where.setdefault(pair, set()).add(w)
    queue = [(-pair_counts[pair], pair, held_by) for pair, held_by in where.items()]
    heapq.heapify(queue)

    merges, full = [], len(tokens) + num_new
    while queue and len(tokens) < full:
        minus_count, pair, held_by = heapq.heappop(queue)
        if -minus_count != pair_counts[pair]:
            heapq.heappush(queue, (-pair_counts[pair], pair, held_by))
            continue
        if minus_count >= 0:
            break
        left, right = tokens[pair[0]], tokens[pair[1]]
        merges.append((left, right))
        new = place.setdefault(join(left, right), len(tokens))
        if new == len(tokens):
            tokens.append(join(left, right))
        gained: dict[tuple[int, int], set[int]] = {}
        for w in held_by:
            for changed, change in _merge_in(words[w], pair, new):
                pair_counts[changed] += change * counts[w]
                if change > 0:
                    gained.setdefault(changed, set()).add(w)
        for fresh, held_by_fresh in gained.items():
            heapq.heappush(queue, (-pair_counts[fresh], fresh, held_by_fresh))
    return merges


def _merge_in(
    word: list[int], pair: tuple[int, int], new: int
) -> list[tuple[tuple[int, int], int]]:
    """Merge a pair in one word, from the left, in place; how its neighbours' counts change."""
    left, right = pair
    changes = []
    i = 0
    while i < len(word) - 1:
        if word[i] == left and word[i + 1] == right:
            if i > 0:
                changes += [((word[i - 1], left), -1), ((word[i - 1], new), 1)]
            if i + 2 < len(word):
                changes += [((right, word[i + 2]), -1), ((new, word[i + 2]), 1)]
            word[i : i + 2] = [new]
        i += 1
    return changes


# --- encoding and decoding ---------------------------------------------------------------------


class BytePairEncoder:
    """Text, bytes or a file to ids and back: `decode(encode(data)) == data` for all bytes.

    The ids: first the special tokens, then the 256 bytes, then the merges as found. A special token
    has no bytes; no text has its id. It is written by `special_id` alone.
    """

    def __init__(self, merges: Sequence[Merge], special_tokens: Sequence[str] = ()) -> None:
        """
        Args:
            merges: from `learn_merges`, in order.
            special_tokens: names of tokens that no text can contain.
        """
        self.merges = list(merges)
        self.special_tokens = tuple(special_tokens)
        #: The bytes of each id; none for a special token.
        self.bytes_of = [b""] * len(self.special_tokens) + list(
            dict.fromkeys((*SINGLE_BYTES, *(left + right for left, right in self.merges)))
        )
        self._id_of = {token: i for i, token in enumerate(self.bytes_of) if token}
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._cached = lru_cache(_CACHED_WORDS)(self.encode_word)

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids lie in [0, vocab_size)."""
        return len(self.bytes_of)

    def special_id(self, name: str) -> int:
        """The id of a special token.

        Raises:
            LabError: when there is none of that name.
        """
        if name not in self.special_tokens:
            raise LabError(f"There is no special token {name!r}; there are {self.special_tokens}.")
        return self.special_tokens.index(name)

    def pieces(self, word: bytes) -> list[bytes]:
        """One word as tokens: of all neighbours that some merge joins, always the lowest rank.

        Not the longest match, and not from left to right: the merges are applied in the order in
        which they were learned.
        """
        parts = [word[i : i + 1] for i in range(len(word))]
        never = len(self.merges)

        def rank(i: int) -> int:
            inside = 0 <= i < len(parts) - 1
            return self._rank.get((parts[i], parts[i + 1]), never) if inside else never

        ranks = [rank(i) for i in range(len(parts))]
        while ranks and (lowest := min(ranks)) < never:
            i = ranks.index(lowest)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            del ranks[i]
            ranks[i] = rank(i)
            if i > 0:
                ranks[i - 1] = rank(i - 1)
        return parts

    def encode_word(self, word: bytes) -> list[int]:
        """The ids of one word."""
        return [self._id_of[part] for part in self.pieces(word)]

    def encode(self, data: str | bytes) -> list[int]:
        """The ids of a text, or of any bytes.

        Raises:
            LabError: when a str holds half a surrogate pair.
        """
        if isinstance(data, bytes):
            text = data.decode("utf-8", "surrogateescape")
        else:
            check_text(data)
            text = data
        return list(self._encode_words(split_words(text)))

    def encode_file(self, path: str | Path, chunk_characters: int = 2**16) -> Iterator[int]:
        """The ids of any file, one after the other: equal to `encode` of its bytes.

        Args:
            path: a file of any size and content.
            chunk_characters: read at a time, at least 1.

        Cost: memory for a chunk, a word and the cache of short words, whatever the file's size.
        """
        for text in cut_between_words(read_chunks(path, chunk_characters, "surrogateescape")):
            yield from self._encode_words(split_words(text))

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids.

        Raises:
            LabError: when an id lies outside [0, vocab_size).
        """
        parts = []
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise LabError(
                    f"Token id {i} is outside [0, {self.vocab_size}); were these ids made by "
                    "another tokenizer?"
                )
            parts.append(self.bytes_of[i])
        return b"".join(parts)

    def _encode_words(self, words: Iterable[str]) -> Iterator[int]:
        for word in words:
            data = word.encode("utf-8", "surrogateescape")
            short = len(data) <= _CACHED_BYTES
            yield from self._cached(data) if short else self.encode_word(data)


def read_chunks(
    path: str | Path, chunk_characters: int = 2**16, errors: str = "strict"
) -> Iterator[str]:
    """A UTF-8 file as texts of so many characters, line ends as they are.

    Args:
        path: the file.
        chunk_characters: at least 1.
        errors: what to do with bytes that are not UTF-8, as in `bytes.decode`.

    Raises:
        LabError: when the file is missing, or not UTF-8 and `errors` is "strict".
    """
    if chunk_characters < 1:
        raise LabError(f"chunk_characters is {chunk_characters}; read at least 1 at a time.")
    path = Path(path)
    if not path.is_file():
        raise LabError(f"There is no file {path}; give the path of a text file.")
    with path.open(encoding="utf-8", errors=errors, newline="") as file:
        try:
            while chunk := file.read(chunk_characters):
                yield chunk
        except UnicodeDecodeError as error:
            raise LabError(
                f"{path} is not UTF-8 ({error.reason}); convert it, or encode it as bytes with "
                "labkit.text.bpe.BytePairEncoder."
            ) from error
