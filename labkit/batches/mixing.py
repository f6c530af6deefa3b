"""Several sources of text in one run: who comes when, in which shares, and what a share buys.

    sizes ──temperature──> shares ──> Mixture: position i ──> (source, item) ──> batches
    measured (share, loss) ──> fit_law ──> Law: loss of a share that was never run

Drawn at random, a source of share p comes n p ± sqrt(n p (1 - p)) times among n examples. `Mixture`
deals instead: after any number of examples each source is within one of its share. Which source and
which item stand at position i is a pure function of (seed, i), so a run resumes exactly, and ranks
and micro-batches cut the same global batch.

Legend: K sources, N measured runs.

Sources: Baruah et al. 1996, "Proportionate Progress" (the deal: earliest deadline first); Conneau
et al. 2020, arXiv:1911.02116, section 3.1 (temperature); Ye et al. 2024, arXiv:2403.16952 (laws).
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from labkit.batches import Batch, Batches, Corruption, Example, Windows, stack
from labkit.errors import LabError

#: Shares are whole multiples of 1 / PERIOD; the deal repeats after as many examples.
PERIOD = 10_000

# --- shares ------------------------------------------------------------------------------------


def temperature_proportions(sizes: Sequence[float], temperature: float = 1.0) -> np.ndarray:
    """Shares between "as large as the source" (T = 1) and "all alike" (T = infinity).

    p_k = n_k^(1/T) / sum_j n_j^(1/T)

    Args:
        sizes: n_k of each source, in any unit, above 0.
        temperature: T, at least 1; `math.inf` is allowed.

    Returns:
        (K,) shares that sum to 1.

    Raises:
        LabError: no source, a size of 0 or less, or a temperature below 1.

    Source: Conneau et al. 2020, section 3.1, with alpha = 1/T.

    >>> temperature_proportions([900, 100], temperature=2).round(3).tolist()
    [0.75, 0.25]
    """
    n_K = np.asarray(sizes, dtype=np.float64)
    if n_K.ndim != 1 or not len(n_K) or not np.all((n_K > 0) & np.isfinite(n_K)):
        raise LabError(f"sizes are {list(sizes)}: give at least 1, each a number above 0")
    if not temperature >= 1:
        raise LabError(
            f"temperature {temperature} is out of range: choose 1 (by size) to infinity (all alike)"
        )
    logs_K = np.log(n_K) / temperature
    shares_K = np.exp(logs_K - logs_K.max())
    return shares_K / shares_K.sum()


# --- the deal ----------------------------------------------------------------------------------


class Mixture(Batches):
    """Batches from several sources in fixed shares, exact to one example after any number of them.

    Position i of the endless stream belongs to the source whose turn it is: the j-th example of a
    source with share p may come once p (i + 1) > j - 1 and must have come when p (i + 1) >= j; of
    those that may, the one that must come first is next. Then |count - p n| < 1 for every source
    after every n. Each source goes through its own permutations, a new one each time around.

    Use it wherever `Batches` goes: `train`, ranks, micro-batches and resume work unchanged.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Example] | Windows],
        proportions: Mapping[str, float],
        batch_size: int,
        collate: Callable[[Sequence[Example]], Batch] = stack,
        seed: int = 0,
        shuffle: bool = True,
        corrupt: Corruption | None = None,
    ):
        """
        Args:
            sources: name -> examples; anything with `len` and integer indexing.
            proportions: name -> share, 0 or more; they are divided by their sum and rounded to
                multiples of 1 / 10,000. A source that is not named, or with share 0, never comes.
            batch_size: examples per update over all micro-batches and ranks, at least 1.
            collate: list of examples -> batch.
            seed: of the permutations, and of who goes first where several are due alike.
            shuffle: False keeps each source in the given order.
            corrupt: as in `Batches`.

        Raises:
            LabError: a share of an unknown source, negative shares, all of them 0, or one too small
                to come at all.
        """
        unknown = sorted(set(proportions) - set(sources))
        if unknown:
            raise LabError(f"share of {unknown[0]!r}: the sources are {', '.join(sources)}")
        self.names = tuple(sources)
        self._joined = _Joined(list(sources.values()))
        super().__init__(self._joined, batch_size, collate, seed, shuffle, corrupt=corrupt)
        self.counts_K = _whole_shares({name: proportions.get(name, 0.0) for name in self.names})
        self._deal = _deal(self.counts_K, np.random.default_rng([seed, 1 << 30]))
        #: Examples of each source among the first i of a period, (PERIOD + 1, K).
        self._before = np.zeros((PERIOD + 1, len(self.names)), dtype=np.int64)
        np.cumsum(self._deal[:, None] == np.arange(len(self.names)), axis=0, out=self._before[1:])
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    @property
    def proportions(self) -> dict[str, float]:
        """The shares in use, after rounding; they sum to 1."""
        return {name: int(c) / PERIOD for name, c in zip(self.names, self.counts_K, strict=True)}

    def place(self, position: int) -> tuple[str, int]:
        """Name of the source, and item within it, at a position (from 0) of the stream."""
        source, item = self._place(position)
        return self.names[source], item

    def indices(self, step: int) -> list[int]:
        """Return the examples of update `step` (from 0), counted through all sources in order."""
        starts = self._joined.starts
        first = step * self.batch_size
        places = (self._place(i) for i in range(first, first + self.batch_size))
        return [starts[source] + item for source, item in places]

    def _place(self, position: int) -> tuple[int, int]:
        period, slot = divmod(position, PERIOD)
        source = int(self._deal[slot])
        number = period * int(self.counts_K[source]) + int(self._before[slot, source])
        epoch, place = divmod(number, len(self._joined.parts[source]))
        return source, int(self._order(source, epoch)[place])

    def _order(self, source: int, epoch: int) -> np.ndarray:
        if (source, epoch) not in self._orders:
            order = np.arange(len(self._joined.parts[source]))
            if self.shuffle:
                np.random.default_rng([self.seed, source, epoch]).shuffle(order)
            old = {key for key in self._orders if key[0] == source and key[1] < epoch - 1}
            self._orders = {key: o for key, o in self._orders.items() if key not in old}
            self._orders[source, epoch] = order
        return self._orders[source, epoch]


