"""Checkers of chapter 05, cross-entropy."""

import math

import torch
import torch.nn.functional as F

from labkit.notebook.exercises import Fresh, Watched, Wrong, compare, exercise, require


@exercise("05.1", title="log-sum-exp")
def log_sum_exp(attempt, fresh: Fresh) -> None:
    logits_NV = fresh.normal(4, 7)
    compare(
        attempt(logits_NV),
        torch.logsumexp(logits_NV, -1),
        {
            "summed over the wrong axis: give one number per row": torch.logsumexp(logits_NV, 0),
            "not a logarithm yet: take the log of the sum": logits_NV.exp().sum(-1),
            "missing the maximum that you subtracted: add it back": (
                torch.logsumexp(logits_NV, -1) - logits_NV.max(-1).values
            ),
            "the sum of the log of each exponential: the log comes after the sum": (
                logits_NV.sum(-1)
            ),
        },
    )
    with Watched() as seen:
        attempt(logits_NV)
    require(
        not any("logsumexp" in name for name in seen.operations),
        "The values are right, but torch.logsumexp made them: write the sum and its logarithm.",
    )
    for size, kind in ((1e4, "overflows: exp"), (-1e4, "underflows: log of 0")):
        large_NV = fresh.normal(3, 5) + size
        got = attempt(large_NV)
        if isinstance(got, torch.Tensor) and not torch.isfinite(got).all():
            raise Wrong(
                f"With logits near {size:.0e} it {kind} leaves the range of a float. Subtract the "
                "largest logit of each row before exp, and add it back after log."
            )
        compare(got, torch.logsumexp(large_NV, -1), what=f"The result near {size:.0e}")
    apart_NV = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]], dtype=torch.float64)
    got = attempt(apart_NV)
    require(
        torch.isfinite(got).all(),
        "Two rows with logits (1000, 0) and (-1000, 0) give an infinite value: subtract the "
        "largest logit of each row, not the largest of the whole tensor or the mean.",
    )
    compare(got, torch.logsumexp(apart_NV, -1), what="The result for rows far apart")


@exercise("05.2", title="loss as sum and count")
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


@exercise("05.3", title="the gradient p - y")
def gradient_of_logits(attempt, fresh: Fresh) -> None:
    logits_NV, targets_N = fresh.normal(6, 5), fresh.integers(0, 5, 6)
    one_hot = F.one_hot(targets_N, 5).double()
    p_NV = logits_NV.softmax(-1)
    for s in (0.0, 0.2):
        soft = (1 - s) * one_hot + s / 5
        others = (1 - s) * one_hot + s / 4 * (1 - one_hot)
        compare(
            attempt(logits_NV, targets_N, s),
            (p_NV - soft) / 6,
            {
                "the gradient of the sum: the mean divides by N": p_NV - soft,
                "of the opposite sign: y - p points downhill, the gradient uphill": (
                    (soft - p_NV) / 6
                ),
                "p alone: subtract the target": p_NV / 6,
                "divided by the number of entries: the mean is over the N examples only": (
                    (p_NV - soft) / 30
                ),
                "without the smoothing: the target is (1 - s) y + s / V": (p_NV - one_hot) / 6,
                "smoothed over the other classes only: s / V goes to the true one too": (
                    (p_NV - others) / 6
                ),
                "multiplied by p (1 - p), as for a squared error: under cross-entropy that factor "
                "cancels": ((p_NV - soft) * p_NV * (1 - p_NV) / 6),
            },
            what=f"The gradient at s = {s}",
        )


@exercise("05.4", title="backward through a linear layer")
def linear_backward(attempt, fresh: Fresh) -> None:
    for n, f, v in ((6, 4, 3), (5, 5, 5)):
        h_NF, w_FV, dz_NV = fresh.normal(n, f), fresh.normal(f, v), fresh.normal(n, v)
        got = attempt(h_NF, w_FV, dz_NV)
        require(
            isinstance(got, (tuple, list)) and len(got) == 3,
            "Return three tensors: the gradients of W, b and h.",
        )
        right = h_NF.T @ dz_NV
        compare(
            got[0],
            right,
            {
                "divided by N once more: dz already holds the 1/N of the mean": right / n,
                "transposed: the gradient of W has the shape of W": right.T,
                **({"not transposed: use h transposed": h_NF @ dz_NV} if n == f else {}),
            },
            what="The gradient of W",
        )
        compare(
            got[1],
            dz_NV.sum(0),
            {
                "a mean over the examples: all N of them use the same b, so their gradients add": (
                    dz_NV.mean(0)
                ),
                "summed over the classes: b has one entry per class": dz_NV.sum(1),
                "not summed: every example uses the same b, so their gradients add": dz_NV,
            },
            what="The gradient of b",
        )
        compare(
            got[2],
            dz_NV @ w_FV.T,
            {**({"missing a transpose: multiply by W transposed": dz_NV @ w_FV} if f == v else {})},
            what="The gradient of h",
        )


@exercise("05.5", title="the right denominator")
def update_loss(attempt, fresh: Fresh) -> None:
    micro = []
    for n, masked in ((4, 3), (12, 2), (7, 0)):
        targets_N = fresh.integers(0, 5, n)
        targets_N[fresh.permutation(n)[:masked]] = -100
        micro.append((fresh.normal(n, 5), targets_N))
    sums = [F.cross_entropy(z, t, reduction="sum") for z, t in micro]
    counts = [int((t != -100).sum()) for _, t in micro]
    total = torch.stack(sums).sum()
    compare(
        attempt(micro),
        total / sum(counts),
        {
            "the mean of the means: tokens in short micro-batches weigh more than in long ones": (
                torch.stack([s / c for s, c in zip(sums, counts, strict=True)]).mean()
            ),
            "divided by all positions: masked targets are not in the sum, so not in the count": (
                total / 23
            ),
            "divided by the number of micro-batches": total / 3,
            "the sum: divide once by the number of valid targets": total,
        },
        what="The loss of the update",
    )
    empty = (fresh.normal(3, 5), torch.full((3,), -100))
    got = attempt([*micro, empty])
    require(
        math.isfinite(float(got)),
        "A micro-batch without valid targets makes the whole loss NaN: sum first, divide at the "
        "end.",
    )
    compare(got, total / sum(counts), what="The loss with an empty micro-batch added")


@exercise("05.6", title="bits per byte")
def bits_per_byte(attempt, fresh: Fresh) -> None:
    text = "语言模型 costs bits: " * fresh.integer(2, 6)
    nats, tokens = float(fresh.uniform(1, low=1.0, high=4.0)), fresh.integer(20, 30)
    size = len(text.encode())
    compare(
        attempt(nats, tokens, text),
        nats * tokens / math.log(2) / size,
        {
            "in nats: divide by ln 2 to get bits": nats * tokens / size,
            "per character: Chinese characters take three bytes each in UTF-8": (
                nats * tokens / math.log(2) / len(text)
            ),
            "multiplied by ln 2: one nat is more than one bit, so divide": (
                nats * tokens * math.log(2) / size
            ),
            "bits per token: multiply by the tokens, divide by the bytes": nats / math.log(2),
            "missing the number of tokens: the loss is per token": nats / math.log(2) / size,
        },
    )
