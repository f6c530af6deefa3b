"""Checkers of chapter 13: sequence to sequence."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("13.1", title="From characters to tokens")
def token_span(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(6):
        offsets, words = _window(fresh)
        first = words[fresh.integer(1, 5)]
        last = first + fresh.integer(2, 4)
        start, end = offsets[first][0], offsets[last][1]
        inside = [n for n, (a, _) in enumerate(offsets) if a >= 0]
        compare(
            _pair(attempt(list(offsets), start, end)),
            (first, last),
            {
                "one too far: the last token is inside, not one past the answer": (first, last + 1),
                "counted from the first token of the text: count positions, marks and question "
                "included": (first - words[0], last - words[0]),
                "the answer's first and last character: find the tokens that hold them": (
                    start,
                    end,
                ),
            },
            what="Your span",
        )
        wide = end - start
        compare(
            _pair(attempt(list(offsets), start + 1, end - 1)),
            (first, last),
            {
                "(0, 0) for an answer that begins or ends inside a token: a token that it touches "
                "belongs to it": (0, 0),
                "without the token in which the answer begins": (first + 1, last),
                "without the token in which the answer ends": (first, last - 1),
                "without the tokens in which the answer begins and ends": (first + 1, last - 1),
            },
            what="The span of an answer that begins inside a token",
        )
        low, high = offsets[inside[0]][0], offsets[inside[-1]][1]
        for what, begin, stop, tokens in (
            ("begins before this window", low - 3, offsets[first][1], (inside[0], first)),
            ("ends after this window", offsets[last][0], high + 3, (last, inside[-1])),
        ):
            compare(
                _pair(attempt(list(offsets), begin, stop)),
                (0, 0),
                {
                    f"the part that is here, but the answer {what}: (0, 0)": tokens,
                },
                what=f"The span of an answer that {what}",
            )
        compare(
            _pair(attempt(list(offsets), high + 40, high + 40 + wide)),
            (0, 0),
            what="The span of an answer that lies outside this window",
        )
    return "Right: windows overlap, so that the answer stands whole in another one."


def _pair(answer: Any) -> tuple[int, int]:
    """An answer as two whole numbers."""
    items = answer.tolist() if hasattr(answer, "tolist") else answer
    require(
        isinstance(items, list | tuple) and len(items) == 2,
        f"Return two numbers, (first, last), not {answer!r}.",
    )
    return int(items[0]), int(items[1])


def _window(fresh: Fresh) -> tuple[list[tuple[int, int]], list[int]]:
    """Offsets of a window that begins inside its text, and the positions of its text."""
    before, count = fresh.integer(3, 7), fresh.integer(9, 14)
    offsets, at = [(-1, -1)] * before, fresh.integer(20, 60)
    for _ in range(count):
        at += fresh.integer(0, 2)  # a space, or the next piece of the same word
        length = fresh.integer(3, 8)
        offsets.append((at, at + length))
        at += length
    return [*offsets, (-1, -1)], list(range(before, before + count))


@exercise("13.2", title="The score of a text")
def scores(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for penalty in (1.0, 0.6, 0.0):
        logits = fresh.normal(3, 7, 9, scale=2.0)
        labels = fresh.integers(0, 9, 3, 7)
        for row, length in enumerate((7, 4, 2)):
            labels[row, length:] = -100
        counts = labels != -100
        logs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        sums, lengths = (logs * counts).sum(1), counts.sum(1).double()
        raw = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        expected = sums / lengths**penalty
        compare(
            attempt(logits, labels, penalty),
            expected,
            {
                "with the padding: a label of -100 counts neither in the sum nor in the length": (
                    logs.sum(1) / 7**penalty
                ),
                "the right sum over the padded length: count the labels that count": (
                    sums / 7**penalty
                ),
                "the sum alone: divide by the length to the power of the penalty": sums,
                "the mean: the length has the penalty as its power": sums / lengths,
                "divided by penalty times length: it is a power": sums / (penalty * lengths)
                if penalty
                else sums,
                "positive: that is the loss, and here more is better": -expected,
                "of logits: take log_softmax over the vocabulary first": (
                    (raw * counts).sum(1) / lengths**penalty
                ),
                "of probabilities: add up their logarithms": (
                    (logs.exp() * counts).sum(1) / lengths**penalty
                ),
            },
            what="Your score",
            tolerance=1e-6,  # a whole number to a broken power is float32
        )
    return "Right: with 0 the likeliest text wins, with 1 the mean of its tokens counts."


@exercise("13.3", title="No phrase twice")
def forbidden(attempt: Callable[..., Any], fresh: Fresh) -> str:
    rng = random.Random(int(fresh.integers(0, 1 << 30, 1)))
    for n in (3, 2, 4, 1):
        ids = _repeating(rng, n)
        answer = attempt(list(ids), n)
        require(
            isinstance(answer, set | frozenset | list | tuple),
            f"Return a set of tokens, not {type(answer).__name__}.",
        )
        got = {int(token) for token in answer}
        _name_the_fault(got, ids, n)
    for short in ([], [5], [5, 5]):
        got = attempt(list(short), 4)
        require(
            not set(got), f"The text {short} has no 4-gram yet, so nothing is forbidden: {got}."
        )
    return "Right: each phrase of n tokens can stand in the text once."


def _repeating(rng: random.Random, n: int) -> list[int]:
    """Ids whose last n - 1 stood before twice, and whose last n - 2 once more behind another."""
    end = rng.sample(range(100, 200), n - 1)
    after = rng.sample(range(200, 300), 3)
    fill = [rng.sample(range(10 + 20 * i, 30 + 20 * i), 4) for i in range(4)]
    almost = [*fill[3], *end[1:], after[2]]
    return [*fill[0], *end, after[0], *almost, *fill[1], *end, after[1], *fill[2], *end]


def _forbidden(ids: Sequence[int], n: int) -> set[int]:
    begin = list(ids[len(ids) - n + 1 :])
    return {ids[i + n - 1] for i in range(len(ids) - n + 1) if list(ids[i : i + n - 1]) == begin}


def _name_the_fault(got: set[int], ids: list[int], n: int) -> None:
    right = _forbidden(ids, n)
    if got == right:
        return
    require(n > 1 or got, "With n = 1 every token of the text is forbidden.")
    require(
        n == 1 or got != set(ids),
        f"All tokens of the text are forbidden for n = {n}: only those that complete an n-gram.",
    )
    shorter = _forbidden(ids, n - 1) if n > 2 else None
    require(
        got != shorter,
        f"Your set forbids {n - 1}-grams: compare the last n - 1 tokens, not n - 2.",
    )
    require(
        n == 1 or got != _forbidden(ids, n + 1),
        f"Your set forbids {n + 1}-grams: compare the last n - 1 tokens, not n.",
    )
    require(
        not (got < right and len(got) == 1),
        "Only one place is found: the beginning may stand in the text several times.",
    )
    compare(sorted(got), sorted(right), what=f"What is forbidden for n = {n}")


@exercise("13.4", title="Clipped precision")
def clipped_precision(attempt: Callable[..., Any], fresh: Fresh) -> str:
    rng = random.Random(int(fresh.integers(0, 1 << 30, 1)))
    for n in (1, 2, 3):
        values, answers, references = _told_apart(rng, n)
        expected = values.pop("right")
        compare(
            attempt([list(a) for a in answers], [list(r) for r in references], n),
            expected,
            values,
            what="Your precision",
        )
    return "Right: answering with 'the the the' no longer pays."


def _told_apart(rng: random.Random, n: int) -> tuple[dict[str, float], list, list]:
    """Texts on which the usual mistakes give other values, and those values."""
    while True:
        words = [f"w{i}" for i in range(6)]
        answers, references = [], []
        for length in (4, 9, 14, n - 1):
            reference = rng.choices(words, k=length + 2)
            answer = [w if rng.random() < 0.75 else rng.choice(words) for w in reference][:length]
            answers.append([*answer, *answer[-1:], *answer[-1:]] if length >= n else answer)
            references.append(reference)
        grams = [(_grams(a, n), _grams(r, n)) for a, r in zip(answers, references, strict=True)]
        clipped = [(a & r).total() for a, r in grams]
        total = [a.total() for a, _ in grams]
        whole_a, whole_r = Counter(), Counter()
        for a, r in grams:
            whole_a, whole_r = whole_a + a, whole_r + r
        each = [c / t for c, t in zip(clipped, total, strict=True) if t]
        loose = [sum(k for g, k in a.items() if g in r) for a, r in grams]
        sets = sum(len(set(a) & set(r)) for a, r in grams) / sum(len(set(a)) for a, _ in grams)
        values = {
            "right": sum(clipped) / sum(total),
            "not clipped: an n-gram counts at most as often as it stands in the reference": (
                sum(loose) / sum(total)
            ),
            "a mean over the pairs: add up the counts of the corpus first": sum(each) / len(each),
            "a mean over all pairs, those without n-grams too: add up the counts of the corpus "
            "first": sum(each) / len(total),
            "the recall: divide by the answers' n-grams, not the references'": (
                sum(clipped) / sum(r.total() for _, r in grams)
            ),
            "of different n-grams: each counts as often as it stands there": sets,
            "against all references at once: compare each answer with its own": (
                (whole_a & whole_r).total() / sum(total)
            ),
        }
        found = list(values.values())
        gaps = [abs(a - b) for i, a in enumerate(found) for b in found[:i]]
        if min(gaps) > 1e-6 and min(found) > 0 and math.isfinite(sum(found)):
            return values, answers, references


def _grams(words: Sequence[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


@exercise("13.5", title="Coverage")
def coverage_loss(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, S in ((5, 4), (3, 8)):
        weights = fresh.normal(T, S, scale=1.5).softmax(-1)
        before = weights.cumsum(0) - weights
        overlap = torch.minimum(weights, before)
        last = torch.cat((torch.zeros(1, S).double(), weights[:-1]))
        compare(
            attempt(weights),
            float(overlap.sum()),
            {
                "with the present step in the sum: c holds only the steps before": float(
                    torch.minimum(weights, weights.cumsum(0)).sum()
                ),
                "the maximum: the overlap is the smaller of both": float(
                    torch.maximum(weights, before).sum()
                ),
                "against the step before only: c is the sum of all earlier ones": float(
                    torch.minimum(weights, last).sum()
                ),
                "the product: the overlap is the smaller of both": float((weights * before).sum()),
                "a mean over the steps: add them up": float(overlap.sum() / T),
                "a mean over all weights: add them up": float(overlap.mean()),
                "summed along the source: c grows from step to step": float(
                    torch.minimum(weights, weights.cumsum(1) - weights).sum()
                ),
            },
            what="Your loss",
        )
    still = torch.eye(4, dtype=torch.float64)
    compare(attempt(still), 0.0, what="The loss of a pointer that reads each token once")
    return "Right: to look again at what was read costs as much as it looks."
