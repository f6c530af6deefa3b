"""Optimisers: AdamW by hand beside torch's fused one, Muon, parameter groups, the schedule.

Sources: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1; Loshchilov & Hutter 2019,
arXiv:1711.05101, algorithm 2 (decoupled decay) and 2017, arXiv:1608.03983 (cosine); Jordan et al.
2024, "Muon" (kellerjordan.github.io/posts/muon); Liu et al. 2025, arXiv:2502.16982 (its scale).
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from labkit import runtime
from labkit.attention import StackedLinear
from labkit.errors import LabError
from labkit.transformer import blocks


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
    optimizer: str = "adamw",
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    fused: bool = True,
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, fused: one pass over memory for all tensors; or `Muon`.

    Args:
        model: its trainable parameters are optimised.
        learning_rate, weight_decay, betas, eps: of AdamW; Muon shares the first two.
        optimizer: `adamw`, or `muon` for the matrices of the blocks with AdamW for the rest.
        fused: False for AdamW tensor by tensor.

    Raises:
        LabError: nothing is trainable, or an unknown optimizer.
    """
    groups = parameter_groups(model, weight_decay)
    if optimizer == "muon":
        return Muon(model, groups, learning_rate=learning_rate, betas=betas, eps=eps)
    if optimizer != "adamw":
        raise LabError(f"optimizer {optimizer!r} is unknown: choose adamw or muon")
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)


# --- Muon --------------------------------------------------------------------------------------

#: Five steps of X <- a X + (b A + c A^2) X, A = X X^T, take singular values in (0, 1] to about 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices_BMN: Tensor, steps: int = 5) -> Tensor:
    """Set every singular value of each matrix to about 1 (0.7 to 1.2), keeping its directions.

    Args:
        matrices_BMN: (B, M, N), any M and N; computed in their format.
        steps: Newton-Schulz iterations, 2 (2 M^2 N + M^3) FLOPs each for M <= N.

    Returns:
        About U V^T of each U S V^T, (B, M, N).

    Source: Jordan et al. 2024.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices_BMN.shape[-2] > matrices_BMN.shape[-1]
    X = matrices_BMN.mT if tall else matrices_BMN
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


class Muon(torch.optim.AdamW):
    """Momentum, then `orthogonalise`, for the matrices of the blocks; AdamW for everything else.

    M <- mu M + (1 - mu) G;   W <- W - lr (lambda W + 0.2 sqrt(max(m, n)) UV^T((1 - mu) G + mu M))

    An orthogonal m x n matrix has entries of root mean square 1 / sqrt(max(m, n)); the factor makes
    it 0.2, that of a typical AdamW update, so both halves share one learning rate and decay.
    Matrices that are stacked for speed (queries, keys, values) are orthogonalised one by one.

    Args:
        model: a labkit or `transformers` model, its matrices whole on each rank (ddp, not fsdp).
        groups: from `parameter_groups`.
        learning_rate, betas, eps: of AdamW; the learning rate and the groups' decay of both.
        momentum: mu, in [0, 1).
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict],
        *,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        momentum: float = 0.95,
    ):
        rows: dict[Tensor, tuple[int, ...]] = {}
        for module in blocks(model).modules():
            for p in module.parameters(recurse=False):
                if p.ndim == 2 and not isinstance(module, nn.Embedding):
                    rows[p] = module.rows if isinstance(module, StackedLinear) else (len(p),)
        split = []
        for group in groups:
            for inside in (True, False):
                chosen = [p for p in group["params"] if (p in rows) == inside]
                if chosen:
                    split.append({**group, "params": chosen, "orthogonal": inside})
        super().__init__(split, lr=learning_rate, betas=betas, eps=eps, fused=True)
        self._step_supports_amp_scaling = False  # the scaler itself skips a step that overflowed
        self.rows, self.momentum = rows, momentum
        device = next(p.device for group in split for p in group["params"])
        self.dtype = runtime.DTYPES[runtime.pick_precision(device)]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        everything = self.param_groups
        self.param_groups = [group for group in everything if not group["orthogonal"]]
        super().step(closure)
        self.param_groups = everything
        for group in everything:
            if group["orthogonal"]:
                self._orthogonal_step(group)

    def _orthogonal_step(self, group: dict) -> None:
        pieces: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - self.momentum)
            direction = p.grad.lerp(state["momentum"], self.momentum).to(self.dtype)
            p.mul_(1 - group["lr"] * group["weight_decay"])
            for weight, wanted in zip(
                p.split(self.rows[p]), direction.split(self.rows[p]), strict=True
            ):
                pieces[weight.shape].append((weight, wanted))
        for shape, pairs in pieces.items():  # equal shapes together: few large products
            scale = 0.2 * math.sqrt(max(shape))
            directions = orthogonalise(torch.stack([wanted for _, wanted in pairs]))
            for (weight, _), direction in zip(pairs, directions, strict=True):
                weight.add_(direction.to(weight.dtype), alpha=-group["lr"] * scale)


# --- AdamW by hand, and the norm ---------------------------------------------------------------


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
