"""Losses as pure functions that return (sum, count), never a mean.

    mean loss of an update = (sum over all micro-batches and ranks) / (count over the same)

A mean of means is wrong as soon as two micro-batches hold different numbers of valid targets, so
no function here divides. Reductions run in fp32 whatever the logits' format (fp64 stays fp64).

Legend: N positions, V vocabulary or classes, D model width, G pairs of a group.

Sources: Bridle 1990 (softmax); Szegedy et al. 2016, arXiv:1512.00567, section 7 (label smoothing);
Wijmans et al. 2024, arXiv:2411.09009 (chunked cross-entropy); van den Oord et al. 2018,
arXiv:1807.03748, section 2.3 (InfoNCE); Chen et al. 2020, arXiv:2002.05709, section 2.1
(cosine and temperature).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from labkit.batches import IGNORE_INDEX
from labkit.errors import LabError


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _unreadable(targets_N: Tensor) -> bool:
    """Reading the values would stall the GPU or break the graph; fake ones have none."""
    return targets_N.is_cuda or torch.compiler.is_compiling() or isinstance(targets_N, FakeTensor)


def _check_targets(targets_N: Tensor, num_classes: int) -> None:
    if _unreadable(targets_N):
        return
    valid = targets_N[targets_N != IGNORE_INDEX]
    if valid.numel() and (int(valid.min()) < 0 or int(valid.max()) >= num_classes):
        bad = int(valid.min()) if int(valid.min()) < 0 else int(valid.max())
        raise LabError(
            f"target {bad} is out of range: use 0 to {num_classes - 1}, or {IGNORE_INDEX} to ignore"
        )


def cross_entropy(
    logits_NV: Float[Tensor, "N V"],
    targets_N: Int[Tensor, " N"],
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum of -log softmax(logits)[target] over valid targets, and how many are valid.

    loss_n = logsumexp_v(z_nv) - z_n,target;   d loss_n / d z_nv = p_nv - y_nv

    With smoothing s the one-hot y becomes (1 - s) y + s / V.

    Args:
        logits_NV: scores, any real number.
        targets_N: class indices 0 .. V - 1, or `IGNORE_INDEX` for positions that do not count.
        label_smoothing: s, from 0 to 1.

    Returns:
        (sum in nats, count), both scalars. With no valid target: (0, 0), never NaN.

    Raises:
        LabError: a target lies outside the classes, or s outside [0, 1].
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise LabError(f"label_smoothing {label_smoothing} is out of range: choose 0 to 1")
    _check_targets(targets_N, logits_NV.shape[-1])
    total = F.cross_entropy(
        _at_least_fp32(logits_NV),
        targets_N,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total, (targets_N != IGNORE_INDEX).sum()


def binary_cross_entropy(
    logits_N: Float[Tensor, " N"], targets_N: Float[Tensor, " N"] | Int[Tensor, " N"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum of -y log s(z) - (1 - y) log(1 - s(z)) with the logistic s, and the count.

    Computed as max(z, 0) - z y + log(1 + exp(-|z|)), which cannot overflow.

    Args:
        logits_N: scores, any real number.
        targets_N: 0 or 1 (or a probability); `IGNORE_INDEX` for positions that do not count.
    """
    valid_N = targets_N != IGNORE_INDEX
    z, y = _at_least_fp32(logits_N)[valid_N], targets_N[valid_N]
    if y.numel() and (float(y.min()) < 0 or float(y.max()) > 1):
        raise LabError(
            f"binary target {float(y.max())} is out of range: use 0 to 1; for more than two "
            "classes use cross_entropy"
        )
    total = F.binary_cross_entropy_with_logits(z, y.to(z.dtype), reduction="sum")
    return total, valid_N.sum()


