"""Checkers of chapter 23: reinforcement learning."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labkit.notebook.exercises import Fresh, Wrong, compare, exercise, require


@exercise("23.1", title="Which groups teach")
def informative(attempt: Callable[..., Any], fresh: Fresh) -> str:
    equal = [[0.1, 0.1, 0.1], [0.0, 1.0, 0.0], [0.7, 0.7, 0.7], [1.0, 1.0, 1.0]]
    cases = [torch.tensor(equal, dtype=torch.float64)]
    for _ in range(8):
        cases.append(fresh.integers(0, 2, 6, 3).double())
    for rewards_PG in cases:
        equal_P = (rewards_PG == rewards_PG[:, :1]).all(1)
        kept = [p for p, equal in enumerate(equal_P.tolist()) if not equal]
        wasted = float(equal_P.double().mean())
        got = attempt(rewards_PG.clone())
        require(
            isinstance(got, tuple | list) and len(got) == 2,
            "Return two things: the numbers of the prompts, and a share.",
        )
        said, share = [int(p) for p in got[0]], float(got[1])
        zero = [p for p, all_zero in enumerate((rewards_PG == 0).all(1).tolist()) if not all_zero]
        apart_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
        rounded = [p for p, s in enumerate(apart_PG.square().mean(1).tolist()) if s != 0]
        compare(
            said,
            kept,
            {
                "those that teach nothing: keep the others": [
                    p for p in range(len(equal_P)) if p not in kept
                ],
                "with the groups whose answers are all right: they have no deviation either": zero,
                "found by a deviation, which rounding leaves above 0: compare the rewards": rounded,
            },
            what="Your list",
        )
        compare(
            share,
            wasted,
            {"the share that is kept: give that of the answers wasted": 1 - wasted},
            what="Your share",
        )
    return "Right. Early and late in a training, most groups are like that."


@exercise("23.2", title="The KL of a step, without drawing")
def step_kl(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(4):
        p_BTV, q_BTV = fresh.normal(3, 5, 7), fresh.normal(3, 5, 7)
        counts_BT = torch.arange(5) < fresh.integers(1, 6, 3).unsqueeze(1)
        counts_BT[0], counts_BT[1, 1:] = True, False
        got = attempt(p_BTV.clone(), q_BTV.clone(), counts_BT.clone())
        compare(got, _kl(p_BTV, q_BTV)[counts_BT].mean(), _kl_mistakes(p_BTV, q_BTV, counts_BT))
    return "Right: no noise at all, for the price of both models' logits."


def _kl(p_BTV: Tensor, q_BTV: Tensor) -> Tensor:
    p_BTV, q_BTV = p_BTV.log_softmax(-1), q_BTV.log_softmax(-1)
    return (p_BTV.exp() * (p_BTV - q_BTV)).sum(-1)


def _kl_mistakes(p_BTV: Tensor, q_BTV: Tensor, counts_BT: Tensor) -> dict[str, Any]:
    kl_BT = _kl(p_BTV, q_BTV)
    raw_BT = (p_BTV.softmax(-1) * (p_BTV - q_BTV)).sum(-1)
    per_row = ((kl_BT * counts_BT).sum(1) / counts_BT.sum(1)).mean()
    return {
        "the KL the other way round: the model's own chances weigh": _kl(q_BTV, p_BTV)[
            counts_BT
        ].mean(),
        "the mean over all positions: only those that count": kl_BT.mean(),
        "the sum: give the mean": kl_BT[counts_BT].sum(),
        "a mean of the rows' means: every position weighs the same": per_row,
        "made of logits instead of log-probabilities: take log_softmax first": raw_BT[
            counts_BT
        ].mean(),
    }


@exercise("23.3", title="A ratio of the answer that does not explode")
def mean_ratio(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(4):
        new_BT, old_BT = fresh.normal(4, 6), fresh.normal(4, 6)
        counts_BT = torch.arange(6) < fresh.integers(1, 6, 4).unsqueeze(1)
        counts_BT[0], counts_BT[1, 1:] = torch.arange(6) < 4, False
        apart_BT = (new_BT - old_BT) * counts_BT
        n_B = counts_BT.sum(1)
        got = attempt(new_BT.clone(), old_BT.clone(), counts_BT.clone())
        compare(
            got,
            (apart_BT.sum(1) / n_B).exp(),
            {
                "the product of the ratios: take its root of the answer's length": apart_BT.sum(
                    1
                ).exp(),
                "over the padded length: divide by the tokens that count": apart_BT.mean(1).exp(),
                "with the padding's log-probabilities in it": (new_BT - old_BT).mean(1).exp(),
                "the arithmetic mean of the ratios": ((apart_BT.exp() * counts_BT).sum(1) / n_B),
                "upside down: divide the new chance by the old one": (-apart_BT.sum(1) / n_B).exp(),
                "the logarithm: take its exponential": apart_BT.sum(1) / n_B,
            },
        )
    return "Right: a hundred tokens of one percent each are a ratio of 1.01."


@exercise("23.4", title="Only what comes after")
def returns_to_go(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for beta in (0.1, 0.7):
        rewards_B, d_BT = fresh.normal(4), fresh.normal(4, 6)
        counts_BT = torch.zeros(4, 6, dtype=torch.bool)
        for row, (low, high) in enumerate(((1, 6), (2, 4), (0, 3), (3, 6))):
            counts_BT[row, low:high] = True
        real_BT = d_BT * counts_BT
        later_BT = real_BT.flip(1).cumsum(1).flip(1)
        R_B1 = rewards_B[:, None]
        got = attempt(rewards_B.clone(), d_BT.clone(), counts_BT.clone(), beta)
        compare(
            got,
            (R_B1 - beta * later_BT) * counts_BT,
            {
                "the penalty of the whole answer at each token: only from it on": (
                    R_B1 - beta * real_BT.sum(1, keepdim=True)
                )
                * counts_BT,
                "what came before: sum from the token to the end": (R_B1 - beta * real_BT.cumsum(1))
                * counts_BT,
                "without the token's own penalty: s runs from t, not from t + 1": (
                    R_B1 - beta * (later_BT - real_BT)
                )
                * counts_BT,
                "with values where no token counts: zero there": R_B1 - beta * later_BT,
                "with the penalty of padding in it": (R_B1 - beta * d_BT.flip(1).cumsum(1).flip(1))
                * counts_BT,
                "a bonus: the penalty is taken away": (R_B1 + beta * later_BT) * counts_BT,
            },
        )
    return "Right: the same mean gradient, and less noise in it."


@exercise("23.5", title="The best constant")
def best_baseline(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(3):
        p_A, R_A, scores_AN = fresh.probabilities(9), fresh.normal(9) + 2, fresh.normal(9, 5)
        scores_AN = scores_AN - p_A @ scores_AN  # scores have mean 0
        lengths_A = scores_AN.square().sum(1)
        got = attempt(p_A.clone(), R_A.clone(), scores_AN.clone())
        mistakes = {
            "the mean reward: a good baseline, not the best": p_A @ R_A,
            "weighted by the lengths of the gradients, not their squares": (
                p_A * lengths_A.sqrt() @ R_A
            )
            / (p_A @ lengths_A.sqrt()),
            "without the chances of the answers": (lengths_A @ R_A) / lengths_A.sum(),
            "not divided by the weights' sum": (p_A * lengths_A) @ R_A,
        }
        compare(got, (p_A * lengths_A) @ R_A / (p_A @ lengths_A), mistakes)
        best = float(torch.as_tensor(got))
        if min(_spread(p_A, R_A, scores_AN, best + e) for e in (-0.1, 0.1)) < _spread(
            p_A, R_A, scores_AN, best
        ):
            raise Wrong("Another constant near it has less spread.")
    return "Right: answers whose gradient is long say more about the baseline."


def _spread(p_A: Tensor, R_A: Tensor, scores_AN: Tensor, b: float) -> float:
    each_AN = (R_A - b)[:, None] * scores_AN
    return float(p_A @ (each_AN - p_A @ each_AN).square().sum(1))
