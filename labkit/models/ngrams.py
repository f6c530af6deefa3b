"""Language models that count: n-grams with add-k or Kneser-Ney smoothing.

    tokens ──► count: one sorted array of n-grams per order ──► AddK, KneserNey
    model  ──► log_probabilities(text)      every token of a text, vectorised
           ──► next_probabilities(context)  the whole distribution of the next token ──► sample

The counts are a trie laid flat. An n-gram's key is `id of its first n-1 tokens * V + its last
token`; the keys of one order are sorted, and the position of a key is the id that the next order
builds on. So all continuations of a context stand side by side, looking up a whole text is one
`searchsorted` per order, and an n-gram takes 16 bytes.

Legend: V vocabulary, N tokens, n order of an n-gram, h history (the n-1 tokens before), G n-grams.

Sources: Kneser & Ney 1995; Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques for
Language Modeling", section 2.1 (add-k) and equations 26-27 (modified, interpolated Kneser-Ney).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from labkit.errors import LabError

MAX_ORDER = 5
MISSING = -1


class Level(NamedTuple):
    """All n-grams of one order, sorted by key."""

    keys: np.ndarray
    """(G,) int64: id of the first n-1 tokens * V + last token."""
    counts: np.ndarray
    """(G,) how often each occurs."""
    suffixes: np.ndarray
    """(G,) id, one order lower, of the same n-gram without its oldest token."""


def count(tokens_N: np.ndarray | Sequence[int], vocab_size: int, order: int) -> list[Level]:
    """Count every n-gram of one stream of tokens, n = 1 .. order.

    Args:
        tokens_N: (N,) ids in 0..vocab_size - 1, N >= order; documents are separated by their own
            end token.
        vocab_size: V.
        order: longest n-gram, 1 to 5.

    Returns:
        One `Level` per order, the unigrams first.

    Cost: `order` sorts of N int64 keys, about 0.2 s and 60 bytes a token at the peak.

    Raises:
        LabError: order, id or length out of range.
    """
    if not 1 <= order <= MAX_ORDER:
        raise LabError(f"order {order} is outside 1..{MAX_ORDER}: 5 is a good choice.")
    tokens = _check(tokens_N, vocab_size)
    if len(tokens) < order:
        raise LabError(f"{len(tokens)} tokens are fewer than the order {order}: give more text.")
    levels = []
    ids = np.zeros(len(tokens) + 1, dtype=np.int64)  # the empty n-gram before every token
    for n in range(1, order + 1):
        stream = ids[:-1] * vocab_size + tokens[n - 1 :]
        keys, first, longer, counts = np.unique(
            stream, return_index=True, return_inverse=True, return_counts=True
        )
        levels.append(Level(keys, counts, ids[1:][first]))
        ids = longer
    return levels


class NgramModel(Protocol):
    """What every counting model answers."""

    vocab_size: int

    def log_probabilities(self, tokens_N: np.ndarray | Sequence[int]) -> np.ndarray: ...

    def next_probabilities(self, context: Sequence[int]) -> np.ndarray: ...


# --- add-k -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AddK:
    """P(w | h) = (c(hw) + k) / (c(h .) + k V), h the last order - 1 tokens.

    k = 1 is Laplace's rule. Every token has a positive probability and each distribution sums to
    one; after a history that never occurred it is uniform.
    """

    vocab_size: int
    k: float
    levels: tuple[Level, ...]

    @classmethod
    def fit(
        cls,
        tokens_N: np.ndarray | Sequence[int],
        vocab_size: int,
        order: int = 2,
        k: float = 1.0,
    ) -> AddK:
        """Count one stream of tokens.

        Args:
            tokens_N, vocab_size, order: as in `count`.
            k: what every count is raised by, above 0.

        Raises:
            LabError: as `count`, or k not above 0.
        """
        if not 0 < k < np.inf:
            raise LabError(f"k is {k}: choose a number above 0, 1 for Laplace's rule.")
        return cls(vocab_size, k, tuple(count(tokens_N, vocab_size, order)))

    def with_k(self, k: float) -> AddK:
        """The same counts with another k, above 0."""
        if not 0 < k < np.inf:
            raise LabError(f"k is {k}: choose a number above 0, 1 for Laplace's rule.")
        return AddK(self.vocab_size, k, self.levels)

    def log_probabilities(self, tokens_N: np.ndarray | Sequence[int]) -> np.ndarray:
        """ln P(token | up to order - 1 tokens before it), (N,) float64, nats."""
        tokens = _check(tokens_N, self.vocab_size)
        joint = np.zeros(len(tokens))
        total = np.zeros(len(tokens))
        histories = 1
        for n, (level, history, ids) in enumerate(_walk(self.levels, tokens, self.vocab_size)):
            extended = level.keys // self.vocab_size
            totals = np.bincount(extended, weights=level.counts, minlength=histories)
            # Only here do n tokens stand before it; the others keep what a shorter history says.
            total[n:] = np.where(history != MISSING, totals[history], 0)[n:]
            joint[n:] = np.where(ids != MISSING, level.counts[ids], 0)[n:]
            histories = len(level.keys)
        return np.log(joint + self.k) - np.log(total + self.k * self.vocab_size)

    def next_probabilities(self, context: Sequence[int]) -> np.ndarray:
        """P(. | context), (V,) float64, from its last order - 1 tokens or the fewer it has."""
        order = min(len(self.levels), len(context) + 1)
        level, here = self.levels[order - 1], _histories(self.levels, context, self.vocab_size)
        counts = np.zeros(self.vocab_size)
        if here[order - 1] != MISSING:
            place = _continuations(level.keys, here[order - 1], self.vocab_size)
            counts[level.keys[place] % self.vocab_size] = level.counts[place]
        return (counts + self.k) / (counts.sum() + self.k * self.vocab_size)


# --- Kneser-Ney --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Smoothed:
    """One order of a Kneser-Ney model, sorted by key, and the histories that its n-grams extend."""

    keys: np.ndarray
    """(G,) int64, as in `Level`."""
    probability: np.ndarray
    """(G,) float32: max(count - discount, 0) / total of the history: this order's own share."""
    backoff: np.ndarray
    """(histories,) float32: mass left for the shorter history; 1 where it was never extended."""
    discounts: np.ndarray
    """(4,) what was taken from a count of 0, 1, 2, 3 or more."""


