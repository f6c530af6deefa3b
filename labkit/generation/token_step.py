"""One new token for each sequence, as few operations as possible: the inner loop of generation.

    ids_B ──> x_BD ──> every layer: norm, q k v, rotate, cache, attend, out, norm, ffn ──> logits_BV

The formulas are those of `transformer`, and a test holds the two together. What differs is the
layout. A step has B rows only, so it is not arithmetic that takes the time but reading every weight
once, calling Python and starting hundreds of small operations: rows instead of sequences, products
without modules, and weights that lie in memory the way in which such products read them. It is a
function of tensors alone, so that `torch.compile` can make one program of it.

Legend: B sequences, D model width, H heads, G key/value heads, K head width, S positions read,
V vocabulary.

Sources: Pope et al. 2022, arXiv:2211.05102, section 2 (what a step of decoding costs).
"""

import functools
import platform
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.attention import (
    MultiHeadAttention,
    StackedLinear,
    attention,
    causal_mask,
    padding_mask,
)
from labkit.models.kv_cache import KVCache
from labkit.models.layers import ACTIVATIONS, Block, FeedForward, make_norm
from labkit.models.positions import Rotary, rotate
from labkit.models.slot_cache import SlotCache, write_columns
from labkit.models.transformer import Transformer

FEWEST_ROWS = 4
"""To which fewer are filled up in a packed product."""
ROWS_PACKED_FOR = 8
"""What oneDNN is told to expect; others are multiplied as well."""


class _Product(NamedTuple):
    """x -> x·w + b, with w (inputs, outputs)."""

    w: Tensor
    b: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.w) if self.b is None else torch.addmm(self.b, x, self.w)


class _Packed(NamedTuple):
    """The same for several rows, w (outputs, inputs) as oneDNN packs it.

    Several rows need no weight more often than one, yet `torch.mm` took 3 times as long for 6 and
    almost 4 times for 16; with weights packed once 4 to 6 took as long as one, 16 less than twice
    (docs/LOG.md, chapter 20). 1 and 2 rows took longer than 4 and are filled up.
    """

    w: Tensor
    b: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        rows = len(x)
        if rows < FEWEST_ROWS:
            x = F.pad(x, (0, 0, 0, FEWEST_ROWS - rows))
        return torch.ops.mkldnn._linear_pointwise(x, self.w, self.b, "none", [], "")[:rows]


class _Norm(NamedTuple):
    """What `layers.make_norm` makes, as a function; no weight: the identity."""

    w: Tensor | None
    b: Tensor | None
    eps: float
    rms: bool

    def __call__(self, x: Tensor) -> Tensor:
        if self.w is None:
            return x
        if self.rms:
            return F.rms_norm(x, self.w.shape, self.w, self.eps)
        return F.layer_norm(x, self.w.shape, self.w, self.b, self.eps)


class _Layer(NamedTuple):
    attention_norm: _Norm
    qkv: _Product | _Packed
    out: _Product | _Packed
    ffn_norm: _Norm
    up: _Product | _Packed
    down: _Product | _Packed


class _Shape(NamedTuple):
    num_heads: int
    num_kv_heads: int
    head_width: int
    pre: bool
    activation: str


class _Decoder(NamedTuple):
    shape: _Shape
    embedding_VD: Tensor
    positions_TD: Tensor | None
    """Added to the embeddings: learned or sinusoidal."""
    rotary: Rotary | None
    """The whole table."""
    embedding_norm: _Norm
    layers: list[_Layer]
    final_norm: _Norm
    head: _Product | _Packed


def is_plain(model: Transformer) -> bool:
    """Whether a `TokenStep` computes what the model computes.

    Not if a layer was replaced or wrapped (a parametrisation, a quantised product), if somebody
    listens to a module with a hook (LoRA, adapters), or if a prompt or prefix stands before the
    text: a step calls no modules at all.
    """
    pre, norm = model.config.norm_position == "pre", type(make_norm(model.config))
    around = {
        "embedding": nn.Embedding,
        "positions": nn.Embedding if model.config.position == "learned" else type(None),
        "embedding_norm": nn.Identity if pre else norm,
        "final_norm": norm if pre else nn.Identity,
        "lm_head": nn.Linear,
    }
    in_block = {
        "attention_norm": norm,
        "attention": MultiHeadAttention,
        "attention.qkv": StackedLinear,
        "attention.out": nn.Linear,
        "ffn_norm": norm,
        "ffn": FeedForward,
        "ffn.up": StackedLinear,
        "ffn.down": nn.Linear,
    }

    def known(module: nn.Module, kinds: dict[str, type]) -> bool:
        return all(type(attrgetter(name)(module)) is kind for name, kind in kinds.items())

    heard = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    blocks = (
        type(block) is Block and not block.reads_source and known(block, in_block)
        for block in model.blocks
    )
    plain = model.before is None and not heard
    return known(model, around) and all(blocks) and plain


