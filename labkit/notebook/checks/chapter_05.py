"""Checkers of chapter 05, cross-entropy."""

import math

import torch
import torch.nn.functional as F

from labkit.notebook.exercises import Fresh, Watched, compare, exercise, require


@exercise("05.1", title="A coin, from its logit")
def coin_loss(attempt, fresh: Fresh) -> None:
    z_N, y_N = fresh.normal(8, scale=2.0), fresh.uniform(8)
    y_N[0], y_N[1] = 0.0, 1.0

    def loss(z, y):
        return z.clamp(min=0) + torch.log1p(torch.exp(-z.abs())) - y * z

    heads = -y_N * F.logsigmoid(z_N)
    compare(
        attempt(z_N, y_N),
        loss(z_N, y_N),
        {
            "of the opposite sign: the loss is minus the log-likelihood": -loss(z_N, y_N),
            "that of heads alone: tails count too, with 1 - y": heads,
            "that of y and 1 - y exchanged: y is the share of heads": loss(z_N, 1 - y_N),
            "that of y rounded: y may be any number from 0 to 1": loss(z_N, y_N.round()),
            "a mean: give one loss for each logit": loss(z_N, y_N).mean(),
            "a sum: give one loss for each logit": loss(z_N, y_N).sum(),
        },
        tolerance=1e-6,
    )
    with Watched() as seen:
        attempt(z_N, y_N)
    require(
        not any("binary_cross_entropy" in name for name in seen.operations),
        "The values are right, but torch's binary cross-entropy made them: write the formula.",
    )
    for size in (1e4, -1e4):
        far_N, share_N = torch.full((3,), size, dtype=torch.float64), torch.tensor([0.0, 0.3, 1.0])
        got = torch.as_tensor(attempt(far_N, share_N.double()))
        require(
            torch.isfinite(got).all(),
            f"At a logit of {size:.0f} the loss is not finite: exp overflows, or the log of a "
            "probability that is rounded to 0. Take the larger of 0 and z out of the log-sum-exp.",
        )
        compare(got, loss(far_N, share_N.double()), what=f"The loss at {size:.0f}", tolerance=1e-6)


@exercise("05.2", title="Sum and count")
def loss_sum_and_count(attempt, fresh: Fresh) -> None:
    logits_NV = fresh.normal(9, 6)
    targets_N = fresh.integers(0, 6, 9)
    order = fresh.permutation(9)
    targets_N[order[:4]], targets_N[order[4]] = -100, 0
    valid = targets_N != -100
    per_target = F.cross_entropy(logits_NV[valid], targets_N[valid], reduction="none")
    total = per_target.sum()
    wrapped = -logits_NV.log_softmax(-1).gather(1, (targets_N % 6).unsqueeze(1)).sum()
    got = attempt(logits_NV, targets_N)
    require(
        isinstance(got, (tuple, list)) and len(got) == 2,
        "Return a pair: the sum of the loss and the number of valid targets.",
    )
    compare(
        got[0],
        total,
        {
            "a mean: return the sum and leave the division to whoever sees the whole update": (
                total / 5
            ),
            "a mean over all positions, masked ones included": total / 9,
            "negative: the loss is minus the log-probability": -total,
            "counting the masked targets as class 0": F.cross_entropy(
                logits_NV, targets_N.clamp(min=0), reduction="sum"
            ),
            "counting the masked targets: -100 was used as an index": wrapped,
            "the sum of -p, not of -log p": -logits_NV.softmax(-1)[valid]
            .gather(1, targets_N[valid].unsqueeze(1))
            .sum(),
        },
        what="The sum",
    )
    counts = {
        "all positions: count only targets that are not -100": 9,
        "of the targets above 0: class 0 is a class": int((targets_N > 0).sum()),
    }
    compare(got[1], 5, counts, what="The count")
    none = attempt(logits_NV, torch.full((9,), -100))
    compare(list(none), [0.0, 0], what="The pair without a valid target")
    far_NV = fresh.normal(3, 4) * 0 + torch.tensor([0.0, 2000.0, 0.0, 0.0], dtype=torch.float64)
    got = attempt(far_NV, torch.tensor([0, 0, 0]))
    require(
        math.isfinite(float(got[0])),
        "With a logit of 2000 the loss is infinite: take log_softmax, not the log of softmax.",
    )
    compare(got[0], 6000.0, what="The sum for logits (0, 2000, 0, 0)")


