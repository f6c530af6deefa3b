"""Checkers of chapter 09: domain experts."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("09.1", title="A mixture in log space")
def log_mixture(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for experts, texts, depth in ((3, 5, 4.0), (4, 6, 2000.0)):
        log_p = -depth * (0.5 + fresh.uniform(experts, texts, low=0.0, high=0.5))
        weights = fresh.probabilities(experts)
        found = attempt(log_p, weights)
        if isinstance(found, torch.Tensor) and found.shape == (texts,):
            require(
                bool(torch.isfinite(found).all()),
                "Infinite where the log-probabilities are about -2000: exp of them is 0. Stay in "
                "log space (torch.logsumexp).",
            )
        compare(
            found,
            torch.logsumexp(log_p + weights.log()[:, None], 0),
            {
                "the mean of the logarithms: a product of experts, not a mixture; average the "
                "probabilities": (weights[:, None] * log_p).sum(0),
                "without the weights": torch.logsumexp(log_p, 0),
                "an average with equal weights": torch.logsumexp(log_p, 0) - math.log(experts),
                "weighted by w log p inside the exponent: the weight multiplies p, so its "
                "logarithm is added": torch.logsumexp(weights[:, None] * log_p, 0),
                "with w added where log w belongs": torch.logsumexp(log_p + weights[:, None], 0),
                "the loss: leave off the minus sign": (
                    -torch.logsumexp(log_p + weights.log()[:, None], 0)
                ),
            },
        )
    return "Right, also for whole texts whose probability no float can hold."


@exercise("09.2", title="Who wrote this?")
def posterior_before(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for experts, length in ((3, 6), (4, 5)):
        log_p = fresh.uniform(experts, length, low=0.05, high=0.9).log()
        seen = log_p.cumsum(1)
        before = seen - log_p
        shifted = torch.cat([torch.zeros(experts, 1, dtype=log_p.dtype), log_p[:, :-1]], 1)
        compare(
            attempt(log_p),
            torch.softmax(before, 0),
            {
                "the posterior after each token: the weights have seen the very token that they "
                "are to predict": torch.softmax(seen, 0),
                "from the last token only: the whole context counts, take a cumulative sum": (
                    torch.softmax(shifted, 0)
                ),
                "from the present token only, which is not known yet": torch.softmax(log_p, 0),
                "normalised over the tokens: at each token the weights of the experts sum to 1": (
                    torch.softmax(before, 1)
                ),
                "in log space: return the weights, not their logarithms": (
                    torch.log_softmax(before, 0)
                ),
                "a mean instead of a sum of log-probabilities: Bayes multiplies, so the evidence "
                "grows with the text": torch.softmax(before / torch.arange(1, length + 1), 0),
                "not normalised: divide by the sum over the experts": before.exp(),
            },
        )
    return "Right: the experts' own losses decide, and no weight has seen its token."


@exercise("09.3", title="Merge with task vectors")
def merge(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for experts, scale in ((2, 0.4), (3, 0.5)):
        shapes = {"weight": (3, 4), "bias": (3,)}
        ancestor = {name: fresh.normal(*shape) for name, shape in shapes.items()}
        states = [
            {name: fresh.normal(*shape) for name, shape in shapes.items()} for _ in range(experts)
        ]
        found = attempt(ancestor, states, scale)
        require(
            isinstance(found, dict) and set(found) == set(shapes),
            "Return a dict with the names of the ancestor's tensors.",
        )
        for name, start in ancestor.items():
            total = torch.stack([state[name] for state in states]).sum(0)
            vectors = total - experts * start
            compare(
                found[name],
                start + scale * vectors,
                {
                    "the plain average of the experts: that is lambda = 1 / K": total / experts,
                    "without the ancestor: the task vectors are added to it": scale * vectors,
                    "with the mean of the task vectors: the formula has their sum": (
                        start + scale * vectors / experts
                    ),
                    "ancestor plus scaled experts: subtract the ancestor from each first": (
                        start + scale * total
                    ),
                    "with the sign turned: the task vector is expert minus ancestor": (
                        start - scale * vectors
                    ),
                    "with the ancestor subtracted once only: each expert has its own difference": (
                        start + scale * (total - start)
                    ),
                },
                what=f"The tensor {name!r}",
            )
    return "Right: with lambda = 1 / K it is the plain average."


@exercise("09.4", title="The price of imbalance")
def balance(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for tokens, experts, k in ((12, 4, 1), (9, 5, 2), (7, 3, 3)):
        p = torch.softmax(2 * fresh.normal(tokens, experts), -1)
        chosen = p.topk(k, dim=-1).indices.flatten()
        count = torch.bincount(chosen, minlength=experts).double()
        f, mean = count / len(chosen), p.mean(0)
        top = torch.bincount(p.argmax(-1), minlength=experts).double() / tokens
        mistakes: dict[str, Any] = {
            "without the factor E: it should be 1 if all are used alike": (f * mean).sum(),
            "with f and P summed over tokens instead of averaged": (
                experts * (count * p.sum(0)).sum()
            ),
            "with f twice: a count has no gradient, the mean of p has": experts * (f * f).sum(),
            "with P twice: f counts the choices": experts * (mean * mean).sum(),
        }
        if k > 1:
            mistakes["k times too large: there are N k choices, and f sums to 1"] = (
                experts * (count / tokens * mean).sum()
            )
            if k < experts:
                mistakes["from the best expert alone: each token makes k choices"] = (
                    experts * (top * mean).sum()
                )
        compare(attempt(p.clone(), k), experts * (f * mean).sum(), mistakes, tolerance=1e-6)
    return "Right: it falls when the crowded experts become less likely."


@exercise("09.5", title="Sorted by expert")
def through_experts(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for tokens, experts in ((10, 3), (6, 4)):
        x, weight = fresh.normal(tokens, 2), fresh.uniform(tokens, low=0.1)
        choice = torch.tensor([fresh.integer(0, experts - 1) for _ in range(tokens)])
        calls: list[tuple[int, int]] = []

        found = attempt(
            x.clone(), choice.clone(), weight.clone(), [_counting(e, calls) for e in range(experts)]
        )
        scaled = x * (choice[:, None] + 2.0)
        right = weight[:, None] * scaled
        order = choice.argsort(stable=True)
        compare(
            found,
            right,
            {
                "without the weights": scaled,
                "still sorted by expert: put the rows back where they came from": right[order],
                "weighted in the wrong order: a row keeps its own weight": (
                    torch.zeros_like(x).index_copy(0, order, weight[:, None] * scaled[order])
                ),
            },
            tolerance=1e-6,
        )
        require(
            all(rows for _, rows in calls),
            "An expert without a token was called: it has nothing to do.",
        )
        names = [e for e, _ in calls]
        require(
            len(names) == len(set(names)),
            f"{len(names)} calls of {len(set(names))} experts: give each all its tokens at once.",
        )
    return "Right: one product for each expert, and every token comes back to its place."


def _counting(e: int, calls: list[tuple[int, int]]) -> Callable[[Tensor], Tensor]:
    """Expert e, which notes each call and how many rows it had."""

    def run(rows_ND: Tensor) -> Tensor:
        calls.append((e, len(rows_ND)))
        return rows_ND * (e + 2.0)

    return run
