"""Checkers of chapter 03, attention."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labkit.notebook.exercises import Fresh, Watched, compare, exercise, require


@exercise("03.1", title="Far is worth less")
def alibi_weights(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, K, slope in ((5, 16, 0.5), (7, 9, 0.25)):
        q, k = fresh.normal(T, K, scale=1.5), fresh.normal(T, K, scale=1.5)
        place = torch.arange(T)
        far = (place[:, None] - place).double()
        past, raw = far >= 0, q @ k.T

        def weights(
            scores: Tensor, seen: Tensor = past, axis: int = -1, lowest: float = -math.inf
        ) -> Tensor:
            return scores.masked_fill(~seen, lowest).softmax(axis)

        scaled = raw / math.sqrt(K)
        everything = torch.ones_like(past)
        compare(
            attempt(q, k, slope),
            weights(scaled - slope * far),
            {
                "made without the slope: a far token must be worth less": weights(scaled),
                "favouring the far past: subtract the distance, do not add it": (
                    weights(scaled + slope * far)
                ),
                "made with the distance before the scale: 1/sqrt(K) belongs to q k alone": (
                    weights((raw - slope * far) / math.sqrt(K))
                ),
                "not scaled: divide q k by the square root of the head width": (
                    weights(raw - slope * far)
                ),
                "open to the future: query t sees keys up to t": (
                    weights(scaled - slope * far, everything)
                ),
                "open to the future: a distance of either sign hides nothing": (
                    weights(scaled - slope * far.abs(), everything)
                ),
                "closed to the token itself: its distance is 0, and it may be read": (
                    weights(scaled - slope * far, far > 0)
                ),
                "made with the slope on the weights: it belongs to the scores": (
                    weights(scaled) - slope * far * past
                ),
                "normalised over the wrong axis: each row is a distribution over the keys": (
                    weights(scaled - slope * far, axis=-2)
                ),
            },
            what="Your matrix",
        )
    return "Right: the scores alone tell how far, and no position was added to any vector."


@exercise("03.2", title="A window on the past")
def window_mask(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, window in ((6, 3), (9, 4), (5, 1)):
        real = torch.ones(T, dtype=torch.int64)
        real[torch.tensor([1, T - 1])] = 0
        place = torch.arange(T)
        back = place[:, None] - place
        past, near = back >= 0, (back >= 0) & (back < window)
        keys, queries = real.bool()[None, :], real.bool()[:, None]
        answer = attempt(real, window)
        if isinstance(answer, Tensor) and answer.shape == (T, T):
            require(
                answer.dtype == torch.bool,
                f"Your mask has dtype {answer.dtype}; return booleans, True = may attend.",
            )
        compare(
            answer,
            near & keys,
            {
                "the window alone: padding keys must be hidden, too": near,
                "causal without a window: the far past must be hidden, too": past & keys,
                "one token too wide: a window of 1 sees the token alone": (
                    past & (back <= window) & keys
                ),
                "one token too narrow: the token itself belongs to the window": (
                    past & (back < window - 1) & keys
                ),
                "the window before the token, without the token itself": (
                    (back > 0) & (back <= window) & keys
                ),
                "open to the future: the window looks back only": (back.abs() < window) & keys,
                "a window on the future: turn it round": (back <= 0) & (back > -window) & keys,
                "the wrong way round: True means may attend": ~(near & keys),
                "hiding the rows of padding queries instead of the columns of padding keys": (
                    near & queries
                ),
                "hiding rows and columns: padding queries have no need of an empty row": (
                    near & keys & queries
                ),
            },
            what="Your mask",
        )
    return "Right: with L layers of it, what was said up to L (window - 1) tokens ago can arrive."


@exercise("03.3", title="Backward through a cap")
def capped_backward(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, S, cap in ((3, 5, 2.0), (4, 4, 5.0)):
        scores, upstream = fresh.normal(T, S, scale=3.0), fresh.normal(T, S)
        bent = torch.tanh(scores / cap)
        weights, slope = (cap * bent).softmax(-1), 1 - bent.square()

        def through(w: Tensor, g: Tensor = upstream) -> Tensor:
            return w * (g - (w * g).sum(-1, keepdim=True))

        compare(
            attempt(scores, cap, upstream),
            through(weights) * slope,
            {
                "without the slope of the cap: a capped score moves less": through(weights),
                "made with the weights of the scores before the cap": (
                    through(scores.softmax(-1)) * slope
                ),
                "without the cap altogether": through(scores.softmax(-1)),
                "divided by the cap: its factor c and the 1 / c inside cancel": (
                    through(weights) * slope / cap
                ),
                "multiplied by the cap: its factor c and the 1 / c inside cancel": (
                    through(weights) * slope * cap
                ),
                "made with weights of tanh(scores / cap), without the factor cap": (
                    through(bent.softmax(-1)) * slope
                ),
                "made with the slope at the scores themselves: tanh is taken of scores / cap": (
                    through(weights) * (1 - torch.tanh(scores).square())
                ),
                "made with the slope at the capped scores: take it at scores / cap": (
                    through(weights) * (1 - (cap * bent).square())
                ),
                "only the diagonal of the softmax's Jacobian: the other weights move, too": (
                    weights * (1 - weights) * upstream * slope
                ),
                "without the subtracted mean: a softmax is not an exponential": (
                    weights * upstream * slope
                ),
                "capped first: the softmax comes last, so it is the first to go backwards": (
                    through(weights, upstream * slope)
                ),
            },
            what="Your gradient",
        )
    return "Right: where the cap is nearly reached, no gradient comes back."


@exercise("03.4", title="Attention without pairs")
def linear_attention(attempt: Callable[..., Any], fresh: Fresh) -> str:
    def positive(x: Tensor) -> Tensor:
        return torch.where(x > 0, x + 1, x.exp())

    for T, K in ((6, 4), (5, 5)):
        q, k, v = fresh.normal(T, K), fresh.normal(T, K), fresh.normal(T, K)
        past = torch.ones(T, T, dtype=q.dtype).tril()
        strength = positive(q) @ positive(k).T

        def mixed(shares: Tensor, v: Tensor = v) -> Tensor:
            return shares / shares.sum(-1, keepdim=True) @ v

        exponential = (q @ k.T).masked_fill(past == 0, -math.inf)
        compare(
            attempt(q, k, v),
            mixed(strength * past),
            {
                "not divided: the shares must sum to one": (strength * past) @ v,
                "divided by the number of tokens: divide by q · z, the sum of their strengths": (
                    (strength * past) @ v / past.sum(-1, keepdim=True)
                ),
                "made with all tokens: position t reads those up to t": mixed(strength),
                "without the token itself: the sums include position t": (
                    mixed(strength * past.tril(-1))
                ),
                "made without φ on the queries and keys": mixed((q @ k.T) * past),
                "made without φ on the queries": mixed((q @ positive(k).T) * past),
                "made without φ on the keys": mixed((positive(q) @ k.T) * past),
                "made with φ(x) = elu(x): add 1, or strengths may be negative": (
                    mixed(((positive(q) - 1) @ (positive(k) - 1).T) * past)
                ),
                "that of the softmax: replace exp(q · k) by φ(q) · φ(k)": (
                    exponential.softmax(-1) @ v
                ),
                "that of the softmax: replace exp(q · k / √K) by φ(q) · φ(k)": (
                    (exponential / math.sqrt(K)).softmax(-1) @ v
                ),
            },
            what="Your output",
        )
    T = 24
    q, k, v = fresh.normal(T, 3), fresh.normal(T, 3), fresh.normal(T, 3)
    with Watched() as seen:
        attempt(q, k, v)
    pairs = [tuple(it.shape) for it in seen.made if list(it.shape).count(T) > 1]
    require(
        not pairs,
        f"The output is right, but your code held {pairs[0] if pairs else ''} numbers, one for "
        "each pair of tokens: carry the two running sums instead.",
    )
    return "Right: T steps, and a memory that does not grow with the text."


@exercise("03.5", title="Softmax in one pass over blocks")
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