@exercise("05.3", title="Logits that do not drift")
def gradient_with_z_loss(attempt, fresh: Fresh) -> None:
    logits_NV, targets_N = fresh.normal(6, 5), fresh.integers(0, 5, 6)
    y_NV = F.one_hot(targets_N, 5).double()
    p_NV, lse_N1 = logits_NV.softmax(-1), logits_NV.logsumexp(-1, keepdim=True)
    for c in (0.0, 0.3):
        right = (p_NV - y_NV + 2 * c * lse_N1 * p_NV) / 6
        compare(
            attempt(logits_NV, targets_N, c),
            right,
            {
                "the gradient of the sum: the mean divides by N": 6 * right,
                "of the opposite sign: the gradient points uphill": -right,
                "without the target: subtract y": (p_NV + 2 * c * lse_N1 * p_NV) / 6,
                "without the z-loss": (p_NV - y_NV) / 6,
                "short of a factor 2 in the z-loss: the derivative of a square": (
                    (p_NV - y_NV + c * lse_N1 * p_NV) / 6
                ),
                "without the inner derivative: that of logsumexp is p, entry by entry": (
                    (p_NV - y_NV + 2 * c * lse_N1) / 6
                ),
                "adding the z-loss to the true class only: all logits are in the logsumexp": (
                    (p_NV - y_NV + 2 * c * lse_N1 * y_NV) / 6
                ),
                "adding the z-loss itself: its derivative is asked for": (
                    (p_NV - y_NV + c * lse_N1**2) / 6
                ),
                "with a z-loss that is not divided by N: the mean is of both": (
                    (p_NV - y_NV) / 6 + 2 * c * lse_N1 * p_NV
                ),
            },
            what=f"The gradient at c = {c}",
            tolerance=1e-6,
        )


@exercise("05.4", title="A loop that divides too early")
def factors(attempt, fresh: Fresh) -> None:
    counts = [fresh.integer(2, 9), fresh.integer(10, 30), fresh.integer(31, 60), 0]
    total = sum(counts)
    got = attempt(counts)
    if isinstance(got, torch.Tensor):
        got = got.tolist()
    require(
        hasattr(got, "__len__") and len(got) == len(counts),
        "Return one factor for each micro-batch.",
    )
    require(
        all(math.isfinite(float(factor)) for factor in got),
        "A factor is not finite: a micro-batch without a valid target gets 0.",
    )
    compare(
        [float(factor) for factor in got],
        [count / total for count in counts],
        {
            "the mean of the means: targets in short micro-batches weigh more than in long ones": [
                1 / 4
            ]
            * 4,
            "the mean of the means over those that are not empty: weigh them by their counts": [
                1 / 3 * (count > 0) for count in counts
            ],
            "the counts: that is the gradient of the sum, divide by all valid targets": [
                float(count) for count in counts
            ],
            "divided by the number of micro-batches: divide by the number of valid targets": [
                count / 4 for count in counts
            ],
            "one over the count: the mean has divided by it already, undo that": [
                1 / count if count else 0.0 for count in counts
            ],
            "one over all valid targets: the mean has divided by its own count, undo that": [
                1 / total if count else 0.0 for count in counts
            ],
            "relative to the largest: they must add up to 1": [
                count / max(counts) for count in counts
            ],
        },
        what="The list of factors",
    )
    empty = attempt([0, 0])
    empty = [float(factor) for factor in empty]
    require(
        empty == [0.0, 0.0],
        f"Without any valid target all factors are 0, not {empty}: a gradient of 0 / 0 would be "
        "NaN in every weight.",
    )


@exercise("05.5", title="The pull on the temperature")
def pull_on_temperature(attempt, fresh: Fresh) -> None:
    logits_NV, targets_N = fresh.normal(7, 5, scale=2.0), fresh.integers(0, 5, 7)
    true_N = logits_NV.gather(1, targets_N[:, None])[:, 0]
    for T in (2.5, 0.6):
        p_NV = (logits_NV / T).softmax(-1)
        pulls_N = (true_N - (p_NV * logits_NV).sum(-1)) / T**2
        cold_N = (true_N - (logits_NV.softmax(-1) * logits_NV).sum(-1)) / T**2
        compare(
            attempt(logits_NV, targets_N, T),
            pulls_N.mean(),
            {
                "of the opposite sign: z / T falls when T rises": -pulls_N.mean(),
                "a sum: the mean is over the N examples": pulls_N.sum(),
                "one for each example: take their mean": pulls_N,
                "made with p at temperature 1: the softmax sees z / T": cold_N.mean(),
                "without 1 / T²: z / T moves by -z / T² when T moves": pulls_N.mean() * T**2,
                "short of a factor 1 / T: the derivative of 1 / T is -1 / T²": pulls_N.mean() * T,
                "that of the true logit alone: the logsumexp moves too": (true_N / T**2).mean(),
                "that of the logsumexp alone: the true logit moves too": (
                    pulls_N.mean() - (true_N / T**2).mean()
                ),
                "made with the largest logit: the softmax expects a mean over all of them": (
                    (true_N - logits_NV.max(-1).values).mean() / T**2
                ),
            },
            what=f"The derivative at T = {T}",
            tolerance=1e-6,
        )
