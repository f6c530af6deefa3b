"""From the logits of a reader to an answer: the best spans, and when to say that there is none.

    start_T, end_T ──> score(i, j) = start_i + end_j,  i <= j < i + most ──> the n best spans
    start_0 + end_0 = the score of "no answer" ──> gap = it - the best span's ──> gap > threshold?

The beginning and the end are chosen *together*: the likeliest of each, apart, may lie in the wrong
order or a page from one another. The threshold is chosen on validation answers, never on the test.

Legend: T positions, N questions, W windows.

Sources: Devlin et al. 2019, arXiv:1810.04805, sections 4.2 and 4.3; Rajpurkar et al. 2018,
arXiv:1806.03822 (thresholds).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from labkit.errors import LabError


class Span(NamedTuple):
    """A piece of the text."""

    start: int
    """First character, or token, as the caller counts."""
    end: int
    """Of characters one past the last; of tokens the last."""
    score: float
    """start logit + end logit."""


class Found(NamedTuple):
    """What a reader found about one question."""

    spans: list[Span]
    """In characters, the best first, each once."""
    null: float
    """Score of "no answer": the lowest of all windows, for the answer may stand in another one."""

    @property
    def gap(self) -> float:
        """Score of "no answer" minus the best span's: above the threshold there is none."""
        return self.null - self.spans[0].score if self.spans else float("inf")


def best_spans(
    start_T: Tensor, end_T: Tensor, allowed_T: Tensor, most_tokens: int, count: int = 1
) -> list[Span]:
    """The spans of the highest start + end, in tokens, both ends included.

    Args:
        start_T, end_T: logits.
        allowed_T: bool, whether a span may begin or end there: inside the text.
        most_tokens: longest span, at least 1.
        count: n, at least 1.

    Returns:
        At most n spans, the best first.

    Raises:
        LabError: most_tokens or count below 1.

    >>> best_spans(torch.tensor([0., 9., 1.]), torch.tensor([8., 0., 2.]), torch.ones(3) > 0, 2)
    [Span(start=1, end=2, score=11.0)]
    """
    for name, value in (("most_tokens", most_tokens), ("count", count)):
        if value < 1:
            raise LabError(f"{name} is {value}; it must be at least 1")
    T = len(start_T)
    scores_TT = start_T.float()[:, None] + end_T.float()[None, :]
    places_T = torch.arange(T, device=start_T.device)
    length_TT = places_T[None, :] - places_T[:, None] + 1
    fits_TT = (length_TT >= 1) & (length_TT <= most_tokens)
    fits_TT &= allowed_T[:, None] & allowed_T[None, :]
    scores_N = scores_TT.masked_fill(~fits_TT, -torch.inf).flatten()
    best = scores_N.topk(min(count, int(fits_TT.sum())))
    return [
        Span(place // T, place % T, value)
        for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def join_windows(
    starts: Sequence[Tensor],
    ends: Sequence[Tensor],
    offsets: Sequence[Sequence[tuple[int, int]]],
    most_tokens: int = 30,
    count: int = 1,
) -> Found:
    """What the windows of one question say together.

    Args:
        starts, ends: logits (T,) of each window; position 0 is [CLS].
        offsets: characters of each position, (-1, -1) outside the text, as in `SpanWindow`.
        most_tokens, count: as in `best_spans`.

    Raises:
        LabError: no window.
    """
    if not starts:
        raise LabError("0 windows were given: a question has at least 1")
    best: dict[tuple[int, int], float] = {}
    for start_T, end_T, places in zip(starts, ends, offsets, strict=True):
        T = len(places)
        allowed_T = torch.tensor([a >= 0 for a, _ in places], device=start_T.device)
        for span in best_spans(start_T[:T], end_T[:T], allowed_T, most_tokens, count):
            key = places[span.start][0], places[span.end][1]
            best[key] = max(span.score, best.get(key, -float("inf")))
    spans = [Span(*key, value) for key, value in sorted(best.items(), key=lambda it: -it[1])]
    null = min(float(start_T[0] + end_T[0]) for start_T, end_T in zip(starts, ends, strict=True))
    return Found(spans[:count], null)


def choose_threshold(
    gaps_N: Sequence[float], score_if_answered_N: Sequence[float], possible_N: Sequence[bool]
) -> tuple[float, float]:
    """The threshold of the gap with the best mean score: for validation questions.

    "No answer" scores 1 where there is none, else 0. Every threshold that changes an answer is
    tried; of equal ones the middle of the lowest range.

    Args:
        gaps_N: `Found.gap` of each question.
        score_if_answered_N: score of the best span (F1, or exact match), in [0, 1].
        possible_N: whether there is an answer.

    Returns:
        (threshold, mean score with it).

    Raises:
        LabError: no question, or sequences of unequal length.
    """
    gaps = np.asarray(gaps_N, dtype=float)
    answered = np.asarray(score_if_answered_N, dtype=float)
    silent = 1.0 - np.asarray(possible_N, dtype=float)
    if not len(gaps) or not len(gaps) == len(answered) == len(silent):
        raise LabError(
            f"{len(gaps)} gaps, {len(answered)} scores and {len(silent)} truths: give equally many"
        )
    order = np.argsort(gaps, kind="stable")
    gaps, gain = gaps[order], (answered - silent)[order]
    # Answer the k questions of the lowest gaps: k = 0 .. N, but equal gaps go together, and where
    # no span was found (an infinite gap) there is nothing to answer with.
    totals = silent.sum() + np.concatenate(([0.0], np.cumsum(gain)))
    last = int(np.isfinite(gaps).sum())
    cuts = [k for k in range(last + 1) if k in (0, last) or gaps[k - 1] < gaps[k]]
    best = max(cuts, key=lambda k: totals[k])
    high = gaps[best] if best < last else (gaps[last - 1] + 1.0 if last else 0.0)
    low = gaps[best - 1] if best else high - 1.0
    threshold = (low + high) / 2
    return float(threshold), float(totals[best] / len(gaps))
