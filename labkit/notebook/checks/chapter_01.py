"""Checkers of chapter 01, language models."""

import torch

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("01.1", title="the chain rule")
def text_log_probability(attempt, fresh: Fresh) -> None:
    V = 5
    weight_VV = fresh.normal(V, V)
    ids = fresh.integers(0, V, 6).tolist()

    def next_probabilities(before):
        logits_V = weight_VV[before].sum(0) if before else torch.zeros(V, dtype=torch.float64)
        return logits_V.softmax(-1)

    steps = torch.stack([next_probabilities(ids[:t])[w] for t, w in enumerate(ids)])
    seen = torch.stack([next_probabilities(ids[: t + 1])[w] for t, w in enumerate(ids)])
    last = torch.stack([next_probabilities(ids[max(0, t - 1) : t])[w] for t, w in enumerate(ids)])
    compare(
        attempt(next_probabilities, ids),
        steps.log().sum(),
        {
            "the probability itself: return its logarithm, the sum of the logarithms": steps.prod(),
            "a sum of probabilities: multiply them, or add their logarithms": steps.sum(),
            "The answer was in sight: the token itself does not belong to what "
            "stands before it": seen.log().sum(),
            "without the first token: it has a probability too, after nothing": steps[1:]
            .log()
            .sum(),
            "in bits: use the natural logarithm": steps.log2().sum(),
            "a mean over the tokens: the chain rule is a sum": steps.log().mean(),
            "of the wrong sign: a log-probability is not positive": -steps.log().sum(),
            "read from the last token alone: give next_probabilities everything before": (
                last.log().sum()
            ),
        },
    )
    none = attempt(next_probabilities, [])
    compare(none, 0.0, what="The log-probability of the empty text")


@exercise("01.2", title="continuation counts")
def continuation(attempt, fresh: Fresh) -> None:
    for N, V in ((40, 6), (60, 9)):
        tokens = fresh.integers(0, V - 1, N)  # the last id never occurs
        pairs = torch.unique(torch.stack((tokens[:-1], tokens[1:])), dim=1)
        before = torch.bincount(pairs[1], minlength=V).double()
        after = torch.bincount(pairs[0], minlength=V).double()
        often = torch.bincount(tokens, minlength=V).double()
        second = torch.bincount(tokens[1:], minlength=V).double()
        compare(
            attempt(tokens, V),
            before / before.sum(),
            {
                "plain frequency: count different tokens before w, each once": often / N,
                "the frequency of w as second of a pair: count each different pair once": (
                    second / (N - 1)
                ),
                "the number of different tokens after w: look at what stands before it": (
                    after / after.sum()
                ),
                "divided by the number of places: divide by the number of different pairs, so that "
                "the shares sum to 1": before / (N - 1),
                "divided by V: divide by the number of different pairs": before / V,
                "counts: divide by their sum": before,
            },
            what=f"The distribution for {N} tokens",
        )


@exercise("01.3", title="discount and interpolate")
def discounted(attempt, fresh: Fresh) -> None:
    for V, D in ((8, 0.75), (11, 0.4)):
        counts_V = fresh.integers(1, 7, V).double()
        counts_V[fresh.permutation(V)[: V // 2]] = 0
        lower_V = fresh.probabilities(V)
        total, types = counts_V.sum(), int((counts_V > 0).sum())
        own = (counts_V - D).clamp(min=0) / total
        left = D * types / total
        rest = lower_V * (counts_V == 0)
        compare(
            attempt(counts_V, lower_V, D),
            own + left * lower_V,
            {
                "negative where a token was not seen: nothing can be taken from a count of 0": (
                    (counts_V - D) / total + left * lower_V
                ),
                "missing mass: D was taken from each of the seen tokens, so D times their number "
                "goes to the shorter history": own + D / total * lower_V,
                "without the shorter history: what was taken must be handed on": own,
                "of sum larger than 1: the shorter history gets only the mass that was taken": (
                    own + lower_V
                ),
                "without the discount: both parts together sum to more than 1": (
                    counts_V / total + left * lower_V
                ),
                "back-off, not interpolation: seen tokens get their part of the shorter history "
                "too": own + left * rest / rest.sum(),
                "short of mass: D V was handed on, also for tokens that had nothing to give": (
                    own + D * V / total * lower_V
                ),
            },
            what=f"The distribution for D = {D}",
            tolerance=1e-6,  # D times a whole-number tensor is float32 in torch
        )
    lower_V = fresh.probabilities(5)
    got = attempt(torch.zeros(5, dtype=torch.float64), lower_V, 0.75)
    require(
        isinstance(got, torch.Tensor) and bool(torch.isfinite(got).all()),
        "After a history that never occurred the total is 0: return the shorter history's "
        "distribution unchanged.",
    )
    compare(got, lower_V, what="The distribution of a history that never occurred")


def _windows(total: int, length: int, stride: int, first: int | None = None) -> list[tuple]:
    found, scored = [], 0
    while scored < total:
        last = min(total, (first or length) if not found else scored + stride)
        found.append((max(0, last - length), last, scored))
        scored = last
    return found


@exercise("01.4", title="each token once")
def scoring_windows(attempt, fresh: Fresh) -> None:
    cases = [(10, 4, 2), (11, 4, 3), (3, 8, 4), (12, 4, 4)]
    length = fresh.integer(9, 14)
    cases += [(fresh.integer(40, 70), length, fresh.integer(3, 6)), (length, length, 3)]
    for total, length, stride in cases:
        right = _windows(total, length, stride)
        starts = range(0, max(1, total - length + stride), stride)
        apart = [(i, min(total, i + length), i) for i in range(0, total, length)]
        twice = [(a, b, a) for a, b, _ in right]
        ragged = [
            (i, min(total, i + length), i if i == 0 else min(i - stride + length, total))
            for i in starts
        ]
        got = attempt(total, length, stride)
        require(
            isinstance(got, (list, tuple))
            and all(isinstance(row, (list, tuple)) and len(row) == 3 for row in got),
            "Return a list of triples (first, last, score_from).",
        )
        compare(
            [tuple(int(i) for i in row) for row in got],
            right,
            {
                "Windows side by side: the first targets of each have hardly any past": apart,
                "Each window scores all it holds: targets in two windows are counted twice": twice,
                "The last window is cut short: let it begin earlier, so that its targets have the "
                "longest past": ragged,
                "The first window scores only `stride` targets: it has nothing to skip": (
                    _windows(total, length, stride, first=min(stride, length))
                ),
            },
            what=f"The list of windows for {total} targets, length {length}, stride {stride}",
        )
