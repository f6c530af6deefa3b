"""A last block that begins as the mean of the tokens, for encoders whose texts are told by it.

    hidden_BTD ──> block: queries 0, so every real token weighs alike ──> their mean, at [CLS]
               ──> pooler ──> classifier

BERT's classifier reads [CLS] alone. In a sentence-embedding model it is the mean over the tokens
that tells texts apart (measured for MiniLM: docs/LOG.md). Attention with queries of zero *is* that
mean; so the new block starts where the frozen encoder is best, its queries learn which tokens to
weigh, and what is saved is an ordinary BERT with one block more.

Source: Reimers & Gurevych 2019, arXiv:1908.10084, section 3 (the mean as the vector of a text).
"""

import copy
import math
from typing import Any

import torch
from torch import nn

from labkit.errors import LabError

#: The mean against what [CLS] itself holds, before both are normalised together.
MEAN_TO_CLS = 10.0
#: tanh(POOLED x) is nearly a straight line where layer-normalised x mostly are, in -2 to 2.
POOLED = 0.5


def has_pooler(model: nn.Module) -> bool:
    """Whether this is a BERT classifier of `transformers`: the shape that the block fits."""
    config: Any = getattr(model, "config", None)
    pooler = getattr(getattr(model, "bert", None), "pooler", None)
    return getattr(config, "model_type", "") == "bert" and pooler is not None


def add_mean_block(model: Any) -> None:
    """Append the block, and set the pooler to pass its output on; in place.

    The block's keys and first feed-forward matrix are copies of the last block's; its queries and
    second feed-forward matrix are zero, and values and output hand the tokens through.

    Args:
        model: `transformers` BertForSequenceClassification; its config then counts a layer more.

    Raises:
        LabError: another kind of model.
    """
    if not has_pooler(model):
        raise LabError(
            f"{type(model).__name__} has no BERT encoder with a pooler: only there can a block be "
            "added that reads the mean"
        )
    layers = model.bert.encoder.layer
    block = copy.deepcopy(layers[-1])
    attention = block.attention
    if hasattr(attention.self, "layer_idx"):
        attention.self.layer_idx = len(layers)
    through = math.sqrt(MEAN_TO_CLS)
    with torch.no_grad():
        for linear in (attention.self.query, block.output.dense):
            _set(linear, 0.0)
        for linear in (attention.self.value, attention.output.dense):
            _set(linear, through)
        for norm in (attention.output.LayerNorm, block.output.LayerNorm):
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)
        _set(model.bert.pooler.dense, POOLED)
    layers.append(block)
    model.config.num_hidden_layers = len(layers)


def _set(linear: nn.Linear, scale: float) -> None:
    """Scale times the identity, without a bias; a scale of 0 clears any shape."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    if scale:
        linear.weight.diagonal().fill_(scale)
