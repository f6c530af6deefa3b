"""One new token for each sequence, as few operations as possible: the inner loop of generation.

    ids_B ──> x_BD ──> every layer: norm, q k v, rotate, cache, attend, out, norm, ffn ──> logits_BV

The formulas are those of `transformer`, and a test holds the two together. What differs is the
layout. A step has B rows only, so it is not arithmetic that takes the time but reading every weight
once, calling Python and starting hundreds of small operations: rows instead of sequences, products
without modules, and weights that lie in memory the way in which such products read them.

Legend: B sequences, D model width, H heads, G key/value heads, K head width, V vocabulary.

Sources: Pope et al. 2022, arXiv:2211.05102, section 2 (what a step of decoding costs).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.attention import attention
from labkit.cache import KVCache
from labkit.layers import Block
from labkit.positions import rotate
from labkit.transformer import Transformer


class _Product(NamedTuple):
    """x -> x·w + b, with w (inputs, outputs)."""

    w: Tensor
    b: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.w) if self.b is None else torch.addmm(self.b, x, self.w)


class _Layer(NamedTuple):
    block: Block
    qkv: _Product
    out: _Product
    up: _Product
    down: _Product


class TokenStep:
    """A decoder's forward pass for one new token of each sequence.

    The weights are those of the moment of construction: on a CPU in fp32 they are copied, each
    matrix transposed, so that a step reads it from end to end; elsewhere they are only looked at.

    Args:
        model: A decoder with a language-model head, that reads no source.
        copy: False never copies, for a few tokens only.
    """

    def __init__(self, model: Transformer, copy: bool = True):
        def product(linear: nn.Linear) -> _Product:
            w = linear.weight.detach()
            columns = copy and w.device.type == "cpu" and w.dtype == torch.float32
            bias = None if linear.bias is None else linear.bias.detach()
            return _Product(w.t().contiguous() if columns else w.t(), bias)

        assert model.lm_head is not None
        self.model = model
        self.head = product(model.lm_head)
        self.layers = [
            _Layer(
                block,
                product(block.attention.qkv),
                product(block.attention.out),
                product(block.ffn.up),
                product(block.ffn.down),
            )
            for block in model.blocks
            if isinstance(block, Block)
        ]

    @torch.inference_mode()
    def __call__(self, ids_B: Tensor, cache: KVCache, mask_BS: Tensor | None = None) -> Tensor:
        """Read one token of each sequence; the cache grows by it.

        Args:
            ids_B: The tokens.
            cache: Holds the positions before them.
            mask_BS: 1 = real, 0 = padding, over all positions with the new one; None: all real.

        Returns:
            logits_BV of the next token.
        """
        model = self.model
        places: slice | Tensor = slice(cache.length, cache.length + 1)
        mask = None
        if mask_BS is not None:
            places, mask = mask_BS.sum(1) - 1, mask_BS.bool()[:, None, None, :]
        x_BD = model.embedding.weight[ids_B]
        if model.positions is not None:
            x_BD = x_BD + model.positions.weight[places]
        elif model.config.position == "sinusoidal":
            x_BD = x_BD + model.sines[places]
        x_BD = model.embedding_norm(x_BD)
        turn = None
        if model.config.position == "rotary":
            turn = (model.rotary_cos[places].unsqueeze(1), model.rotary_sin[places].unsqueeze(1))
        for number, layer in enumerate(self.layers):
            x_BD = self._layer(layer, number, x_BD, turn, cache, mask)
        cache.advance(1)
        return self.head(model.final_norm(x_BD))

    def _layer(
        self,
        layer: _Layer,
        number: int,
        x_BD: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        cache: KVCache,
        mask: Tensor | None,
    ) -> Tensor:
        block = layer.block
        attend = block.attention
        H, G, K = attend.num_heads, attend.num_kv_heads, attend.head_width

        h_BD = block.attention_norm(x_BD) if block.pre else x_BD
        qkv_BNK = layer.qkv(h_BD).view(-1, H + 2 * G, K)
        qk_BNK, v_BGK = qkv_BNK.split((H + G, G), dim=1)
        if turn is not None:
            qk_BNK = rotate(qk_BNK, *turn)
        q_BHK, k_BGK = qk_BNK.split((H, G), dim=1)
        k_BGSK, v_BGSK = cache.append(number, k_BGK.unsqueeze(2), v_BGK.unsqueeze(2))
        out_BHK = attention(q_BHK.unsqueeze(2), k_BGSK, v_BGSK, mask)
        x_BD = x_BD + layer.out(out_BHK.reshape(-1, H * K))
        if not block.pre:
            x_BD = block.attention_norm(x_BD)

        h_BD = layer.up(block.ffn_norm(x_BD) if block.pre else x_BD)
        if block.ffn.gated:
            gate_BF, up_BF = h_BD.chunk(2, dim=-1)
            h_BD = F.silu(gate_BF).mul_(up_BF)
        else:
            h_BD = block.ffn.activation(h_BD)
        x_BD = x_BD + layer.down(h_BD)
        return x_BD if block.pre else block.ffn_norm(x_BD)
