"""Dropout whose mask costs less than the layer it follows.

    64 random bits ──> four numbers of 16 bits ──> kept where below a threshold (1 byte each)
    forward: x · mask / P(kept)          backward: dy · the same mask / P(kept)

On a CPU torch draws a Bernoulli number for each entry. Here a word of the same generator serves
four entries, which takes less time (docs/LOG.md); a run resumes to the bit as before, and the bits
drawn differ from torch's.

P(kept) is a multiple of 1/65,536, and the division uses that very number: the mean is exact.

Source: Srivastava et al. 2014 (with the scaling at training time, "inverted").
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabError

#: Values that 16 random bits can take.
LEVELS = 2**16


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kept_levels):
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        mask = (bits < kept_levels - LEVELS // 2).view(torch.uint8)
        ctx.save_for_backward(mask)
        ctx.scale = LEVELS / kept_levels
        return (x * mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, d_out):
        (mask,) = ctx.saved_tensors
        return (d_out * mask).mul_(ctx.scale), None


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Set entries to 0 with probability p and scale the others, so that the mean stays.

    Args:
        x: any shape and floating dtype.
        p: in [0, 1); on a CPU rounded to a multiple of 1/65,536.
        training: False returns x.

    Returns:
        A tensor like x. On a CPU, in eager mode, its mask waits for the backward pass, one byte an
        entry; elsewhere this is torch's own fused dropout.

    Raises:
        LabError: p is outside [0, 1).
    """
    if not 0 <= p < 1:
        raise LabError(f"dropout is {p}; it must be in [0, 1)")
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    kept_levels = max(1, round((1 - p) * LEVELS))
    return _Dropout.apply(x, kept_levels)  # pyright: ignore[reportReturnType]


class Dropout(nn.Dropout):
    """`dropout` as a layer: active in training mode alone."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)
