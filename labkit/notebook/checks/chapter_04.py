"""Checkers of chapter 04, the Transformer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.notebook.exercises import Fresh, compare, exercise


@exercise("04.1", title="Side by side")
def parallel_block(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, D in ((4, 6), (5, 5)):
        x, w, v = fresh.normal(T, D, scale=2.0) + 1.0, fresh.normal(D, D), fresh.normal(D, D)

        def norm(x: Tensor) -> Tensor:
            return F.layer_norm(x, x.shape[-1:])

        def attention(x: Tensor, w: Tensor = w) -> Tensor:
            return torch.tanh(x @ w).cumsum(0)

        def ffn(x: Tensor, v: Tensor = v) -> Tensor:
            return F.gelu(x @ v) + 0.3

        read = norm(x)
        h = x + attention(read)
        compare(
            attempt(x, norm, attention, ffn),
            h + ffn(read),
            {
                "one after the other: the feed-forward net must not see attention's output": (
                    h + ffn(norm(h))
                ),
                "one after the other: feed-forward of attention's output": (
                    x + ffn(attention(read))
                ),
                "without the stream: both outputs are added to x": attention(read) + ffn(read),
                "made with the stream twice: x itself is added once": x + h + ffn(read),
                "made without the norm: both read a normalised copy": x + attention(x) + ffn(x),
                "made with a net that reads the stream itself: it reads the normalised copy": (
                    h + ffn(x)
                ),
                "made with the normalised copy as the stream: add to x": (
                    read + attention(read) + ffn(read)
                ),
                "normalised at the end: the norm is for what is read": (
                    norm(x + attention(x) + ffn(x))
                ),
            },
            what="Your output",
        )
    return "Right: one norm less, and the two sublayers may run at the same time."


@exercise("04.2", title="RMSNorm, backwards")
def rms_norm_backward(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, D in ((4, 6), (5, 5)):
        x, w, dy, eps = fresh.normal(T, D), fresh.normal(D), fresh.normal(T, D), 1e-3
        s = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        n, dn = x * s, dy * w
        along = (dn * n).mean(-1, keepdim=True)
        dx, dw = s * (dn - n * along), (dy * n).sum(0)
        answer = attempt(x, w, dy, eps)
        if isinstance(answer, (tuple, list)) and len(answer) == 2:
            compare(
                answer[0],
                dx,
                {
                    "the direct path only: s depends on x, too": s * dn,
                    "LayerNorm's: RMSNorm subtracts no mean, so neither does its gradient": (
                        s * (dn - dn.mean(-1, keepdim=True) - n * along)
                    ),
                    "without the gain: dn = w dy": (s * (dy - n * (dy * n).mean(-1, keepdim=True))),
                    "made with a sum where the mean over D belongs": (
                        s * (dn - n * (dn * n).sum(-1, keepdim=True))
                    ),
                    "missing the factor s = 1 / rms": dn - n * along,
                    "made with x where the normalised n belongs": (
                        s * (dn - x * (dn * x).mean(-1, keepdim=True))
                    ),
                },
                what="Your dx",
            )
            compare(
                answer[1],
                dw,
                {
                    "not summed: w serves every position, so its gradient is a sum over T": dy * n,
                    "made with x where the normalised n belongs": (dy * x).sum(0),
                    "a mean over the positions: gradients add": (dy * n).mean(0),
                },
                what="Your dw",
            )
        compare(answer, (dx, dw), what="The result")
    return "Right: the gradient has no part along n, up to eps."


@exercise("04.3", title="Rotate")
def rotated(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, K, base in ((5, 8, 100.0), (7, 6, 10_000.0)):
        x = fresh.normal(T, K)
        place = torch.arange(T, dtype=x.dtype)[:, None]
        pair = torch.arange(K // 2, dtype=x.dtype)

        def halves(angle: Tensor, x: Tensor = x) -> Tensor:
            a, b = x.chunk(2, -1)
            turned = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos())
            return torch.cat(turned, -1)

        def neighbours(angle: Tensor, x: Tensor = x) -> Tensor:
            a, b = x[:, 0::2], x[:, 1::2]
            turned = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos())
            return torch.stack(turned, -1).flatten(1)

        angle = place * base ** (-2 * pair / K)
        both = torch.cat((angle, angle), -1)
        compare(
            attempt(x, base),
            halves(angle),
            {
                "made of neighbours (x_2i, x_2i+1): here x_i goes with x_{i + K/2}": (
                    neighbours(angle)
                ),
                "turned the wrong way: counterclockwise is (a cos - b sin, a sin + b cos)": (
                    halves(-angle)
                ),
                "made with positions from 1: the first position is 0 and stays as it is": (
                    halves((place + 1) * base ** (-2 * pair / K))
                ),
                "made with the exponent i / K: pair i turns at base^(-2i/K)": (
                    halves(place * base ** (-pair / K))
                ),
                "made with the exponent 4i / K: pair i turns at base^(-2i/K)": (
                    halves(place * base ** (-4 * pair / K))
                ),
                "made with growing speeds: the first pair is the fastest": (
                    halves(place * base ** (2 * pair / K))
                ),
                "made with one speed for all pairs": halves(place.expand(T, K // 2)),
                "without the minus: (a cos + b sin, a sin + b cos) is no rotation": (
                    x * both.cos() + x.roll(K // 2, -1) * both.sin()
                ),
                "multiplied by the cosine alone: a rotation mixes the two of a pair": (
                    x * both.cos()
                ),
            },
            what="Your tensor",
            tolerance=1e-5,  # angles in float32 are right, too
        )
    return "Right: lengths stay, and scores will depend on distances alone."


@exercise("04.4", title="Parameters of a Llama block")
def llama_block_parameters(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for D, H, G, width in ((64, 8, 2, 160), (96, 6, 3, 256), (48, 4, 4, 128)):
        kv = G * (D // H)
        attention, norms = 2 * D * D + 2 * D * kv, 2 * D
        compare(
            attempt(D, H, G, width),
            attention + 3 * D * width + norms,
            {
                "too large: keys and values have G heads, not one for every query head": (
                    4 * D * D + 3 * D * width + norms
                ),
                "too small: two feed-forward matrices; SwiGLU has three": (
                    attention + 2 * D * width + norms
                ),
                "too small: it leaves out the two norms, D gains each": attention + 3 * D * width,
                "too large: RMSNorm has a gain only, no shift": (
                    attention + 3 * D * width + 2 * norms
                ),
                "too small: there is a norm before each of the two sublayers": (
                    attention + 3 * D * width + D
                ),
                "too small: it leaves out the attention's output matrix": (
                    attention - D * D + 3 * D * width + norms
                ),
                "too small: a key/value head is D / H wide, not one number": (
                    2 * D * D + 2 * D * G + 3 * D * width + norms
                ),
            },
            what=f"Your count for {D}, {H}, {G}, {width}",
        )
    return "Right. Most of it is the feed-forward net."


@exercise("04.5", title="Grouped-query heads")
def grouped_attention(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for H, G, T, S, K in ((6, 2, 3, 4, 5), (8, 4, 4, 3, 6)):
        q, k, v = fresh.normal(H, T, K), fresh.normal(G, S, K), fresh.normal(G, S, K)
        n = H // G

        def attend(
            keys: Tensor, values: Tensor, q: Tensor = q, scale: float = K**-0.5, axis: int = -1
        ) -> Tensor:
            return (q @ keys.mT * scale).softmax(axis) @ values

        near = k.repeat_interleave(n, dim=0), v.repeat_interleave(n, dim=0)
        compare(
            attempt(q, k, v),
            attend(*near),
            {
                "made with repeat: query heads h and h + G share then; neighbours should": (
                    attend(k.repeat(n, 1, 1), v.repeat(n, 1, 1))
                ),
                "made with keys and values in different orders": attend(near[0], v.repeat(n, 1, 1)),
                "that of the first key/value head alone: each group has its own": (
                    attend(k[:1].expand(H, -1, -1), v[:1].expand(H, -1, -1))
                ),
                "made with the mean of the key/value heads: each group has its own": (
                    attend(k.mean(0, keepdim=True), v.mean(0, keepdim=True))
                ),
                "not scaled by 1/sqrt(K)": attend(*near, scale=1.0),
                "normalised over the queries instead of the keys": attend(*near, axis=-2),
            },
            what="Your output",
        )
    return "Right: H / G neighbouring query heads share one key/value head."


@exercise("04.6", title="Cross-attention")
def cross_attention(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, S, D in ((4, 6, 5), (5, 5, 4)):
        x, source = fresh.normal(T, D), fresh.normal(S, D)
        w_q, w_k, w_v, w_o = (fresh.normal(D, D) for _ in range(4))
        mask = torch.ones(S, dtype=torch.bool)
        mask[-2:] = False
        causal = torch.ones(T, S, dtype=torch.bool).tril()

        def attend(
            seen: Tensor,
            asks: Tensor = x,
            reads: Tensor = source,
            says: Tensor | None = None,
            scale: float = D**-0.5,
            weights: tuple[Tensor, ...] = (w_q, w_k, w_v, w_o),
        ) -> Tensor:
            q, k, v, o = weights
            says = reads if says is None else says
            scores = (asks @ q) @ (reads @ k).T * scale
            lowest = torch.finfo(scores.dtype).min
            return scores.masked_fill(~seen, lowest).softmax(-1) @ (says @ v) @ o

        every = torch.ones(T, S, dtype=torch.bool)
        mistakes: dict[str, Any] = {
            "made with a causal mask: the source is complete, every answer token may see all": (
                attend(causal & mask)
            ),
            "made without the source mask: padding was read": attend(every),
            "made with the mask the wrong way round: True is a real token": (
                attend((~mask).expand(T, S))
            ),
            "not scaled by 1/sqrt(D), the head's width here": (
                attend(mask.expand(T, S), scale=1.0)
            ),
            "without the output matrix w_o": (
                attend(mask.expand(T, S), weights=(w_q, w_k, w_v, torch.eye(D, dtype=x.dtype)))
            ),
        }
        if T == S:
            square = mask.expand(T, S)
            mistakes |= {
                "self-attention: keys and values come from the source": attend(square, x, x),
                "turned round: the answer asks, the source is read": attend(square, source, x),
                "made with values of the answer: values come from the source, like the keys": (
                    attend(square, x, source, x)
                ),
            }
        compare(
            attempt(x, source, mask, w_q, w_k, w_v, w_o),
            attend(mask.expand(T, S)),
            mistakes,
            what=f"Your output for {T} answer and {S} source tokens",
        )
    return "Right: T x S scores, and only padding is hidden."
