"""What a batch should teach: objective(model, batch) -> (loss sum, count of valid targets).

    objective(model, batch): batch -> model -> logits -> losses -> (sum, count)

The loop divides by the count of the whole update. An objective works alike on labkit's models
and on `transformers` models: both take keyword tensors and return something with `.logits`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from labkit.batches import Batch
from labkit.encoder_decoder import EncoderDecoder
from labkit.losses import chunked_cross_entropy, cross_entropy
from labkit.transformer import Transformer

Objective = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


def _inputs(batch: Batch) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != "labels"}


def causal_lm(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """-log p(label at t | what the model sees at t), summed over labels that count.

    Serves causal, masked and encoder-decoder models alike: which positions count, and what is seen,
    stands in the batch (labels are already aligned with predictions, see `batches`).

    Args:
        model: `model(input_ids (B, T), ...)` with logits (B, T, V).
        batch: `input_ids`, `labels` (B, T; -100 does not count), perhaps masks and positions; for
            an encoder-decoder labels belong to `decoder_input_ids` (B, T), input_ids are (B, S).

    Returns:
        (sum in nats, count).
    """
    if isinstance(model, Transformer | EncoderDecoder):
        head = model.lm_head
        if head is not None and head.bias is None:
            # No B x T x V logits in memory: the loss meets the output embedding chunk by chunk.
            hidden_ND = model.encode(**_inputs(batch)).flatten(0, 1)
            return chunked_cross_entropy(hidden_ND, head.weight, batch["labels"].flatten())
    logits_NV = model(**_inputs(batch)).logits.flatten(0, 1)
    return cross_entropy(logits_NV, batch["labels"].flatten())


def classification(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """-log p(class | text), summed over the examples.

    Args:
        model: `model(input_ids (B, T), attention_mask (B, T))` with logits (B, C).
        batch: as from `batches.Pad`; `labels` (B,) in 0 .. C - 1.

    Returns:
        (sum in nats, count).
    """
    return cross_entropy(model(**_inputs(batch)).logits, batch["labels"])
