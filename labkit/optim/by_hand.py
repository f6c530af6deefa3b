"""Optimisers by hand: one update each, in place, line by line as in the paper.

    gradient g ──> clip ──> sgd       w <- w - lr g
                            momentum  w <- w - lr b,       b = mu b + g
                            adam      w <- w - lr m_hat / (sqrt(v_hat) + eps)
                            adamw     the same, and w <- w - lr lambda w beside it

`optim.build` makes torch's fused ones of them; the tests hold both to the same numbers.

Sources: Robbins & Monro 1951 (sgd); Polyak 1964 (momentum); Nesterov 1983 and Sutskever et al. 2013
(its look-ahead); Kingma & Ba 2015, arXiv:1412.6980, algorithm 1 (Adam); Loshchilov & Hutter 2019,
arXiv:1711.05101, algorithm 2 (AdamW); Pascanu et al. 2013, arXiv:1211.5063 (clipping).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.errors import LabError


@torch.no_grad()
def sgd_step(
    weight: Tensor, gradient: Tensor, *, learning_rate: float, weight_decay: float = 0.0
) -> None:
    """One step down the gradient: w <- w - lr (g + lambda w).

    Without momentum, L2 in the loss and decoupled decay are the same thing: both shrink w by the
    factor 1 - lr lambda.

    Args:
        weight, gradient: tensors of one shape.
        learning_rate: lr, above 0.
        weight_decay: lambda, 0 or more.
    """
    weight.sub_(learning_rate * (gradient + weight_decay * weight))


@torch.no_grad()
def momentum_step(
    weight: Tensor,
    gradient: Tensor,
    buffer: Tensor,
    *,
    learning_rate: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> None:
    """One step of SGD with momentum, in torch's convention.

    g <- g + lambda w;   b <- mu b + g;   w <- w - lr b,   or with Nesterov  w <- w - lr (g + mu b)

    The buffer sums gradients: under a constant one it grows to g / (1 - mu), so a rate that was
    right without momentum is 1 / (1 - mu) times too high with it.

    Args:
        weight, gradient, buffer: tensors of one shape; the buffer starts at zero.
        learning_rate: lr, above 0.
        momentum: mu, in [0, 1).
        nesterov: step with the gradient that the buffer will have, not has.
        weight_decay: lambda of an L2 term in the loss, 0 or more.
    """
    gradient = gradient + weight_decay * weight
    buffer.mul_(momentum).add_(gradient)
    weight.sub_(learning_rate * (gradient + momentum * buffer if nesterov else buffer))


@torch.no_grad()
def adam_step(
    weight: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """One Adam update; weight decay, if any, is an L2 term in the loss.

    g <- g + lambda w;   m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
    w <- w - lr m_hat / (sqrt(v_hat) + eps),   m_hat = m / (1 - b1^t),   v_hat = v / (1 - b2^t)

    m is (1 - b1) sum_i b1^(t - i) g_i: its weights sum to 1 - b1^t, not to 1, which the division
    repairs. lambda w passes through v too: see `adamw_step` for what that does.

    Args:
        weight, gradient, m, v: tensors of one shape; m and v start at zero.
        step: t, counted from 1.
        learning_rate: lr, above 0; about the largest change of an entry: noise makes it smaller.
        betas: (b1, b2), each in [0, 1).
        eps: added to the root, not under it; above 0.
        weight_decay: lambda of the L2 term lambda |w|^2 / 2, 0 or more.

    Raises:
        LabError: a step below 1, where the correction would divide by 0.

    Source: Kingma & Ba 2015, algorithm 1.
    """
    if step < 1:
        raise LabError(f"step {step} is out of range: Adam counts updates from 1")
    beta1, beta2 = betas
    gradient = gradient + weight_decay * weight
    m.mul_(beta1).add_(gradient, alpha=1 - beta1)
    v.mul_(beta2).add_(gradient * gradient, alpha=1 - beta2)
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    weight.sub_(learning_rate * m_hat / (v_hat.sqrt() + eps))


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
    """One AdamW update: the weights shrink beside Adam's step, not through it.

    w <- (1 - lr lambda) w;   then `adam_step` without decay

    Every weight shrinks by the same factor. Under Adam with L2 the pull lambda w is divided by
    sqrt(v_hat), so weights with large gradients hardly shrink at all.

    Args:
        weight, gradient, m, v: tensors of one shape; m and v start at zero.
        step: t, counted from 1.
        learning_rate, betas, eps: as in `adam_step`.
        weight_decay: lambda, 0 or more.

    Source: Loshchilov & Hutter 2019, algorithm 2.
    """
    weight.mul_(1 - learning_rate * weight_decay)
    adam_step(weight, gradient, m, v, step, learning_rate=learning_rate, betas=betas, eps=eps)


@torch.no_grad()
def clip_gradients(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """Shorten all gradients together, in place, to norm `max_norm`; short ones stay as they are.

    g <- g min(1, max_norm / (|g| + 1e-6)),   |g|^2 = sum over all entries of all tensors

    Args:
        gradients: tensors of any shapes: one long vector, whose direction stays.
        max_norm: above 0.

    Returns:
        |g| before clipping, a scalar.

    Source: Pascanu et al. 2013, algorithm 1.
    """
    norm = torch.stack([g.norm() for g in gradients]).norm()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(scale)
    return norm
