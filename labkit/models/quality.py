"""Learned filters: how like a trusted text is this text? By a counting model, by a classifier.

    trusted texts ──> KneserNey ──> bits per byte of a text ──> PerplexityBand: inside low .. high?
    trusted against pool ──> two classifiers, each judging what it did not read ──> probability

Both take their limits from trusted texts that were held back: no label of the pool is used. Both
answer "is it like the trusted texts?", not "is it good?".

Sources: Wenzek et al. 2020, arXiv:1911.00359 (CCNet: perplexity); Brown et al. 2020,
arXiv:2005.14165, appendix A (trusted text against raw pages); Li et al. 2024, arXiv:2406.11794
(DCLM: such a classifier gained more than every other filter tried there).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from labkit.errors import LabError
from labkit.models.ngrams import KneserNey


class PerplexityBand(NamedTuple):
    """A counting model, and the bits per byte between which trusted texts lie."""

    model: KneserNey
    tokenizer: Any
    low: float
    """Bits per byte: below it a text is more predictable than trusted texts are."""
    high: float
    """Bits per byte: above it a text is less like them than they are among themselves."""

    @classmethod
    def fit(
        cls, trusted: Sequence[str], tokenizer: Any, order: int = 3, outside: float = 0.02
    ) -> "PerplexityBand":
        """Count one half of the trusted texts, find the limits on the other.

        Limits from texts that the model counted would be too low by far, and the lower limit would
        then drop good new texts.

        Args:
            trusted: good texts, at least 4; every second one is counted.
            tokenizer: with `encode` and `vocab_size`.
            order: of the n-grams, 1 to 5.
            outside: share of trusted texts beyond either limit, 0 to 0.5.

        Raises:
            LabError: too few texts, or a share out of range.
        """
        if len(trusted) < 4 or not 0 <= outside < 0.5:
            raise LabError(
                f"{len(trusted)} trusted texts, outside={outside}: give at least 4, and 0 to 0.5"
            )
        ids = np.concatenate([tokenizer.encode(text) for text in trusted[::2]])
        model = KneserNey.fit(ids, tokenizer.vocab_size, order)
        held_back = cls(model, tokenizer, 0.0, math.inf).bits(trusted[1::2])
        low, high = np.quantile(held_back, [outside, 1 - outside])
        return cls(model, tokenizer, float(low), float(high))

    def bits(self, texts: Sequence[str]) -> np.ndarray:
        """Bits per byte of each text, (N,); an empty text has none: infinity."""
        found = []
        for text in texts:
            ids = self.tokenizer.encode(text)
            nats = -self.model.log_probabilities(ids).sum() if len(ids) else math.inf
            found.append(nats / math.log(2) / max(1, len(text.encode("utf-8", "replace"))))
        return np.array(found)

    def outside(self, texts: Sequence[str]) -> set[int]:
        """Positions of texts beyond either limit."""
        bits_N = self.bits(texts)
        return {int(i) for i in np.flatnonzero((bits_N < self.low) | (bits_N > self.high))}


def quality_scores(
    trusted: Sequence[str], pool: Sequence[str], seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The log-odds that a text is from the trusted side, each by a model that did not read it.

    Logistic regression on hashed words and pairs of words, trusted against pool, classes weighed
    alike. Texts are cut into two halves; each half is judged by the model of the other. Judged by
    a model that read it as "pool", every good text of the pool would look bad.

    Args:
        trusted, pool: texts, at least 2 each.
        seed: of the halves.

    Returns:
        (trusted,) and (pool,) log-odds; above 0 is "like the trusted texts".

    Raises:
        LabError: too few texts.
    """
    if min(len(trusted), len(pool)) < 2:
        raise LabError(f"{len(trusted)} trusted and {len(pool)} other texts: give at least 2 each")
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    hashed = HashingVectorizer(ngram_range=(1, 2), n_features=2**16)
    X: Any = hashed.transform([*trusted, *pool])  # sparse, (N, hashes)
    count = len(trusted) + len(pool)
    y_N = np.arange(count) < len(trusted)
    half_N = np.random.default_rng(seed).permutation(count) % 2
    scores_N = np.zeros(count)
    for half in (0, 1):
        model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=300)
        model.fit(X[half_N != half], y_N[half_N != half])
        scores_N[half_N == half] = model.decision_function(X[half_N == half])
    return scores_N[: len(trusted)], scores_N[len(trusted) :]
