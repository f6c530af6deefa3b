"""The models: a decoder (GPT-2, Llama) or an encoder (BERT), from one config.

    input_ids_BT ──> embedding (+ positions, + token types) ──> x_BTD        the residual stream
                                                                  │
                                             num_layers blocks: attention, feed-forward (`layers`)
                                                                  │
       logits_BTV <── lm_head <── (encoder: transform) <── final norm (pre-norm only)
       logits_BC  <── classifier <── pool over the real tokens

Legend: B batch, T positions, S source positions, D model width, V vocabulary, C classes.

Sources: Vaswani et al. 2017; Radford et al. 2019 (GPT-2: pre-norm, scaled initialisation); Devlin
et al. 2019 (BERT: post-norm, pooler, masked-LM transform); Touvron et al. 2023 (Llama).
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from labkit.errors import LabError
from labkit.models.attention import Source, causal_mask, document_mask, padding_mask
from labkit.models.config import TransformerConfig
from labkit.models.dropout import Dropout
from labkit.models.kv_cache import KVCache
from labkit.models.layers import Block, FeedForward, MaskedLMTransform, RMSNorm, make_norm
from labkit.models.positions import rotary_table, sinusoidal
from labkit.models.slot_cache import SlotCache

__all__ = [
    "Block",
    "FeedForward",
    "Output",
    "RMSNorm",
    "Transformer",
    "TransformerConfig",
    "blocks",
    "make_norm",
]


class Output(NamedTuple):
    """What a forward pass returns; a tuple, so that DDP and fully_shard find its tensors."""

    logits: Tensor | None
    """(B, T, V) scores of the vocabulary, or (B, C) of the classes; None without a head."""
    hidden: Tensor
    """(B, T, D) the residual stream after the last norm."""
    cache: KVCache | None = None
    """The cache that was passed in, grown by T positions."""


class Transformer(nn.Module):
    """The model of `TransformerConfig`.

    `gradient_checkpointing = True` keeps only each block's input and recomputes the rest in the
    backward pass (Chen et al. 2016): about a third more compute, activations of one block instead
    of all.

    Args:
        config: The shape; its kind is decoder or encoder (`encoder_decoder` joins one of each).
        cross_attention: Each block of a decoder also reads a source.

    Weights start as in GPT-2: N(0, initializer_range), the projections that write into the residual
    stream divided by the root of their number, biases 0, norms 1.

    Raises:
        LabError: kind is encoder_decoder.
    """

    sines: Tensor
    rotary_cos: Tensor
    rotary_sin: Tensor
    before: nn.Module | None
    """What every text is read after: a learned prompt or prefix (`adapting.prompts`), or None."""

    def __init__(self, config: TransformerConfig, cross_attention: bool = False):
        super().__init__()
        if config.kind == "encoder_decoder":
            raise LabError(
                "kind is 'encoder_decoder'; a Transformer is a decoder or an encoder: build"
                " encoder_decoder.EncoderDecoder(config), which joins both"
            )
        self.config = config
        self.gradient_checkpointing = False
        self.register_module("before", None)
        D = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, D)
        self.positions = (
            nn.Embedding(config.context_length, D) if config.position == "learned" else None
        )
        self.token_types = nn.Embedding(config.token_types, D) if config.token_types else None
        post = config.norm_position == "post"
        self.embedding_norm = make_norm(config) if post else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config, cross_attention) for _ in range(config.num_layers)
        )
        self.final_norm = nn.Identity() if post else make_norm(config)

        encoder = config.kind == "encoder"
        self.transform = MaskedLMTransform(config) if encoder and config.has_lm_head else None
        self.lm_head = None
        if config.has_lm_head:
            self.lm_head = nn.Linear(D, config.vocab_size, bias=encoder and config.bias)
        pooled = config.num_labels and config.pooling == "first"
        self.pooler = nn.Linear(D, D) if pooled else None
        self.classifier = nn.Linear(D, config.num_labels) if config.num_labels else None

        self.apply(self._initialise)
        sublayers = (3 if cross_attention else 2) * config.num_layers
        into_stream = config.initializer_range / math.sqrt(sublayers)
        for block in self.modules():
            if isinstance(block, Block):
                nn.init.normal_(block.attention.out.weight, std=into_stream)
                if block.reads_source:
                    nn.init.normal_(block.cross_attention.out.weight, std=into_stream)
                nn.init.normal_(block.ffn.down.weight, std=into_stream)
        self.rebuild()

    def rebuild(self) -> None:
        """Compute what is no weight, and tie what is tied: after weights came in from outside."""
        config = self.config
        if config.position == "sinusoidal":
            table = sinusoidal(config.context_length, config.d_model)
            self.register_buffer("sines", table, persistent=False)
        elif config.position == "rotary":
            cos, sin = rotary_table(config.context_length, config.head_width, config.rope_theta)
            self.register_buffer("rotary_cos", cos, persistent=False)
            self.register_buffer("rotary_sin", sin, persistent=False)
        if self.lm_head is not None and config.tied_embeddings:
            self.lm_head.weight = self.embedding.weight

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        cache: KVCache | None = None,
        source: Source | None = None,
    ) -> Output:
        """Token ids to logits.

        Args:
            input_ids: (B, T) token ids in [0, V).
            attention_mask: (B, T), 1 = real, 0 = padding; with a cache (B, past + T). None: all
                real.
            position_ids: (B, T) in [0, context_length). None: 0, 1, 2, ...; a decoder counts real
                tokens only, so that left padding changes nothing.
            document_ids: (B, T) document of each token: attention stays inside a document. Give
                position_ids with it.
            token_type_ids: (B, T) segment of each token; None: 0.
            cache: From `new_cache`; input_ids are then the next T tokens. It grows in place. Or
                from `new_slots`: then T = 1, with its mask and places.
            source: What cross-attention reads.

        Returns:
            Output(logits (B, T, V) or (B, C) or None, hidden (B, T, D), cache).

        Raises:
            LabError: The sequence is longer than context_length, or the masks do not fit.
        """
        if cache is not None and self.config.kind == "encoder":
            raise LabError("an encoder sees the whole sequence at once and has no use for a cache")
        hidden_BTD = self._hidden(
            input_ids, attention_mask, position_ids, document_ids, token_type_ids, cache, source
        )
        if self.classifier is not None:
            logits = self.classifier(self.dropout(self._pool(hidden_BTD, attention_mask)))
        elif self.lm_head is not None:
            logits = self.lm_head(self._head_input(hidden_BTD))
        else:
            logits = None
        return Output(logits, hidden_BTD, cache)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        source: Source | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """What the vocabulary projection reads: `lm_head(encode(...))` are the logits of `forward`.

        For whoever needs few logits of many positions (the chunked loss, the score of a choice),
        and for embeddings. Arguments as in `forward`.

        Returns:
            hidden_BTD.
        """
        return self._head_input(
            self._hidden(
                input_ids, attention_mask, position_ids, document_ids, token_type_ids, cache, source
            )
        )

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def get_output_embeddings(self) -> nn.Linear | None:
        """The vocabulary projection (its weight may be the embedding's), or None."""
        return self.lm_head

    def new_cache(self, batch_size: int, capacity: int | None = None) -> KVCache:
        """An empty cache for generation; `capacity` in positions, None: context_length."""
        weight = next(self.blocks.parameters())
        room = None if capacity is None else capacity + _learned(self.before)
        return KVCache(
            self.config.num_layers,
            batch_size,
            self.config.kv_heads,
            self.config.context_length if room is None else room,
            self.config.head_width,
            dtype=_compute_dtype(weight),
            device=weight.device,
        )

    def new_slots(self, slots: int, capacity: int) -> SlotCache:
        """An empty cache for `slots` texts that come and go, each of up to `capacity` positions."""
        weight, config = next(self.blocks.parameters()), self.config
        return SlotCache(
            config.num_layers,
            slots,
            config.kv_heads,
            capacity,
            config.head_width,
            dtype=_compute_dtype(weight),
            device=weight.device,
        )

    def _hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        document_ids: Tensor | None,
        token_type_ids: Tensor | None,
        cache: KVCache | None = None,
        source: Source | None = None,
    ) -> Tensor:
        x_BTD = self.embedding(input_ids)
        if self.before is not None:
            x_BTD, attention_mask, position_ids, cache = self.before(
                x_BTD, attention_mask, position_ids, cache
            )
        self._check_input(x_BTD, attention_mask, document_ids, cache)
        length, past = x_BTD.shape[1], cache.length if cache else 0
        decoder = self.config.kind == "decoder"
        if position_ids is None and attention_mask is not None and decoder:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -length:]
        where = slice(past, past + length) if position_ids is None else position_ids

        if self.positions is not None:
            x_BTD = x_BTD + self.positions.weight[where]
        elif self.config.position == "sinusoidal":
            x_BTD = x_BTD + self.sines[where]
        if self.token_types is not None:
            kinds = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            if length > kinds.shape[1]:
                kinds = F.pad(kinds, (length - kinds.shape[1], 0))
            x_BTD = x_BTD + self.token_types(kinds)
        x_BTD = self.dropout(self.embedding_norm(x_BTD))

        rotary = None
        if self.config.position == "rotary":
            dtype = _compute_dtype(x_BTD)
            rotary = (self.rotary_cos[where].to(dtype), self.rotary_sin[where].to(dtype))
        mask, causal = _visible(x_BTD, attention_mask, document_ids, past, decoder)
        for layer, block in enumerate(self.blocks):
            arguments = (x_BTD, mask, causal, rotary, cache, layer, source)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_BTD = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x_BTD = block(*arguments)
        if cache is not None:
            cache.advance(length)
        if length > input_ids.shape[1] and self.pooler is None:
            # Nothing is predicted at a prompt; a pooler reads the first position, as in `peft`.
            x_BTD = x_BTD[:, -input_ids.shape[1] :]
        return self.final_norm(x_BTD)

    def _head_input(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD if self.transform is None else self.transform(hidden_BTD)

    def _pool(self, hidden_BTD: Tensor, attention_mask_BT: Tensor | None) -> Tensor:
        if self.pooler is not None:
            return torch.tanh(self.pooler(hidden_BTD[:, 0]))
        if attention_mask_BT is None:
            return hidden_BTD.mean(dim=1)
        real_BT1 = attention_mask_BT.unsqueeze(-1).to(hidden_BTD.dtype)
        return (hidden_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp(min=1)

    def _check_input(
        self,
        x_BTD: Tensor,
        attention_mask: Tensor | None,
        document_ids: Tensor | None,
        cache: KVCache | None,
    ) -> None:
        batch, length = x_BTD.shape[:2]
        total = length + (cache.length if cache else 0)
        if total > self.config.context_length:
            learned = _learned(self.before)
            raise LabError(
                f"the sequence has {total} tokens{f', {learned} of them learned,' * bool(learned)}"
                f" and context_length is {self.config.context_length}; shorten it or build a model"
                " with a longer context"
            )
        if attention_mask is not None and attention_mask.shape != (batch, total):
            raise LabError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; it must cover"
                f" every position so far, ({batch}, {total})"
            )
        if document_ids is not None and cache is not None:
            raise LabError("document_ids pack training sequences; a cache generates: give only one")
        if self.before is not None and document_ids is not None:
            raise LabError("document_ids pack sequences, a prompt or prefix stands before each one")


def blocks(model: nn.Module) -> nn.ModuleList:
    """The stack of layers of a labkit or `transformers` model.

    Of an encoder-decoder the encoder's layers, then the decoder's. Of a model that is not ours, its
    longest `ModuleList`.
    """
    ours = [module.blocks for module in model.modules() if isinstance(module, Transformer)]
    if len(ours) == 1:
        return ours[0]
    if ours:
        return nn.ModuleList(block for stack in ours for block in stack)
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=len, default=nn.ModuleList())


def _learned(before: Any) -> int:
    """Positions that a prompt or prefix takes."""
    return 0 if before is None else before.length


def _visible(
    x_BTD: Tensor,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    past: int,
    decoder: bool,
) -> tuple[Tensor | None, bool]:
    """The mask that attention needs, or None, and whether the plain causal kernel is enough."""
    length = x_BTD.shape[1]
    parts = []
    if attention_mask is not None:
        parts.append(padding_mask(attention_mask))
    if document_ids is not None:
        parts.append(document_mask(document_ids))
    if decoder and length > 1 and (parts or past):
        parts.append(causal_mask(length, past + length, x_BTD.device))
    if not parts:
        return None, decoder and length > 1
    mask = parts[0]
    for part in parts[1:]:
        mask = mask & part
    return mask, False


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which matrix products run here: autocast's, or the tensor's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
