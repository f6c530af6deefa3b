"""Label smoothing: a target that is almost certain, and what it must not do to the figures.

    q(v) = (1 - e) [v = target] + e / V          loss = -sum_v q(v) ln p(v)
                                                      = (1 - e) NLL + e mean_v(-ln p(v))

A smoothed loss has a floor above 0 and punishes certainty, so it says nothing about how likely the
truth is: two models are compared by the plain NLL. `SmoothedLM` therefore smooths in training only.

Legend: B examples, T positions, V vocabulary.

Sources: Szegedy et al. 2016, arXiv:1512.00567, section 7; Vaswani et al. 2017, arXiv:1706.03762,
section 5.4 (e = 0.1, "this hurts perplexity").
"""

import math

from torch import Tensor, nn

from labkit.batches import Batch
from labkit.errors import LabError
from labkit.objectives.losses import cross_entropy
from labkit.objectives.tasks import causal_lm


class SmoothedLM:
    """`causal_lm` with smoothed labels while the model trains, and without in evaluation mode.

    So the validation loss of a training, which chooses the best weights, is the plain NLL. For
    decoders and, with `decoder_input_ids`, encoder-decoders. Holds the B x T x V logits.
    """

    def __init__(self, smoothing: float):
        """
        Args:
            smoothing: e, in [0, 1).

        Raises:
            LabError: e out of range.
        """
        if not 0 <= smoothing < 1:
            raise LabError(f"smoothing {smoothing} is out of range: choose 0 to below 1")
        self.smoothing = smoothing

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum in nats, count of valid targets)."""
        if not model.training or not self.smoothing:
            return causal_lm(model, batch)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits_NV = model(**inputs).logits.flatten(0, 1)
        return cross_entropy(logits_NV, batch["labels"].flatten(), self.smoothing)


def smoothing_floor(smoothing: float, vocab_size: int) -> float:
    """The smallest smoothed loss that there is, in nats a token: the entropy of q.

    Args:
        smoothing: e, in [0, 1).
        vocab_size: V, at least 2.

    >>> round(smoothing_floor(0.1, 4096), 3)
    1.157
    """
    top, rest = 1 - smoothing + smoothing / vocab_size, smoothing / vocab_size
    rest_nats = -(vocab_size - 1) * rest * math.log(rest) if rest else 0.0
    return -top * math.log(top) + rest_nats
