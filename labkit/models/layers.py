"""The parts of a Transformer: norms, the feed-forward net, and the block that joins them.

    x_BTD ─┬────────────────────────────> + ─┬──────────────────────> + ──> x_BTD   residual stream
           └─> norm ──> attention ────────┘  └─> norm ──> ffn ────────┘             pre-norm

           x = norm(x + attention(x));  x = norm(x + ffn(x))                        post-norm

A block that reads a source has a third sublayer, cross-attention, between the two.

Legend: B batch, T positions, N any number of positions, D model width, F feed-forward width.

Sources: Ba et al. 2016 (LayerNorm); Zhang and Sennrich 2019 (RMSNorm); Hendrycks and Gimpel 2016
(GELU); Shazeer 2020 (SwiGLU); Xiong et al. 2020 (pre- against post-norm).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.models.attention import CrossAttention, MultiHeadAttention, Source, StackedLinear
from labkit.models.config import TransformerConfig
from labkit.models.dropout import Dropout
from labkit.models.kv_cache import KVCache
from labkit.models.positions import Rotary

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


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
        x = x.to(self.weight.dtype)  # under autocast x may come from a product in 16 bits
        chain = x.device.type == "cpu"
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
    """Attention moves information between positions, the feed-forward net works on each one.

    Args:
        config: The shape.
        cross_attention: Add a sublayer that reads a source (the decoder of an encoder-decoder).
    """

    def __init__(self, config: TransformerConfig, cross_attention: bool = False):
        super().__init__()
        self.pre = config.norm_position == "pre"
        heads = (config.d_model, config.num_heads, config.kv_heads, config.bias, config.dropout,
                 config.head_width)  # fmt: skip
        self.attention_norm = make_norm(config)
        self.attention = MultiHeadAttention(*heads)
        if cross_attention:
            self.cross_norm = make_norm(config)
            self.cross_attention = CrossAttention(*heads)
        self.reads_source = cross_attention
        self.ffn_norm = make_norm(config)
        self.ffn = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        mask: Tensor | None,
        causal: bool,
        rotary: Rotary | None,
        cache: KVCache | None,
        layer: int,
        source: Source | None = None,
    ) -> Tensor:
        x_BTD = self._add(
            x_BTD, self.attention_norm, self.attention, mask, causal, rotary, cache, layer
        )
        if self.reads_source:
            x_BTD = self._add(x_BTD, self.cross_norm, self.cross_attention, source, cache, layer)
        return self._add(x_BTD, self.ffn_norm, self.ffn)

    def _add(self, x_BTD: Tensor, norm: nn.Module, sublayer: nn.Module, *inputs: object) -> Tensor:
        if self.pre:
            return x_BTD + self.dropout(sublayer(norm(x_BTD), *inputs))
        return norm(x_BTD + self.dropout(sublayer(x_BTD, *inputs)))


class MaskedLMTransform(nn.Module):
    """BERT's last step before the vocabulary: norm(act(dense(x)))."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.activation = ACTIVATIONS.get(config.activation, F.silu)
        self.norm = make_norm(config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x_BTD)))
