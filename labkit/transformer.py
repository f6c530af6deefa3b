"""One Transformer: decoder (GPT-2, Llama) or encoder (BERT), from one config.

    input_ids_BT ──> embedding (+ positions, + token types) ──> x_BTD        the residual stream
                                                                  │
        ┌─────────────────────────────────────────────────────────┤
        │  pre-norm:   x += attention(norm(x));  x += ffn(norm(x))                 num_layers times
        │  post-norm:  x = norm(x + attention(x));  x = norm(x + ffn(x))
        └─────────────────────────────────────────────────────────┤
                                                                  │
       logits_BTV <── lm_head <── (encoder: transform) <── final norm (pre-norm only)
       logits_BC  <── classifier <── pool over the real tokens

Legend: B batch, T positions, D model width, F feed-forward width, V vocabulary, C classes.

Sources: Vaswani et al. 2017; Radford et al. 2019 (GPT-2: pre-norm, scaled initialisation); Devlin
et al. 2019 (BERT: post-norm, pooler, masked-LM transform); Touvron et al. 2023 (Llama: RMSNorm,
SwiGLU, rotary); Xiong et al. 2020 (pre- against post-norm); Zhang and Sennrich 2019 (RMSNorm);
Shazeer 2020 (SwiGLU).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from labkit.attention import (
    KVCache,
    MultiHeadAttention,
    Rotary,
    StackedLinear,
    causal_mask,
    document_mask,
    padding_mask,
    rotary_table,
    sinusoidal,
)
from labkit.errors import LabError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that decides a model's shape. `gpt2`, `llama` and `bert` give the known ones."""

    vocab_size: int
    """V, number of token ids, at least 1."""
    context_length: int
    """Longest sequence in tokens, at least 1."""
    d_model: int
    """D, width of the residual stream, a multiple of num_heads."""
    num_layers: int
    """Number of blocks, at least 1."""
    num_heads: int
    """H, query heads per layer."""
    num_kv_heads: int | None = None
    """Key/value heads per layer, a divisor of num_heads; None: num_heads."""
    d_ff: int | None = None
    """F, feed-forward width; None: 4 D, or 8/3 D rounded up to a multiple of 64 for swiglu."""
    kind: Literal["decoder", "encoder"] = "decoder"
    """decoder: each position sees the past; encoder: each position sees the whole sequence."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation."""
    norm_position: Literal["pre", "post"] = "pre"
    """pre: before each sublayer and at the end; post: after each sublayer and the embedding."""
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu"] = "gelu"
    """Feed-forward non-linearity; swiglu adds a third matrix, a gate."""
    position: Literal["learned", "rotary", "sinusoidal"] = "learned"
    """How a token knows where it stands."""
    bias: bool = True
    """Biases in the linear layers and in layernorm."""
    tied_embeddings: bool = True
    """The output projection is the embedding matrix."""
    dropout: float = 0.0
    """Probability in [0, 1) on embeddings, attention weights, sublayer outputs, pooled vector."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths, > 1."""
    norm_eps: float = 1e-5
    """Added under the root in the norms, > 0."""
    token_types: int = 0
    """Segment embeddings (BERT: 2); 0: none."""
    initializer_range: float = 0.02
    """Standard deviation of the first weights, > 0. 0.02 suits a width of 768 and more (GPT-2);
    1 / sqrt(d_model) is a good start for narrow models."""
    num_labels: int = 0
    """C, classes of the classification head; 0: a language model."""
    pooling: Literal["mean", "first"] = "mean"
    """Classification reads the mean of the real tokens, or the first one through BERT's pooler."""
    vocabulary_head: bool = True
    """A language-model head when num_labels is 0; False: hidden states only (logits are None)."""

    def __post_init__(self):
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(hint)
            if get_origin(hint) is Literal and value not in choices:
                raise LabError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
            low = 0 if name in ("token_types", "num_labels") else 1
            if int in (hint, *choices) and value is not None and value < low:
                raise LabError(f"{name} is {value}; it must be at least {low}")
        if self.d_model % self.num_heads:
            raise LabError(
                f"d_model is {self.d_model}; it must be a multiple of num_heads ({self.num_heads})"
            )
        if self.num_heads % self.kv_heads:
            raise LabError(
                f"num_kv_heads is {self.kv_heads}; it must divide num_heads ({self.num_heads})"
            )
        if self.position == "rotary" and self.head_width % 2:
            raise LabError(
                f"rotary positions rotate pairs, so d_model / num_heads ({self.head_width}) must be"
                " even; change num_heads"
            )
        if self.position == "sinusoidal" and self.d_model % 2:
            raise LabError(f"sinusoidal positions need an even d_model, not {self.d_model}")
        if not 0 <= self.dropout < 1:
            raise LabError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if self.rope_theta <= 1 or self.norm_eps <= 0:
            raise LabError(
                f"rope_theta ({self.rope_theta}) must be > 1 and norm_eps ({self.norm_eps}) > 0"
            )
        if not 0 < self.initializer_range < math.inf:
            raise LabError(f"initializer_range is {self.initializer_range}; it must be above 0")

    @property
    def head_width(self) -> int:
        """K = d_model / num_heads."""
        return self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        """G, num_kv_heads or its default."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def ffn_width(self) -> int:
        """F, d_ff or its default."""
        if self.d_ff is not None:
            return self.d_ff
        gated = self.activation == "swiglu"
        return 64 * math.ceil(8 * self.d_model / 3 / 64) if gated else 4 * self.d_model

    @property
    def has_lm_head(self) -> bool:
        """Whether `logits` are scores over the vocabulary."""
        return self.vocabulary_head and not self.num_labels

    @classmethod
    def gpt2(cls, **changes: Any) -> Self:
        """GPT-2 small (124 M parameters); `changes` replace any field."""
        shape = {
            "vocab_size": 50257,
            "context_length": 1024,
            "d_model": 768,
            "num_layers": 12,
            "num_heads": 12,
            "activation": "gelu_tanh",
            "dropout": 0.1,
        }
        return cls(**{**shape, **changes})

    @classmethod
    def llama(cls, **changes: Any) -> Self:
        """A small Llama (15 M parameters); `changes` replace any field."""
        shape = {
            "vocab_size": 32000,
            "context_length": 256,
            "d_model": 288,
            "num_layers": 6,
            "num_heads": 6,
            "norm": "rmsnorm",
            "activation": "swiglu",
            "position": "rotary",
            "bias": False,
        }
        return cls(**{**shape, **changes})

    @classmethod
    def bert(cls, **changes: Any) -> Self:
        """BERT base (110 M parameters); `changes` replace any field."""
        shape = {
            "vocab_size": 30522,
            "context_length": 512,
            "d_model": 768,
            "num_layers": 12,
            "num_heads": 12,
            "kind": "encoder",
            "norm_position": "post",
            "dropout": 0.1,
            "norm_eps": 1e-12,
            "token_types": 2,
            "pooling": "first",
        }
        return cls(**{**shape, **changes})


class Output(NamedTuple):
    """What a forward pass returns; a tuple, so that DDP and fully_shard find its tensors."""

    logits: Tensor | None
    """(B, T, V) scores of the vocabulary, or (B, C) of the classes; None without a head."""
    hidden: Tensor
    """(B, T, D) the residual stream after the last norm."""
    cache: KVCache | None = None
    """The cache that was passed in, grown by T positions."""


class _RMSNormFunction(torch.autograd.Function):
    """x·r·w with r = 1/√(mean(x²) + eps), and its backward pass, in as few passes as possible.

    dx = r (dy·w - n mean(dy·w·n)) and dw = Σ dy·n, with n = x·r.
    """

    @staticmethod
    def forward(ctx, x_ND, w_D, eps):
        norm_N1 = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True)
        r_N1 = norm_N1.square_().div_(x_ND.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_ND, w_D, r_N1)
        return (x_ND * r_N1).mul_(w_D)

    @staticmethod
    def backward(ctx, dy_ND):
        x_ND, w_D, r_N1 = ctx.saved_tensors
        n_ND = x_ND * r_N1
        product_ND = dy_ND * n_ND
        mean_N1 = (product_ND @ w_D).unsqueeze(-1) / x_ND.shape[-1]
        dx_ND = torch.addcmul(dy_ND * w_D, n_ND, mean_N1, value=-1).mul_(r_N1)
        return dx_ND, product_ND.flatten(0, -2).sum(0), None


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm; while training on a CPU in eager mode, 2 to 2.5 times faster.

    There torch (2.13) runs it as a chain of small operations; on a GPU, and compiled, it is fused.
    """

    def forward(self, x: Tensor) -> Tensor:
        chain = x.device.type == "cpu" and x.dtype == self.weight.dtype
        if chain and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _RMSNormFunction.apply(x, self.weight, self.eps)  # pyright: ignore[reportReturnType]
        return super().forward(x)