class _Joined(Sequence[Example]):
    """Sources one behind the other, as one sequence."""

    def __init__(self, parts: Sequence[Sequence[Example] | Windows]):
        self.parts = parts
        self.starts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Example:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        source = bisect_right(self.starts, index) - 1
        return self.parts[source][index - self.starts[source]]


def _whole_shares(proportions: Mapping[str, float]) -> np.ndarray:
    """Shares as whole numbers out of PERIOD: rounded down, the rest to the largest remainders."""
    shares_K = np.array(list(proportions.values()), dtype=np.float64)
    if not (np.isfinite(shares_K).all() and (shares_K >= 0).all() and shares_K.sum() > 0):
        raise LabError(f"shares are {dict(proportions)}: each must be 0 or more, and one above 0")
    exact_K = shares_K / shares_K.sum() * PERIOD
    counts_K = np.floor(exact_K + 1e-9).astype(np.int64)
    short = PERIOD - int(counts_K.sum())
    counts_K[np.argsort(counts_K - exact_K, kind="stable")[:short]] += 1
    for name, share, count in zip(proportions, shares_K, counts_K, strict=True):
        if share > 0 and count == 0:
            raise LabError(
                f"share of {name!r} is {share / shares_K.sum():.2g}: give at least "
                f"{1 / PERIOD:g}, or 0 to leave it out"
            )
    return counts_K


def _deal(counts_K: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One period of sources, (PERIOD,), by earliest deadline among those that may come."""
    shares = [int(c) for c in counts_K]
    order = rng.permutation(len(shares)).tolist()  # who goes first where deadlines are alike
    dealt = [0] * len(shares)
    slots = np.empty(PERIOD, dtype=np.int64)
    for slot in range(PERIOD):
        best, earliest = -1, PERIOD + 1
        for k in order:
            if shares[k] * (slot + 1) > dealt[k] * PERIOD:
                deadline = -(-(dealt[k] + 1) * PERIOD // shares[k])
                if deadline < earliest:
                    best, earliest = k, deadline
        dealt[best] += 1
        slots[slot] = best
    return slots


# --- what a share buys -------------------------------------------------------------------------


class Law(NamedTuple):
    """L(r) = c + k exp(t r): the loss of one domain against its share r of the mixture."""

    c: float
    """The loss that no share gets below (of this model and budget)."""
    k: float
    """How far above it a share of 0 would be."""
    t: float
    """Rate, below 0: the more negative, the less of the domain is enough."""

    def __call__(self, share: float | np.ndarray) -> float | np.ndarray:
        """The loss predicted at a share, or at each of an array."""
        return self.c + self.k * np.exp(self.t * np.asarray(share))


def fit_law(shares: Sequence[float], losses: Sequence[float]) -> Law:
    """Least squares of L = c + k exp(t r) through measured (share, loss) pairs of one domain.

    For a given t the law is linear in c and k; t is searched on a grid of rates, then around the
    best of them.

    Args:
        shares: r of each run, 0 to 1, (N,) with at least 3 different values.
        losses: the domain's loss in each run, in any unit, (N,).

    Raises:
        LabError: fewer than 3 different shares, or lengths that differ.

    Source: Ye et al. 2024, equation 6, with one share instead of all of them.
    """
    r_N, loss_N = np.asarray(shares, dtype=float), np.asarray(losses, dtype=float)
    if r_N.shape != loss_N.shape or r_N.ndim != 1 or len(set(r_N.tolist())) < 3:
        raise LabError(
            f"shares {r_N.tolist()} and {loss_N.size} losses: a law of three numbers needs at "
            "least 3 different shares, each with its loss"
        )

    def linear(t: float) -> tuple[float, float, float]:
        """Squared error, c and k of the best law of this rate."""
        shape_N2 = np.stack([np.ones_like(r_N), np.exp(t * r_N)], axis=1)
        (c, k), *_ = np.linalg.lstsq(shape_N2, loss_N, rcond=None)
        return float(((shape_N2 @ (c, k) - loss_N) ** 2).sum()), float(c), float(k)

    rates = -np.geomspace(0.05, 200, 120)
    for _ in range(4):
        best = int(np.argmin([linear(t)[0] for t in rates]))
        low, high = rates[max(best - 1, 0)], rates[min(best + 1, len(rates) - 1)]
        rates = np.linspace(low, high, 40)
    t = float(min(rates, key=lambda rate: linear(rate)[0]))
    _, c, k = linear(t)
    return Law(c, k, t)
