"""The optimiser of a run: which parameters decay, torch's fused updates, the schedule, the norm.

    model ──> parameter_groups ──> build ──> optimizer; before each update lr = learning_rate(step)

What the updates compute stands in `updates`, `muon` and `eight_bit`. `StepInBackward` makes them
during the backward pass, so that gradients never exist all at once.

Sources: Loshchilov & Hutter 2019, arXiv:1711.05101 (AdamW) and 2017, arXiv:1608.03983 (cosine);
Goyal et al. 2017, arXiv:1706.02677 (warm-up); Smith 2017, arXiv:1506.01186 (range test); Lv et al.
2023, arXiv:2306.09782 (the step during the backward pass).
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from labkit.errors import LabError
from labkit.optim.adamw8bit import AdamW8bit
from labkit.optim.muon import Muon

OPTIMIZERS = ("adamw", "adam", "sgd", "muon", "adamw8bit")
SCHEDULES = ("cosine", "linear", "constant", "range_test")


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
    range_test: peak r^(1 - u), which rises from r peak towards the peak;
    with u = (step - warmup_steps) / (total_steps - warmup_steps) and r = minimum_ratio.

    >>> [round(learning_rate(s, peak=1.0, warmup_steps=2, total_steps=6, minimum_ratio=0.0), 3)
    ...  for s in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]

    Args:
        step: updates done before this one, from 0.
        peak: the highest rate, positive.
        warmup_steps: updates of linear warm-up, 0 or more.
        total_steps: updates in the whole run, at least 1.
        minimum_ratio: lowest rate after the warm-up / peak, 0 to 1.
        schedule: `cosine`, `linear`, `constant` or `range_test`.

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
    elif schedule == "range_test":
        return peak * minimum_ratio ** (1 - u)
    else:
        raise LabError(f"schedule {schedule!r} is unknown: choose {', '.join(SCHEDULES)}")
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
    optimizer: str = "adamw",
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """The optimiser over `parameter_groups`, fused: one pass over memory for all tensors.

    Args:
        model: its trainable parameters are optimised.
        learning_rate: of the first update; the loop sets it anew before each.
        optimizer: `adamw`; `adam`, whose weight decay is an L2 term in the loss; `sgd`, the same
            with momentum `betas[0]` (0: plain); `muon` for the matrices of the blocks with AdamW
            for the rest; `adamw8bit`, whose moments take a byte each.
        weight_decay: lambda of the matrices and embeddings, 0 or more.
        betas, eps: of Adam, AdamW and the half of Muon that is AdamW.
        fused: False for tensor by tensor.

    Raises:
        LabError: nothing is trainable, or an unknown optimizer.
    """
    groups = parameter_groups(model, weight_decay)
    if optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)
    if optimizer == "adam":
        return torch.optim.Adam(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)
    if optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=betas[0], fused=fused)
    if optimizer == "muon":
        return Muon(model, groups, learning_rate=learning_rate, betas=betas, eps=eps)
    if optimizer == "adamw8bit":
        return AdamW8bit(groups, lr=learning_rate, betas=betas, eps=eps)
    raise LabError(f"optimizer {optimizer!r} is unknown: choose {', '.join(OPTIMIZERS)}")


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm over all gradients together, as one vector (a scalar tensor; sharded ones too)."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class StepInBackward:
    """Update each parameter the moment its gradient is complete, then free that gradient.

    backward ──> gradient of one parameter ──> times `factor` ──> step of it alone ──> freed

    Exactly the ordinary update, because AdamW treats every number alone. What needs all gradients
    at once is lost: clipping by the global norm, a loss scaler that skips steps, and gradients that
    add up over micro-batches. One backward pass is one update. A gradient that is not finite has
    changed the weights by the time a loop can stop: go on from a checkpoint.

    Args:
        optimizer: of `build`; not Muon, which steps whole stacks of matrices.

    Source: Lv et al. 2023, arXiv:2306.09782, section 3.1.
    """

    factor: float = 1.0
    """Multiplies every gradient; set before the backward pass, as 1 / count of valid targets."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer, self.squares = optimizer, []
        self.group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
        self.hooks = [p.register_post_accumulate_grad_hook(self._step) for p in self.group_of]

    @torch.no_grad()
    def _step(self, p: Tensor) -> None:
        assert p.grad is not None
        p.grad.mul_(self.factor)
        self.squares.append(p.grad.norm().square())
        everything = self.optimizer.param_groups
        self.optimizer.param_groups = [{**self.group_of[p], "params": [p]}]
        self.optimizer.step()
        self.optimizer.param_groups = everything
        p.grad = None

    def norm(self) -> float:
        """L2 norm of the gradient that the last backward pass used up."""
        squares, self.squares = self.squares, []
        return float(torch.stack(squares).sum().sqrt()) if squares else 0.0

    def remove(self) -> None:
        """Make backward passes ordinary again."""
        for hook in self.hooks:
            hook.remove()
