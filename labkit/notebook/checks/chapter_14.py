"""Checkers of chapter 14: instruction tuning."""

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.notebook.exercises import Fresh, compare, exercise, require

BEGIN, END = 3, 0


@exercise("14.1", title="Only the last answer")
def last_answer_labels(attempt: Callable[..., Any], fresh: Fresh) -> str:
    rng = random.Random(fresh.integer(0, 1 << 30))
    for answers in (2, 3, 1):
        ids: list[int] = []
        for _ in range(answers):
            ids += rng.sample(range(10, 60), rng.randint(2, 5))
            ids += [BEGIN, *rng.sample(range(60, 99), rng.randint(2, 5)), END]
        ids += [7, 8] if answers == 2 else []  # a template may write on behind the end
        begins = [t for t, i in enumerate(ids) if i == BEGIN]
        stop = ids.index(END, begins[-1])
        expected = _labels(ids, begins[-1] + 1, stop)[1:]
        every = [-100] * len(ids)
        for t in begins:
            last = ids.index(END, t)
            every[t + 1 : last + 1] = ids[t + 1 : last + 1]
        compare(
            _whole(attempt(list(ids), BEGIN, END)),
            expected,
            {
                "all answers, not the last alone": every[1:],
                "without the end: the model would never learn to stop": (
                    _labels(ids, begins[-1] + 1, stop - 1)[1:]
                ),
                "with the mark that begins the answer: that is given, not said": (
                    _labels(ids, begins[-1], stop)[1:]
                ),
                "not moved: the label of a place is the token behind it": (
                    _labels(ids, begins[-1] + 1, stop)[:-1]
                ),
                "one item too long: the last token has nothing to predict": (
                    _labels(ids, begins[-1] + 1, stop)
                ),
                "counted on to the end of the row: the answer ends at its end mark": (
                    _labels(ids, begins[-1] + 1, len(ids) - 1)[1:]
                ),
                "the first answer, not the last": (
                    _labels(ids, begins[0] + 1, ids.index(END, begins[0]))[1:]
                ),
            },
            what="The list of labels",
        )
    return "Right: earlier answers are read, as history, and only the last one is learned."


def _labels(ids: list[int], first: int, last: int) -> list[int]:
    return [i if first <= t <= last else -100 for t, i in enumerate(ids)]


def _whole(answer: Any) -> list[int]:
    items = answer.tolist() if hasattr(answer, "tolist") else answer
    require(
        isinstance(items, list | tuple),
        f"Return a list of labels, not {type(answer).__name__}.",
    )
    return [int(i) for i in items]


