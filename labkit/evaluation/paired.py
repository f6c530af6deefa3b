"""Is one model better than another on the same test? Differences of pairs, and their signs.

    scores a, b of each text ──> differences, summed by document ──┬─> interval: documents drawn
                                                                   └─> p: signs dealt anew

Both models met the same texts, and hard ones are hard for both: the difference of each pair is far
less scattered than either score, so two intervals that overlap say little. If neither model is
better, each difference might as well have had the other sign: p is the share of all such flips
whose mean is as far from 0.

Sources: Fisher 1935, "The Design of Experiments", chapter 3; McNemar 1947 (the same for right and
wrong); Dror et al. 2018, ACL, "The Hitchhiker's Guide to Testing Statistical Significance in NLP".
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from labkit.errors import LabError
from labkit.evaluation.intervals import Interval, bootstrap_interval, positive

EXACT = 14
"""Documents up to which all 2^D flips are tried."""


class Paired(NamedTuple):
    """How far one model leads another."""

    lead: Interval
    """Mean of a - b over all pairs; its interval by drawing documents."""
    p: float
    """Two-sided; small: not by chance."""

    def __str__(self) -> str:
        return f"{self.lead} p = {self.p:.4f}"


def paired_test(
    a_N: Sequence[float],
    b_N: Sequence[float],
    documents: Sequence[Any] | None = None,
    *,
    flips: int = 9999,
    resamples: int = 1000,
    seed: int = 0,
) -> Paired:
    """Compare the scores of two models on the same examples.

    Args:
        a_N, b_N: a score of each example, such as 1 for right and 0 for wrong, or nats.
        documents: what each example belongs to; None: each stands alone. Examples of one document
            keep a common sign.
        flips: how many to draw where there are more than 14 documents, at least 1.
        resamples, seed: of the interval; seed also of the flips.

    Raises:
        LabError: no example, or sides of unequal length.
    """
    a, b = (np.asarray(it, dtype=float) for it in (a_N, b_N))
    if len(a) == 0 or len(a) != len(b):
        raise LabError(f"{len(a)} and {len(b)} scores: give equally many, at least 1")
    if documents is not None and len(documents) != len(a):
        raise LabError(f"{len(documents)} documents of {len(a)} scores: name one for each")
    names = range(len(a)) if documents is None else [str(it) for it in documents]
    groups = np.unique(np.array(list(names)), return_inverse=True)[1]
    sums, sizes = np.bincount(groups, a - b), np.bincount(groups)

    def mean(sums_D: np.ndarray, sizes_D: np.ndarray) -> float:
        return float(sums_D.sum() / sizes_D.sum())

    lead = bootstrap_interval(mean, sums, sizes, resamples=resamples, seed=seed)
    return Paired(lead, _flipped(sums[sums != 0], positive(flips, "flips"), seed))


def _flipped(sums_D: np.ndarray, flips: int, seed: int) -> float:
    """A difference of 0 has no sign: it changes no flip."""
    real = abs(sums_D.sum()) - 1e-9
    if len(sums_D) <= EXACT:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(sums_D))))
        return float((np.abs(signs @ sums_D) >= real).mean())
    rng = np.random.default_rng(seed)
    far = sum(int(np.abs(rng.choice((-1, 1), len(sums_D)) @ sums_D) >= real) for _ in range(flips))
    return (far + 1) / (flips + 1)
