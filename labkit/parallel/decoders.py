"""What every way to cut a model asks of it.

    model ──> a plain decoder with a head, no dropout? ──> cut; otherwise one sentence

A decoder's blocks are alike, so one rule cuts them all. Dropout would need masks that agree between
ranks: a rank that draws its own computes another model.
"""

from torch import nn

from labkit.errors import LabError
from labkit.models.transformer import Transformer


def head_of(model: Transformer) -> nn.Linear:
    """The projection to logits of a model that can be cut.

    Raises:
        LabError: it is no decoder, has dropout, or makes no logits.
    """
    config = model.config
    if config.kind != "decoder" or config.dropout or model.lm_head is None:
        raise LabError(
            f"kind {config.kind!r} with dropout {config.dropout} is not cut: give a language model"
            " of kind 'decoder', dropout 0"
        )
    return model.lm_head
