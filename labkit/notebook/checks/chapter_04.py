"""Checkers of chapter 04, the Transformer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.notebook.exercises import Fresh, compare, exercise


@exercise("04.1", title="LayerNorm")
def layer_norm(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, D, eps in ((4, 6, 1e-5), (5, 5, 0.3)):
        x, w, b = fresh.normal(T, D, scale=2.0) + 1.0, fresh.normal(D), fresh.normal(D)
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        across = x - x.mean(0, keepdim=True)
        compare(
            attempt(x, w, b, eps),
            w * centred / (variance + eps).sqrt() + b,
            {
                "made with the unbiased variance: divide by D, not by D - 1": (
                    w * centred / (variance * D / (D - 1) + eps).sqrt() + b
                ),
                "normalised over the wrong axis: each position (row) has its own mean": (
                    w * across / (across.square().mean(0, keepdim=True) + eps).sqrt() + b
                ),
                "made with eps outside the root: it belongs to the variance": (
                    w * centred / (variance.sqrt() + eps) + b
                ),
                "made without eps: a constant row would divide by 0": (
                    w * centred / variance.sqrt() + b
                ),
                "divided by the variance: take its root": w * centred / (variance + eps) + b,
                "an RMSNorm: subtract the mean first": (
                    w * x / (x.square().mean(-1, keepdim=True) + eps).sqrt() + b
                ),
                "without the gain and the shift": centred / (variance + eps).sqrt(),
            },
            what="Your output",
            tolerance=1e-7,
        )
    return "Right: every row has mean 0 and variance 1 before w and b."


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


@exercise("04.3", title="SwiGLU")
def swiglu(attempt: Callable[..., Any], fresh: Fresh) -> str:
    for T, D, width in ((3, 4, 7), (5, 6, 6)):
        x, gate, up = fresh.normal(T, D), fresh.normal(width, D), fresh.normal(width, D)
        down = fresh.normal(D, width)
        g, u = x @ gate.T, x @ up.T
        compare(
            attempt(x, gate, up, down),
            (F.silu(g) * u) @ down.T,
            {
                "gated the wrong way round: silu belongs on the gate": (g * F.silu(u)) @ down.T,
                "made with a sigmoid: silu(z) is z times sigmoid(z)": (g.sigmoid() * u) @ down.T,
                "made with GELU: that is GEGLU, a sister of SwiGLU": (F.gelu(g) * u) @ down.T,
                "added: the gate multiplies": (F.silu(g) + u) @ down.T,
                "without a non-linearity on the gate": (g * u) @ down.T,
                "without the second branch: a plain net with silu": F.silu(g) @ down.T,
                "passed through a second non-linearity at the end": (
                    F.silu((F.silu(g) * u) @ down.T)
                ),
            },
            what="Your output",
        )
    return "Right: one product decides how much of the other passes."


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
