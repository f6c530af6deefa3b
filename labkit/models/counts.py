"""Parameters and FLOPs, predicted from a config by the formulas of `transformer`, and counted.

    config ──> parameters ──> FLOPs of the matrix products: forward 2, training 6 for each weight
                              and token, and the attention scores beside them

The tests hold prediction and count together exactly.

Legend: N = B·T tokens, S source tokens, D model width, F feed-forward width, V vocabulary, H heads.

Sources: Kaplan et al. 2020, section 2.1 (6 FLOPs); Chowdhery et al. 2022, appendix B (utilisation).
"""

from collections.abc import Callable

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from labkit.errors import LabError
from labkit.models.config import TransformerConfig

# Parameters


def parameters_by_part(config: TransformerConfig) -> dict[str, int]:
    """Trainable numbers of each part; a tied output projection counts once, as embedding.

    Args:
        config: The shape.

    Returns:
        {"embedding", "positions", "attention", "feed_forward", "norms", "head"} -> count; an
        encoder-decoder also has "cross_attention".
    """
    D, bias, layers = config.d_model, int(config.bias), config.num_layers
    stacks = 2 if config.kind == "encoder_decoder" else 1
    norm = D * (1 if config.norm == "rmsnorm" else 1 + bias)
    head = 0
    if config.num_labels:
        head = (D + 1) * config.num_labels + (D * D + D if config.pooling == "first" else 0)
    elif config.vocabulary_head:
        head = 0 if config.tied_embeddings else config.vocab_size * D
        if config.kind == "encoder":
            head += D * D + bias * D + norm + bias * config.vocab_size
    attention = _attention_weights(config) + bias * (
        D + (config.num_heads + 2 * config.kv_heads) * config.head_width
    )
    ups = 2 if config.activation == "swiglu" else 1
    feed_forward = _ffn_weights(config) + bias * (ups * config.ffn_width + D)
    parts = {
        "embedding": config.vocab_size * D,
        "positions": stacks * (config.context_length if config.position == "learned" else 0) * D
        + config.token_types * D,
        "attention": stacks * layers * attention,
        "feed_forward": stacks * layers * feed_forward,
        "norms": stacks * (2 * layers + 1) * norm,
        "head": head,
    }
    if config.kind == "encoder_decoder":
        parts["cross_attention"] = layers * attention
        parts["norms"] += layers * norm
    return parts


def _attention_weights(config: TransformerConfig) -> int:
    """Numbers in the four matrices of one attention: queries, keys, values, output."""
    return 2 * config.d_model * (config.num_heads + config.kv_heads) * config.head_width


def _ffn_weights(config: TransformerConfig) -> int:
    ups = 2 if config.activation == "swiglu" else 1
    return (ups + 1) * config.d_model * config.ffn_width


def parameters(config: TransformerConfig) -> int:
    """Trainable numbers of the model, tied weights counted once.

    >>> parameters(TransformerConfig.gpt2())
    124439808
    """
    return sum(parameters_by_part(config).values())


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """The measured counterpart: numbers in a model, or its trainable ones; tied weights once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


# FLOPs


def forward_flops(
    config: TransformerConfig, batch_size: int, length: int, source_length: int | None = None
) -> int:
    """FLOPs of the matrix products of one forward pass: 2 per multiply-add, attention over all
    pairs.

    FLOPs = 2·N·(weights of the layers and the head) + 4·N·T·H·K for each layer's q·kᵀ and
    weights·v.

    An encoder-decoder runs its encoder on B·S tokens and its decoder on B·T; cross-attention makes
    keys and values of the S tokens and compares T·S pairs.

    A causal kernel may skip the upper half of the pairs; by convention all are counted.

    Args:
        config: The shape.
        batch_size: B sequences.
        length: T tokens each; of an encoder-decoder the answer's.
        source_length: S tokens of an encoder-decoder's source; None: T.

    Returns:
        FLOPs, equal to torch.utils.flop_counter's.

    Source: Chowdhery et al. 2022, appendix B.
    """
    D, tokens = config.d_model, batch_size * length
    heads = config.num_heads * config.head_width  # D, but where heads were pruned
    layer = _attention_weights(config) + _ffn_weights(config)
    flops = config.num_layers * tokens * (2 * layer + 4 * length * heads)
    if config.kind == "encoder_decoder":
        S = length if source_length is None else source_length
        encoder = batch_size * S * (2 * layer + 4 * S * heads)
        keys_and_values = batch_size * S * 4 * D * config.kv_heads * config.head_width
        cross = tokens * (4 * D * heads + 4 * S * heads) + keys_and_values
        flops += config.num_layers * (encoder + cross)
    if config.num_labels:
        pooled = D * D if config.pooling == "first" else 0
        flops += 2 * batch_size * (pooled + D * config.num_labels)
    elif config.vocabulary_head:
        transform = D * D if config.kind == "encoder" else 0
        flops += 2 * tokens * (transform + D * config.vocab_size)
    return flops


def flops_per_token(config: TransformerConfig, length: int, training: bool = True) -> float:
    """FLOPs for one token of a sequence: forward, or forward and backward (3 times as many).

    Of an encoder-decoder: for one token of the answer, its share of a source of equal length
    included.

    Args:
        config: The shape.
        length: T, because attention grows with it.
        training: Count the backward pass too: one product for the input, one for the weight.

    Returns:
        FLOPs per token.

    Source: Kaplan et al. 2020, section 2.1.
    """
    return (3 if training else 1) * forward_flops(config, 1, length) / length


def flop_utilisation(
    tokens_per_second: float, config: TransformerConfig, length: int, peak: float
) -> float:
    """Model FLOP utilisation: the share of the peak rate that training turns into model FLOPs.

    Args:
        tokens_per_second: Training speed.
        config: The shape.
        length: T, tokens per sequence.
        peak: FLOP/s of the device in the precision used, such as `runtime.matmul_rate`.

    Returns:
        A fraction; recomputation does not count as useful work.

    Raises:
        LabError: The peak is not positive.

    Source: Chowdhery et al. 2022, appendix B.
    """
    if peak <= 0:
        raise LabError(f"peak is {peak} FLOP/s; give a measured or published rate above 0")
    return tokens_per_second * flops_per_token(config, length) / peak


def measure_flops(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products that `run()` does, counted by torch.

    Attention runs as plain products while counting: the counter does not know the CPU's fused
    kernel.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()