def positions_at_once(vocab_size: int) -> int:
    """Positions whose logits `chunked_cross_entropy` holds together: 1024, fewer above 16,384 ids.

    So a chunk has at most 2^24 logits, 67 MB in fp32, however large the vocabulary.
    """
    return max(1, min(1024, 2**24 // vocab_size))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Forward computes loss and gradients chunk by chunk, so logits exist for one chunk only."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, chunk):
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=_at_least_fp32(hidden_ND[:0]).dtype, device=hidden_ND.device)
        d_hidden_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        d_weight_VD = torch.zeros_like(weight_VD, dtype=total.dtype) if needs_weight else None
        # The matmuls run in the autocast format, as a linear layer's would.
        dtype = hidden_ND.dtype
        if torch.is_autocast_enabled(hidden_ND.device.type):
            dtype = torch.get_autocast_dtype(hidden_ND.device.type)
        weight = weight_VD.to(dtype)
        for start in range(0, hidden_ND.shape[0], chunk):
            h_CD = hidden_ND[start : start + chunk].to(dtype)
            t_C = targets_N[start : start + chunk]
            log_p_CV = F.log_softmax(_at_least_fp32(h_CD @ weight.T), dim=-1)
            nll = F.nll_loss(log_p_CV, t_C, ignore_index=IGNORE_INDEX, reduction="sum")
            total = total + nll  # not +=: the compiler of torch 2.11 would lose every gradient
            if not (needs_hidden or needs_weight):
                continue
            valid_C = t_C != IGNORE_INDEX
            grad_CV = log_p_CV.exp_()  # p - y, zero where ignored
            ones_C1 = torch.ones_like(grad_CV[:, :1])
            grad_CV.scatter_add_(1, t_C.clamp(min=0).unsqueeze(1), -ones_C1)
            grad_CV *= valid_C.unsqueeze(1)
            grad_CV = grad_CV.to(dtype)
            if d_hidden_ND is not None:
                d_hidden_ND[start : start + chunk] = (grad_CV @ weight).to(hidden_ND.dtype)
            if d_weight_VD is not None:
                d_weight_VD += grad_CV.T @ h_CD
            del log_p_CV, grad_CV  # or they would outlive this chunk, beside the next one's
        ctx.save_for_backward(d_hidden_ND, d_weight_VD)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx, d_total):
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        return (
            None if d_hidden_ND is None else d_hidden_ND * d_total.to(d_hidden_ND.dtype),
            None if d_weight_VD is None else (d_weight_VD * d_total).to(ctx.weight_dtype),
            None,
            None,
        )


def chunked_cross_entropy(
    hidden_ND: Float[Tensor, "N D"],
    weight_VD: Float[Tensor, "V D"],
    targets_N: Int[Tensor, " N"],
    chunk: int | None = None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """`cross_entropy(hidden @ weight.T, targets)` without ever holding the N x V logits.

    Each chunk of positions computes its logits, its loss and at once its gradients (p - y), so
    memory is chunk * V instead of N * V, and the logits are computed once, not recomputed. On a
    CPU rows that do not count are left out, unless compiled.

    Args:
        hidden_ND: the last hidden states.
        weight_VD: the output embedding (no bias).
        targets_N: as in `cross_entropy`.
        chunk: positions at a time, at least 1; None: `positions_at_once` of the vocabulary.

    Returns:
        (sum in nats, count). Differentiable in hidden and weight (once).

    Cost: 2 n V D FLOPs forward and 4 n V D for the gradients, done in the forward pass, of the n
    rows that count.
    """
    chunk = positions_at_once(weight_VD.shape[0]) if chunk is None else chunk
    if chunk < 1:
        raise LabError(f"chunk {chunk} is out of range: choose at least 1 position")
    _check_targets(targets_N, weight_VD.shape[0])
    valid_N = targets_N != IGNORE_INDEX
    count = valid_N.sum()
    if not _unreadable(targets_N) and 0 < int(count) < len(targets_N):
        hidden_ND, targets_N = hidden_ND[valid_N], targets_N[valid_N]
    return _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, chunk), count


def contrastive(
    first_BGD: Float[Tensor, "B G D"],
    second_BGD: Float[Tensor, "B G D"],
    temperature: float = 0.05,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """InfoNCE: tell the partner of each first vector from the other second vectors of its group.

    s_ij = cos(first_i, second_j) / temperature;   loss_i = logsumexp_j(s_ij) - s_ii

    With p_ij = softmax_j(s_ij):   d loss / d s_ij = p_ij - [i = j]

    A group is one example: its negatives are inside it, so cutting a batch into micro-batches
    changes nothing. With negatives from the whole batch it would change the problem.

    Args:
        first_BGD, second_BGD: vectors of any length but 0; pair g of group b is (b, g) of both.
        temperature: above 0. Small ones look at the most similar negatives only.

    Returns:
        (sum in nats, number of pairs B G). Knowing nothing costs ln G a pair.

    Raises:
        LabError: a temperature of 0 or less, or groups of one pair, which have no negatives.
    """
    groups, size, _ = first_BGD.shape
    if not temperature > 0:
        raise LabError(f"temperature {temperature} is out of range: choose above 0")
    if size < 2:
        raise LabError(f"a group of {size} pair has no negatives: give at least 2 pairs")
    first_BGD = F.normalize(_at_least_fp32(first_BGD), dim=-1)
    second_BGD = F.normalize(_at_least_fp32(second_BGD), dim=-1)
    scores_BGG = first_BGD @ second_BGD.mT / temperature
    partner_N = torch.arange(size, device=scores_BGG.device).repeat(groups)
    return cross_entropy(scores_BGG.flatten(0, 1), partner_N)
