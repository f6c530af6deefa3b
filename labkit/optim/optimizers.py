"""The optimiser of a run: which parameters decay, torch's fused updates, the norm of a gradient.

    model ──> parameter_groups ──> build ──> optimizer; before each update lr = learning_rate(step)

What the updates compute stands in `by_hand`, `muon` and `adamw8bit`.

Source: Loshchilov & Hutter 2019, arXiv:1711.05101 (AdamW).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from labkit import runtime
from labkit.errors import LabError
from labkit.models.adapting.strategies import rate_scales
from labkit.optim.adamw8bit import AdamW8bit
from labkit.optim.muon import Muon

OPTIMIZERS = ("adamw", "adam", "sgd", "muon", "adamw8bit")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the trainable parameters: matrices and embeddings decay, vectors do not.

    Biases and norm gains set offsets and scales; shrinking them towards zero regularises nothing.

    Args:
        model: any module; parameters with `requires_grad=False` are left out, tied ones count once.
        weight_decay: lambda of decoupled decay, 0 or more.

    Returns:
        Groups for a torch optimiser (an empty one is left out). The rate of a group is that of the
        run times its `lr_scale`: 1, but where the strategy is layerwise.

    Raises:
        LabError: nothing is trainable.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise LabError("the model has 0 trainable parameters: at least 1 is needed, see strategies")
    scales = rate_scales(model)
    groups: dict[tuple[float, bool], dict] = {}
    for matrix in (True, False):
        for name, p in trainable:
            if (p.ndim >= 2) != matrix:
                continue
            scale = scales.get(name, 1.0)
            group = {"params": [], "weight_decay": weight_decay if matrix else 0.0}
            groups.setdefault((scale, matrix), group | {"lr_scale": scale})["params"].append(p)
    return list(groups.values())


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
    if optimizer == "sgd" and any(runtime.is_sharded(p) for p in model.parameters()):
        fused = False  # torch's fused SGD does not know how to shard
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
    return runtime.whole_tensor(norm)
