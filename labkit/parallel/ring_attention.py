"""Ring attention: a sequence so long that no rank holds it, and attention over all of it.

    rank 0   q of its positions   k, v of 0 ──> 1      Every rank meets its queries with the keys
    rank 1   q of its positions   k, v of 1 ──> 2      and values that visit it, N - 1 of them, and
    rank 2   q of its positions   k, v of 2 ──> 0      hands them on.

A softmax over keys that come in pieces: keep the largest score m so far, the sum l of exp(s - m),
and the weighted values a; when a piece brings a larger m', multiply l and a by exp(m - m'). The end
is a / l, as if all had been there at once. No T x T/N scores are kept: the backward pass makes them
again from the output and log l + m, while the gradients of k and v travel round with them, home.

Causal attention gives a late query more to read than an early one. In stripes the last rank reads
about 2 N - 1 times as many pairs as the first. Dealt in 2 N pieces, of which rank r takes r and
2 N - 1 - r (zigzag), all read the same number.

Legend: B batch, H heads, G key/value heads, T positions of a rank, S those that visit, K width of
a head, N ranks.

Sources: Liu, Zaharia and Abbeel 2023, arXiv:2310.01889; Milakov and Gimelshein 2018,
arXiv:1805.02867 (online softmax); Dao et al. 2022, arXiv:2205.14135 (recomputed scores); Dubey et
al. 2024, arXiv:2407.21783, section 3.3.2 (2N pieces).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from labkit.batches import IGNORE_INDEX, Batch
from labkit.errors import LabError
from labkit.models.attention import MultiHeadAttention
from labkit.models.layers import Block
from labkit.models.positions import Rotary, rotate
from labkit.models.transformer import Transformer
from labkit.parallel import collectives
from labkit.parallel.collectives import Group
from labkit.parallel.decoders import head_of


def positions(rank: int, size: int, length: int, zigzag: bool = True) -> Tensor:
    """Which of `length` positions a rank holds, in order.

    >>> [positions(rank, 2, 8).tolist() for rank in (0, 1)]
    [[0, 1, 6, 7], [2, 3, 4, 5]]

    Raises:
        LabError: the length does not divide into 2 N pieces (N in stripes).
    """
    pieces = 2 * size if zigzag else size
    if length % pieces:
        raise LabError(
            f"{length} positions do not divide into {pieces} pieces: choose a multiple of {pieces}"
        )
    dealt = torch.arange(length).chunk(pieces)
    return torch.cat([dealt[rank], dealt[2 * size - 1 - rank]]) if zigzag else dealt[rank]


def own_positions(batch: Batch, group: Group = None, zigzag: bool = True) -> Batch:
    """A rank's part of every sequence, padded on the right to a length that divides.

    Padding needs no mask: no real position sees what comes after it.

    Args:
        batch: `input_ids` and `labels` (B, T), padded on the right if at all.
    """
    rank, size = collectives.place(group)
    pieces = 2 * size if zigzag else size
    missing = -batch["input_ids"].shape[1] % pieces
    ids_BT = F.pad(batch["input_ids"], (0, missing))
    labels_BT = F.pad(batch["labels"], (0, missing), value=IGNORE_INDEX)
    own_T = positions(rank, size, ids_BT.shape[1], zigzag)
    where_BT = own_T.expand(len(ids_BT), -1)
    return {"input_ids": ids_BT[:, own_T], "labels": labels_BT[:, own_T], "position_ids": where_BT}


def _visible(rank: int, source: int, size: int, T: int, zigzag: bool) -> Tensor:
    """visible_TS: which keys of a visitor each own query may read."""
    query_T = positions(rank, size, T * size, zigzag)
    key_S = positions(source, size, T * size, zigzag)
    return query_T[:, None] >= key_S[None, :]


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, zigzag: bool, group: Group):
        rank, size = collectives.place(group)
        B, H, T, K = q_BHTK.shape
        groups = H // k_BGSK.shape[1]
        most_BHT1 = q_BHTK.new_full((B, H, T, 1), -math.inf)
        sum_BHT1 = q_BHTK.new_zeros(B, H, T, 1)
        out_BHTK = torch.zeros_like(q_BHTK)
        visitor = torch.stack([k_BGSK, v_BGSK])
        for step in range(size):
            visible_TS = _visible(rank, (rank - step) % size, size, T, zigzag)
            if visible_TS.any():
                k_BHSK, v_BHSK = visitor.repeat_interleave(groups, dim=2)
                scores_BHTS = (q_BHTK @ k_BHSK.mT * K**-0.5).masked_fill(~visible_TS, -math.inf)
                now_BHT1 = torch.maximum(most_BHT1, scores_BHTS.amax(dim=-1, keepdim=True))
                # A query that has seen no key yet has largest score -inf, and nothing to shrink.
                safe_BHT1 = now_BHT1.masked_fill(now_BHT1 == -math.inf, 0.0)
                shrink_BHT1 = (most_BHT1 - safe_BHT1).exp()
                p_BHTS = (scores_BHTS - safe_BHT1).exp()
                sum_BHT1 = sum_BHT1 * shrink_BHT1 + p_BHTS.sum(dim=-1, keepdim=True)
                out_BHTK = out_BHTK * shrink_BHT1 + p_BHTS @ v_BHSK
                most_BHT1 = now_BHT1
            if step < size - 1:
                visitor = collectives.shift(visitor, group=group)
        out_BHTK = out_BHTK / sum_BHT1
        ctx.save_for_backward(q_BHTK, k_BGSK, v_BGSK, out_BHTK, most_BHT1 + sum_BHT1.log())
        ctx.zigzag, ctx.group = zigzag, group
        return out_BHTK

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        q_BHTK, k_BGSK, v_BGSK, out_BHTK, log_sum_BHT1 = ctx.saved_tensors
        rank, size = collectives.place(ctx.group)
        (_, H, T, K), G = q_BHTK.shape, k_BGSK.shape[1]
        d_out_BHTK = gradients[0]
        mean_BHT1 = (d_out_BHTK * out_BHTK).sum(dim=-1, keepdim=True)
        dq_BHTK = torch.zeros_like(q_BHTK)
        visitor = torch.stack([k_BGSK, v_BGSK])
        its_gradient = torch.zeros_like(visitor)
        for step in range(size):
            visible_TS = _visible(rank, (rank - step) % size, size, T, ctx.zigzag)
            if visible_TS.any():
                k_BHSK, v_BHSK = visitor.repeat_interleave(H // G, dim=2)
                scores_BHTS = (q_BHTK @ k_BHSK.mT * K**-0.5).masked_fill(~visible_TS, -math.inf)
                p_BHTS = (scores_BHTS - log_sum_BHT1).exp()
                d_scores_BHTS = p_BHTS * (d_out_BHTK @ v_BHSK.mT - mean_BHT1) * K**-0.5
                dq_BHTK += d_scores_BHTS @ k_BHSK
                of_heads = torch.stack([d_scores_BHTS.mT @ q_BHTK, p_BHTS.mT @ d_out_BHTK])
                its_gradient += of_heads.unflatten(2, (G, H // G)).sum(dim=3)
            if step < size - 1:
                visitor = collectives.shift(visitor, group=ctx.group)
            if size > 1:
                its_gradient = collectives.shift(its_gradient, group=ctx.group)
        return dq_BHTK, *its_gradient, None, None


def ring_attention(
    q_BHTK: Float[Tensor, "B H T K"],
    k_BGTK: Float[Tensor, "B G T K"],
    v_BGTK: Float[Tensor, "B G T K"],
    zigzag: bool = True,
    group: Group = None,
) -> Float[Tensor, "B H T K"]:
    """Causal attention over the positions of all ranks, for the queries of this one.

    Args:
        q_BHTK, k_BGTK, v_BGTK: of this rank's `positions`; G divides H.
        zigzag: how positions are dealt.

    Cost: k and v sent N - 1 times forward; backward that again, and their gradients N times.
    """
    out = _RingAttention.apply(q_BHTK, k_BGTK, v_BGTK, zigzag, group)
    return out  # pyright: ignore[reportReturnType]


class RingHeads(nn.Module):
    """`MultiHeadAttention` whose keys and values go round the ring."""

    def __init__(self, layer: MultiHeadAttention, zigzag: bool = True, group: Group = None):
        super().__init__()
        self.qkv, self.out, self.zigzag, self.group = layer.qkv, layer.out, zigzag, group
        self.heads = layer.num_heads, layer.num_kv_heads, layer.num_kv_heads

    def forward(self, x_BTD: Tensor, mask: Any, causal: bool, rotary: Rotary | None, *_: Any):
        """Attend from x to the x of all ranks."""
        qkv_BNTK = self.qkv(x_BTD).unflatten(-1, (sum(self.heads), -1)).transpose(1, 2)
        q_BHTK, k_BGSK, v_BGSK = qkv_BNTK.split(self.heads, dim=1)
        if rotary is not None:
            cos, sin = (table.unsqueeze(-3) for table in rotary)
            q_BHTK, k_BGSK = rotate(q_BHTK, cos, sin), rotate(k_BGSK, cos, sin)
        out_BHTK = ring_attention(q_BHTK, k_BGSK, v_BGSK, self.zigzag, self.group)
        return self.out(out_BHTK.transpose(1, 2).flatten(2))


def context_parallel(model: Transformer, zigzag: bool = True, group: Group = None) -> Transformer:
    """Let every rank run a decoder on its own positions of each sequence. In place.

    Weights are copied, as in data parallel: feed it `own_positions`, and sum gradients over ranks.

    Raises:
        LabError: the model is no decoder without dropout.
    """
    head_of(model)
    for block in model.blocks:
        assert isinstance(block, Block)
        anything: Any = block
        anything.attention = RingHeads(block.attention, zigzag, group)
    return model
