"""Attention: each position reads from the positions that it may see.

        x_BTD ──> q_BHTK ─┐
          │               ├─ q·kᵀ/√K ── mask ── softmax ──> weights_BHTS ─┐
          ├─────> k_BHSK ─┘                                              ├─> out_BHTK ──> x_BTD
          └─────> v_BHSK ────────────────────────────────────────────────┘

The same formula twice: `scaled_dot_product_attention` in five lines, to be read, and `attention`
    through
torch's fused kernel, to be run; a test holds them together to 1e-6. Around them stand the masks
(bool, True = may attend), the positions and the cache of keys and values that generation appends
to.

Legend: B batch, T query positions, S key positions, H heads, G key/value heads (G divides H), K
    head
width, D = H·K model width.

Sources: Vaswani et al. 2017 (attention, eq. 1; sinusoidal positions, section 3.5); Su et al. 2021
(rotary positions, eq. 34); Ainslie et al. 2023 (grouped queries); Shazeer 2019 (the cost of the
cache).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from labkit.errors import LabError

Rotary = tuple[Tensor, Tensor]

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

    Runs torch's fused kernel, which never stores the B·H·T·S weights. Training in bf16 on a CPU is
    the exception: there the fused backward pass takes longer than the plain products (measured on
    one core: 3 times at T = 128, 1.2 times at T = 512), so up to `PLAIN_SCORES` scores per head are
    computed in the open, and kept.

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
    plain = q_BHTK.device.type == "cpu" and q_BHTK.dtype == torch.bfloat16 and q_BHTK.requires_grad
    if plain and q_BHTK.shape[2] * k_BGSK.shape[2] <= PLAIN_SCORES:
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
        mask = causal_mask(T, S, q_BHTK.device)
    if mask is not None:
        lowest = torch.finfo(scores_BHTS.dtype).min
        additive = torch.zeros_like(mask, dtype=scores_BHTS.dtype).masked_fill(~mask, lowest)
        scores_BHTS += additive
    weights_BHTS = F.dropout(scores_BHTS.softmax(dim=-1, dtype=scores_BHTS.dtype), dropout)
    out_NRK = torch.bmm(weights_BHTS.view(B * G, H // G * T, S), v_BGSK.reshape(B * G, S, K))
    return out_NRK.view(B, H, T, K)


# Masks: bool, True = may attend; combine them with &


def causal_mask(
    queries: int, keys: int | None = None, device: torch.device | str | None = None
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


# Positions


def sinusoidal(length: int, d_model: int) -> Float[Tensor, "T D"]:
    """A fixed table of positions: pe[t, 2i] = sin(t / 10000^(2i/D)), pe[t, 2i+1] = cos(same).

    Args:
        length: T, positions 0 to T-1.
        d_model: D, even.

    Returns:
        table_TD in [-1, 1].

    Source: Vaswani et al. 2017, section 3.5.
    """
    angles = _angles(length, d_model, 10_000.0)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rotary_table(
    length: int, head_width: int, theta: float = 10_000.0
) -> tuple[Float[Tensor, "T K"], Float[Tensor, "T K"]]:
    """Cosines and signed sines of the angles t·theta^(-2i/K), for `rotate`.

    The first half of the sines carries the minus sign of the rotation, so that `rotate` needs one
    roll instead of two slices, a negation and a concatenation.

    Args:
        length: T, positions 0 to T-1.
        head_width: K, even.
        theta: Base of the wavelengths, > 1; a larger one keeps distant positions apart.

    Returns:
        (cos_TK, sin_TK).

    Source: Su et al. 2021, eq. 34, with Llama's pairing of dimension i with i + K/2.
    """
    angles = _angles(length, head_width, theta)
    sines = angles.sin()
    return angles.cos().repeat(1, 2), torch.cat((-sines, sines), dim=-1)


def rotate(
    x: Float[Tensor, "... K"], cos: Float[Tensor, "... K"], sin: Float[Tensor, "... K"]
) -> Float[Tensor, "... K"]:
    """Rotate each pair (x_i, x_{i+K/2}) by its position's angle: x·cos + roll(x, K/2)·sin.

    The scores q·k of two rotated vectors depend on their positions only through the distance.

    Args:
        x: Queries or keys.
        cos: From `rotary_table`, broadcastable to x.
        sin: From `rotary_table` (signed), broadcastable to x.

    Returns:
        The rotated x, same shape and dtype.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def _angles(length: int, width: int, theta: float) -> Tensor:
    if width % 2:
        raise LabError(f"positions rotate pairs, so the width must be even, not {width}")
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float) / width)
    return torch.outer(torch.arange(length, dtype=torch.float), frequencies)


# Generation


class KVCache:
    """Keys and values of the positions already read, in memory reserved once.

    Without it, producing token t reads all t positions again; with it, only the new one.
    Memory: 2·layers·B·G·capacity·K numbers.

    Args:
        num_layers: Attention layers that share the cache.
        batch_size: B.
        num_kv_heads: G.
        capacity: Positions to reserve.
        head_width: K.
        dtype: Of keys and values.
        device: Where they live.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        shape = (num_layers, batch_size, num_kv_heads, capacity, head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new positions of a layer; return its keys and values so far (B, G, length+T, K).

        Raises:
            LabError: The new positions do not fit.
        """
        end = self.length + k_BGTK.shape[2]
        if end > self.capacity:
            raise LabError(
                f"the cache holds {self.capacity} positions and {end} are asked for;"
                " make a larger cache or generate fewer tokens"
            )
        self.keys[layer, :, :, self.length : end] = k_BGTK
        self.values[layer, :, :, self.length : end] = v_BGTK
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, positions: int) -> None:
        """Count T new positions as read, once every layer has appended them."""
        self.length += positions


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
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if d_model % num_heads or num_heads % num_kv_heads:
            raise LabError(
                f"d_model ({d_model}) must be a multiple of num_heads ({num_heads}), and num_heads"
                f" a multiple of num_kv_heads ({num_kv_heads})"
            )
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_width = d_model // num_heads
        self.dropout = dropout
        kv_width = num_kv_heads * self.head_width
        self.qkv = StackedLinear(d_model, (d_model, kv_width, kv_width), bias)
        self.out = nn.Linear(d_model, d_model, bias=bias)

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
