"""Bytes of training, predicted from a config by part, and counted.

    weights, gradients, optimizer   4 + 4 + 8 bytes a parameter (AdamW in fp32)
    activations                     the tensors that the backward pass needs, operation by operation

Legend: B batch, T positions, N = B·T tokens, D model width, F feed-forward width, V vocabulary.

Sources: Rajbhandari et al. 2020, section 3 (where memory goes); Korthikanti et al. 2022, section 4
(activations of a block).
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from labkit.errors import LabError
from labkit.models.attention import PLAIN_SCORES
from labkit.models.config import TransformerConfig
from labkit.models.counts import parameters, parameters_by_part

Precision = Literal["fp32", "bf16", "fp16"]


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
    kept = kept_bytes(config, batch_size, length, precision, implementation, chunked_loss, device)
    inside = kept.outside + config.num_layers * kept.block
    return Memory(4 * total, 4 * trained, 8 * trained, inside + kept.weight_copies + kept.head)


class Kept(NamedTuple):
    """Bytes that wait for the backward pass, by where they come from."""

    outside: int
    """Token ids, the embedding's dropout, the last norm."""
    block: int
    """One block."""
    block_input: int
    """What activation checkpointing keeps of a block."""
    weight_copies: int
    """Autocast's narrow copies of all matrices of the blocks."""
    head: int
    """The vocabulary projection and its loss."""


def kept_bytes(
    config: TransformerConfig,
    B: int,
    T: int,
    precision: Precision,
    implementation: str = "labkit",
    chunked_loss: bool = True,
    device: str = "cpu",
    weight_bytes: int = 4,
) -> Kept:
    """What one forward pass keeps; arguments as in `predict_memory`.

    Args:
        weight_bytes: Of a parameter: 4, or 2 if the whole model is in bf16.

    Returns:
        Bytes by origin; see `Kept`.
    """
    D, width, N = config.d_model, config.ffn_width, B * T
    narrow = precision != "fp32"
    e = 2 if narrow else 4
    dropped = config.dropout > 0
    stream = weight_bytes * N * D
    chain = config.norm == "rmsnorm" and implementation == "transformers"
    norm = 2 * stream if chain else stream  # written as a chain of operations, it keeps x·r too
    product_input = e * N * D
    # A mask: one byte an entry, but for torch's own on a CPU, which is as wide as what it masks.
    wide_mask = implementation == "transformers" and device == "cpu"
    noise = (e if wide_mask else 1) * N * D if dropped else 0

    q_width, kv_width = (n * config.head_width for n in (config.num_heads, config.kv_heads))
    qkv = e * N * (q_width + 2 * kv_width)
    scores = B * config.num_heads * T * T
    if implementation == "transformers" and config.kind == "encoder":
        product_inputs = 3 * product_input if narrow else product_input  # q, k, v cast x each
    else:
        product_inputs = product_input
    plain = dropped or (precision == "bf16" and T * T <= PLAIN_SCORES)
    if plain and device == "cpu" and implementation == "labkit":
        core = qkv + scores * (2 * e + 1 if dropped else e)
    elif dropped and device == "cpu":  # torch's unfused path, which computes in fp32
        core = (4 * N * (q_width + 2 * kv_width)) + 4 * scores * 3
        core += qkv if narrow else 0
    else:
        rotated = e * N * (q_width + kv_width) if config.position == "rotary" else 0
        core = qkv + rotated + 4 * N * config.num_heads
    if config.activation == "swiglu":
        hidden = 4 * e * N * width
    else:
        hidden = (1 if config.activation == "relu" else 2) * e * N * width
    attention_out = e * N * q_width
    block = 2 * norm + product_inputs + core + attention_out + noise
    block += product_input + hidden + noise

    ids = 8 * N * (2 if config.token_types else 1)
    dropped_embedding = (stream if wide_mask else N * D) if dropped else 0
    outside = ids + dropped_embedding + norm
    weight_copies = 0
    if narrow and weight_bytes == 4:
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
            copy = 2 * vocabulary if narrow and weight_bytes == 4 else 0
            head += product_input + 4 * N * config.vocab_size + copy
    return Kept(outside, block, stream, weight_copies, head)


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