def make_norm(config: TransformerConfig) -> nn.Module:
    """LayerNorm (x - mean)/std·w + b, or RMSNorm x/rms·w, over the last dimension."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


class FeedForward(nn.Module):
    """D -> F -> D at each position alone: down(act(up(x))), or down(silu(gate(x)) * up(x)) for
    swiglu.

    swiglu's gate and up are one matrix product of width 2F: rows 0..F-1 are the gate.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gated = config.activation == "swiglu"
        width = config.ffn_width
        self.up = StackedLinear(config.d_model, (width,) * (1 + self.gated), config.bias)
        self.down = nn.Linear(width, config.d_model, bias=config.bias)
        self.activation = F.silu if self.gated else ACTIVATIONS[config.activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.gated:
            return self.down(self.activation(self.up(x_BTD)))
        gate_BTF, up_BTF = self.up(x_BTD).chunk(2, dim=-1)
        return self.down(self.activation(gate_BTF) * up_BTF)


class Block(nn.Module):
    """Attention moves information between positions, the feed-forward net works on each one."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.pre = config.norm_position == "pre"
        self.attention_norm = make_norm(config)
        self.attention = MultiHeadAttention(
            config.d_model, config.num_heads, config.kv_heads, config.bias, config.dropout
        )
        self.ffn_norm = make_norm(config)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        mask: Tensor | None,
        causal: bool,
        rotary: Rotary | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        seen = (mask, causal, rotary, cache, layer)
        if self.pre:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), *seen))
            return x_BTD + self.dropout(self.ffn(self.ffn_norm(x_BTD)))
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, *seen)))
        return self.ffn_norm(x_BTD + self.dropout(self.ffn(x_BTD)))


class MaskedLMTransform(nn.Module):
    """BERT's last step before the vocabulary: norm(act(dense(x)))."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.activation = ACTIVATIONS.get(config.activation, F.silu)
        self.norm = make_norm(config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x_BTD)))


