"""A task's loss, and a price on experts that are used unevenly.

    task's loss ─────────────────────────────────────────────> + ──> (loss sum, count)
    each layer: E sum_e f_e P_e, summed over layers ──> weight times count ─┘

The balance is a product of two means over a micro-batch, and no sum over its tokens: to cut a batch
into other micro-batches changes it a little.

Source: Fedus et al. 2021, arXiv:2101.03961, section 2.2 (weight 0.01).
"""

import math

import torch
from torch import Tensor, nn

from labkit.batches import Batch
from labkit.errors import LabError
from labkit.models.moe import expert_layers
from labkit.objectives.tasks import Objective


class Balanced:
    """An objective, and the balancing loss of a model's mixture-of-experts layers in training.

    In evaluation mode it is the objective alone.
    """

    def __init__(self, objective: Objective, weight: float = 0.01):
        """
        Args:
            objective: of the task.
            weight: of the balancing loss, in nats per target, 0 or more.

        Raises:
            LabError: the weight is out of range.
        """
        if not 0 <= weight < math.inf:
            raise LabError(f"weight {weight} is out of range: choose a number of 0 or more")
        self.objective, self.weight = objective, weight

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum in nats, count): the balance times the count, so that the mean holds it once."""
        loss_sum, count = self.objective(model, batch)
        routed = [layer.last for layer in expert_layers(model) if layer.last is not None]
        if not model.training or not self.weight or not routed:
            return loss_sum, count
        balance = torch.stack([each.balance for each in routed]).sum()
        return loss_sum + self.weight * count * balance, count
