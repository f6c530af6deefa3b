"""Checkers of chapter 16: continual learning."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("16.1", title="Forgetting")
def forgetting_of(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for tasks in (3, 5):
        R = fresh.uniform(tasks + 1, tasks)
        R[0] += 1.0  # a model that knew it all before: no task's end
        R[2, 0] += 0.5  # the best is not always the diagonal
        R[-1, 1] = R[1:-1, 1].max() + 0.2  # and the last task may help
        given = R.numpy()
        compare(
            torch.as_tensor(attempt(given.copy())),
            R[1:-1, :-1].max(0).values - R[-1, :-1],
            {
                "for the last task, too: nothing came after it": (R[1:-1].max(0).values - R[-1]),
                "from the diagonal: the best score after any earlier task counts": (
                    torch.diagonal(R[1:])[:-1] - R[-1, :-1]
                ),
                "from row 0, too: it is before any task": (R[:-1, :-1].max(0).values - R[-1, :-1]),
                "never below 0, because the last row is among the best": (
                    R[1:, :-1].max(0).values - R[-1, :-1]
                ),
                "with its sign turned: forgetting is a loss above 0": (
                    R[-1, :-1] - R[1:-1, :-1].max(0).values
                ),
                "one number: return it task by task": (
                    R[1:-1, :-1].max(0).values - R[-1, :-1]
                ).mean(),
            },
            what="Your forgetting",
        )
    return "Right: below 0 where a later task helped."


@exercise("16.2", title="The pull of a micro-batch")
def pulled(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for parts in ((8,), (3, 5), (1, 2, 5)):
        theta, anchor = fresh.normal(6), fresh.normal(6)
        F, weight = fresh.uniform(6), float(fresh.uniform(1, low=0.5, high=4.0))
        losses = fresh.uniform(len(parts), low=1.0, high=9.0)
        square = float((F * (theta - anchor) ** 2).sum())

        task, count_all = float(losses.sum()), sum(parts)

        total = counted = 0.0
        for loss, count in zip(losses, parts, strict=True):
            answer = attempt(loss.clone(), torch.tensor(count), theta, anchor, F, weight)
            require(
                isinstance(answer, tuple | list) and len(answer) == 2,
                "Return two numbers, (sum, count).",
            )
            total, counted = total + float(answer[0]), counted + float(answer[1])
        require(
            counted == sum(parts),
            f"The counts of the micro-batches add up to {counted:g} instead of {sum(parts)}: a "
            "penalty is no target.",
        )
        compare(
            total / counted,
            task / count_all + weight / 2 * square,
            {
                "with the pull added once to each micro-batch: multiply it by the count": (
                    (task + len(parts) * weight / 2 * square) / count_all
                ),
                "twice too strong: weight / 2": task / count_all + weight * square,
                "without the weight": task / count_all + square / 2,
                "without F": (task / count_all + weight / 2 * float(((theta - anchor) ** 2).sum())),
                "without the square of the distance": (
                    task / count_all + weight / 2 * float((F * (theta - anchor)).sum())
                ),
            },
            what=f"The mean loss over {len(parts)} micro-batches",
            tolerance=1e-6,  # weight * count is float32 by torch's promotion
        )
    return "Right: however the batch is cut, the mean holds the pull once."


@exercise("16.3", title="The Fisher diagonal of a softmax")
def softmax_fisher(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for count, classes, inputs in ((7, 3, 4), (5, 4, 2)):
        W, x = fresh.normal(classes, inputs), fresh.normal(count, inputs)
        p = (x @ W.T).softmax(-1)
        right = _outer(p * (1 - p), x**2) / count
        compare(
            attempt(W.clone(), x.clone()),
            right,
            {
                "a sum: take the mean over the inputs": right * count,
                "with p (1 - p) squared: the mean of the square over y is p (1 - p)": (
                    _outer((p * (1 - p)) ** 2, x**2) / count
                ),
                "with p alone: a class that is certain has no curvature": (_outer(p, x**2) / count),
                "without the square of the inputs": _outer(p * (1 - p), x) / count,
                "transposed: return (C, I)": right.T,
                "the square of the mean gradient under the likeliest label": (
                    lambda p=p, x=x, classes=classes, count=count: (
                        (
                            _outer(
                                torch.nn.functional.one_hot(p.argmax(-1), classes).double() - p, x
                            )
                            / count
                        )
                        ** 2
                    )
                ),
                "that of the likeliest label alone: mean over labels drawn from the model": (
                    lambda p=p, x=x, classes=classes, count=count: (
                        _outer(
                            (torch.nn.functional.one_hot(p.argmax(-1), classes).double() - p) ** 2,
                            x**2,
                        )
                        / count
                    )
                ),
            },
            what="Your diagonal",
        )
    return "Right: the model is sure of it, or the input is 0: then a weight may move freely."


def _outer(a_NC: Tensor, b_NI: Tensor) -> Tensor:
    return a_NC.T @ b_NI


@exercise("16.4", title="Two anchors as one")
def one_anchor(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for size in (5, 9):
        a, b = fresh.normal(size), fresh.normal(size)
        Fa, Fb = fresh.uniform(size, low=0.1), fresh.uniform(size, low=0.1)
        Fa[0] = Fb[0] = Fa[1] = 0.0
        F = Fa + Fb
        safe = torch.where(F > 0, F, torch.ones_like(F))
        m = torch.where(F > 0, (Fa * a + Fb * b) / safe, b)
        answer = attempt(a.clone(), Fa.clone(), b.clone(), Fb.clone())
        require(
            isinstance(answer, tuple | list) and len(answer) == 2, "Return two tensors, (m, F)."
        )
        got_m, got_F = torch.as_tensor(answer[0]), torch.as_tensor(answer[1])
        compare(
            got_F,
            F,
            {"the mean of both: forces add up": F / 2, "their product": Fa * Fb},
            what="F",
        )
        require(torch.isfinite(got_m).all(), "m is not finite where no task minds: there it is θ₂.")
        compare(
            got_m,
            m,
            {
                "the plain mean: weigh each by its F": (a + b) / 2,
                "θ₂: the first task pulls, too": b,
                "0 where no task minds: there it is θ₂": torch.where(F > 0, m, torch.zeros_like(m)),
                "weighed the wrong way round": torch.where(F > 0, (Fb * a + Fa * b) / safe, b),
            },
            what="m",
        )
    return "Right: many tasks, the memory of one anchor."


@exercise("16.5", title="A memory that is fair")
def reservoir(attempt: Callable[..., Any], fresh: Fresh) -> str:
    def draw(n: int) -> int:
        return fresh.integer(0, int(n))

    short = attempt(iter(range(3)), 5, draw)
    require(
        isinstance(short, list) and sorted(short) == [0, 1, 2],
        f"With room for 5 and 3 examples all 3 stay, but memory is {short!r}.",
    )
    count, room, trials = 12, 4, 3000
    kept = torch.zeros(count)
    for _ in range(trials):
        memory = attempt(iter(range(count)), room, draw)
        require(
            isinstance(memory, list) and len(memory) == room,
            f"Memory must hold {room} examples, but it holds {memory!r}.",
        )
        require(len(set(memory)) == room, "An example stands in memory twice.")
        kept[torch.tensor(memory)] += 1
    share, fair = kept / trials, room / count
    if float((share - fair).abs().max()) > 0.06:  # seven standard errors
        first, last = float(share[:room].mean()), float(share[-1])
        side = "the last ones" if last > first else "the first ones"
        require(
            False,
            f"Of {count} examples the first {room} stay in {first:.0%} of the trials and the last "
            f"in {last:.0%}, instead of {fair:.0%} each: {side} are favoured.",
        )
    return "Right: a fair sample, of a stream whose length nobody knew."