class TokenStep:
    """A decoder's forward pass for one new token of each sequence.

    The weights are those of the moment of construction: on a CPU in fp32 they are copied, each
    matrix as its products read it best (for one row transposed, for several packed by oneDNN);
    elsewhere they are only looked at.

    Args:
        model: A decoder with a language-model head for which `is_plain` holds.
        copy: False never copies, for a few tokens only.
        compile: Make one program of a step with torch.compile. The first step of a shape of model
            and number of sequences then takes 10 to 20 s; lengths and weights may change.
        several: The copy is for steps of several rows (`of_slots`, `of_block`, a batch).

    Raises:
        LabError: The model is not plain.
    """

    def __init__(
        self,
        model: Transformer,
        copy: bool = True,
        compile: bool = False,
        several: bool = False,
    ):
        if not is_plain(model):
            raise LabError(
                "a layer of the model was replaced or has a hook: call the model itself, with its"
                " cache"
            )
        self.decoder = _flattened(model, copy, several and not compile and _packs())
        self.compile = compile

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
        held = [cache.extended(layer, 1) for layer in range(len(self.decoder.layers))]
        if self.compile and mask_BS is None:  # one program for texts with and without padding
            mask_BS = ids_B.new_ones(len(ids_B), cache.length + 1)
        places_B, mask_B11S = torch.full_like(ids_B, cache.length), None
        if mask_BS is not None:
            places_B, mask_B11S = mask_BS.sum(1) - 1, padding_mask(mask_BS)
        step = _read_token
        if self.compile:
            step = _compiled()
            for tensor in (tensor for pair in held for tensor in pair):
                torch._dynamo.mark_dynamic(tensor, 2)
            torch._dynamo.mark_dynamic(mask_B11S, 3)
        logits_BV = step(self.decoder, ids_B, places_B, mask_B11S, held)
        cache.advance(1)
        return logits_BV

    @torch.inference_mode()
    def of_slots(self, ids_B: Tensor, cache: SlotCache) -> Tensor:
        """Read one token of each text in a `SlotCache`, at its own place; logits_BV of the next.

        Never compiled: the number of texts changes from step to step.
        """
        held = [cache.extended(layer, 1) for layer in range(len(self.decoder.layers))]
        places_B, mask_B11S = cache.places(), padding_mask(cache.mask())
        logits_BV = _read_token(self.decoder, ids_B, places_B, mask_B11S, held, places_B)
        cache.advance(1)
        return logits_BV

    @torch.inference_mode()
    def of_block(self, ids_T: Tensor, cache: KVCache) -> Tensor:
        """Read the next T tokens of one text, as rows of the same products; logits_TV.

        For a few tokens whose logits are all wanted, as in speculative decoding. Never compiled.
        """
        T, past = len(ids_T), cache.length
        held = [cache.extended(layer, T) for layer in range(len(self.decoder.layers))]
        places_T = torch.arange(past, past + T, device=ids_T.device)
        mask_TS = causal_mask(T, past + T, ids_T.device)
        logits_TV = _read_token(self.decoder, ids_T, places_T, mask_TS, held, block=True)
        cache.advance(T)
        return logits_TV


def _packs() -> bool:
    """Whether oneDNN is there, on the processors on which this was measured."""
    return torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


