"""Staying near old weights: a pull on each parameter, as strong as the old task needs it.

    task's loss ───────────────────────────────────────> + ──> (loss sum, count)
    theta - theta* ──> squared, times F ──> weight / 2 ──> times count ─┘

    mean loss of an update = task's mean + weight / 2 sum_i F_i (theta_i - theta*_i)^2

F is the curvature of the old task's mean loss (`training.fisher`): its diagonal makes this elastic
weight consolidation, ones make it a plain pull to where the training began. The loop divides by the
count of the whole update, so each micro-batch adds the penalty times its own count.

Sources: Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3 (EWC); Li et al. 2018,
arXiv:1802.01483 (L2-SP, the pull without F); Huszar 2018, arXiv:1712.03847 (several tasks).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from labkit.batches import Batch
from labkit.errors import LabError
from labkit.objectives.tasks import Objective


class Anchor(NamedTuple):
    """Where the weights stood after a task, and how much the task minds each one's leaving."""

    weights: dict[str, Tensor]
    """theta*, by parameter name."""
    importance: dict[str, Tensor]
    """F, of the same names and shapes, 0 or more; in nats per target per squared weight."""


def anchored(model: nn.Module, importance: Mapping[str, Tensor] | None = None) -> Anchor:
    """The weights as they are now, as an anchor; later training does not move it.

    Args:
        model: after the task.
        importance: F, as `training.fisher_diagonal` gives it; None: 1 for each trained parameter.

    Raises:
        LabError: a name or shape of `importance` is not the model's, or an entry is negative.
    """
    named = dict(model.named_parameters())
    if importance is None:
        importance = {n: torch.ones_like(p) for n, p in named.items() if p.requires_grad}
    for name, tensor in importance.items():
        if name not in named or named[name].shape != tensor.shape:
            has = tuple(named[name].shape) if name in named else "no such parameter"
            raise LabError(
                f"importance of {name!r} has shape {tuple(tensor.shape)}, and the model has {has}: "
                "measure it on a model of the same shape"
            )
        if not bool((tensor >= 0).all()):
            raise LabError(f"importance of {name!r} holds {float(tensor.min())}: give 0 or more")
    weights = {name: named[name].detach().clone() for name in importance}
    return Anchor(weights, {name: f.detach().clone() for name, f in importance.items()})


def joined(anchors: Sequence[Anchor]) -> Anchor:
    """One anchor in place of several: the same pull, for the memory of one.

    sum_k F_k (theta - theta_k)^2 = F (theta - m)^2 + constant, with F = sum_k F_k and m the mean of
    theta_k weighted by F_k. Where no task minds, m is the last anchor's weight.

    Args:
        anchors: at least 1, of the same names.

    Raises:
        LabError: none, or their names differ.
    """
    if not anchors or any(a.weights.keys() != anchors[0].weights.keys() for a in anchors):
        raise LabError(f"{len(anchors)} anchors: give at least 1, all of the same parameters")
    weights, importance = {}, {}
    for name in anchors[0].weights:
        f_K = torch.stack([a.importance[name].double() for a in anchors])
        w_K = torch.stack([a.weights[name].double() for a in anchors])
        total = f_K.sum(0)
        mean = (f_K * w_K).sum(0) / total.where(total > 0, torch.ones_like(total))
        like = anchors[-1].weights[name]
        weights[name] = mean.where(total > 0, w_K[-1]).to(like.dtype)
        importance[name] = total.to(like.dtype)
    return Anchor(weights, importance)


def quadratic_pull(model: nn.Module, anchor: Anchor) -> Tensor:
    """1/2 sum_i F_i (theta_i - theta*_i)^2, in nats per target; differentiable, a scalar.

    Its gradient is F_i (theta_i - theta*_i). Cost: a few passes over the parameters.

    Raises:
        LabError: the model lacks a parameter of the anchor.
    """
    named = dict(model.named_parameters())
    absent = next((name for name in anchor.weights if name not in named), None)
    if absent is not None:
        raise LabError(
            f"the model has no parameter {absent!r}: an anchor holds a model of one shape, make it "
            "again after changing the model"
        )
    parts = []
    for name, old in anchor.weights.items():
        p = named[name]
        moved = p - old.to(p.device)
        parts.append((anchor.importance[name].to(p.device) * moved.square()).sum())
    return torch.stack(parts).sum() / 2


class Pulled:
    """An objective, and a pull to the anchors of earlier tasks while the model trains.

    In evaluation mode it is the objective alone, so that a validation loss stays the task's.
    """

    def __init__(self, objective: Objective, anchors: Sequence[Anchor], weight: float):
        """
        Args:
            objective: of the new task.
            anchors: of the tasks before; their pulls add up.
            weight: 0 or more. With F in nats per target, 1 counts a target of an old task like one
                of the new: the Laplace approximation for equally many targets.

        Raises:
            LabError: the weight is out of range.
        """
        if not 0 <= weight < math.inf:
            raise LabError(f"weight {weight} is out of range: choose a number of 0 or more")
        self.objective, self.weight = objective, weight
        self.anchors = list(anchors)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum in nats, count): the pull times the count, so that the mean holds it once."""
        loss_sum, count = self.objective(model, batch)
        if not model.training or not self.weight or not self.anchors:
            return loss_sum, count
        pull = torch.stack([quadratic_pull(model, anchor) for anchor in self.anchors]).sum()
        return loss_sum + self.weight * count * pull, count
