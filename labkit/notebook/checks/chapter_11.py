"""Checkers of chapter 11: fine-tuning strategies."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("11.1", title="What LoRA trains")
def lora_numbers(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for rank in (1, 4, 16):
        layers = [
            (int(a), int(b)) for a, b in fresh.integers(20, 900, fresh.integer(2, 6), 2).tolist()
        ]
        both, product = sum(a + b for a, b in layers), sum(a * b for a, b in layers)
        compare(
            attempt(list(layers), rank),
            rank * both,
            {
                "that of the whole matrices: they are frozen": product,
                "rank times all of the matrices' numbers: LoRA's two matrices are thin": (
                    rank * product
                ),
                "one of the two matrices only: A reads the inputs, B writes the outputs": (
                    rank * sum(a for a, _ in layers)
                ),
                "B alone: A, which reads the inputs, trains too": rank * sum(b for _, b in layers),
                "without the rank: each of the two matrices has `rank` rows or columns": both,
                "counted twice: one A and one B for each layer": 2 * rank * both,
                "that of the matrices and of LoRA: the matrices are frozen": product + rank * both,
            },
            what="Your number",
        )
    return "Right: it grows with the sum of the widths, a matrix with their product."


@exercise("11.2", title="Merge, and take it off again")
def merged(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for outputs, inputs, rank, alpha in ((5, 7, 2, 6.0), (8, 8, 4, 2.0)):
        W, A, B = (
            fresh.normal(outputs, inputs),
            fresh.normal(rank, inputs),
            fresh.normal(outputs, rank),
        )
        for sign in (1, -1):
            change = B @ A
            compare(
                attempt(W, A, B, alpha, sign),
                W + sign * alpha / rank * change,
                {
                    "without alpha / rank": W + sign * change,
                    "scaled by alpha: divide it by the rank": W + sign * alpha * change,
                    "scaled by rank / alpha: it is alpha / rank": W + sign * rank / alpha * change,
                    "the same for both signs: with -1, LoRA comes off again": (
                        W - sign * alpha / rank * change
                    ),
                    "what LoRA adds: add it to the weights": sign * alpha / rank * change,
                    "divided by the number of outputs: the rank is A's number of rows": (
                        W + sign * alpha / outputs * change
                    ),
                    "divided by the number of inputs: the rank is A's number of rows": (
                        W + sign * alpha / inputs * change
                    ),
                },
                what="Your matrix",
            )
        there = attempt(W, A, B, alpha, 1)
        compare(
            attempt(torch.as_tensor(there), A, B, alpha, -1),
            W,
            what="What is left after merging and taking off again",
            tolerance=1e-6,
        )
    return "Right: one plain matrix, and back again."


@exercise("11.3", title="A rate for each layer")
def layer_rates(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for blocks in (3, 12):  # 12: as text, 10 sorts before 9
        rate = float(fresh.uniform(1, low=1e-4, high=1e-2))
        decay = float(fresh.uniform(1, low=0.6, high=0.9))
        _judge_rates(attempt, blocks, rate, decay)
    return "Right: what lies deeper is more general, and moves less."


def _judge_rates(attempt: Callable[..., Any], blocks: int, rate: float, decay: float) -> None:
    body = [f"blocks.{i}.{part}" for i in range(blocks) for part in ("out.weight", "norm.bias")]
    names = ["embedding.weight", *body, "final_norm.weight", "classifier.weight"]

    def rates(depths: list[int], below: int, top: int = 0) -> dict[str, float]:
        depth = {n: depths[int(n.split(".")[1])] for n in body}
        depth |= {names[0]: below, names[-2]: top, names[-1]: top}
        return {n: rate * decay ** depth[n] for n in names}

    answer = attempt(list(names), rate, decay)
    require(isinstance(answer, dict), f"Return a dict, not {type(answer).__name__}.")
    for n in names:
        require(n in answer, f"{n} has no rate: every name gets one.")
    for n in answer:
        require(n in names, f"{n} is no parameter of this model.")
    right = [blocks - i for i in range(blocks)]
    turned = right[::-1]
    compare(
        {n: float(answer[n]) for n in names},
        rates(right, blocks + 1),
        {
            "decayed from the first block on: the lower a block, the slower it moves": rates(
                turned, 0, blocks + 1
            ),
            "upside down: the last block comes right after the top": rates(turned, blocks + 1),
            "one step short: the last block has rate * decay, not rate": rates(
                [k - 1 for k in right], blocks
            ),
            "the embeddings as fast as the top: they lie below every block": rates(right, 0),
            "the embeddings as fast as the first block: they are one step below it": rates(
                right, blocks
            ),
        },
        what="The rates",
    )


@exercise("11.4", title="Attention with a prefix")
def prefix_attention(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for length, before, width in ((5, 3, 4), (2, 6, 9)):
        q, k, v = (fresh.normal(length, width) for _ in range(3))
        pk, pv = fresh.normal(before, width), fresh.normal(before, width)
        scale = width**-0.5
        compare(
            attempt(q, k, v, pk, pv),
            _attend(q, k, v, pk, pv, scale, before),
            {
                "without the causal mask: a token must not see what follows": _attend(
                    q, k, v, pk, pv, scale, before + length
                ),
                "with the prefix under the causal mask: a token sees all of the prefix": _attend(
                    q, k, v, pk, pv, scale, 0
                ),
                "without the prefix": _attend(q, k, v, pk[:0], pv[:0], scale, 0),
                "not scaled: divide the scores by the root of the width": _attend(
                    q, k, v, pk, pv, 1.0, before
                ),
                "two softmaxes: prefix and text share one": (
                    torch.softmax(q @ pk.T * scale, -1) @ pv
                    + _attend(q, k, v, pk[:0], pv[:0], scale, 0)
                ),
            },
            what="Your output",
        )
    return "Right: as if N positions had been read before."


def _attend(
    q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor, scale: float, shift: int
) -> Tensor:
    """Attention in which query t sees the first t + 1 + shift of prefix and text together."""
    keys, values = torch.cat((pk, k)), torch.cat((pv, v))
    seen = torch.ones(len(q), len(keys), dtype=torch.bool).tril(shift)
    return (q @ keys.T * scale).masked_fill(~seen, -torch.inf).softmax(-1) @ values


@exercise("11.5", title="The rank that is enough")
def rank_for(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for share in (0.5, 0.9, 0.99):
        u, _ = torch.linalg.qr(fresh.normal(12, 9))
        w, _ = torch.linalg.qr(fresh.normal(9, 9))
        values = 0.75 ** torch.arange(9).double() * (1 + 0.1 * fresh.uniform(9))
        change = u @ torch.diag(values) @ w.T
        squares, plain = _smallest(values.square(), share), _smallest(values, share)
        answer = attempt(change, share)
        require(float(answer) == int(answer), f"A rank is a whole number, not {float(answer):.4g}.")
        compare(
            int(answer),
            squares,
            {
                "by the singular values: the norm is made of their squares": plain,
                "one too small: the value that reaches the share must be in": squares - 1,
                "one too large: the first value counts as rank 1": squares + 1,
                "the full rank: fewer directions hold this share": 9,
            },
            what="Your rank",
        )
    only = torch.outer(fresh.normal(6), fresh.normal(5))
    compare(int(attempt(only, 1.0)), 1, what="The rank for all of a product of two vectors")
    return "Right: Eckart and Young, 1936."


def _smallest(values: Tensor, share: float) -> int:
    """How many of the values, the largest first, make up a share of their sum."""
    ordered = values.sort(descending=True).values.cumsum(0)
    return int((ordered < share * ordered[-1]).sum()) + 1
