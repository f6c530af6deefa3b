"""Muon: an optimiser for matrices that evens out the directions of each update.

    gradient G ──> momentum M ──> orthogonalise: U S V^T becomes about U V^T ──> W <- W - lr ...

A gradient matrix has a few large singular values and many small ones; Adam follows mostly the
large. Muon steps equally far along all of them.

Legend: B matrices at once, M rows, N columns.

Sources: Jordan et al. 2024, "Muon" (kellerjordan.github.io/posts/muon); Liu et al. 2025,
arXiv:2502.16982 (the factor that lets it share AdamW's rate and decay).
"""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from labkit import runtime
from labkit.models.attention import StackedLinear
from labkit.models.transformer import blocks

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
