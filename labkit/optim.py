"""Optimisers: AdamW by hand beside torch's fused one, parameter groups, the schedule.

Sources: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1; Loshchilov & Hutter 2019,
arXiv:1711.05101, algorithm 2 (decoupled decay) and 2017, arXiv:1608.03983 (cosine).
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from labkit.errors import LabError


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    minimum_ratio: float = 0.1,
    schedule: str = "cosine",
) -> float:
    """Return the learning rate of update `step`: linear warm-up, then the chosen decay.

    warm-up: peak (step + 1) / warmup_steps for step < warmup_steps;
    cosine:  peak (r + (1 - r) (1 + cos(pi u)) / 2);  linear: peak (r + (1 - r) (1 - u));
    constant: peak;
    with u = (step - warmup_steps) / (total_steps - warmup_steps) and r = minimum_ratio.

    >>> [round(learning_rate(s, peak=1.0, warmup_steps=2, total_steps=6, minimum_ratio=0.0), 3)
    ...  for s in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]

    Args:
        step: updates done before this one, from 0.
        peak: the highest rate, positive.
        warmup_steps: updates of linear warm-up, 0 or more.
        total_steps: updates in the whole run, at least 1.
        minimum_ratio: final rate / peak, 0 to 1.
        schedule: `cosine`, `linear` or `constant`.

    Raises:
        LabError: an unknown schedule.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    u = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * u))
    elif schedule == "linear":
        shape = 1 - u
    elif schedule == "constant":
        return peak
    else:
        raise LabError(f"schedule {schedule!r} is unknown: choose cosine, linear or constant")
    return peak * (minimum_ratio + (1 - minimum_ratio) * shape)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the trainable parameters: matrices and embeddings decay, vectors do not.

    Biases and norm gains set offsets and scales; shrinking them towards zero regularises nothing.

    Args:
        model: any module; parameters with `requires_grad=False` are left out, tied ones count once.
        weight_decay: lambda of decoupled decay, 0 or more.

    Returns:
        Groups for a torch optimiser (an empty one is left out).

    Raises:
        LabError: nothing is trainable.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise LabError("the model has 0 trainable parameters: at least 1 is needed, see strategies")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    fused: bool = True,
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, fused: one pass over memory for all tensors."""
    groups = parameter_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)


@torch.no_grad()
def adamw_step(
    weight: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> None:
    """One AdamW update, in place, line by line as in the paper.

    m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
    w <- w - lr (lambda w + m_hat / (sqrt(v_hat) + eps)),   m_hat = m / (1 - b1^t)

    Args:
        weight, gradient, m, v: tensors of one shape; m and v start at zero.
        step: t, counted from 1.
        learning_rate, betas, eps, weight_decay: as in `build`.

    Source: Loshchilov & Hutter 2019, algorithm 2.
    """
    beta1, beta2 = betas
    weight.mul_(1 - learning_rate * weight_decay)
    m.mul_(beta1).add_(gradient, alpha=1 - beta1)
    v.mul_(beta2).add_(gradient * gradient, alpha=1 - beta2)
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    weight.sub_(learning_rate * m_hat / (v_hat.sqrt() + eps))


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm over all gradients together, as one vector (a scalar tensor; sharded ones too)."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
