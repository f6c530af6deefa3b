"""Checkers of chapter 09: domain experts."""

import math
from collections.abc import Callable
from typing import Any

import torch

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("09.1", title="Temperature")
def temperature_shares(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for count, temperature in ((3, 2.0), (5, 4.0), (4, 1.0), (4, math.inf)):
        sizes = fresh.uniform(count, low=1.0, high=50.0)

        def shares(power: float, sizes: torch.Tensor = sizes) -> torch.Tensor:
            return sizes**power / (sizes**power).sum()

        heat = min(temperature, 20.0)
        compare(
            attempt(sizes, temperature),
            shares(1 / temperature),
            {
                "raised to the power T, which makes the large sources larger: use 1 / T": shares(
                    heat
                ),
                "in proportion to size whatever T: the temperature is not used": shares(1.0),
                "equal shares whatever T: that is the limit of a large T": shares(0.0),
                "not divided by the sum: shares sum to 1": sizes ** (1 / temperature),
                "a softmax of sizes / T: it is their logarithms that are divided by T": (
                    torch.softmax(sizes / heat, 0)
                ),
            },
        )
    return "Right: 1 is by size, infinity is all alike."


@exercise("09.2", title="A mixture in log space")
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


@exercise("09.3", title="Who wrote this?")
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


@exercise("09.4", title="Merge with task vectors")
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


@exercise("09.5", title="Forgetting")
def gain_and_forgetting(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for count in (3, 4):
        before = fresh.uniform(count, low=1.0, high=3.0)
        after = fresh.uniform(count, count, low=1.0, high=4.0)

        def answer(change: torch.Tensor, count: int = count) -> tuple[torch.Tensor, torch.Tensor]:
            home = change.diagonal()
            return -home, (change.sum(1) - home) / (count - 1)

        change = after - before
        gain, lost = answer(change)
        compare(
            attempt(before, after),
            (gain, lost),
            {
                "with the signs turned: a fall in bits per byte is a gain, a rise is forgetting": (
                    -gain,
                    -lost,
                ),
                "with forgetting averaged over all domains, home included: leave out the "
                "diagonal": (gain, change.mean(1)),
                "taken along the columns: row i belongs to the expert of domain i": answer(
                    change.T
                ),
                "with `before` subtracted from the wrong axis: column j is domain j": answer(
                    after - before[:, None]
                ),
                "the sum of what is lost, not the mean": (gain, change.sum(1) - change.diagonal()),
                "the loss at home itself, not its change": (after.diagonal(), lost),
            },
        )
    return "Right: both belong in every report of a continued training."


@exercise("09.6", title="Deal the cards")
def turns(attempt: Callable[..., Any], fresh: Fresh) -> str:
    several = [tuple(fresh.integer(1, 10) for _ in range(count)) for count in (3, 4, 5)]
    for parts in [(5, 3, 2), (6, 1, 1), *several, (8, 1, 1, 1, 1), (13, 13, 13, 1, 1)]:
        total = sum(parts)
        found = attempt(parts, total, 3 * total)
        require(
            isinstance(found, (list, tuple)) and len(found) == 3 * total,
            f"Return a list of {3 * total} source numbers, not {str(found)[:60]}.",
        )
        require(
            all(0 <= int(k) < len(parts) for k in found),
            f"Sources are numbered from 0 to {len(parts) - 1}.",
        )
        require(
            attempt(parts, total, 3 * total) == found,
            "Asked twice it deals differently: chance has no place here, a draw is off by the root "
            "of the number of turns.",
        )
        count = [0] * len(parts)
        for n, k in enumerate(found, 1):
            count[int(k)] += 1
            for source, part in enumerate(parts):
                off = count[source] - n * part / total
                require(
                    abs(off) < 1 - 1e-9,
                    f"With parts {parts}, after {n} turns source {source} has had {count[source]}, "
                    f"{abs(off):.2f} {'more' if off > 0 else 'fewer'} than its share: fewer than "
                    "one is asked for. Among those that may come, take the one that must come "
                    "first.",
                )
    return "Right: no source is ever a whole turn away from its share."