def _flattened(model: Transformer, copy: bool, pack: bool) -> _Decoder:
    config = model.config

    def product(linear: Any) -> _Product | _Packed:
        w = linear.weight.detach()
        columns = copy and w.device.type == "cpu" and w.dtype == torch.float32
        bias = None if linear.bias is None else linear.bias.detach()
        if columns and pack:
            return _Packed(torch.ops.mkldnn._reorder_linear_weight(w, ROWS_PACKED_FOR), bias)
        return _Product(w.t().contiguous() if columns else w.t(), bias)

    def norm(module: Any) -> _Norm:
        w, b = (getattr(module, name, None) for name in ("weight", "bias"))
        w, b = (None if t is None else t.detach() for t in (w, b))
        return _Norm(w, b, config.norm_eps, config.norm == "rmsnorm")

    positions = None if model.positions is None else model.positions.weight.detach()
    if config.position == "sinusoidal":
        positions = model.sines
    rotary = (model.rotary_cos, model.rotary_sin) if config.position == "rotary" else None
    blocks: Any = model.blocks
    return _Decoder(
        _Shape(
            config.num_heads,
            config.kv_heads,
            config.head_width,
            config.norm_position == "pre",
            config.activation,
        ),
        model.embedding.weight.detach(),
        positions,
        rotary,
        norm(model.embedding_norm),
        [
            _Layer(
                norm(block.attention_norm),
                product(block.attention.qkv),
                product(block.attention.out),
                norm(block.ffn_norm),
                product(block.ffn.up),
                product(block.ffn.down),
            )
            for block in blocks
        ],
        norm(model.final_norm),
        product(model.lm_head),
    )


def _read_token(
    decoder: _Decoder,
    ids_B: Tensor,
    places_B: Tensor,
    mask_B11S: Tensor | None,
    held: list[tuple[Tensor, Tensor]],
    columns_B: Tensor | None = None,
    block: bool = False,
) -> Tensor:
    """logits_BV. `held`: keys and values of each layer (B, G, S, K), a column to be written:
    `columns_B`, or the last of all rows."""
    x_BD = decoder.embedding_VD[ids_B]
    if decoder.positions_TD is not None:
        x_BD = x_BD + decoder.positions_TD[places_B]
    x_BD = decoder.embedding_norm(x_BD)
    turn = None
    if decoder.rotary is not None:
        cos_TK, sin_TK = decoder.rotary
        turn = (cos_TK[places_B].unsqueeze(1), sin_TK[places_B].unsqueeze(1))
    for layer, kept in zip(decoder.layers, held, strict=True):
        x_BD = _read_layer(decoder.shape, layer, x_BD, turn, mask_B11S, *kept, columns_B, block)
    return decoder.head(decoder.final_norm(x_BD))


def _read_layer(
    shape: _Shape,
    layer: _Layer,
    x_BD: Tensor,
    turn: Rotary | None,
    mask_B11S: Tensor | None,
    keys_BGSK: Tensor,
    values_BGSK: Tensor,
    columns_B: Tensor | None,
    block: bool,
) -> Tensor:
    H, G, K = shape.num_heads, shape.num_kv_heads, shape.head_width
    h_BD = layer.attention_norm(x_BD) if shape.pre else x_BD
    qkv_BNK = layer.qkv(h_BD).view(-1, H + 2 * G, K)
    qk_BNK, v_BGK = qkv_BNK.split((H + G, G), dim=1)
    if turn is not None:
        qk_BNK = rotate(qk_BNK, *turn)
    q_BHK, k_BGK = qk_BNK.split((H, G), dim=1)
    if block:  # the rows are positions of one text
        q_BHTK, k_BGTK, v_BGTK = (it.transpose(0, 1)[None] for it in (q_BHK, k_BGK, v_BGK))
        keys_BGSK.narrow(2, -len(x_BD), len(x_BD)).copy_(k_BGTK)
        values_BGSK.narrow(2, -len(x_BD), len(x_BD)).copy_(v_BGTK)
        out_BHK = attention(q_BHTK, keys_BGSK, values_BGSK, mask_B11S)[0].transpose(0, 1)
    else:
        for kept_BGSK, new_BGK in ((keys_BGSK, k_BGK), (values_BGSK, v_BGK)):
            if columns_B is None:
                kept_BGSK.select(2, -1).copy_(new_BGK)
            else:
                write_columns(kept_BGSK, columns_B, new_BGK)
        out_BHK = attention(q_BHK.unsqueeze(2), keys_BGSK, values_BGSK, mask_B11S)
    x_BD = x_BD + layer.out(out_BHK.reshape(-1, H * K))
    if not shape.pre:
        x_BD = layer.attention_norm(x_BD)

    h_BF = layer.up(layer.ffn_norm(x_BD) if shape.pre else x_BD)
    if shape.activation == "swiglu":
        gate_BF, up_BF = h_BF.chunk(2, dim=-1)
        h_BF = F.silu(gate_BF).mul_(up_BF)
    else:
        h_BF = ACTIVATIONS[shape.activation](h_BF)
    x_BD = x_BD + layer.down(h_BF)
    return x_BD if shape.pre else layer.ffn_norm(x_BD)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    # Static: a second model must not make the widths of the first variable. Lengths are marked.
    return torch.compile(_read_token, dynamic=False)
