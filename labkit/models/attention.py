"""Attention: each position reads from the positions that it may see.

        x_BTD ──> q_BHTK ─┐
          │               ├─ q·kᵀ/√K ── mask ── softmax ──> weights_BHTS ─┐
          ├─────> k_BHSK ─┘                                              ├─> out_BHTK ──> x_BTD
          └─────> v_BHSK ────────────────────────────────────────────────┘

The same formula twice: `scaled_dot_product_attention` in five lines, to be read, and `attention`
through torch's fused kernel, to be run; a test holds them together to 1e-6. Around them stand the
masks (bool, True = may attend) and the two layers: heads that read their own sequence, and heads
that read a source.

Legend: B batch, T query positions, S key positions, H heads, G key/value heads (G divides H), K
head width, D = H·K model width.

Sources: Vaswani et al. 2017 (attention, eq. 1); Ainslie et al. 2023 (grouped queries).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.dropout import dropout as drop
from labkit.models.kv_cache import KVCache
from labkit.models.positions import Rotary, rotary_table, rotate, sinusoidal

__all__ = [
    "CrossAttention",
    "KVCache",
    "MultiHeadAttention",
    "Rotary",
    "Source",
    "StackedLinear",
    "attention",
    "causal_mask",
    "document_mask",
    "padding_mask",
    "rotary_table",
    "rotate",
    "scaled_dot_product_attention",
    "sinusoidal",
]

PLAIN_SCORES = 512 * 512
"""Scores per head (T·S) up to which bf16 training on a CPU writes attention out; see
`attention`."""


# Attention


def scaled_dot_product_attention(
    q_BHTK: Float[Tensor, "B H T K"],
    k_BHSK: Float[Tensor, "B H S K"],
    v_BHSK: Float[Tensor, "B H S K2"],
    mask: Bool[Tensor, "..."] | None = None,
    scale: float | None = None,
) -> tuple[Float[Tensor, "B H T K2"], Float[Tensor, "B H T S"]]:
    """Attention by hand: softmax(q·kᵀ·scale)·v.

    A query that may attend to nothing (a row of padding) gets weights and output 0.
    Cost: 4·B·H·T·S·K FLOPs, and B·H·T·S numbers kept for the backward pass.

    Args:
        q_BHTK: Queries.
        k_BHSK: Keys.
        v_BHSK: Values; their width may differ from the keys'.
        mask: Broadcastable to (B, H, T, S); True = may attend. None: everything is visible.
        scale: Factor on the scores; None is 1/√K, the *head* width.

    Returns:
        (out_BHTK, weights_BHTS): each row of weights sums to 1 over S.

    Source: Vaswani et al. 2017, eq. 1.
    """
    factor = q_BHTK.shape[-1] ** -0.5 if scale is None else scale
    scores_BHTS = q_BHTK @ k_BHSK.transpose(-2, -1) * factor
    if mask is None:
        weights_BHTS = scores_BHTS.softmax(dim=-1)
    else:
        lowest = torch.finfo(scores_BHTS.dtype).min
        weights_BHTS = scores_BHTS.masked_fill(~mask, lowest).softmax(dim=-1)
        weights_BHTS = weights_BHTS.masked_fill(~mask, 0.0)
    return weights_BHTS @ v_BHSK, weights_BHTS


def attention(
    q_BHTK: Float[Tensor, "B H T K"],
    k_BGSK: Float[Tensor, "B G S K"],
    v_BGSK: Float[Tensor, "B G S K"],
    mask: Bool[Tensor, "..."] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """The same attention, fast, and without the weights.

    Runs torch's fused kernel, which never stores the B·H·T·S weights. Training on a CPU has two
    exceptions. In bf16 the fused backward pass takes longer than the plain products (measured on
    one core: 3 times at T = 128, 1.2 times at T = 512), so up to `PLAIN_SCORES` scores per head are
    computed in the open, and kept. With dropout torch has no fused kernel there, and a slow mask.

    A query that may attend to nothing is padding; its output is finite and must not be read.

    Args:
        q_BHTK: Queries.
        k_BGSK: Keys; G divides H, and each key/value head serves H/G query heads.
        v_BGSK: Values.
        mask: Broadcastable to (B, H, T, S); True = may attend.
        causal: Query t sees keys 0..t; needs T = S. Cheaper than the same thing as a mask.
        dropout: Probability in [0, 1) of dropping a weight; pass 0 outside training.

    Returns:
        out_BHTK.

    Source: Dao et al. 2022 (FlashAttention); Ainslie et al. 2023 (grouped queries).
    """
    narrow = q_BHTK.dtype == torch.bfloat16 and q_BHTK.shape[2] * k_BGSK.shape[2] <= PLAIN_SCORES
    if q_BHTK.device.type == "cpu" and q_BHTK.requires_grad and (narrow or dropout):
        return _plain_attention(q_BHTK, k_BGSK, v_BGSK, mask, causal, dropout)
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        attn_mask=mask,
        is_causal=causal,
        dropout_p=dropout,
        enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
    )


def _plain_attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: Tensor | None,
    causal: bool,
    dropout: float,
) -> Tensor:
    """Two products and a softmax. The H/G query heads of a group are rows of one product."""
    (B, H, T, K), (G, S) = q_BHTK.shape, k_BGSK.shape[1:3]
    q_NRK = (q_BHTK * K**-0.5).reshape(B * G, H // G * T, K)
    scores_BHTS = torch.bmm(q_NRK, k_BGSK.reshape(B * G, S, K).mT).view(B, H, T, S)
    if causal:
        scores_BHTS += _causal_bias(T, S, scores_BHTS.dtype)
    elif mask is not None:
        scores_BHTS += _bias(mask, scores_BHTS.dtype)
    weights_BHTS = drop(scores_BHTS.softmax(dim=-1, dtype=scores_BHTS.dtype), dropout)
    out_NRK = torch.bmm(weights_BHTS.view(B * G, H // G * T, S), v_BGSK.reshape(B * G, S, K))
    return out_NRK.view(B, H, T, K)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query may attend, else the lowest number: added to scores, it masks them."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


@torch.library.custom_op("labkit::causal_bias", mutates_args=())
def _causal_bias(queries: int, keys: int, dtype: torch.dtype) -> Tensor:
    """On the CPU. Opaque to the compiler, which would else work the mask out for each score."""
    return _bias(causal_mask(queries, keys), dtype)


@_causal_bias.register_fake
def _(queries: int, keys: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(queries, keys, dtype=dtype)


# Masks: bool, True = may attend; combine them with &


def causal_mask(
    queries: int | torch.SymInt,  # symbols where `torch.export` leaves the length open
    keys: int | torch.SymInt | None = None,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "T S"]:
    """Each query sees the keys up to its own position; queries are the last T of S positions.

    Args:
        queries: T, at least 1.
        keys: S, at least T; None is T.
        device: Where to put it.

    Returns:
        mask_TS: `mask[t, s] = (s <= t + S - T)`.

    >>> causal_mask(2, 4).int().tolist()
    [[1, 1, 1, 0], [1, 1, 1, 1]]
    """
    keys = queries if keys is None else keys
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def padding_mask(attention_mask_BS: Shaped[Tensor, "B S"]) -> Bool[Tensor, "B 1 1 S"]:
    """No query sees a padding key.

    Args:
        attention_mask_BS: 1 at real tokens, 0 at padding.

    Returns:
        mask_B11S, ready to broadcast over heads and queries.
    """
    return attention_mask_BS.bool()[:, None, None, :]


def document_mask(document_ids_BT: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """A query sees only keys of its own document, so that packed documents stay strangers.

    Args:
        document_ids_BT: The number of the document at each position.

    Returns:
        mask_B1TT.
    """
    return (document_ids_BT[:, :, None] == document_ids_BT[:, None, :])[:, None]


# Layers


class StackedLinear(nn.Linear):
    """Several linear layers that read the same input, as one matrix product.

    Args:
        in_features: Width of the input.
        rows: Output width of each layer; the weight holds them one below the other.
        bias: Add a bias.
    """

    def __init__(self, in_features: int, rows: tuple[int, ...], bias: bool = True):
        super().__init__(in_features, sum(rows), bias)
        self.rows = rows


class MultiHeadAttention(nn.Module):
    """H attentions side by side, each on its own K = D/H dimensions, then mixed.

    Queries, keys and values come from one matrix product of width (H + 2G)·K: three smaller
    products would read x three times.

    Args:
        d_model: D, a multiple of num_heads.
        num_heads: H.
        num_kv_heads: G, a divisor of H; None is H (ordinary attention), 1 is multi-query attention.
        bias: Add a bias to both projections.
        dropout: Probability in [0, 1) of dropping an attention weight while training.
        head_width: K; None is D/H. Another one where heads were pruned.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        head_width: int | None = None,
    ):
        super().__init__()
        heads = _check_heads(d_model, num_heads, num_kv_heads, head_width)
        self.num_heads, self.num_kv_heads, self.head_width = heads
        self.dropout = dropout
        q_width, kv_width = num_heads * self.head_width, self.num_kv_heads * self.head_width
        self.qkv = StackedLinear(d_model, (q_width, kv_width, kv_width), bias)
        self.out = nn.Linear(q_width, d_model, bias=bias)

    def forward(
        self,
        x_BTD: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Attend from x to x (and to the cached past).

        Args:
            x_BTD: Input.
            mask: As in `attention`, over the cached and the new positions together.
            causal: As in `attention`.
            rotary: (cos, sin) of these T positions, (T, K) or (B, T, K); None for no rotation.
            cache: Read the past from it and append these positions.
            layer: This layer's place in the cache.

        Returns:
            out_BTD.
        """
        H, G = self.num_heads, self.num_kv_heads
        qkv_BTNK = self.qkv(x_BTD).unflatten(-1, (H + 2 * G, self.head_width))
        qk_BTNK, v_BTGK = qkv_BTNK.split((H + G, G), dim=2)
        if rotary is not None:
            cos, sin = rotary
            qk_BTNK = rotate(qk_BTNK, cos.unsqueeze(-2), sin.unsqueeze(-2))
        q_BTHK, k_BTGK = qk_BTNK.split((H, G), dim=2)
        q_BHTK, k_BGSK, v_BGSK = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
        if cache is not None:
            k_BGSK, v_BGSK = cache.append(layer, k_BGSK, v_BGSK)
        dropout = self.dropout if self.training else 0.0
        out_BHTK = attention(q_BHTK, k_BGSK, v_BGSK, mask, causal, dropout)
        return self.out(out_BHTK.transpose(1, 2).flatten(2))


class Source(NamedTuple):
    """What cross-attention reads."""

    hidden_BSD: Tensor
    """The encoder's output."""
    mask_B11S: Tensor | None = None
    """From `padding_mask`: True at real source tokens; None: all are real."""
    ids_BS: Tensor | None = None
    """The tokens themselves, for a model that copies; cross-attention does not read them."""


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another: T x S scores, no causal mask.

    The whole source is there before the first token is written, so every query may see all of it.

    Args:
        d_model, num_heads, num_kv_heads, bias, dropout, head_width: As in `MultiHeadAttention`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        head_width: int | None = None,
    ):
        super().__init__()
        heads = _check_heads(d_model, num_heads, num_kv_heads, head_width)
        self.num_heads, self.num_kv_heads, self.head_width = heads
        self.dropout = dropout
        q_width, kv_width = num_heads * self.head_width, self.num_kv_heads * self.head_width
        self.q = nn.Linear(d_model, q_width, bias=bias)
        self.kv = StackedLinear(d_model, (kv_width, kv_width), bias)
        self.out = nn.Linear(q_width, d_model, bias=bias)

    def forward(
        self, x_BTD: Tensor, source: Source, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """Attend from x to the source.

        Args:
            x_BTD: Input, of the sequence that is written.
            source: What is read. With a cache its keys and values are computed once.
            cache: As in `MultiHeadAttention`; it belongs to one source.
            layer: This layer's place in the cache.

        Returns:
            out_BTD.
        """
        q_BHTK = self.q(x_BTD).unflatten(-1, (self.num_heads, self.head_width)).transpose(1, 2)
        kept = cache.source.get(layer) if cache is not None else None
        k_BGSK, v_BGSK = kept or self._keys_and_values(source.hidden_BSD)
        if cache is not None:
            cache.source[layer] = k_BGSK, v_BGSK
        dropout = self.dropout if self.training else 0.0
        out_BHTK = attention(q_BHTK, k_BGSK, v_BGSK, source.mask_B11S, dropout=dropout)
        return self.out(out_BHTK.transpose(1, 2).flatten(2))

    def _keys_and_values(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor]:
        kv_BSNK = self.kv(hidden_BSD).unflatten(-1, (2 * self.num_kv_heads, self.head_width))
        k_BGSK, v_BGSK = kv_BSNK.transpose(1, 2).chunk(2, dim=1)
        return k_BGSK, v_BGSK


def _check_heads(
    d_model: int, num_heads: int, num_kv_heads: int | None, head_width: int | None
) -> tuple[int, int, int]:
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    if (head_width is None and d_model % num_heads) or num_heads % num_kv_heads:
        raise LabError(
            f"d_model ({d_model}) must be a multiple of num_heads ({num_heads}), and num_heads"
            f" a multiple of num_kv_heads ({num_kv_heads})"
        )
    return num_heads, num_kv_heads, head_width or d_model // num_heads
