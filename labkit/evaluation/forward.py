"""A model's forward passes for evaluation: dropout and gradients off, every mode put back.

Legend: B batch, T time, V vocabulary, C classes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from labkit import runtime
from labkit.batches.types import Batch


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout and gradients off inside; every module's own mode back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def logits_and_labels(
    model: nn.Module, batches: Iterable[Batch], precision: str = "fp32"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits (float32) and the labels of each batch, on the model's device.

    Args:
        model: labkit or transformers model; `model(**inputs).logits` is (B, T, V) or (B, C).
        batches: dicts with the model's inputs and `labels`.
        precision: of the forward pass, as in `runtime.autocast`.
    """
    device = next(model.parameters()).device
    for batch in batches:
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        labels = inputs.pop("labels")
        with evaluating(model), runtime.autocast(device, precision):
            logits = model(**inputs).logits
        yield logits.float(), labels