class Transformer(nn.Module):
    """The model of `TransformerConfig`.

    `gradient_checkpointing = True` keeps only each block's input and recomputes the rest in the
    backward pass (Chen et al. 2016): about a third more compute, activations of one block instead
    of all.

    Args:
        config: The shape. Weights start as in GPT-2: N(0, initializer_range), the projections that
            write into the residual stream divided by sqrt(2·num_layers), biases 0, norms 1.
    """

    sines: Tensor
    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        D = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, D)
        self.positions = (
            nn.Embedding(config.context_length, D) if config.position == "learned" else None
        )
        self.token_types = nn.Embedding(config.token_types, D) if config.token_types else None
        if config.position == "sinusoidal":
            self.register_buffer("sines", sinusoidal(config.context_length, D), persistent=False)
        elif config.position == "rotary":
            cos, sin = rotary_table(config.context_length, config.head_width, config.rope_theta)
            self.register_buffer("rotary_cos", cos, persistent=False)
            self.register_buffer("rotary_sin", sin, persistent=False)
        post = config.norm_position == "post"
        self.embedding_norm = make_norm(config) if post else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
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
        into_stream = config.initializer_range / math.sqrt(2 * config.num_layers)
        for block in self.modules():
            if isinstance(block, Block):
                nn.init.normal_(block.attention.out.weight, std=into_stream)
                nn.init.normal_(block.ffn.down.weight, std=into_stream)
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
            cache: From `new_cache`; input_ids are then the next T tokens. It grows in place.

        Returns:
            Output(logits (B, T, V) or (B, C) or None, hidden (B, T, D), cache).

        Raises:
            LabError: The sequence is longer than context_length, or the masks do not fit.
        """
        hidden_BTD = self._hidden(
            input_ids, attention_mask, position_ids, document_ids, token_type_ids, cache
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
    ) -> Tensor:
        """What the vocabulary projection reads: `lm_head(encode(...))` are the logits of `forward`.

        For the chunked loss, which never holds all logits at once, and for embeddings. Arguments as
        in `forward`.

        Returns:
            hidden_BTD.
        """
        return self._head_input(
            self._hidden(input_ids, attention_mask, position_ids, document_ids, token_type_ids)
        )

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def get_output_embeddings(self) -> nn.Linear | None:
        """The vocabulary projection (its weight may be the embedding's), or None."""
        return self.lm_head

    def new_cache(self, batch_size: int, capacity: int | None = None) -> KVCache:
        """An empty cache for generation; `capacity` in positions, None: context_length."""
        weight = next(self.blocks.parameters())
        return KVCache(
            self.config.num_layers,
            batch_size,
            self.config.kv_heads,
            self.config.context_length if capacity is None else capacity,
            self.config.head_width,
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
    ) -> Tensor:
        self._check_input(input_ids, attention_mask, document_ids, cache)
        length, past = input_ids.shape[1], cache.length if cache else 0
        decoder = self.config.kind == "decoder"
        if position_ids is None and attention_mask is not None and decoder:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -length:]
        where = slice(past, past + length) if position_ids is None else position_ids

        x_BTD = self.embedding(input_ids)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions.weight[where]
        elif self.config.position == "sinusoidal":
            x_BTD = x_BTD + self.sines[where]
        if self.token_types is not None:
            kinds = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x_BTD = x_BTD + self.token_types(kinds)
        x_BTD = self.dropout(self.embedding_norm(x_BTD))

        rotary = None
        if self.config.position == "rotary":
            dtype = _compute_dtype(x_BTD)
            rotary = (self.rotary_cos[where].to(dtype), self.rotary_sin[where].to(dtype))
        mask, causal = _visible(input_ids, attention_mask, document_ids, past, decoder)
        for layer, block in enumerate(self.blocks):
            arguments = (x_BTD, mask, causal, rotary, cache, layer)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_BTD = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x_BTD = block(*arguments)
        if cache is not None:
            cache.advance(length)
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
        input_ids: Tensor,
        attention_mask: Tensor | None,
        document_ids: Tensor | None,
        cache: KVCache | None,
    ) -> None:
        batch, length = input_ids.shape
        total = length + (cache.length if cache else 0)
        if total > self.config.context_length:
            raise LabError(
                f"the sequence has {total} tokens and context_length is"
                f" {self.config.context_length}; shorten it or build a model with a longer context"
            )
        if attention_mask is not None and attention_mask.shape != (batch, total):
            raise LabError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; it must cover"
                f" every position so far, ({batch}, {total})"
            )
        if document_ids is not None and cache is not None:
            raise LabError("document_ids pack training sequences; a cache generates: give only one")
        if cache is not None and self.config.kind == "encoder":
            raise LabError("an encoder sees the whole sequence at once and has no use for a cache")


def blocks(model: nn.Module) -> nn.ModuleList:
    """The stack of layers of a labkit or `transformers` model: its longest `ModuleList`."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=len, default=nn.ModuleList())


def _visible(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    past: int,
    decoder: bool,
) -> tuple[Tensor | None, bool]:
    """The mask that attention needs, or None, and whether the plain causal kernel is enough."""
    length = input_ids.shape[1]
    parts = []
    if attention_mask is not None:
        parts.append(padding_mask(attention_mask))
    if document_ids is not None:
        parts.append(document_mask(document_ids))
    if decoder and length > 1 and (parts or past):
        parts.append(causal_mask(length, past + length, input_ids.device))
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