@exercise("14.2", title="Who may see whom")
def packed_mask(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for padding in (0, 3):
        sizes = [fresh.integer(2, 5) for _ in range(3)]
        ids = [n for n, size in enumerate(sizes) for _ in range(size)] + [-1] * padding
        documents = torch.tensor(ids)
        length = len(ids)
        same = documents[:, None] == documents
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        real = documents >= 0
        own = torch.eye(length, dtype=torch.bool)
        expected = (same & causal & real[:, None]) | own
        got = torch.as_tensor(attempt(documents))
        require(
            got.shape == expected.shape,
            f"The mask has shape {tuple(got.shape)}: one row and one column a token, "
            f"{tuple(expected.shape)}.",
        )
        require(got.dtype == torch.bool, f"The mask holds {got.dtype}: True and False, torch.bool.")
        compare(
            got,
            expected,
            {
                "leaking: tokens read the conversations before them": causal,
                "leaking forward: tokens read what comes after them": (same & real[:, None]) | own,
                "right but for padding, which reads earlier padding: itself only": same & causal,
                "empty in the rows of padding: a softmax over nothing is NaN": (
                    same & causal & real[:, None]
                ),
                "turned: rows are queries, columns are keys": expected.T,
                "True where nothing may be read: turn it around": ~expected,
                "without each token's own place": expected & ~own,
            },
            what="Your mask",
        )
    return "Right: with this mask a packed row computes what its conversations compute alone."


@exercise("14.3", title="DPO from token log-probabilities")
def dpo(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for beta in (0.1, 0.7):
        log, start = (-fresh.uniform(4, 2, 6, low=0.1, high=4.0) for _ in range(2))
        counts = torch.ones(4, 2, 6, dtype=torch.float64)
        for pair, (a, b) in enumerate(((6, 3), (2, 5), (4, 4), (3, 6))):
            counts[pair, 0, a:], counts[pair, 1, b:] = 0, 0
        expected = _dpo(((log - start) * counts).sum(-1), beta)
        means = ((log - start) * counts).sum(-1) / counts.sum(-1)
        compare(
            attempt(log.clone(), start.clone(), counts.clone(), beta),
            expected,
            {
                "of means over the tokens: DPO's log-probability of an answer is a sum": (
                    _dpo(means, beta)
                ),
                "with padding: only tokens that count belong to an answer": (
                    _dpo((log - start).sum(-1), beta)
                ),
                "without the start: what counts is the gain over it": (
                    _dpo((log * counts).sum(-1), beta)
                ),
                "turned: the first answer of a pair is the chosen one": (
                    _dpo(((log - start) * counts).sum(-1).flip(1), beta)
                ),
                "without beta": _dpo(((log - start) * counts).sum(-1), 1.0),
                "the log-probability, not the loss: change its sign": -expected,
                "a mean over the pairs: give one loss for each": expected.mean(),
                "a sum over the pairs: give one loss for each": expected.sum(),
            },
            what="Your loss",
        )
    far = torch.zeros(1, 2, 1, dtype=torch.float64)
    far[0, 0, 0] = -2000.0
    got = torch.as_tensor(attempt(far, torch.zeros_like(far), torch.ones_like(far), 1.0))
    require(
        bool(torch.isfinite(got).all()),
        f"A pair that is 2,000 nats wrong has loss 2,000, not {got.tolist()}: the sigmoid is 0 "
        "there, so take F.logsigmoid instead of its logarithm.",
    )
    return "Right: a pair in which nothing has moved costs ln 2."


def _dpo(gain_P2: Tensor, beta: float) -> Tensor:
    return -F.logsigmoid(beta * (gain_P2[:, 0] - gain_P2[:, 1]))


@exercise("14.4", title="The best model with a reward")
def best_policy(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for beta in (0.5, 2.0):
        start, reward = fresh.probabilities(6), fresh.normal(6, scale=2.0)
        scores = start.log() + reward / beta
        policy, value = scores.softmax(0), float(beta * scores.logsumexp(0))
        gained = float((policy * reward).sum())
        turned = (start.log() + reward * beta).softmax(0)
        got_policy, got_value = _two(attempt(start.clone(), reward.clone(), beta))
        compare(
            got_policy,
            policy,
            {
                "without the start: it weighs the answers": (reward / beta).softmax(0),
                "with beta times the reward: divide": turned,
                "not normalised: divide by Z": scores.exp(),
                "of probabilities in place of their logarithms": (start + reward / beta).softmax(0),
            },
            what="Your distribution",
        )
        compare(
            got_value,
            value,
            {
                "the expected reward alone: take off beta times the divergence": gained,
                "ln Z: times beta": value / beta,
                "with the divergence added: leaving the start costs": 2 * gained - value,
            },
            what="Your maximum",
        )
    start = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    got_policy, _ = _two(attempt(start, torch.tensor([0.0, 0.0, 5.0]).double(), 1.0))
    compare(
        got_policy, start, what="The best distribution, where the start never gives the best answer"
    )
    got_policy, got_value = _two(
        attempt(start.flip(0), torch.tensor([0.0, 1000.0, 0.0]).double(), 0.5)
    )
    require(
        bool(torch.isfinite(torch.as_tensor(got_policy)).all()),
        "A reward of 1,000 at beta 0.5 gives NaN: e to the power of 2,000 is too large; add "
        "logarithms and take a softmax.",
    )
    return "Right: no reward can make likely what the start never says."


def _two(answer: Any) -> tuple[Any, Any]:
    require(
        isinstance(answer, tuple | list) and len(answer) == 2,
        "Return two things: the distribution, and the maximum.",
    )
    return answer[0], answer[1]


@exercise("14.5", title="Pairs from scores")
def pairs_from_scores(attempt: Callable[..., Any], fresh: Fresh) -> str:
    rng = random.Random(fresh.integer(0, 1 << 30))
    for gap in (1, 2):
        names = [f"answer {n}" for n in rng.sample(range(100), 4)]
        answers = [*names, names[0], names[2]]
        levels = rng.sample([0, 1, 2, 4], 4)
        scores = [*levels, levels[0], levels[2]]
        both = [*zip(answers, scores, strict=True)]
        right = _pairs(both, gap)
        repeated = [(a, b) for a, x in both for b, y in both if x - y >= gap and a != b]
        strict = list(dict.fromkeys((a, b) for a, x in both for b, y in both if x - y > gap))
        best = max(both, key=lambda it: it[1])
        got = attempt(list(answers), list(scores), gap)
        require(isinstance(got, list | tuple), f"Return a list, not {type(got).__name__}.")
        got = [tuple(pair) for pair in got]
        mistakes = {
            "with repeated pairs: no pair twice": repeated,
            "without those that differ by exactly the gap: at least `gap`": strict,
            "turned: the better answer comes first": [(b, a) for a, b in right],
            "of the best answer only: any two answers may be a pair": [
                pair for pair in right if pair[0] == best[0]
            ],
            "of neighbours in the list only: any two answers may be a pair": [
                pair for pair in right if abs(names.index(pair[0]) - names.index(pair[1])) == 1
            ],
        }
        for sentence, value in mistakes.items():
            require(got == right or got != value, f"Your list is {sentence}.")
        require(
            sorted(got) != sorted(right) or got == right,
            "The right pairs in another order: go through the answers for the chosen one, and "
            "for each through the answers for the rejected one.",
        )
        compare(got, right, what="Your list")
    tie = [("a", 1), ("b", 1), ("a", 2)]
    got = [tuple(pair) for pair in attempt([a for a, _ in tie], [x for _, x in tie], 0)]
    require(
        got == [("a", "b")],
        f"With gap 0, answers a, b, a scored 1, 1, 2 give one pair, (a, b), not {got}: equal "
        "scores prefer nothing, and a text is no better than itself.",
    )
    return "Right: from n scored answers come up to n (n - 1) / 2 preferences."


def _pairs(both: list[tuple[str, int]], gap: int) -> list[tuple[str, str]]:
    found = [(a, b) for a, x in both for b, y in both if x - y >= gap and x > y and a != b]
    return list(dict.fromkeys(found))
