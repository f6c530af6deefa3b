"""Checkers of chapter 15: prompting."""

from collections.abc import Callable
from typing import Any

import torch

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("15.1", title="Bytes, not characters")
def per_byte(attempt: Callable[..., Any], fresh: Fresh) -> str:
    cases = [
        ("yes", -3.0),  # the likeliest as it is
        ("remarkably long text", -8.4),  # the best per character
        ("éééé", -3.2),  # the best per byte
        ("one two three four five six seven", -15.0),  # the best per word
    ]
    for _ in range(4):
        order = fresh.permutation(len(cases)).tolist()
        place = {case: order.index(case) for case in range(len(cases))}
        texts = [cases[i][0] for i in order]
        compare(
            _index(attempt([cases[i][1] for i in order], list(texts))),
            place[2],
            {
                "the likeliest whatever its length: divide by the bytes": place[0],
                "the best per character: len(text.encode()) counts bytes": place[1],
                "the best per word: divide by the bytes": place[3],
            },
            what="Your choice",
        )
    compare(
        _index(attempt([-2.0, -2.0, -3.0], ["ab", "cd", "ef"])),
        0,
        {"the last of two equal ones: take the first": 1},
        what="Your choice",
    )
    return "Right: bytes are the same whatever the vocabulary."


@exercise("15.2", title="Where the prompt ends")
def cut(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for _ in range(4):
        a, b, c, d, e, f = (7 * fresh.permutation(90)[:6]).tolist()
        for whole, beginning, n in (
            ([a, b, c, d], [a, b], 2),
            ([a, e, d], [a, b], 1),
            ([a, e, c, d], [a, b, c], 1),
            ([f], [a, b], 0),
            ([a, b, c], [], 0),
        ):
            answer = attempt(list(whole), list(beginning))
            require(
                isinstance(answer, (tuple, list)) and len(answer) == 2,
                "Return two lists: the ids of the prompt and those of the rest.",
            )
            size = len(beginning)
            agree = sum(x == y for x, y in zip(whole, beginning, strict=False))
            compare(
                (list(answer[0]), list(answer[1])),
                (whole[:n], whole[n:]),
                {
                    "the beginning as it was encoded alone: the whole has another token there": (
                        beginning,
                        whole[size:],
                    ),
                    "cut at the length of the beginning: the token across belongs to the rest": (
                        whole[:size],
                        whole[size:],
                    ),
                    "cut at the number of places that agree: stop at the first that does not": (
                        whole[:agree],
                        whole[agree:],
                    ),
                    "without the token across: nothing may be lost": (whole[:n], whole[n + 1 :]),
                },
                what="Your pair",
            )
    return "Right: the two lists always join to the whole."


@exercise("15.3", title="The order's share")
def order_deviation(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for draws, orders in ((3, 5), (6, 4)):
        accuracy = fresh.uniform(draws, orders, low=0.3, high=0.9) + fresh.uniform(draws, 1)
        accuracy *= torch.linspace(0.2, 1.0, draws, dtype=accuracy.dtype)[:, None]
        compare(
            attempt(accuracy.numpy().copy()),
            accuracy.var(1).mean().sqrt(),
            {
                "the mean of the deviations: average the variances, then take the root": (
                    accuracy.std(1).mean()
                ),
                "with O in the denominator: O - 1": accuracy.var(1, correction=0).mean().sqrt(),
                "that of all values: draws differ too, the order is inside a draw": accuracy.std(),
                "that of the means of the draws: the order is inside a draw": (
                    accuracy.mean(1).std()
                ),
                "a variance: take the root": accuracy.var(1).mean(),
                "along the draws: the orders of a draw stand in its row": (
                    accuracy.var(0).mean().sqrt()
                ),
            },
            what="Your deviation",
            tolerance=1e-6,
        )
    return "Right: what is left when nothing but the order changes."


@exercise("15.4", title="The domain's share")
def pmi_choice(attempt: Callable[..., Any], fresh: Fresh) -> str:
    cases = [
        ([-1.0], [-1.2]),  # the likeliest
        ([-3.0, -2.0], [-6.0, -4.0]),  # made likelier than the others
        ([-2.0], [-5.0]),  # the same per token
        ([-6.0], [-4.0]),  # made less likely
    ]
    for _ in range(4):
        order = fresh.permutation(len(cases)).tolist()
        place = {case: order.index(case) for case in range(len(cases))}
        compare(
            _index(attempt([list(cases[i][0]) for i in order], [list(cases[i][1]) for i in order])),
            place[1],
            {
                "the likeliest behind the prompt: subtract what it has behind the premise": (
                    place[0]
                ),
                "the best per token: both sums are of the same tokens, nothing is divided": (
                    place[2]
                ),
                "turned round: the prompt's sum less the premise's": place[3],
            },
            what="Your choice",
        )
    return "Right: asked is what the prompt changed."


def _index(answer: Any) -> int:
    whole = torch.as_tensor(answer)
    require(whole.numel() == 1, "Return one index.")
    return int(whole)
