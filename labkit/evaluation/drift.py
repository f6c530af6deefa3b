"""Has what a model reads changed? A window of new texts against those it was accepted with.

    reference: bits per byte of N texts, a label of each ──┐
                                                           ├─ mean of the window - mean of the rest
    window: the same of n new texts ───────────────────────┘  shares of labels, how far apart
                                                                   │
         the same after the texts were dealt anew, R times ──> p, the share that is as far apart

Two signals, because each misses what the other sees: another language or subject costs bits; more
of one subject than before may cost none and moves the shares of labels. Neither needs a true label.
What neither sees: texts as before whose right answers have changed.

How far shares are apart is half the sum of their differences. Chi-square would divide each by its
share, and a label that came once would drown the others.

A text is the unit, not a token: tokens of one text are alike, so a test that takes each as a new
witness finds a change in every window. Dealing anew is exact, whatever the distribution, as long as
texts come independently of one another.

Sources: Gama et al. 2014, "A Survey on Concept Drift Adaptation", ACM Computing Surveys; Rabanser
et al. 2019, arXiv:1810.11953 (tests on a model's outputs); Phipson and Smyth 2010 (why R + 1).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from labkit.errors import LabError


class Signal(NamedTuple):
    """What one signal says of a window."""

    name: str
    """bits per byte, or labels."""
    reference: Any
    """Mean of the reference, or the share of each label."""
    window: Any
    """The same of the window."""
    change: float
    """Bits per byte more than the reference's mean; of labels half the sum of the differences of
    shares (0: the same, 1: nothing in common)."""
    p: float
    """Share of dealings that are as far apart or farther; small: not by chance."""


class Verdict(NamedTuple):
    """What the monitor says of a window."""

    drifted: bool
    """Whether a signal has p at most alpha / number of signals."""
    signals: tuple[Signal, ...]
    """Bits per byte and, if labels are watched, labels."""

    def __str__(self) -> str:
        """One line."""
        said = (f"{it.name} {it.change:+.3f} (p = {it.p:.3f})" for it in self.signals)
        return f"{'DRIFT' if self.drifted else 'as before'}: {', '.join(said)}"


class DriftMonitor:
    """Compares windows of new texts with a reference.

    Args:
        bits_N: bits per byte of each text of the reference, by the model that is watched; held-out
            ones, since a model finds its training texts easier.
        labels_N: what a classifier says of each of them; None: labels are not watched.
        alpha: chance of a false alarm in a window, above 0 and below 1. With 100 windows a day and
            0.01, one a day.
        dealings: R, at least 99; p is at least 1 / (R + 1).
        seed: of the dealings.

    Raises:
        LabError: fewer than 2 texts, values that are not finite, sides of unequal length, or an
            alpha that so few dealings cannot reach.
    """

    def __init__(
        self,
        bits_N: Sequence[float],
        labels_N: Sequence[Any] | None = None,
        *,
        alpha: float = 0.01,
        dealings: int = 999,
        seed: int = 0,
    ):
        self.bits, self.labels = _checked(bits_N, labels_N, "reference", 2)
        signals = 1 if labels_N is None else 2
        if not 0 < alpha < 1:
            raise LabError(f"alpha {alpha} is out of range: choose above 0 and below 1")
        if dealings < 99 or (dealings + 1) * alpha < signals:
            raise LabError(
                f"dealings {dealings} cannot reach alpha {alpha}: choose at least"
                f" {max(99, int(np.ceil(signals / alpha)) - 1)}"
            )
        self.alpha, self.dealings, self.seed = alpha, dealings, seed

    def check(self, bits_n: Sequence[float], labels_n: Sequence[Any] | None = None) -> Verdict:
        """Compare a window with the reference.

        Args:
            bits_n: bits per byte of each text of the window, by the same model.
            labels_n: what the same classifier says of each, if labels are watched.

        Raises:
            LabError: as on construction, or labels on one side only.
        """
        bits, labels = _checked(bits_n, labels_n, "window", 1)
        if (labels is None) != (self.labels is None):
            raise LabError("labels are given on one side only: give them on both or on neither")
        dealt_RM = self._dealings(len(self.bits), len(bits))
        signals = [self._of_bits(bits, dealt_RM)]
        if labels is not None and self.labels is not None:
            signals.append(self._of_labels(self.labels, labels, dealt_RM))
        drifted = any(it.p <= self.alpha / len(signals) for it in signals)
        return Verdict(drifted, tuple(signals))

    def watch(self, texts: Iterable[tuple[float, Any]], window: int) -> Iterator[Verdict]:
        """A verdict for each `window` texts of a stream; what is left at its end is not judged.

        Args:
            texts: (bits per byte, label) of each text, the label None if none are watched.
            window: texts of a verdict, at least 1.
        """
        if window < 1:
            raise LabError(f"window {window} is out of range: choose at least 1")
        held: list[tuple[float, Any]] = []
        for it in texts:
            held.append(it)
            if len(held) == window:
                bits, labels = zip(*held, strict=True)
                yield self.check(bits, None if self.labels is None else labels)
                held = []

    def _dealings(self, reference: int, window: int) -> np.ndarray:
        """(R + 1, N + n) who is in the window: first as it is, then dealt anew."""
        real = np.arange(reference + window) >= reference
        rng = np.random.default_rng(self.seed)
        return np.stack([real, *(rng.permutation(real) for _ in range(self.dealings))])

    def _of_bits(self, bits: np.ndarray, dealt_RM: np.ndarray) -> Signal:
        both_M = np.concatenate([self.bits, bits])
        inside_R = dealt_RM @ both_M / len(bits)
        outside_R = (~dealt_RM) @ both_M / len(self.bits)
        p = _share_as_far(np.abs(inside_R - outside_R))
        reference, window = float(self.bits.mean()), float(bits.mean())
        return Signal("bits per byte", reference, window, window - reference, p)

    def _of_labels(self, reference: np.ndarray, window: np.ndarray, dealt_RM: np.ndarray) -> Signal:
        names, places_M = np.unique(np.concatenate([reference, window]), return_inverse=True)
        hot_MC = np.eye(len(names))[places_M]
        inside_RC, outside_RC = (dealt @ hot_MC / dealt[0].sum() for dealt in (dealt_RM, ~dealt_RM))
        apart_R = np.abs(inside_RC - outside_RC).sum(1) / 2
        shares = outside_RC[0], inside_RC[0]
        reference_shares, window_shares = (
            dict(zip(names.tolist(), it.tolist(), strict=True)) for it in shares
        )
        p = _share_as_far(apart_R)
        return Signal("labels", reference_shares, window_shares, float(apart_R[0]), p)


def _share_as_far(distances_R: np.ndarray) -> float:
    """Of all dealings, the real one (the first) among them; equal up to rounding counts as far."""
    return float((distances_R >= distances_R[0] - 1e-9).mean())


def _checked(
    bits_N: Sequence[float], labels_N: Sequence[Any] | None, side: str, least: int
) -> tuple[np.ndarray, np.ndarray | None]:
    bits = np.asarray(bits_N, dtype=float)
    if bits.ndim != 1 or len(bits) < least:
        raise LabError(f"the {side} has {bits.size} texts: give at least {least}")
    if not np.isfinite(bits).all():
        raise LabError(f"the {side} has bits per byte that are not finite: is the model damaged?")
    if labels_N is None:
        return bits, None
    if len(labels_N) != len(bits):
        raise LabError(f"the {side} has {len(bits)} texts and {len(labels_N)} labels")
    return bits, np.array([str(it) for it in labels_N])
