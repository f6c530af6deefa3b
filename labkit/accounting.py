"""What a model costs, predicted from its config and measured: parameters, FLOPs, bytes.

    config ──> parameters ──> weights, gradients, optimizer (AdamW in fp32: 4 + 4 + 8 bytes)
          └──> matrix products ──> FLOPs, forward 2 and training 6 for each weight and token
          └──> tensors kept for the backward pass ──> activations

A prediction is a sum over the formulas of `transformer`; a measurement counts what torch did. The
tests hold the two together: parameters and FLOPs exactly, memory to a few per cent.

Legend: N = B·T tokens, S source tokens, D model width, F feed-forward width, V vocabulary, H heads.

Sources: Kaplan et al. 2020, section 2.1 (6 FLOPs); Chowdhery et al. 2022, appendix B (utilisation);
Rajbhandari et al. 2020 (ZeRO, section 3: where memory goes).
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from labkit.architecture import TransformerConfig
from labkit.attention import PLAIN_SCORES
from labkit.errors import LabError

Precision = Literal["fp32", "bf16", "fp16"]


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
        2 * D + 2 * config.kv_heads * config.head_width
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
    return 2 * config.d_model * (config.d_model + config.kv_heads * config.head_width)


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

    FLOPs = 2·N·(weights of the layers and the head) + 4·N·T·D for each layer's q·kᵀ and weights·v.

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
    layer = _attention_weights(config) + _ffn_weights(config)
    flops = config.num_layers * tokens * (2 * layer + 4 * length * D)
    if config.kind == "encoder_decoder":
        S = length if source_length is None else source_length
        encoder = batch_size * S * (2 * layer + 4 * S * D)
        keys_and_values = batch_size * S * 4 * D * config.kv_heads * config.head_width
        cross = tokens * (4 * D * D + 4 * S * D) + keys_and_values
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


# Memory


class Memory(NamedTuple):
    """Bytes of training, by part."""

    weights: int
    """The parameters."""
    gradients: int
    """One for each trainable parameter, in its dtype."""
    optimizer: int
    """AdamW: two fp32 moments for each trainable parameter."""
    activations: int
    """What autograd keeps for the backward pass, autocast's copies of the weights included."""

    @property
    def total(self) -> int:
        """All four parts, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations


def predict_memory(
    config: TransformerConfig,
    batch_size: int,
    length: int,
    precision: Precision = "fp32",
    *,
    implementation: Literal["labkit", "transformers"] = "labkit",
    chunked_loss: bool = True,
    trainable: int | None = None,
    device: str = "cpu",
) -> Memory:
    """Bytes of full fine-tuning or pretraining with AdamW: fp32 weights, autocast to `precision`.

    Left out: the masks, temporary tensors inside one operation, and the allocator's reserve.

    Args:
        config: The shape; for a transformers model that of `interop.from_huggingface`.
        batch_size: B of one micro-batch.
        length: T, tokens in each (padded) sequence.
        precision: Of the matrix products.
        implementation: Whose forward pass: labkit's, or transformers' for a Llama or BERT shape.
        chunked_loss: A decoder's loss from `losses.chunked_cross_entropy`, which keeps gradients of
            the last hidden state and of the vocabulary matrix, instead of log-probabilities (N, V).
        trainable: Parameters that train; None: all. Activations are those of full training.
        device: "cpu" or "cuda", because their attention kernels keep different things.

    Returns:
        The four parts.

    Raises:
        LabError: An unknown precision; an encoder-decoder or transformers' GPT-2, whose activations
            are not modelled.
    """
    if precision not in ("fp32", "bf16", "fp16"):
        raise LabError(f"precision is {precision!r}; choose fp32, bf16 or fp16")
    if config.kind == "encoder_decoder":
        raise LabError(
            "the activations of an encoder_decoder are not predicted; use measure_memory"
        )
    gpt2 = config.kind == "decoder" and config.position != "rotary"
    if implementation == "transformers" and gpt2:
        raise LabError(
            "the activations of transformers' GPT-2 are not predicted; use implementation='labkit',"
            " or measure_memory"
        )
    total = parameters(config)
    trained = total if trainable is None else trainable
    activations = _activations(
        config, batch_size, length, precision, implementation, chunked_loss, device
    )
    return Memory(4 * total, 4 * trained, 8 * trained, activations)


def _activations(
    config: TransformerConfig,
    B: int,
    T: int,
    precision: Precision,
    implementation: str,
    chunked_loss: bool,
    device: str,
) -> int:
    D, width, N = config.d_model, config.ffn_width, B * T
    narrow = precision != "fp32"
    e = 2 if narrow else 4
    dropped = config.dropout > 0
    stream = 4 * N * D
    chain = config.norm == "rmsnorm" and implementation == "transformers"
    norm = 2 * stream if chain else stream  # written as a chain of operations, it keeps x·r too
    product_input = e * N * D
    noise = e * N * D if dropped else 0

    kv_width = config.kv_heads * config.head_width
    qkv = e * N * (D + 2 * kv_width)
    scores = B * config.num_heads * T * T
    if implementation == "transformers" and config.kind == "encoder":
        product_inputs = 3 * product_input if narrow else product_input  # q, k, v cast x each
    else:
        product_inputs = product_input
    plain_bf16 = precision == "bf16" and device == "cpu" and implementation == "labkit"
    plain_bf16 = plain_bf16 and T * T <= PLAIN_SCORES
    if plain_bf16:
        core = qkv + e * scores * (3 if dropped else 1)
    elif dropped and device == "cpu":  # torch's unfused path, which computes in fp32
        core = (4 * N * (D + 2 * kv_width)) + 4 * scores * 3
        core += qkv if narrow else 0
    else:
        rotated = e * N * (D + kv_width) if config.position == "rotary" else 0
        core = qkv + rotated + 4 * N * config.num_heads
    if config.activation == "swiglu":
        hidden = 4 * e * N * width
    else:
        hidden = (1 if config.activation == "relu" else 2) * e * N * width
    attention_out = product_input
    block = 2 * norm + product_inputs + core + attention_out + noise
    block += product_input + hidden + noise

    ids = 8 * N * (2 if config.token_types else 1)
    inside = ids + (stream if dropped else 0) + norm + config.num_layers * block
    weight_copies = 0
    if narrow:
        part = parameters_by_part(config)
        weight_copies = 2 * (part["attention"] + part["feed_forward"])
    head = 0
    vocabulary = config.vocab_size * D
    if config.has_lm_head:
        if config.kind == "encoder":
            head += 3 * product_input + product_input
        if chunked_loss and config.kind == "decoder":
            head += e * N * D + 4 * vocabulary
        else:
            head += product_input + 4 * N * config.vocab_size + (2 * vocabulary if narrow else 0)
    return inside + weight_copies + head


def measure_memory(model: nn.Module, loss_fn: Callable[[], Tensor]) -> Memory:
    """The same four parts, counted on a real forward and backward pass.

    Activations are the storages that autograd saves, each counted once and the parameters' own left
    out; optimizer is the state of a torch AdamW after one step of length 0. Leaves the weights and
    the random state as they were and the gradients empty.

    Args:
        model: A labkit or transformers model; in training mode if dropout is to count.
        loss_fn: Runs the forward pass (inside autocast if that is meant) and returns a scalar.

    Returns:
        The four parts, in bytes.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    own = {_storage(p) for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad(set_to_none=True)
    with torch.random.fork_rng():
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loss_fn()
        loss.backward()
    optimizer = torch.optim.AdamW(trainable, lr=0.0, weight_decay=0.0)
    optimizer.step()
    state = [x for s in optimizer.state.values() for x in s.values() if isinstance(x, Tensor)]
    memory = Memory(
        weights=_bytes(model.parameters()),
        gradients=_bytes(p.grad for p in trainable if p.grad is not None),
        optimizer=_bytes(state),
        activations=sum(saved.values()),
    )
    model.zero_grad(set_to_none=True)
    return memory


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