@dataclass(frozen=True)
class KneserNey:
    """Interpolated, modified Kneser-Ney n-gram model over token ids.

    P_n(w | h) = max(c(hw) - D, 0) / c(h .)  +  backoff(h) * P_{n-1}(w | h without its oldest)

    The longest order counts occurrences; every shorter order counts *how many different tokens*
    stand before the n-gram ("Francisco" is frequent, but follows one word). The order 0 is uniform,
    so every token has a positive probability and each distribution sums to one.
    """

    vocab_size: int
    orders: tuple[Smoothed, ...]

    @classmethod
    def fit(
        cls, tokens_N: np.ndarray | Sequence[int], vocab_size: int, order: int = 5
    ) -> KneserNey:
        """Count one stream of tokens and discount the counts.

        Args:
            tokens_N, vocab_size, order: as in `count`.

        Cost: that of `count`; the model keeps 12 to 16 bytes a distinct n-gram.

        Raises:
            LabError: as `count`.
        """
        levels = count(tokens_N, vocab_size, order)
        orders = []
        for n, level in enumerate(levels):
            counts = level.counts
            if n + 1 < order:  # a shorter n-gram: the distinct longer ones that end in it
                counts = np.bincount(levels[n + 1].suffixes, minlength=len(level.keys))
            histories = len(levels[n - 1].keys) if n else 1
            orders.append(_smooth(level.keys, counts, histories, vocab_size))
        return cls(vocab_size, tuple(orders))

    def log_probabilities(self, tokens_N: np.ndarray | Sequence[int]) -> np.ndarray:
        """ln P(token | up to order - 1 tokens before it) for every token of a text.

        Args:
            tokens_N: (N,) ids; the first tokens see only what stands before them in this array.

        Returns:
            (N,) float64, nats, all < 0 or 0; their negative sum is the text's loss.

        Cost: one binary search per token and order.
        """
        tokens = _check(tokens_N, self.vocab_size)
        probability = np.full(len(tokens), 1 / self.vocab_size)
        for level, history, ids in _walk(self.orders, tokens, self.vocab_size):
            own = np.where(ids != MISSING, level.probability[ids], 0.0)
            backoff = np.where(history != MISSING, level.backoff[history], 1.0)
            probability = own + backoff * probability
        return np.log(probability)

    def next_by_order(self, context: Sequence[int]) -> np.ndarray:
        """How the distribution of the next token grows from order to order.

        Args:
            context: ids before the next token, none or many.

        Returns:
            (order + 1, V) float64. Row n is P_n, which reads the last n - 1 tokens; row 0 is
            uniform. A row repeats the one above it where the context is shorter or unknown.
        """
        rows = [np.full(self.vocab_size, 1 / self.vocab_size)]
        histories = _histories(self.orders, context, self.vocab_size)
        for level, history in zip(self.orders, histories, strict=True):
            row = rows[-1].copy()
            if history != MISSING:
                row *= level.backoff[history]
                place = _continuations(level.keys, history, self.vocab_size)
                row[level.keys[place] % self.vocab_size] += level.probability[place]
            rows.append(row)
        return np.stack(rows)

    def backoffs(self, context: Sequence[int]) -> np.ndarray:
        """(order,) the share that each order passes down to the next shorter history; 1 = all."""
        histories = _histories(self.orders, context, self.vocab_size)
        return np.array(
            [
                1.0 if history == MISSING else level.backoff[history]
                for level, history in zip(self.orders, histories, strict=True)
            ]
        )

    def next_probabilities(self, context: Sequence[int]) -> np.ndarray:
        """P(. | context), (V,) float64, sums to one."""
        return self.next_by_order(context)[-1]

    @property
    def num_ngrams(self) -> int:
        """Distinct n-grams of all orders."""
        return sum(len(level.keys) for level in self.orders)

    @property
    def num_bytes(self) -> int:
        """Bytes that the tables take."""
        return sum(
            level.keys.nbytes + level.probability.nbytes + level.backoff.nbytes
            for level in self.orders
        )


