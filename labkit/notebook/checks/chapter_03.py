"""Checkers of chapter 03, attention."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labkit.notebook.exercises import Fresh, Watched, compare, exercise, require


@exercise("03.1", title="Attention weights")
def attention_weights(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, S, K in ((3, 5, 16), (6, 4, 9)):
        q, k = fresh.normal(T, K, scale=1.5), fresh.normal(S, K, scale=1.5)
        scores = q @ k.T
        compare(
            attempt(q, k),
            (scores / math.sqrt(K)).softmax(-1),
            {
                "not scaled: divide the scores by the square root of the head width": (
                    scores.softmax(-1)
                ),
                "scaled by K instead of the square root of K": (scores / K).softmax(-1),
                "scaled by the number of tokens; the scale is the head width's": (
                    (scores / math.sqrt(S)).softmax(-1)
                ),
                "normalised over the wrong axis: each column sums to 1, not each row": (
                    (scores / math.sqrt(K)).softmax(-2)
                ),
                "transposed: rows belong to the queries, columns to the keys": (
                    (scores / math.sqrt(K)).softmax(-1).T
                ),
                "only the scores: the softmax is missing": scores / math.sqrt(K),
                "softmax first and scaled afterwards, so rows do not sum to 1": (
                    scores.softmax(-1) / math.sqrt(K)
                ),
            },
            what="Your matrix",
        )
    return "Right: one row for each query, and every row is a distribution over the keys."


@exercise("03.2", title="Who may see whom")
def visible(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T in (5, 8):
        real = torch.ones(T, dtype=torch.int64)
        real[torch.tensor([1, T - 1])] = 0
        causal = torch.ones(T, T, dtype=torch.bool).tril()
        keys, queries = real.bool()[None, :], real.bool()[:, None]
        answer = attempt(real)
        if isinstance(answer, Tensor) and answer.shape == (T, T):
            require(
                answer.dtype == torch.bool,
                f"Your mask has dtype {answer.dtype}; return booleans, True = may attend.",
            )
        compare(
            answer,
            causal & keys,
            {
                "the causal mask alone: padding keys must be hidden, too": causal,
                "the padding mask alone: the future must be hidden, too": keys.expand(T, T),
                "the wrong way round: True means may attend": ~(causal & keys),
                "open to the future: use the lower triangle, s <= t": causal.T & keys,
                "closed to the token itself: the diagonal belongs to the past": (
                    causal.tril(-1) & keys
                ),
                "hiding the rows of padding queries instead of the columns of padding keys": (
                    causal & queries
                ),
                "an or of the two conditions: both must hold": causal | keys,
                "hiding rows and columns: padding queries have no need of an empty row": (
                    causal & keys & queries
                ),
            },
            what="Your mask",
        )
    return "Right: a key must be past or present, and real."


@exercise("03.3", title="Backward through the softmax")
def softmax_backward(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for shape in ((3, 5), (2, 4, 6)):
        weights, upstream = fresh.probabilities(*shape), fresh.normal(*shape)
        mean = (weights * upstream).sum(-1, keepdim=True)
        over_rows = (weights * upstream).sum(-2, keepdim=True)
        compare(
            attempt(weights, upstream),
            weights * (upstream - mean),
            {
                "only the diagonal of the Jacobian: the other weights of the row move, too": (
                    weights * (1 - weights) * upstream
                ),
                "without the subtracted mean: a softmax is not an exponential": weights * upstream,
                "summed over the wrong axis: each query's row is a softmax of its own": (
                    weights * (upstream - over_rows)
                ),
                "summed over the whole tensor: each row is a softmax of its own": (
                    weights * (upstream - (weights * upstream).sum())
                ),
                "off by the plain mean: weigh the mean of the upstream gradient by the weights": (
                    weights * (upstream - upstream.mean(-1, keepdim=True))
                ),
                "of the wrong sign": weights * (mean - upstream),
                "missing the factor of the weights": upstream - mean,
            },
            what="Your gradient",
        )
    return "Right. The short form, w (d - sum of w d), builds no Jacobian of S x S numbers."


@exercise("03.4", title="Backward through attention")
def attention_backward(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, S, K in ((4, 6, 5), (7, 3, 8)):
        q, k, v, d_out = (fresh.normal(n, K) for n in (T, S, S, T))
        scale = K**-0.5
        w = (q @ k.T * scale).softmax(-1)
        dw = d_out @ v.T
        ds = w * (dw - (w * dw).sum(-1, keepdim=True))
        right = (ds @ k * scale, ds.T @ q * scale, w.T @ d_out)
        diagonal = w * (1 - w) * dw
        answer = attempt(q, k, v, d_out)
        if isinstance(answer, (tuple, list)) and len(answer) == 3:
            mistakes = (
                {
                    "missing the scale 1/sqrt(K)": ds @ k,
                    "scaled twice": ds @ k * scale**2,
                    "from the diagonal of the softmax's Jacobian only": diagonal @ k * scale,
                    "without the softmax's backward pass": dw @ k * scale,
                    "the gradient of k: the order is dq, dk, dv": right[1],
                },
                {
                    "missing the scale 1/sqrt(K)": ds.T @ q,
                    "scaled twice": ds.T @ q * scale**2,
                    "from the diagonal of the softmax's Jacobian only": diagonal.T @ q * scale,
                    "without the softmax's backward pass": dw.T @ q * scale,
                    "the gradient of q: the order is dq, dk, dv": right[0],
                },
                {
                    "built from the gradient of the weights: dv needs the weights": dw.T @ d_out,
                    "built from the gradient of the scores: dv needs the weights": ds.T @ d_out,
                },
            )
            names = ("dq", "dk", "dv")
            for name, got, expected, known in zip(names, answer, right, mistakes, strict=True):
                compare(got, expected, known, what=f"Your {name}")
        compare(answer, right, what="The result")
    return "Right: the four products backwards, and the softmax between them."


@exercise("03.5", title="Split into heads")
def split_heads(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, H, K in ((5, 3, 4), (6, 2, 5)):
        x = fresh.normal(T, H * K)
        compare(
            attempt(x, H),
            x.view(T, H, K).transpose(0, 1),
            {
                "mixing tokens: view(H, T, K) cuts the memory anew; split D, then move the axes": (
                    x.reshape(H, T, K)
                ),
                "interleaved: head h owns the K dimensions h*K ... (h+1)*K - 1 side by side": (
                    x.view(T, K, H).permute(2, 0, 1)
                ),
                "of shape (T, H, K): the heads come first, so that each is a matrix of its own": (
                    x.view(T, H, K)
                ),
                "of shape (H, K, T): tokens are rows": x.view(T, H, K).permute(1, 2, 0),
            },
            what="Your tensor",
        )
    return "Right: nothing is computed, D is only read as H x K."


@exercise("03.6", title="Softmax in one pass over blocks")
def streamed_attention(attempt: Callable[..., Any], fresh: Fresh) -> str:
    T, S, K = 3, 10, 4
    q, k, v = fresh.normal(T, K, scale=2.0), fresh.normal(S, K, scale=2.0), fresh.normal(S, K)
    k = k[(k @ q[0]).argsort()]  # the first query's maximum grows in every block

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.T * K**-0.5).softmax(-1) @ v

    def pieces(size: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(k.split(size), v.split(size), strict=True))

    def rescale_forgotten(size: int) -> Tensor:
        top, total, out = torch.full((T, 1), -math.inf, dtype=q.dtype), 0.0, 0.0
        for k_b, v_b in pieces(size):
            scores = q @ k_b.T * K**-0.5
            top = torch.maximum(top, scores.amax(-1, keepdim=True))
            e = (scores - top).exp()
            total, out = total + e.sum(-1, keepdim=True), out + e @ v_b
        return torch.as_tensor(out / total)

    for size in (2, 4, 10):
        whole = S // size * size
        compare(
            attempt(q, k, v, size),
            exact(q, k, v),
            {
                "the mean of the blocks' outputs: blocks with larger scores weigh more": (
                    torch.stack([exact(q, k_b, v_b) for k_b, v_b in pieces(size)]).mean(0)
                ),
                "the sum of the blocks' outputs: normalise once, over all blocks": (
                    torch.stack([exact(q, k_b, v_b) for k_b, v_b in pieces(size)]).sum(0)
                ),
                "missing the last block, which is shorter": (
                    lambda whole=whole: exact(q, k[:whole], v[:whole])
                ),
                "not rescaled: when the maximum grows, earlier sums must shrink with it": (
                    lambda size=size: rescale_forgotten(size)
                ),
                "not scaled by 1/sqrt(K)": (q @ k.T).softmax(-1) @ v,
            },
            what=f"The output with blocks of {size}",
        )
    large = 1000 / float((q @ k.T).max() * K**-0.5) * q  # exp(1000) overflows
    answer = attempt(large, k, v, 4)
    require(
        isinstance(answer, Tensor) and bool(torch.isfinite(answer).all()),
        "With large scores the result is not finite: exp overflows. Subtract the largest score"
        " seen so far before exp.",
    )
    compare(answer, exact(large, k, v), what="The output for large scores", tolerance=1e-6)
    with Watched() as seen:
        attempt(q, k, v, 2)
    held = [tuple(it.shape) for it in seen.made]
    whole = [shape for shape in held if S in shape and set(shape) <= {1, S, T}]
    fused = any("scaled_dot_product" in name for name in seen.operations)
    require(
        not whole and not fused,
        "The output is right, but with blocks of 2 your code held scores of all "
        f"{S} keys at once{f', in the shape {whole[0]}' if whole else ''}: keep a running maximum, "
        "sum and output, and forget the scores of each block.",
    )
    return "Right: that is how FlashAttention never holds the T x S weights."
