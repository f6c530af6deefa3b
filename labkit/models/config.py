"""The shape of a Transformer: one config for GPT-2, Llama, BERT and BART.

    TransformerConfig.gpt2()    decoder          pre-norm   LayerNorm  GELU    learned positions
    TransformerConfig.llama()   decoder          pre-norm   RMSNorm    SwiGLU  rotary positions
    TransformerConfig.bert()    encoder          post-norm  LayerNorm  GELU    learned positions
    TransformerConfig.bart()    encoder-decoder  post-norm  LayerNorm  GELU    learned positions

Every field is a choice of its own: `dataclasses.replace(config, norm="rmsnorm")` is a model, too.

Sources: Vaswani et al. 2017; Radford et al. 2019 (GPT-2); Devlin et al. 2019 (BERT); Lewis et al.
2020 (BART); Touvron et al. 2023 (Llama).
"""

import math
import sys
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from labkit.errors import LabError


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that decides a model's shape; `gpt2`, `llama`, `bert`, `bart` give known ones."""

    vocab_size: int
    """V, number of token ids, at least 1."""
    context_length: int
    """Longest sequence in tokens, at least 1."""
    d_model: int
    """D, width of the residual stream, a multiple of num_heads unless d_head is given."""
    num_layers: int
    """Number of blocks, at least 1; an encoder-decoder has as many on either side."""
    num_heads: int
    """H, query heads per layer."""
    num_kv_heads: int | None = None
    """Key/value heads per layer, a divisor of num_heads; None: num_heads."""
    d_ff: int | None = None
    """F, feed-forward width; None: 4 D, or 8/3 D rounded up to a multiple of 64 for swiglu."""
    d_head: int | None = None
    """K, width of a head; None: d_model / num_heads. Another one where heads were pruned."""
    kind: Literal["decoder", "encoder", "encoder_decoder"] = "decoder"
    """decoder: each position sees the past; encoder: each position sees the whole sequence;
    encoder_decoder: a decoder that also reads what an encoder made of a source."""
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
        if self.d_head is None and self.d_model % self.num_heads:
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
        if self.kind == "encoder_decoder" and (self.num_labels or self.token_types):
            raise LabError(
                f"num_labels is {self.num_labels} and token_types {self.token_types}; both must be"
                " 0 in an encoder_decoder: take kind='encoder' to classify or to mark segments"
            )
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
        """K, d_head or its default."""
        return self.d_model // self.num_heads if self.d_head is None else self.d_head

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

    @classmethod
    def bart(cls, **changes: Any) -> Self:
        """BART base (139 M parameters); `changes` replace any field."""
        shape = {
            "vocab_size": 50265,
            "context_length": 1024,
            "d_model": 768,
            "num_layers": 6,
            "num_heads": 12,
            "kind": "encoder_decoder",
            "norm_position": "post",
            "dropout": 0.1,
        }
        return cls(**{**shape, **changes})


def context_length(model: Any) -> int:
    """The longest sequence that a labkit or transformers model reads, in tokens.

    A model without a config, or whose config names no limit, reads any length: `sys.maxsize`. What
    a learned prompt or prefix takes (`adapting.prompts`) is not there for the text.
    """
    config = getattr(model, "config", None)
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    learned = getattr(getattr(base, "before", None), "length", 0)
    for name in ("context_length", "max_position_embeddings", "n_positions"):
        if isinstance(length := getattr(config, name, None), int):
            return length - learned
    return sys.maxsize
