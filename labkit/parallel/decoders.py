"""What every way to cut a model asks of it.

    model ──> a plain decoder with a head, no dropout? ──> cut; otherwise one sentence

A decoder's blocks are alike, so one rule cuts them all. Dropout would need masks that agree between
ranks: a rank that draws its own computes another model.
"""

from labkit.errors import LabError
from labkit.models.transformer import Transformer


def check_decoder(model: Transformer) -> None:
    """Nothing, if the model can be cut.

    Raises:
        LabError: it is no decoder, has dropout, or makes no logits.
    """
    config = model.config
    if config.kind != "decoder" or config.dropout or model.lm_head is None:
        raise LabError(
            f"kind {config.kind!r} with dropout {config.dropout} is not cut: give a language model"
            " of kind 'decoder', dropout 0"
        )
