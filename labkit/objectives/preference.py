"""Direct preference optimisation: learn which of two answers is better, without a reward model.

    chosen, rejected ──> ln pi(answer | prompt), summed over its tokens, for both
    reward r = beta (ln pi - ln pi_ref)          what the model came to like better than its start
    loss     = -ln sigmoid(r_chosen - r_rejected)

The start, pi_ref, is read once before training (`evaluation.with_reference`): no second model is in
memory. The gradient of a pair, with w = sigmoid(r_rejected - r_chosen), the weight of what is
wrong, is -beta w (grad ln pi(chosen) - grad ln pi(rejected)). The loss sees the difference only:
nothing in it keeps ln pi(chosen) from falling.

Legend: P pairs, T positions, V vocabulary.

Sources: Rafailov et al. 2023, arXiv:2305.18290, equation 7; Mitchell 2023, "A note on DPO with
noisy preferences" (smoothing).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.batches import Batch
from labkit.errors import LabError
from labkit.objectives.policy import token_log_probs


def answer_log_probabilities(model: nn.Module, batch: Batch) -> Tensor:
    """ln p(answer | prompt) of each row: the sum over the tokens that count, in nats.

    Args:
        model: a causal model of labkit or transformers.
        batch: `input_ids`, `labels`, `attention_mask`, each (..., T), as from `PadPreferences`.

    Returns:
        (...,), float32.
    """
    shape = batch["labels"].shape
    names = ("input_ids", "attention_mask", "labels")
    rows = {name: batch[name].reshape(-1, shape[-1]) for name in names if name in batch}
    return token_log_probs(model, rows).sum(dim=-1).view(shape[:-1])


class DPO:
    """-ln sigmoid(beta ((ln pi - ln pi_ref)(chosen) - (ln pi - ln pi_ref)(rejected))), summed."""

    def __init__(self, beta: float = 0.1, smoothing: float = 0.0):
        """
        Args:
            beta: above 0; the larger, the dearer it is to leave the start.
            smoothing: share of pairs that are taken to be the wrong way round, in [0, 0.5).

        Raises:
            LabError: a value out of range.
        """
        if not beta > 0:
            raise LabError(f"beta {beta} is out of range: choose a number above 0, such as 0.1")
        if not 0 <= smoothing < 0.5:
            raise LabError(f"smoothing {smoothing} is out of range: choose 0 to below 0.5")
        self.beta, self.smoothing = beta, smoothing

    def rewards(self, model: nn.Module, batch: Batch) -> Tensor:
        """The implicit rewards (P, 2) of chosen and rejected, in nats times beta.

        Raises:
            LabError: the batch lacks `reference`.
        """
        if "reference" not in batch:
            raise LabError(
                "the pairs have no reference: make them ready with `evaluation.with_reference`"
            )
        return self.beta * (answer_log_probabilities(model, batch) - batch["reference"])

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum in nats, number of pairs)."""
        rewards_P2 = self.rewards(model, batch)
        margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
        right_P, wrong_P = F.logsigmoid(margin_P), F.logsigmoid(-margin_P)
        loss_P = -(1 - self.smoothing) * right_P - self.smoothing * wrong_P
        return loss_P.sum(), torch.tensor(len(margin_P), device=margin_P.device)