def _smooth(keys: np.ndarray, counts: np.ndarray, histories: int, vocab_size: int) -> Smoothed:
    discounts = modified_discounts(counts)
    taken = discounts[np.minimum(counts, 3)]
    history = keys // vocab_size
    total = np.bincount(history, weights=counts, minlength=histories)
    left = np.bincount(history, weights=taken, minlength=histories)
    backoff = np.divide(left, total, out=np.ones(histories), where=total > 0)
    own = np.divide(
        counts - taken, total[history], out=np.zeros(len(keys)), where=total[history] > 0
    )
    return Smoothed(keys, own.astype(np.float32), backoff.astype(np.float32), discounts)


def modified_discounts(counts: np.ndarray) -> np.ndarray:
    """What to take from a count of 0, 1, 2, 3 or more, (4,).

    D_c = c - (c + 1) Y n_{c+1} / n_c with Y = n_1 / (n_1 + 2 n_2), n_c n-grams having the count c.
    0.75 for all where the text is too small to have each of the counts 1 to 4.

    Source: Chen & Goodman 1998, equation 26.
    """
    n1, n2, n3, n4 = (np.count_nonzero(counts == c) for c in (1, 2, 3, 4))
    if 0 in (n1, n2, n3, n4):
        return np.array([0, 0.75, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    raw = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.clip(raw, [0, 0.1, 0.1, 0.1], [0, 1, 2, 3])


# --- writing -----------------------------------------------------------------------------------


def sample(
    model: NgramModel,
    context: Sequence[int],
    max_new_tokens: int,
    seed: int = 0,
    end_id: int | None = None,
) -> list[int]:
    """Draw one token after the other from a counting model.

    Args:
        model: `AddK` or `KneserNey`.
        context: ids to continue, none or many.
        max_new_tokens: at least 1.
        seed: of the draws.
        end_id: stop before this id; None runs to max_new_tokens.

    Returns:
        The new ids, without the context and without end_id.

    Raises:
        LabError: max_new_tokens below 1.
    """
    if max_new_tokens < 1:
        raise LabError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
    rng, text = np.random.default_rng(seed), list(context)
    for _ in range(max_new_tokens):
        p = model.next_probabilities(text[-MAX_ORDER:])
        token = int(rng.choice(model.vocab_size, p=p / p.sum()))  # float32 shares: off by 1e-7
        if token == end_id:
            break
        text.append(token)
    return text[len(context) :]


# --- looking up --------------------------------------------------------------------------------


def _walk(levels, tokens: np.ndarray, vocab_size: int):
    """Per order: (level, id of each token's history, id of its n-gram), (N,), MISSING = unseen."""
    history = np.zeros(len(tokens), dtype=np.int64)
    for level in levels:
        known = history != MISSING
        ids = _find(level.keys, np.where(known, history, 0) * vocab_size + tokens)
        ids[~known] = MISSING
        yield level, history, ids
        # The n-gram that ends one token earlier is the history of the next, longer order.
        history = np.concatenate([[MISSING], ids[:-1]])


def _histories(levels, context: Sequence[int], vocab_size: int) -> list[int]:
    """Per order n: the id of the last n - 1 tokens, MISSING where too few or never seen."""
    found = []
    recent = _check(context, vocab_size)[-MAX_ORDER:] if len(context) else np.zeros(0, np.int64)
    for n in range(len(levels)):
        at = 0 if len(recent) >= n else MISSING
        for level, token in zip(levels, recent[len(recent) - n :], strict=False):
            if at != MISSING:
                at = int(_find(level.keys, np.array([at * vocab_size + token]))[0])
        found.append(at)
    return found


def _continuations(keys: np.ndarray, history: int, vocab_size: int) -> slice:
    low, high = np.searchsorted(keys, [history * vocab_size, (history + 1) * vocab_size])
    return slice(int(low), int(high))


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, MISSING)


def _check(tokens_N: np.ndarray | Sequence[int], vocab_size: int) -> np.ndarray:
    tokens = np.asarray(tokens_N).astype(np.int64)
    if tokens.ndim != 1 or len(tokens) == 0:
        raise LabError(f"tokens of shape {tokens.shape}: give one array (N,) with N >= 1.")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        wrong = tokens.min() if tokens.min() < 0 else tokens.max()
        raise LabError(
            f"token {wrong} is outside 0..{vocab_size - 1}: use the tokenizer of this vocabulary."
        )
    return tokens
